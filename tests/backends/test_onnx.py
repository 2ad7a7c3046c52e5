"""OnnxModel on tiny graphs made here."""

import pickle
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ebjr.backends.onnx import OnnxModel, external_files
from ebjr.errors import ModelError

WEIGHT = np.arange(6, dtype=np.float32).reshape(3, 2)


def save(path, nodes, inputs, outputs, weights=()):
    """Write a graph; inputs and outputs are (name, element type, shape)."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def linear(path, batch="n", features=3, output_shape=("n", 2)):
    """y = x W and twice = 2 y, with a choice of what the graph says of its shapes."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["y"]),
        helper.make_node("Add", ["y", "y"], ["twice"]),
    ]
    return save(
        path,
        nodes,
        [("x", TensorProto.FLOAT, [batch, features])],
        [("y", TensorProto.FLOAT, output_shape), ("twice", TensorProto.FLOAT, None)],
        [("W", WEIGHT)],
    )


def tokens(path):
    nodes = [helper.make_node("Gather", ["W", "ids"], ["y"])]
    inputs = [("ids", TensorProto.INT64, ["n"])]
    return save(path, nodes, inputs, [("y", TensorProto.FLOAT, ["n", 2])], [("W", WEIGHT)])


@pytest.fixture
def model(tmp_path):
    return OnnxModel(linear(tmp_path / "linear.onnx"))


@pytest.fixture
def fixed(tmp_path):
    return linear(tmp_path / "fixed.onnx", batch=4, output_shape=(4, 2))


def rows(n, dtype=np.float32):
    return np.random.default_rng(n).standard_normal((n, 3)).astype(dtype)


def test_a_graph_says_what_it_takes(model):
    assert (model.name, model.input_name, model.input_shape) == ("linear", "x", (None, 3))
    assert model.input_dtype == np.float32
    assert model.output_names == ("y", "twice")
    assert model.fixed_batch is None


def test_a_batch_gives_a_row_for_each_input(model):
    batch = rows(5)
    answers = model(batch)
    assert type(answers) is np.ndarray
    np.testing.assert_allclose(answers, batch @ WEIGHT, rtol=1e-5)


def labeled(path, *others):
    """A classifier as estimators are converted: labels first, and then what else it says."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    outputs = [("label", TensorProto.INT64, ["n"])]
    outputs += [(name, TensorProto.FLOAT, ["n", 2]) for name in others]
    return save(path, nodes, [("x", TensorProto.FLOAT, ["n", 3])], outputs, [("W", WEIGHT)])


@pytest.mark.parametrize("name", ["probabilities", "scores"])
def test_labels_that_come_first_are_no_raw_output(tmp_path, name):
    model = OnnxModel(labeled(tmp_path / "net.onnx", name))
    assert model.output_name == name
    assert model(rows(5)).shape == (5, 2)


def test_two_outputs_that_may_be_raw_output_are_named_with_the_flag(tmp_path):
    path = labeled(tmp_path / "net.onnx", "probabilities", "scores")
    with pytest.raises(ModelError, match=r"may be probabilities or scores.*--student-output"):
        OnnxModel(path)
    assert OnnxModel(path, output="scores")(rows(5)).shape == (5, 2)


def test_labels_alone_are_taken_as_they_are(tmp_path):
    assert OnnxModel(labeled(tmp_path / "net.onnx")).output_name == "label"


def test_an_output_is_chosen_by_name(tmp_path, model):
    twice = OnnxModel(model.path, output="twice")
    np.testing.assert_array_equal(twice(rows(2)), 2 * model(rows(2)))
    with pytest.raises(ValueError, match=r"one of y, twice.*'logits'"):
        OnnxModel(model.path, output="logits")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.float64, np.bool_])
def test_numbers_are_cast_to_a_float_graph(model, dtype):
    batch = np.array([[0, 1, 1]], dtype=dtype)
    np.testing.assert_array_equal(model(batch), batch.astype(np.float32) @ WEIGHT)


def test_a_float_is_never_cast_to_an_integer_graph(tmp_path):
    model = OnnxModel(tokens(tmp_path / "tokens.onnx"))
    np.testing.assert_array_equal(model(np.array([2, 0], dtype=np.uint8)), WEIGHT[[2, 0]])
    with pytest.raises(TypeError, match="type int64, but was given float32"):
        model(np.ones(2, dtype=np.float32))
    with pytest.raises(TypeError, match="type int64, but was given uint64"):
        model(np.ones(2, dtype=np.uint64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_torch_tensor_goes_in_and_numpy_comes_out(model, dtype):
    batch = torch.ones(2, 3, dtype=dtype, requires_grad=True)
    np.testing.assert_array_equal(model(batch), np.ones((2, 3), np.float32) @ WEIGHT)


def test_memory_order_does_not_matter(model):
    batch = rows(6)
    np.testing.assert_array_equal(model(np.asfortranarray(batch)), model(batch))
    np.testing.assert_array_equal(model(batch[::-2]), model(batch[::-2].copy()))


def test_a_list_is_not_a_batch(model):
    with pytest.raises(TypeError, match=r"array \(n, \.\.\.\), but is a list"):
        model([[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("shape", [(5, 4), (3,), (5, 3, 1), ()])
def test_a_wrong_shape_shows_both_shapes(model, shape):
    with pytest.raises(ValueError, match=r"shape \(n, 3\), but was given \(") as caught:
        model(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value)


def test_an_open_dimension_takes_any_length(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    shape = ["n", 3, "height"]
    path = save(
        tmp_path / "open.onnx",
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )
    model = OnnxModel(path)
    assert model(np.ones((2, 3, 7), np.float32)).shape == (2, 3, 7)
    with pytest.raises(ValueError, match=r"\(n, 3, any\), but was given \(2, 4, 7\)"):
        model(np.ones((2, 4, 7), np.float32))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_chunks_change_nothing(model, n):
    batch = rows(n)
    chunked = OnnxModel(model.path, batch_size=3)
    np.testing.assert_allclose(chunked(batch), model(batch), rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("told", [{}, {"batch_size": 4}])
def test_a_fixed_batch_model_takes_any_length(fixed, n, told):
    batch, model = rows(n), OnnxModel(fixed, **told)
    assert model.fixed_batch == 4
    np.testing.assert_allclose(model(batch), batch @ WEIGHT, rtol=1e-5)


def test_a_fixed_batch_model_takes_no_other_batch_size(fixed):
    with pytest.raises(ValueError, match="fixed batch of 4, but batch_size is 8"):
        OnnxModel(fixed, batch_size=8)


@pytest.mark.parametrize("output_shape", [("n", 2), ("n", "classes"), None])
def test_no_inputs_give_no_rows(tmp_path, output_shape):
    model = OnnxModel(linear(tmp_path / "linear.onnx", output_shape=output_shape))
    answers = model(np.zeros((0, 3), np.float32))
    assert (answers.shape, answers.dtype) == ((0, 2), np.float32)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1.5}, {"batch_size": 0}])
def test_a_count_below_one_is_refused(model, options):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        OnnxModel(model.path, **options)


def test_a_provider_that_is_not_there_is_named(model):
    with pytest.raises(ValueError, match=r"CPUExecutionProvider.*not WarpDrive"):
        OnnxModel(model.path, providers=["WarpDrive"])
    with pytest.raises(ValueError, match="a list of names"):
        OnnxModel(model.path, providers="CPUExecutionProvider")


def test_threads_and_providers_are_passed_on(model):
    tuned = OnnxModel(model.path, threads=1, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(tuned(rows(2)), model(rows(2)))


def test_two_required_inputs_are_too_many(tmp_path):
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    inputs = [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["n"])]
    path = save(tmp_path / "two.onnx", nodes, inputs, [("y", TensorProto.FLOAT, ["n"])])
    with pytest.raises(ModelError, match=r"one required input, but has 2 \(a, b\)"):
        OnnxModel(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07\x12"])
def test_a_corrupt_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "corrupt.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot load .*corrupt\.onnx") as caught:
        OnnxModel(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_corrupt(tmp_path, model):
    path = tmp_path / "half.onnx"
    path.write_bytes(model.path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        OnnxModel(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model file .*gone\.onnx does not exist"):
        OnnxModel(tmp_path / "gone.onnx")


def test_a_failure_inside_the_graph_is_a_model_error(tmp_path):
    model = OnnxModel(tokens(tmp_path / "tokens.onnx"))
    with pytest.raises(ModelError, match=r"tokens failed on a batch of shape \(1,\)"):
        model(np.array([99]))


def test_a_copy_in_another_process_keeps_its_options(model):
    copy = pickle.loads(pickle.dumps(OnnxModel(model.path, batch_size=2, output="twice")))
    assert (copy.batch_size, copy.output_name) == (2, "twice")
    np.testing.assert_array_equal(copy(rows(1)), 2 * model(rows(1)))


@pytest.mark.parametrize("length", [1, 127, 128, 200])
def test_weights_beside_the_graph_are_a_part_of_the_model(tmp_path, length):
    name = "w" * length
    plain = onnx.load(linear(tmp_path / "linear.onnx"))
    kept = {"save_as_external_data": True, "size_threshold": 0, "location": name}
    onnx.save(plain, tmp_path / "apart.onnx", **kept)
    assert external_files(tmp_path / "apart.onnx") == (tmp_path / name,)
    assert external_files(tmp_path / "linear.onnx") == ()


def test_what_is_only_called_location_is_no_file(tmp_path):
    plain = onnx.load(linear(tmp_path / "linear.onnx"))
    plain.metadata_props.add(key="location", value="Berlin")
    plain.graph.node[0].doc_string = "\n\x08location\x12\x06Berlin"
    onnx.save(plain, tmp_path / "told.onnx")
    assert external_files(tmp_path / "told.onnx") == ()


@pytest.mark.parametrize("location", ["gone.data", "../w.data", "/w.data", "."])
def test_weights_that_are_not_beside_the_graph_are_one_sentence(tmp_path, location):
    onnx.save(
        onnx.load(linear(tmp_path / "linear.onnx")),
        tmp_path / "apart.onnx",
        **{"save_as_external_data": True, "size_threshold": 0, "location": "w.data"},
    )
    graph = onnx.load(tmp_path / "apart.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (tmp_path / "apart.onnx").write_bytes(graph.SerializeToString())
    says = f"apart.onnx needs the weights in {re.escape(location)}, which is not a file in its"
    for read in (OnnxModel, external_files):
        with pytest.raises(ModelError, match=says) as caught:
            read(tmp_path / "apart.onnx")
        assert "\n" not in str(caught.value)


def test_facts_say_what_the_graph_takes_and_what_loads_it_again(tmp_path):
    path = linear(tmp_path / "fixed.onnx", batch=4, output_shape=(4, 2))
    facts = OnnxModel(path, batch_size=4, output="twice").facts
    assert (facts.name, facts.path, facts.fixed_batch) == ("fixed", path, 4)
    assert (facts.input_name, facts.input_shape, facts.input_dtype) == ("x", (4, 3), np.float32)
    assert facts.options == {"batch_size": 4, "output": "twice"}
    assert facts.device == "cpu"
    again = OnnxModel(facts.path, **facts.options)
    np.testing.assert_array_equal(
        again(np.ones((7, 3))), OnnxModel(path, **facts.options)(np.ones((7, 3)))
    )


def test_names_in_the_metadata_are_the_labels(tmp_path):
    path = linear(tmp_path / "net.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"names": "{0: 'cat', 1: 'dog'}"})
    onnx.save(model, path)
    assert OnnxModel(path).facts.labels == ("cat", "dog")
    assert OnnxModel(linear(tmp_path / "plain.onnx")).facts.labels is None
