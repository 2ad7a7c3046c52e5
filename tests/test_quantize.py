"""Quantizing an ONNX model: what comes out computes in eight bits and says nearly the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import SIZE, write_images, write_linear

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
import onnx
from onnx import TensorProto, helper, numpy_helper

from ebjr import load_model
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError
from ebjr.quantize import quantize


def write_convolutions(path: Path, batch: str | int = "batch") -> Path:
    """Two random convolutions and a layer of three logits, of (3, 8, 8) images."""
    rng = np.random.default_rng(0)
    arrays = {
        "first": rng.normal(0, 0.4, (8, 3, 3, 3)),
        "second": rng.normal(0, 0.2, (8, 8, 3, 3)),
        "logits_of": rng.normal(0, 2, (8, 3)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "first"], ["a"], "conv1", pads=[1] * 4),
            helper.make_node("Relu", ["a"], ["b"], "relu1"),
            helper.make_node("Conv", ["b", "second"], ["c"], "conv2", pads=[1] * 4),
            helper.make_node("Relu", ["c"], ["d"], "relu2"),
            helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
            helper.make_node("Flatten", ["e"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "logits_of"], ["logits"], "head"),
        ],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def net(tmp_path):
    return write_convolutions(tmp_path / "net.onnx")


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(1).normal(0, 1, (400, 3, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_quantized_model_says_nearly_the_same(net, inputs, tmp_path, method):
    told = []
    found = quantize(
        net,
        [inputs[:40], inputs[40:90], inputs[90:]],
        tmp_path / "small.onnx",
        examples=120,
        method=method,
        tell=lambda *words: told.append(words),
    )
    quantized = load_model(tmp_path / "small.onnx")
    before, after = load_model(net)(inputs[120:]), quantized(inputs[120:])
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() > 0.9
    assert 0 < np.abs(before - after).mean() < 0.1 * before.std()
    assert found.operators == {"Conv": 2}
    assert found.examples == 120
    assert found.agreement > 0.9
    assert told[-1] == ("calibrating", 120, 120)
    onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
    assert quantized.input_shape == (None, 3, SIZE, SIZE)


def test_the_logits_keep_more_values_than_eight_bits_have(net, inputs, tmp_path):
    quantize(net, [inputs], tmp_path / "small.onnx")
    logits = load_model(tmp_path / "small.onnx")(inputs)
    assert len(np.unique(logits)) > 600


def test_weights_have_a_scale_for_each_channel(net, inputs, tmp_path):
    quantize(net, [inputs], tmp_path / "small.onnx", examples=16)
    graph = onnx.load(tmp_path / "small.onnx").graph
    scales = {value.name: list(value.dims) for value in graph.initializer if "scale" in value.name}
    assert [8] in scales.values()


@pytest.mark.parametrize(("bits", "most"), [(7, 64), (8, 127)])
def test_weights_use_as_many_bits_as_every_processor_can_add(net, inputs, tmp_path, bits, most):
    quantize(net, [inputs], tmp_path / "small.onnx", examples=16, weight_bits=bits)
    graph = onnx.load(tmp_path / "small.onnx").graph
    weights = [
        np.abs(numpy_helper.to_array(value).astype(int)).max()
        for value in graph.initializer
        if value.data_type == TensorProto.INT8 and len(value.dims) == 4
    ]
    assert weights == [most, most]


def test_an_answer_is_right_where_all_inputs_and_weights_are_the_largest(tmp_path):
    """Two products of 255 * 127 overflow a sum of 16 bits, which some processors keep them in."""
    path = write_convolutions(tmp_path / "net.onnx")
    model = onnx.load(path)
    for value in model.graph.initializer:
        array = np.abs(numpy_helper.to_array(value)).max() * np.ones(value.dims, np.float32)
        value.CopyFrom(numpy_helper.from_array(array, value.name))
    onnx.save(model, path)
    bright = np.linspace(0.9, 1.0, 32, dtype=np.float32)[:, None, None, None]
    inputs = np.broadcast_to(bright, (32, 3, SIZE, SIZE)).copy()
    quantize(path, [inputs], tmp_path / "small.onnx")
    before, after = load_model(path)(inputs), load_model(tmp_path / "small.onnx")(inputs)
    np.testing.assert_allclose(after, before, rtol=0.03)


def test_a_graph_with_a_fixed_batch_is_calibrated_in_batches_of_it(inputs, tmp_path):
    net = write_convolutions(tmp_path / "fixed.onnx", batch=8)
    found = quantize(net, [inputs], tmp_path / "small.onnx", examples=20)
    assert found.examples == 20
    assert load_model(tmp_path / "small.onnx").fixed_batch == 8


def test_calibration_sees_what_the_preprocessing_makes(net, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, SIZE, SIZE, 3), np.uint8)
    scales = []
    for top in (1.0, 4.0):
        quantize(
            net,
            [list(images)],
            tmp_path / "small.onnx",
            preprocess=Preprocess(size=SIZE, range=(0.0, top)),
        )
        graph = onnx.load(tmp_path / "small.onnx").graph
        (scale,) = (v for v in graph.initializer if v.name == "image_scale")
        scales.append(float(numpy_helper.to_array(scale)))
    assert scales[1] == pytest.approx(4 * scales[0], rel=1e-3)


def test_what_cannot_be_quantized_says_why_and_leaves_no_file(net, inputs, tmp_path):
    linear = write_linear(tmp_path / "linear.onnx", np.eye(3))
    (tmp_path / "text.onnx").write_text("no model")
    quantize(net, [inputs], tmp_path / "small.onnx", examples=8)
    before = sorted(path.name for path in tmp_path.iterdir())
    for source, message in {
        linear: "has nothing to quantize: no convolution",
        tmp_path / "text.onnx": "ONNX Runtime cannot load",
        tmp_path / "small.onnx": "is quantized already",
    }.items():
        with pytest.raises(ModelError, match=message):
            quantize(source, [inputs], tmp_path / "out.onnx", examples=8)
    with pytest.raises(ValueError, match="must hold inputs to calibrate"):
        quantize(net, [], tmp_path / "out.onnx")
    with pytest.raises(ValueError, match=r"net\.onnx is the model itself"):
        quantize(net, [inputs], net)
    with pytest.raises(ValueError, match="method must be one of minmax, entropy, percentile"):
        quantize(net, [inputs], tmp_path / "out.onnx", method="mean")
    with pytest.raises(ValueError, match="weight_bits must be 7 or 8, not 4"):
        quantize(net, [inputs], tmp_path / "out.onnx", weight_bits=4)
    with pytest.raises(ValueError, match=r"expects a batch of shape \(n, 3, 8, 8\)"):
        quantize(net, [inputs[:, :1]], tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_refused_by_its_row(net, inputs, tmp_path, value):
    rows = inputs[:40].copy()
    rows[37, 0, 3, 3] = value
    words = "must be finite, but 1 of 40 rows hold NaN or infinity, the first in row 37"
    with pytest.raises(ValueError, match=words):
        quantize(net, [rows[:32], rows[32:]], tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_the_command_writes_a_model_that_records(run, tmp_path):
    write_images(tmp_path / "images", 60)
    write_convolutions(tmp_path / "net.onnx")
    words = ("quantize", "net.onnx", "--data", "images", "--examples", 40)
    code, printed, error = run(*words, "-o", "small.onnx")
    assert code == 0, error
    assert "2 Conv in eight bits, calibrated on 40 examples" in printed
    assert "batch of 64" in printed
    assert "no --preprocess given" in error
    code, printed, _ = run(*words, "--preprocess", "size=8", "-o", "again.onnx", "--json")
    figures = json.loads(printed)
    assert figures["operators"] == {"Conv": 2}
    assert figures["bytes_after"] == (tmp_path / "again.onnx").stat().st_size
    pair = ("--student", "small.onnx", "--teacher", "net.onnx")
    assert run("record", *pair, "--data", "images", "-o", "outcomes.npz")[0] == 0


def test_a_mistake_on_the_command_line_is_one_sentence(run, tmp_path):
    write_images(tmp_path / "images", 6)
    write_linear(tmp_path / "net.onnx", np.eye(3))
    words = ("quantize", "net.onnx", "--data", "images", "--preprocess", "size=8")
    code, _, error = run(*words, "-o", "nowhere/small.onnx")
    assert code == 2
    assert "the folder nowhere does not exist" in error
    code, _, error = run(*words, "-o", "small.onnx")
    assert code == 2
    assert "has nothing to quantize" in error
    assert not (tmp_path / "small.onnx").exists()
