"""Outputs of every layout that say the same: one box of one class. And graphs that answer them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit

from ebjr.backends.layouts import (
    LAYOUTS,
    decode_detr,
    decode_end2end,
    decode_nanodet,
    decode_rtdetr,
    decode_torchvision,
    decode_yolov5,
    decode_yolov8,
    decode_yolox,
)

SIDE, CLASSES = 64, 3
SIZE = (SIDE, SIDE)
CELLS = 8 * 8 + 4 * 4 + 2 * 2
"""Of maps on strides 8, 16 and 32."""
BOX = np.array([10.0, 12.0, 42.0, 36.0], np.float32)
CENTER = np.array([26.0, 24.0, 32.0, 24.0], np.float32)
"""The same: center, width, height."""
SPIKE = 40.0


def sides_of(center, stride, bins):
    """Bin logits (4 * bins,) whose mean distances from a cell lead to BOX."""
    distances = np.concatenate([center - BOX[:2], BOX[2:] - center]) / stride
    logits = np.full((4, bins), -SPIKE, np.float32)
    for side, distance in enumerate(distances):
        low = int(distance)
        part = distance - low
        logits[side, low] = np.log(1 - part) if part < 1 else -SPIKE
        if part > 0:
            logits[side, low + 1] = np.log(part)
    return logits.ravel()


def nanodet_outputs(label=2, bins=8):
    outputs = {}
    for stride in (8, 16, 32):
        cells = SIDE // stride
        outputs[f"stride{stride}"] = np.zeros((1, CLASSES + 4 * bins, cells, cells), np.float32)
        outputs[f"stride{stride}"][:, :CLASSES] = -12
    x = y = 1  # the cell whose center is (24, 24)
    outputs["stride16"][0, label, y, x] = 3
    outputs["stride16"][0, CLASSES:, y, x] = sides_of(np.array([24.0, 24.0]), 16, bins)
    return outputs


def yolov8_outputs(label=2, bins=8):
    maps = nanodet_outputs(label, bins)
    flat = np.concatenate([one.reshape(1, one.shape[1], -1) for one in maps.values()], axis=2)
    return {"cls": flat[:, :CLASSES], "dfl": flat[:, CLASSES:]}


def yolov8_decoded(label=2):
    output = np.zeros((1, 4 + CLASSES, CELLS), np.float32)
    output[0, :4, 7], output[0, 4 + label, 7] = CENTER, expit(3)
    return {"output0": output}


def yolov8_normalized(label=2):
    output = yolov8_decoded(label)["output0"]
    output[:, :4] /= SIDE
    return {"output0": output}


def yolov5_outputs(label=2, boxes=3 * CELLS):
    output = np.zeros((1, boxes, 5 + CLASSES), np.float32)
    output[0, 7, :4], output[0, 7, 4], output[0, 7, 5 + label] = CENTER, 1.0, expit(3)
    return {"output0": output}


def yolox_decoded(label=2):
    return yolov5_outputs(label, CELLS)


def yolox_outputs(label=2):
    """The box in the cell whose corner is (24, 16), of stride 8."""
    output = yolox_decoded(label)["output0"]
    output[0, 2 * 8 + 3] = output[0, 7]
    output[0, 7] = 0
    output[0, 2 * 8 + 3, :4] = [(26 - 24) / 8, (24 - 16) / 8, np.log(32 / 8), np.log(24 / 8)]
    return {"output0": output}


def end2end_outputs(label=2, boxes=300, unit=1):
    output = np.zeros((1, boxes, 6), np.float32)
    output[0, 0] = [*(BOX / unit), expit(3), label]
    return {"output0": output}


def end2end_normalized(label=2):
    return end2end_outputs(label, unit=SIDE)


def rtdetr_outputs(label=2, classes=CLASSES):
    output = np.full((1, 300, 4 + classes), 0.01, np.float32)
    output[0, 1, :4], output[0, 1, 4 + label] = CENTER / SIDE, expit(3)
    return {"output0": output}


def detr_outputs(label=2, queries=5, bins=7):
    logits = np.full((1, queries, CLASSES), -12, np.float32)
    boxes = np.full((1, queries, 4), 0.5, np.float32)
    logits[0, 1, label], boxes[0, 1] = 3, CENTER / SIDE
    corners = np.arange(queries * 4 * bins, dtype=np.float32).reshape(queries * 4, bins)
    return {"cls_logits": logits, "boxes": boxes, "corner_logits": corners}


def softmax_detr_outputs(label=2, queries=5):
    outputs = detr_outputs(label, queries)
    nothing = np.zeros((1, queries, 1), np.float32)
    logits = np.concatenate([outputs["cls_logits"], nothing], axis=2)
    return {"logits": logits, "pred_boxes": outputs["boxes"]}


def torchvision_outputs(label=2):
    return {
        "boxes": BOX[None],
        "labels": np.array([label + 1]),
        "scores": np.array([expit(3)], np.float32),
    }


MADE = {
    "nanodet": (decode_nanodet, nanodet_outputs),
    "yolov8": (decode_yolov8, yolov8_outputs),
    "yolov8, one output": (decode_yolov8, yolov8_decoded),
    "yolov8_normalized": (LAYOUTS["yolov8_normalized"].decode, yolov8_normalized),
    "yolov5": (decode_yolov5, yolov5_outputs),
    "yolov5, a box for each cell": (decode_yolov5, yolox_decoded),
    "yolox": (decode_yolox, yolox_outputs),
    "end2end": (decode_end2end, end2end_outputs),
    "end2end_normalized": (LAYOUTS["end2end_normalized"].decode, end2end_normalized),
    "rtdetr": (decode_rtdetr, rtdetr_outputs),
    "detr": (decode_detr, detr_outputs),
    "detr, softmax": (decode_detr, softmax_detr_outputs),
    "torchvision": (decode_torchvision, torchvision_outputs),
}
NAMES = tuple(MADE)


def graph(path, outputs, batch=1, side=SIDE, blank=True, **metadata):
    """A graph that answers every input with the same outputs; if not `blank`, plain ones with 0."""
    numbers = {
        name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in outputs.items()
    }
    nodes = [helper.make_node("Identity", [f"{name}_"], [name]) for name in outputs]
    if not blank:
        over = {"axes": [0, 1, 2, 3], "keepdims": 0}
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["most"], **over),
            helper.make_node("ReduceMin", ["x"], ["least"], **over),
            helper.make_node("Sub", ["most", "least"], ["range"]),
            helper.make_node("Sign", ["range"], ["sign"]),
            *(helper.make_node("Mul", ["sign", f"{name}_"], [name]) for name in outputs),
        ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, number, None) for name, number in numbers.items()],
        [numpy_helper.from_array(value, f"{name}_") for name, value in outputs.items()],
    )
    sets = [helper.make_opsetid("", 17)]
    model = helper.make_model(made, opset_imports=sets, ir_version=8)
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.save(model, path)
    return path
