"""The exported file: what it contains, how it is checked and written."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import ebjr
from ebjr.arrays import to_numpy
from ebjr.backends.entry import FarEntry, ModelEntry, RemoteEntry, entry_of
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import OnnxModel, check_named
from ebjr.backends.output_kind import AsLogits
from ebjr.data.preprocess import unprepared
from ebjr.errors import ModelError, one_line
from ebjr.export.detection import Head, head_of
from ebjr.export.graph import LEAST_OPSET, Form, Images, Rows, joint_graph, read_parts
from ebjr.export.inputs import Given, given_of
from ebjr.files import sha256_of, write_beside
from ebjr.joint import JointAnswer, JointModel, models_of, router_table
from ebjr.joint_file import JointConfig
from ebjr.model import Model, as_answer, facts
from ebjr.outcomes import roles_of
from ebjr.router import Router

MOST_BYTES = 2**31 - 2**24
"""Protobuf cannot read a file above 2 GiB: the weights of a larger model go into a second file."""

TOLERANCE = 1e-3
"""The largest difference of raw output between the graph and the joint model, on a few examples."""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    `path` is the file, `data` a second one with the weights, if any, which must stay beside it, and
    `bytes` the size of both. `opset` and `ir_version` are what a runtime must support. `input` has
    the input's name, type and shape. `threshold` is the default, compared with `score`.
    `difference` is the largest difference of raw output from the joint model's, on a few examples.
    """

    path: Path
    data: Path | None
    bytes: int
    opset: int
    ir_version: int
    input: dict[str, Any]
    threshold: float
    score: str
    difference: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        paths = {"path": str(self.path), "data": None if self.data is None else str(self.data)}
        return {**asdict(self), **paths}


def export_joint(
    joint: str | os.PathLike[str] | JointConfig | JointModel,
    path: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    opset: int | None = None,
    external_data: bool | None = None,
    most_bytes: int = MOST_BYTES,
) -> Exported:
    """Write a joint model as one ``.onnx`` file, whole or not at all.

    - `joint`: A ``joint.toml``, a `JointConfig`, or a joint model of files, whose score needs no
      name. Its student may be a joint model.
    - `threshold`: The default of the input ``threshold``; None is the joint model's.
    - `opset`: The version of ONNX's operators; None is the highest of all models', at least 13.
    - `external_data`: Put the weights into a second file, ``path`` with ``.data`` appended; None:
      only if they do not fit.
    - `most_bytes`: The most bytes of weights in the first file.

    Raises
    ------
    ModelError
        A model is not an ONNX graph or cannot become part of one, or the joint graph does not
        answer like the joint model.
    ValueError
        The score cannot be exported, `opset` does not exist, or `path` does not end in ``.onnx``.
    TypeError
        A model of `joint` came from no file.
    OSError
        The file cannot be written.
    """
    path, newest = check_named(path), onnx.defs.onnx_opset_version()
    if opset is not None and not LEAST_OPSET <= opset <= newest:
        raise ValueError(
            f"opset must be from {LEAST_OPSET} to {newest}, the newest in onnx "
            f"{onnx.__version__}, not {opset}"
        )
    about = joint if isinstance(joint, JointModel) else _config(joint)
    levels = _levels(about if isinstance(about, JointModel) else about.load())
    model = levels[-1]
    if threshold is not None:
        model.router.threshold = threshold
    given = _given(models_of(model))
    batch = _tried(levels, given)
    with write_beside(path) as folder:
        draft, found = folder / path.name, []
        for depth in range(1, len(levels) + 1):  # inner levels too, to test every threshold
            graph = _graph(levels[:depth], given, batch, opset)
            _describe(graph, about, given, levels[:depth])
            external = _size(graph) > most_bytes if external_data is None else external_data
            data = _write(graph, draft, external)
            _check(draft)
            try:
                found.append(_compared(draft, levels[:depth], batch))
            except ModelError as error:
                raise ModelError(f"{error}{_fixed(given)}") from error
        written = sum(file.stat().st_size for file in folder.iterdir())
    return Exported(
        path=path,
        data=None if data is None else path.with_name(data.name),
        bytes=written,
        opset=graph.graph.opset_imports[""],
        ir_version=graph.ir_version,
        input={"name": given.name, "dtype": str(given.dtype), "shape": list(given.shape)},
        threshold=model.router.threshold,
        score=str(model.router.score),
        difference=max(found),
    )


def _config(joint: str | os.PathLike[str] | JointConfig) -> JointConfig:
    config = joint if isinstance(joint, JointConfig) else JointConfig.read(joint)
    for role in roles_of(2):
        _graph_file(role, getattr(config, role))  # fail before loading
    return config


def _levels(joint: JointModel) -> list[JointModel]:
    """Return copies of the nested joint models, the innermost first, with their own routers."""
    student = joint.student
    if isinstance(joint.teacher, JointModel):
        raise ModelError(
            "a teacher that is a joint model cannot be exported: nest on the student's side, with "
            "a, b and c as the student (a, b) and the teacher c"
        )
    if isinstance(student, JointModel) and joint.kind.targets_are == "boxes":
        raise ModelError(
            f"a joint detector of {len(models_of(joint))} models cannot be exported: use two"
        )
    level, inner = copy(joint), _levels(student) if isinstance(student, JointModel) else []
    level.router, level.student = copy(joint.router), inner[-1] if inner else student
    return [*inner, level]


def _graph_file(role: str, entry: Any) -> Any:
    """Check that an entry may be an ONNX file, and return it."""
    if isinstance(entry, FarEntry):
        where = entry.url if isinstance(entry, RemoteEntry) else entry.options["chat"]
        raise ModelError(
            f"the {role} {where} is a remote model, which cannot be exported; calibrate with the "
            "model's own file"
        )
    if isinstance(entry, ModelEntry) and Path(entry.path).suffix.lower() != ".onnx":
        raise ModelError(
            f"the {role} {entry.path} is not an ONNX graph: export it to ONNX "
            "(torch.onnx.export), record and calibrate with that file, and then export the "
            "joint model"
        )
    return entry


def _given(several: Sequence[Model]) -> Given:
    models: dict[str, OnnxModel] = {}
    files: dict[str, ModelEntry] = {}
    for role, whole in zip(roles_of(len(several)), several, strict=True):
        files[role] = _graph_file(role, entry_of(whole))
        model, _ = unprepared(whole)
        model = model.model if isinstance(model, AsLogits) else model
        if not isinstance(model, OnnxModel):
            raise ModelError(
                f"the {role} {files[role].path} is wrapped in {type(model).__name__}, which "
                "cannot be exported; load the model's own file with ebjr.load_model"
            )
        models[role] = model
    return given_of(models, files)


def _tried(levels: Sequence[JointModel], given: Given) -> np.ndarray:
    """Return a random batch that all models answer."""
    failed: Exception | None = None
    for batch in given.examples():
        try:
            for joint in levels:
                found = joint.ask_student(batch)
                joint.router(found.output)
                joint.ask_teacher(joint.for_teacher(batch, found), joint.of_student(found.output))
            return batch
        except (ModelError, TypeError, ValueError) as error:
            failed = failed or error
    assert failed is not None
    raise ModelError(f"the joint model failed on a batch of random inputs: {failed}")


def _graph(
    levels: Sequence[JointModel], given: Given, batch: np.ndarray, opset: int | None
) -> ir.Model:
    models = list(given.models.items())[: len(levels) + 1]
    outputs: dict[str, Sequence[str]] = {
        role: [name for name in (model.output_name, model.features) if name]
        for role, model in models
    }
    forms: Sequence[Form]
    if levels[0].kind.targets_are == "boxes":
        heads = _heads(levels[0], batch)
        forms = [Images(levels[0], heads)]
        outputs = {role: head.outputs for role, head in heads.items()}
    else:
        forms = _rows(levels, batch)
    return joint_graph(forms, *read_parts(given, outputs, opset), given)


def _rows(levels: Sequence[JointModel], batch: np.ndarray) -> list[Rows]:
    forms: list[Rows] = []
    for joint in levels:
        asked = joint.for_teacher(batch, joint.ask_student(batch))
        said = {"student": _said(joint.student, batch), "teacher": _said(joint.teacher, asked)}
        if forms:  # in the graph an inner answer has one type, whichever model gave it
            said["student"] = said["student"][0].astype(forms[-1].wider), None
        forms.append(Rows(joint, said))
    return forms


def _said(model: Any, batch: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Return the output of a model's own graph for a batch, and its kind; None is logits."""
    bare, preprocess = unprepared(model)
    if not isinstance(bare, AsLogits):
        return to_numpy(as_answer(model(batch)).output), None
    said = bare.model(batch if preprocess is None else preprocess(batch))
    return to_numpy(as_answer(said).output), bare.kind


def _heads(joint: JointModel, batch: np.ndarray) -> dict[str, Head]:
    if joint.blend:
        raise ValueError(
            f"a blend of {joint.blend:g} fuses both detectors' boxes, which cannot be exported; "
            "calibrate with blend 0"
        )
    heads = {}
    for role in roles_of(2):
        detector = getattr(joint, role)
        rows = np.repeat(batch[:1], detector.model.fixed_batch or 1, axis=0)
        heads[role] = head_of(role, detector, rows)
    return heads


def _describe(
    model: ir.Model, about: JointConfig | JointModel, given: Given, levels: Sequence[JointModel]
) -> None:
    """Write docstrings and metadata: the models' hashes, the router and the calibration."""
    joint, name = levels[-1], getattr(about, "name", "joint")
    score, threshold = joint.router.score, joint.router.threshold
    files = given.files.items()
    stages = [{"file": Path(one.path).name, "sha256": one.sha256} for _, one in files]
    routed = [
        {**one, "router": router_table(way.router, way.blend)}
        for one, way in zip(stages, levels, strict=False)
    ]
    asked = facts(joint.teacher).options
    model.producer_name, model.producer_version = "ebjr", ebjr.__version__
    model.doc_string = (
        f"{name}: a student answers every input, and a teacher those whose score "
        f"({score.title}) is under the threshold."
    )
    texts = {
        "threshold": f"score >= threshold keeps the student's answer; default {threshold:g}",
        "prediction": "the answer of each row",
        "boxes": "x1, y1, x2, y2 in pixels of the image, the best first",
        "labels": "the class of each box; -1 in padding rows",
        "scores": "the score of each box; 0 in padding rows",
        "output": "raw output of the model that answered the row",
        "score": f"{score.title} of the student's raw output",
        "deferred": "true if the teacher answered the row",
        "stage": "the model that answered the row, from 0, the student",
    }
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.doc_string = texts.get(value.name, "the input of all models")
    same = ("labels", "columns", "known_classes", "calibration", "operating_points")
    told: dict[str, Any] = {
        "name": name,
        "task": about.task,
        **router_table(joint.router, joint.blend),
        "student": stages[0],
        "teacher": stages[-1],
        "stages": [*routed, stages[-1]],
        "preprocess": {role: one.preprocess.as_dict() for role, one in files if one.preprocess},
        "classes": len(asked.get("label_ids", ())) or asked.get("classes", about.classes),
        **{key: getattr(about, key, None) for key in same},
    }
    for key, fact in told.items():
        if fact not in (None, {}, ()):
            text = fact if isinstance(fact, str) else json.dumps(fact, default=_plain)
            model.metadata_props[f"ebjr.{key}"] = text


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _size(model: ir.Model) -> int:
    constants = [value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(one.const_value.nbytes for one in constants if one.const_value is not None)


def _write(model: ir.Model, path: Path, external: bool) -> Path | None:
    if external:
        data = path.with_name(f"{path.name}.data")
        ir.save(model, path, external_data=data.name, size_threshold_bytes=1024)
        graph = onnx.load(path, load_external_data=False)
        graph.metadata_props.add(key="ebjr.weights", value=sha256_of(data))
        path.write_bytes(graph.SerializeToString())
        return data
    ir.save(ir.external_data.load_to_model(model), path)
    return None


def _check(path: Path) -> None:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ModelError(f"the joint graph fails onnx's checker: {one_line(error)}") from error


def _compared(path: Path, levels: Sequence[JointModel], batch: np.ndarray) -> float:
    """Return the largest difference from the joint model's raw output.

    Three thresholds are tried, which defer no row, some rows and all.
    """
    exported, joint = ExportedJoint(path), levels[-1]
    chosen = joint.router.threshold
    score = to_numpy(joint.router.score(joint.ask_student(batch).output)).astype(np.float64)
    known = np.sort(score[np.isfinite(score)])
    middle = [float(known[len(known) // 2])] if len(known) else []
    found = []
    try:
        for threshold in (float(np.finfo(np.float32).min), *middle, math.inf):
            joint.router.threshold = exported.router.threshold = threshold
            said = [one(batch) for one in levels]
            near = [
                _near(one.router, answer.score) for one, answer in zip(levels, said, strict=True)
            ]
            found.append(_difference(exported(batch), said[-1], np.any(near, axis=0)))
    finally:
        joint.router.threshold = chosen
    largest = float(np.max(found))
    if not largest <= TOLERANCE:
        raise ModelError(
            "the joint graph does not answer like the joint model (raw outputs differ by "
            f"{largest:.3g}): one of the models cannot be exported"
        )
    return largest


def _fixed(given: Given) -> str:
    """Return the end of a message about models with a fixed batch; empty without any."""
    known = [model for model in given.models.values() if (model.fixed_batch or 1) != 1]
    words = [f"; {one.path} has a fixed batch of {one.fixed_batch}" for one in known]
    return "".join([*words, ": export it again with a dynamic first dimension" if words else ""])


def _near(router: Router, score: Any) -> np.ndarray:
    """Tell for each row whether rounding decides its score against threshold or `skip`, (n,)."""
    score = to_numpy(score).astype(np.float64)[:, None]
    limits = np.array([router.threshold, router.skip], np.float64)  # None becomes NaN
    with np.errstate(invalid="ignore"):
        return (np.abs(score - limits) <= TOLERANCE * np.maximum(1, np.abs(score))).any(axis=1)


def _difference(found: JointAnswer, wanted: JointAnswer, near: np.ndarray) -> float:
    """Return the largest relative difference of raw output; inf if a clear decision differs."""
    same = to_numpy(wanted.deferred) == found.deferred
    same &= to_numpy(wanted.stage) == found.stage
    if not (same | near).all():
        return math.inf
    pairs = ((found.output[row], wanted.output[row]) for row in np.flatnonzero(same).tolist())
    return max((_apart(*pair) for pair in pairs), default=0.0)


def _apart(*raw: Any) -> float:
    """Return the relative difference of two rows of raw output, for detections of the scores."""
    one, other = (np.asarray(to_numpy(getattr(row, "scores", row)), np.float64) for row in raw)
    if one.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other) / np.maximum(1, np.abs(other))
    alike = (one == other) | (np.isnan(one) & np.isnan(other))
    return float(np.where(alike, 0.0, apart).max(initial=0.0))
