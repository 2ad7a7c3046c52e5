"""Tiny real pairs: two linear ONNX classifiers of three kinds of colored images, two detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ebjr
from ebjr import JointConfig
from ebjr.data.open import open_data
from ebjr.joint_file import ModelEntry

CLASSES = ("blue", "green", "red")
SIZE = 8


def write_linear(path: Path, weight: np.ndarray, batch: str | int = "batch") -> Path:
    """An ONNX classifier: mean color of a (3, 8, 8) image times `weight` (3, classes)."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["color"]),
            helper.make_node("Gemm", ["color", "weight", "bias"], ["logits"]),
        ],
        path.stem,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, weight.shape[1]])],
        [
            onnx.numpy_helper.from_array(weight.astype(np.float32), "weight"),
            onnx.numpy_helper.from_array(np.zeros(weight.shape[1], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A student that half confuses green with red, and a teacher that does not."""
    teacher = 20 * np.eye(3)[::-1]  # channels are red, green, blue; classes the other way round
    student = 6 * np.array([[0.0, 0.3, 1.0], [0.0, 1.0, 0.8], [1.0, 0.1, 0.0]])
    return (
        write_linear(folder / "student.onnx", student),
        write_linear(folder / "teacher.onnx", teacher),
    )


def write_images(folder: Path, n: int = 120, seed: int = 0) -> Path:
    """A folder of noisy blue, green and red images, a sub-folder for each class."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        label = number % 3
        color = rng.uniform(0, 140, 3)
        color[2 - label] += 60
        pixels = np.clip(color + rng.normal(0, 10, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        place = folder / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:04d}.png")
    return folder


CELLS, CELL = 4, 8


def write_detector(path: Path, weight: np.ndarray, bias: float) -> Path:
    """An ONNX detector like DETR: the color of each of 16 cells times `weight` (3, classes)."""
    import onnx
    from onnx import TensorProto, helper

    row, column = np.divmod(np.arange(CELLS**2), CELLS)
    boxes = np.stack([(column + 0.5) / CELLS, (row + 0.5) / CELLS], axis=1)
    boxes = np.concatenate([boxes, np.full((len(boxes), 2), 1 / CELLS)], axis=1)[None]
    side = CELLS * CELL
    arrays = {
        "weight": weight.T[:, :, None, None],
        "bias": np.full(weight.shape[1], bias),
        "cells": boxes,
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["image"], ["pooled"], kernel_shape=[CELL] * 2, strides=[CELL] * 2
            ),
            helper.make_node("Conv", ["pooled", "weight", "bias"], ["maps"]),
            helper.make_node("Reshape", ["maps", "shape"], ["flat"]),
            helper.make_node("Transpose", ["flat"], ["logits"], perm=[0, 2, 1]),
            helper.make_node("Identity", ["cells"], ["boxes"]),
        ],
        path.stem,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CELLS**2, 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, CELLS**2, 4]),
        ],
        [
            *(onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()),
            onnx.numpy_helper.from_array(np.array([1, 3, CELLS**2]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def write_detectors(folder: Path) -> tuple[Path, Path]:
    """A student that half confuses green with red and is less sure, and a teacher that does not."""
    teacher = 16 * np.eye(3)[::-1]
    student = 9 * np.array([[0.0, 0.3, 1.0], [0.0, 1.0, 0.8], [1.0, 0.1, 0.0]])
    return (
        write_detector(folder / "student.onnx", student, -3.0),
        write_detector(folder / "teacher.onnx", teacher, -6.0),
    )


def write_coco(folder: Path, n: int = 80, seed: int = 0) -> Path:
    """Images with colored squares, and their boxes in COCO's format; some images are empty."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    side = CELLS * CELL
    for number in range(n):
        pixels = rng.uniform(0, 110, (side, side, 3))
        for cell in rng.choice(CELLS**2, rng.integers(0, 5), replace=False).tolist():
            row, column = divmod(cell, CELLS)
            label = int(rng.integers(3))
            y, x = row * CELL, column * CELL
            pixels[y : y + CELL, x : x + CELL, 2 - label] += rng.uniform(40, 130)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x, y, CELL, CELL],
                }
            )
        name = f"{number:04d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": side, "height": side})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "labels.json"


def write_joint(folder: Path, **goal: Any) -> Path:
    """A joint.toml of the pair of colored images, calibrated on 400 of them."""
    preprocess = ebjr.Preprocess(size=SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write_pair(folder)
    costs = [ebjr.Cost(flops=1.0), ebjr.Cost(flops=8.0)]
    batches = list(open_data(write_images(folder / "images", n=400)).batches(100))
    outcomes = ebjr.record(
        *(ebjr.Preprocessed(ebjr.load_model(path), preprocess) for path in paths),
        np.concatenate([np.stack(list(batch.inputs)) for batch in batches]),
        np.concatenate([batch.targets for batch in batches]),
        labels=CLASSES,
        student_cost=costs[0],
        teacher_cost=costs[1],
    )
    study = ebjr.run_study(outcomes, score="softmax", blend=0.0, **goal)
    entries = [
        ModelEntry.of_file(path, preprocess=preprocess, cost=cost)
        for path, cost in zip(paths, costs, strict=True)
    ]
    JointConfig.of_study(*entries, study).save(folder / "joint.toml")
    return folder / "joint.toml"
