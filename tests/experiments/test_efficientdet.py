from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ebjr.errors import ModelError
from experiments.detection import efficientdet
from experiments.detection.efficientdet import COLUMNS, STRIDES, anchors, decode, detector

SIZE = 128
BACKGROUND = -9.0
CAT, DOG = 17, 18
"""COCO's numbers; the columns are one less."""


def heads(probabilities: bool = False) -> dict[str, np.ndarray]:
    """Ten maps with two boxes: a cat on an anchor as it is, a dog on one that is moved."""
    found = {}
    for stride in STRIDES:
        side = -(-SIZE // stride)
        found[f"class_{stride}"] = np.full((1, 9 * COLUMNS, side, side), BACKGROUND, np.float32)
        found[f"box_{stride}"] = np.zeros((1, 9 * 4, side, side), np.float32)
    found["class_8"][0, 0 * COLUMNS + CAT - 1, 2, 3] = 4.0  # octave 0, aspect 1: 32 pixels
    found["class_16"][0, 3 * COLUMNS + DOG - 1, 5, 4] = 3.0  # octave 1/3, aspect 1
    found["box_16"][0, 3 * 4 : 4 * 4, 5, 4] = [-0.25, -0.5, np.log(0.5), np.log(0.25)]
    if probabilities:
        for name in [name for name in found if name.startswith("class")]:
            found[name] = 1 / (1 + np.exp(-found[name]))
    return found


def expected() -> np.ndarray:
    """The cat's box and the dog's: x, y, x, y."""
    side = 16 * 4 * 2 ** (1 / 3)
    y, x = 5.5 * 16 - 0.25 * side, 4.5 * 16 - 0.5 * side
    dog = [x - side / 8, y - side / 4, x + side / 8, y + side / 4]
    return np.array([[28 - 16, 20 - 16, 28 + 16, 20 + 16], dog])


def joined() -> dict[str, np.ndarray]:
    """The same as one output of sides and one of classes."""
    each = heads()
    return {
        name: efficientdet.joined([each[f"{name}_{stride}"] for stride in STRIDES], columns)
        for name, columns in (("box", 4), ("class", COLUMNS))
    }


def saved(outputs: dict[str, np.ndarray], file) -> str:
    """A graph that gives these whatever the image is."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])
    nodes, constants, named = [], [], []
    nodes.append(helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Sub", ["mean", "mean"], ["zero"]))
    for name, value in outputs.items():
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        nodes.append(helper.make_node("Add", [f"{name}_value", "zero"], [name]))
        named.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))
    graph = helper.make_graph(nodes, "efficientdet", [image], named, constants)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), file)
    return str(file)


@pytest.mark.parametrize(
    "outputs", [heads(), heads(probabilities=True), joined()], ids=["maps", "shares", "joined"]
)
def test_a_graph_of_its_shape_gives_the_boxes_that_are_known(outputs, tmp_path):
    file = saved(outputs, tmp_path / "d0.onnx")
    model = detector(file, [1, CAT, DOG], SIZE)
    (found,) = model([np.zeros((SIZE, SIZE, 3), np.uint8)])
    sure = found.scores > 0.5
    np.testing.assert_allclose(found.boxes[sure], expected(), atol=1e-3)
    assert found.labels[sure].tolist() == [1, 2]  # places in the classes that are asked for
    np.testing.assert_allclose(found.scores[sure], 1 / (1 + np.exp([-4.0, -3.0])), atol=1e-5)


def test_boxes_go_back_to_an_image_of_another_size(tmp_path):
    file = saved(heads(), tmp_path / "d0.onnx")
    (found,) = detector(file, [CAT, DOG], SIZE)([np.zeros((2 * SIZE, 2 * SIZE, 3), np.uint8)])
    np.testing.assert_allclose(found.boxes[found.scores > 0.5], 2 * expected(), atol=1e-3)


@pytest.mark.parametrize(("size", "count"), [(512, 49104), (1024, 196416), (128, 3069)])
def test_there_are_nine_anchors_a_cell(size, count):
    assert anchors((size, size)).shape == (count, 4)


def test_outputs_of_another_number_of_anchors_are_refused():
    outputs = {"box": np.zeros((1, 100, 4)), "class": np.zeros((1, 100, COLUMNS))}
    with pytest.raises(ModelError, match="has 3069 anchors"):
        decode(outputs, (SIZE, SIZE), COLUMNS)


def test_a_file_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["efficientdet", "no.onnx", "no.onnx"])
    with pytest.raises(SystemExit):
        efficientdet.main()
    assert "student: there is no file no.onnx" in capsys.readouterr().err
