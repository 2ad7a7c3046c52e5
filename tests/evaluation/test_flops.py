"""FLOPs in both forms of the same net, by hand and as published."""

import warnings

import numpy as np
import pytest
import torch
from nets import ConvNet, conv_net_graph, save, zeros
from onnx import TensorProto, helper
from torch import nn

from ebjr.backends import load_model
from ebjr.costs import Cost
from ebjr.errors import ModelError, RecordingNote
from ebjr.evaluation.example_costs import costs_of
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.profile import profile


def test_the_same_net_counts_the_same_in_both_forms(conv_net):
    graph, module = count_flops(conv_net), count_flops(ConvNet(), (1, 3, 16, 16))
    # By hand: 2 x (outputs) x (inputs of each output); 2 x (inputs) x (outputs of each input).
    stem, grouped, up, head = 8 * 64 * 27, 12 * 36 * 18, 12 * 36 * 3 * 16, 60
    assert graph.flops == module.flops == 2 * (stem + grouped + up + head)
    assert graph.parameters == module.parameters
    assert graph.parameter_bytes == module.parameter_bytes == 4 * graph.parameters
    assert graph.by_operator["ConvTranspose"] == 2 * up
    assert not graph.uncounted
    assert not module.uncounted


def test_a_loaded_model_counts_as_its_source(conv_net):
    assert count_flops(load_model(conv_net)) == count_flops(conv_net)
    module = ConvNet()
    assert count_flops(load_model(module), (1, 3, 16, 16)) == count_flops(module, (9, 3, 16, 16))


def test_a_fixed_batch_is_counted_for_one_example(conv_net, tmp_path):
    fixed = conv_net_graph(tmp_path / "fixed.onnx", batch=4)
    assert count_flops(fixed).flops == count_flops(conv_net).flops


def test_a_program_counts_as_its_module(tmp_path):
    module, path = ConvNet().eval(), tmp_path / "net.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own deprecations while it writes
        torch.export.save(torch.export.export(module, (torch.zeros(4, 3, 16, 16),)), path)
    program = load_model(path, batch_size=4)
    counted = count_flops(program)
    assert counted.flops == count_flops(module, (1, 3, 16, 16)).flops
    report = profile(program, batch_sizes=(1,), seconds=0.01)
    assert report.input_shape == (1, 3, 16, 16)
    assert report.peak_memory_bytes > 0


def test_counting_leaves_a_module_in_its_mode():
    module = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    module[1].eval()
    module[0].train()
    before = [part.training for part in module.modules()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    count_flops(module, (1, 4))
    assert [part.training for part in module.modules()] == before
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())


def test_torch_transformers_are_counted_in_full():
    width, length, hidden = 16, 5, 32
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    projections = 4 * length * width * width + 2 * length * width * hidden
    attention = 2 * length * length * width
    for module in (layer, layer.eval()):
        assert count_flops(module, (1, length, width)).flops == 2 * (projections + attention)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_nets_count_the_same_in_both_forms(tmp_path, kind, gates):
    steps, width, hidden = 7, 4, 5
    module = nn.Sequential(getattr(nn, kind)(width, hidden))
    weights = [
        ("w", zeros(1, gates * hidden, width)),
        ("r", zeros(1, gates * hidden, hidden)),
    ]
    nodes = [helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=hidden)]
    path = save(tmp_path / "net.onnx", nodes, [("x", [1, steps, width])], weights=weights)
    expected = 2 * steps * gates * hidden * (width + hidden)
    # The module reads (steps, batch, width), so one step is what a batch of one gives.
    assert count_flops(module, (1, steps, width)).flops == expected
    assert count_flops(path).flops == expected


def test_token_ids_are_counted_with_their_type():
    module = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    assert count_flops(module, (1, 6), input_dtype="int64").flops == 2 * 6 * 4 * 2
    with pytest.raises(ModelError, match=r"failed on an input of shape \(1, 6\)"):
        count_flops(module, (1, 6))


MATRICES = {
    "MatMul": (helper.make_node("MatMul", ["x", "w"], ["y"]), zeros(8, 3), 2 * 6 * 8 * 3),
    "batched": (helper.make_node("MatMul", ["x", "w"], ["y"]), zeros(1, 8, 3), 2 * 6 * 8 * 3),
    "vector": (helper.make_node("MatMul", ["x", "w"], ["y"]), zeros(8), 2 * 6 * 8),
    "FusedMatMul": (
        helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transA=1),
        zeros(6, 3),
        2 * 8 * 6 * 3,
    ),
    "Einsum": (
        helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik"),
        zeros(8, 3),
        2 * 6 * 8 * 3,
    ),
    "Conv1d": (helper.make_node("Conv", ["x", "w"], ["y"]), zeros(4, 6, 3), 2 * 4 * 6 * 6 * 3),
}


@pytest.mark.parametrize(("node", "weight", "expected"), MATRICES.values(), ids=MATRICES)
def test_each_operator_counts_its_products(tmp_path, node, weight, expected):
    path = save(tmp_path / "net.onnx", [node], [("x", ["n", 6, 8])], weights=[("w", weight)])
    counted = count_flops(path)
    assert (counted.flops, counted.uncounted) == (expected, {})
    assert counted.by_operator == {node.op_type: expected}
    assert counted.parameters == weight.size


def test_quantized_convolutions_count_as_the_plain_ones(tmp_path):
    weights = [
        ("scale", np.float32(0.1)),
        ("zero", np.uint8(0)),
        ("w", np.zeros((4, 3, 3, 3), np.uint8)),
    ]
    pairs = ["scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *pairs], ["q"]),
        helper.make_node("QLinearConv", ["q", *pairs, "w", *pairs, *pairs], ["p"]),
        helper.make_node("DequantizeLinear", ["p", *pairs], ["y"]),
    ]
    path = save(tmp_path / "net.onnx", nodes, [("x", ["n", 3, 8, 8])], weights=weights)
    counted = count_flops(path)
    assert (counted.flops, counted.parameters) == (2 * 4 * 36 * 27, 4 * 27)
    assert counted.parameter_bytes == 4 * 27


def test_shapes_that_depend_on_values_are_found_by_running(tmp_path):
    nodes = [
        # How many columns are left depends on what is in them: shape inference cannot tell.
        helper.make_node("NonZero", ["ones"], ["where"]),
        helper.make_node("Shape", ["where"], ["size"]),
        helper.make_node("Gather", ["size", "one"], ["columns"]),
        helper.make_node("Slice", ["x", "nought", "columns", "one"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    weights = [
        ("w", zeros(4, 3)),
        ("ones", np.array([1, 0, 1, 1, 1, 0], np.float32)),
        ("one", np.array([1])),
        ("nought", np.array([0])),
    ]
    path = save(tmp_path / "net.onnx", nodes, [("x", ["n", 8])], weights=weights)
    assert count_flops(path).flops == 2 * 4 * 3


def test_what_cannot_be_looked_into_is_reported(tmp_path):
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("left", "right")
    ]
    nodes = [
        helper.make_node("If", ["yes"], ["a"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Wavelet", ["x"], ["b"], domain="example.org"),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = [("w", zeros(8, 3)), ("yes", np.array(True))]
    path = save(tmp_path / "net.onnx", nodes, [("x", ["n", 8])], weights=weights)
    counted = count_flops(path)
    assert counted.flops == 2 * 8 * 3
    assert counted.uncounted == {"If": 1, "Wavelet": 1, "MatMul": 1}
    assert counted.known == counted.flops

    def model(batch):
        return batch

    model.path = path
    with pytest.warns(RecordingNote, match="a lower bound, .*: the model has If, Wavelet, MatMul"):
        costs = costs_of({"student": model}, np.zeros((2, 8)), {"student": Cost()})
    assert costs["student"].flops == counted.flops


def test_what_is_nothing_but_uncounted_has_no_flops_that_are_known(tmp_path):
    nodes = [helper.make_node("Wavelet", ["x"], ["y"], domain="example.org")]
    counted = count_flops(save(tmp_path / "net.onnx", nodes, [("x", ["n", 8])]))
    assert (counted.flops, counted.known) == (0, None)
    nothing = [helper.make_node("Relu", ["x"], ["y"])]
    assert count_flops(save(tmp_path / "free.onnx", nothing, [("x", ["n", 8])])).known == 0


def test_operators_inside_functions_are_counted(tmp_path):
    sets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    function = helper.make_function("example.org", "Project", ["a", "b"], ["c"], body, sets)
    node = helper.make_node("Project", ["x", "w"], ["y"], domain="example.org")
    path = save(
        tmp_path / "net.onnx",
        [node],
        [("x", ["n", 8])],
        weights=[("w", zeros(8, 3))],
        functions=[function],
    )
    assert count_flops(path).by_operator == {"MatMul": 2 * 8 * 3}


def test_open_dimensions_must_be_given(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    weights = [("w", zeros(4, 3, 1, 1))]
    path = save(tmp_path / "net.onnx", nodes, [("x", ["n", 3, "h", "w"])], weights=weights)
    assert count_flops(path, (1, 3, 5, 6)).flops == 2 * 4 * 3 * 5 * 6
    with pytest.raises(ValueError, match=r"\(n, 3, \?, \?\).*give a number for each"):
        count_flops(path)
    with pytest.raises(ValueError, match=r"\(n, 3, \?, \?\), but input_shape is \(n, 4, 5, 6\)"):
        count_flops(path, (1, 4, 5, 6))
    with pytest.raises(ValueError, match=r"but input_shape is \(n, 5\)"):
        profile(load_model(path), (1, 5))


def test_a_module_needs_its_input_shape():
    with pytest.raises(ValueError, match="Linear needs input_shape"):
        count_flops(nn.Linear(3, 2))


def test_a_callable_cannot_be_counted():
    with pytest.raises(TypeError, match=r"FLOPs are counted for an \.onnx file"):
        count_flops(abs, (1, 3))


def test_a_file_to_count_must_be_there_and_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model file .*gone\.onnx does not exist"):
        count_flops(tmp_path / "gone.onnx")
    for content in (b"", b"not a model"):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad\.onnx is not an ONNX model"):
            count_flops(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("name", "macs"),
    [("osi_exit", 22_261_888), ("osi_full", 56_597_872), ("densenet_bc_100_12", 287_960_472)],
)
def test_published_nets_have_their_published_flops(shared_data, name, macs):
    path = shared_data / "cifar100" / "weights" / f"{name}_cifar100.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the shared data")
    counted = count_flops(path)
    assert counted.flops == 2 * macs
    assert not counted.uncounted
