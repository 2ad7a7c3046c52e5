"""A tiny real pair: two linear ONNX classifiers of three kinds of colored images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

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
