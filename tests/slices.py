"""ONNX pairs whose raw output is a part of their input: any answers, real graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ebjr import save_joint
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel
from ebjr.joint_file import JointConfig
from ebjr.router import Router
from ebjr.tasks import as_task


def write_slice(
    path: Path,
    columns: range,
    width: int,
    *,
    opset: int = 17,
    ir_version: int = 8,
    dtype: Any = np.float32,
    flat: bool = False,
    batch: int | str = "batch",
) -> Path:
    """A graph that answers some columns of its input (n, width)."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Slice", ["x", "from", "to", "axis"], ["part"])]
    shape = [batch] if flat else [batch, len(columns)]
    if flat:
        nodes.append(helper.make_node("Squeeze", ["part", "axis"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["part"], ["y"]))
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("x", kind, [batch, width])],
        [helper.make_tensor_value_info("y", kind, shape)],
        [
            onnx.numpy_helper.from_array(np.array([value]), name)
            for name, value in (("from", columns.start), ("to", columns.stop), ("axis", 1))
        ],
    )
    sets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=ir_version), str(path))
    return path


def write_joint(folder: Path, joint: Any, name: str = "joint.toml") -> JointConfig:
    """A joint model's ``joint.toml``, read back."""
    save_joint(folder / name, joint)
    return JointConfig.read(folder / name)


def joint_of_slices(
    folder: Path,
    score: str,
    student: int,
    teacher: int,
    *,
    task: str = "classification",
    blend: Any = 0.0,
    dtype: Any = np.float32,
    **more: Any,
) -> Any:
    """A joint model of x (n, student + teacher): the student says its columns, the teacher its."""
    width = student + teacher
    parts = {"student": range(student), "teacher": range(student, width)}
    flat = {"teacher": task == "regression"}
    models = [
        OnnxModel(
            write_slice(
                folder / f"{role}.onnx", columns, width, dtype=dtype, flat=flat.get(role, False)
            )
        )
        for role, columns in parts.items()
    ]
    return as_task(task).final(*models, Router(score, 0.0), blend=blend, **more)


def check_same(exported: ExportedJoint, joint: Any, inputs: np.ndarray, tie: float = 1e-5) -> None:
    """Both answer alike: decisions, predictions, and raw output within 1e-4, ties apart."""
    exported.router.threshold = joint.router.threshold
    found, wanted = exported(inputs), joint(inputs)
    score, threshold = np.asarray(wanted.score, np.float64), joint.router.threshold
    np.testing.assert_allclose(found.score, score, rtol=tie, atol=tie)
    with np.errstate(invalid="ignore"):
        tied = np.abs(score - threshold) <= tie * np.maximum(1, np.abs(score))
    np.testing.assert_array_equal(found.deferred[~tied], wanted.deferred[~tied])
    same = found.deferred == wanted.deferred
    np.testing.assert_allclose(found.output[same], wanted.output[same], rtol=1e-5, atol=1e-4)
    ordered = np.sort(wanted.output, axis=1)
    clear = same & (ordered[:, -1] - ordered[:, -2] > 1e-4) if ordered.shape[1] > 1 else same
    np.testing.assert_allclose(found.prediction[clear], wanted.prediction[clear], rtol=1e-6)
