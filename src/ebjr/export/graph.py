"""The joint graph: student, score, router, and the teacher in a branch of an ``If``.

The deferred rows are gathered, the teacher answers them inside the branch, and its answers are
scattered back. Where nothing is deferred no node of the teacher is run. The score of another joint
model may read this answer.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common as passes

from ebjr.arrays import Array, as_float
from ebjr.backends.onnx import OnnxModel, quiet
from ebjr.backends.output_kind import KINDS
from ebjr.errors import ModelError, one_line
from ebjr.export.detection import Found, Head, detection_score, find, rescaled
from ebjr.export.inputs import Given
from ebjr.export.operators import Operators, Value, forget_shapes, like, name_after
from ebjr.export.trace import traced, traced_score
from ebjr.joint import JointModel
from ebjr.router import Router, round_up

LEAST_OPSET = 13
"""Older graphs are converted: since then softmax, axes and branches are what they are now."""

FLOAT = ir.DataType.FLOAT

LEAST_IR = 4
"""Since then a constant need not be an input, and one that is can be overridden: the threshold."""

Output = tuple[str, Value, ir.DataType, tuple[Any, ...]]
"""Name, value, type, and dimensions beside the batch."""


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators."""
    found = model.graph.opset_imports
    return max((found[domain] for domain in ("", "ai.onnx") if domain in found), default=1)


def convert(path: Path, model: ir.Model, opset: int) -> None:
    """Convert a file's graph to another version of the operators."""
    from onnxscript import version_converter

    before, failed = opset_of(model), None
    if before == opset:
        return
    try:
        with quiet("onnxscript", logging.CRITICAL + 1):  # what it says ends in an error of ours
            version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:
        failed = error
    if failed or opset_of(model) != opset:
        raise ModelError(
            f"{path} is of opset {before} and cannot be converted to opset {opset}, which the "
            f"joint graph has; export it again with opset {opset}"
        ) from failed
    forget_shapes(model)


def read_parts(
    given: Given, outputs: Mapping[str, Sequence[str]], opset: int | None
) -> tuple[dict[str, ir.Model], list[ir.Value]]:
    """The graphs of models, by role, as parts of one opset, and the weights that several share.

    A file is read and converted once. Where several models are of it, which its hash tells, none
    of their parts has its weights: they are the whole graph's.
    """
    models, files = given.models, dict[Any, list[str]]()
    for role, names in outputs.items():
        files.setdefault((given.files[role].sha256, *names), []).append(role)
    read = {key: read_part(models[roles[0]], outputs[roles[0]]) for key, roles in files.items()}
    wanted = opset or max(LEAST_OPSET, *map(opset_of, read.values()))
    parts, shared = dict[str, ir.Model](), list[ir.Value]()
    for key, (first, *others) in files.items():
        part = parts[first] = read[key]
        convert(models[first].path, part, wanted)
        name_after(first, part)
        if others:
            shared += part.graph.initializers.values()
            part.graph.initializers.clear()
        for role in others:
            copied = part.graph.clone(allow_outer_scope_values=True)
            parts[role] = ir.Model(copied, ir_version=part.ir_version)
            name_after(role, parts[role])
    return {role: parts[role] for role in outputs}, shared


def read_part(model: OnnxModel, outputs: Sequence[str]) -> ir.Model:
    """A model's file as a part: functions inlined, one input, some outputs."""
    try:
        part = ir.load(model.path)
        passes.InlinePass()(part)
        passes.RemoveInitializersFromInputsPass()(part)
        graph = part.graph
        for values, names in ((graph.inputs, [model.input_name]), (graph.outputs, outputs)):
            known = {value.name: value for value in values}
            values.clear()
            values.extend(known[name] for name in names)
        passes.RemoveUnusedNodesPass()(part)
        passes.OutputFixPass()(part)
    except Exception as error:
        raise ModelError(
            f"{model.path} cannot become part of another graph: {one_line(error)}"
        ) from error
    forget_shapes(part)
    return part


def joint_graph(
    forms: Sequence["Form"], parts: Mapping[str, ir.Model], shared: list[ir.Value], given: Given
) -> ir.Model:
    """All models, scores and routers as one graph.

    `forms` are those of the joint models, the innermost first: what one answers is what the next
    one's student says. The graphs `parts`, one more and of one opset, are taken apart; `shared` are
    weights of several. The outermost threshold is an input's default, the others are constants.
    """
    first, *others = parts
    op = Operators(opset_of(parts[first]), np.float64, "joint")
    op.constants += shared
    asked, stage = given.value(), op.value(0)
    answer = op.inline(parts[first], given.prepare(first, op, asked))
    for place, (form, role) in enumerate(zip(forms, others, strict=True), 1):
        op.name = f"joint-{place}"
        score, said = form.student(op, answer, asked)
        knob, deferred = _router(op, score, form.joint.router)
        prepare, source = partial(given.prepare, role), asked
        if given.models[role].continues:
            source = answer[1]  # the student's features
        answer = _answered(op, form, said, deferred, source, parts[role], prepare)
        stage = op.Where(deferred, place, stage)
    knob.name = "threshold"
    outputs = [
        *forms[-1].outputs(op, answer),
        ("score", score, FLOAT, ()),
        ("deferred", deferred, ir.DataType.BOOL, ()),
        ("stage", stage, ir.DataType.INT64, ()),
    ]
    ready = []
    for name, value, kind, sides in outputs:
        ready.append(op.Cast(value, to=int(kind)))
        shape = ir.Shape([asked.shape[0], *sides])
        ready[-1].name, ready[-1].type, ready[-1].shape = name, ir.TensorType(kind), shape
    return _model(op, [asked, knob], ready, parts.values())


def _answered(
    op: Operators,
    form: "Form",
    said: list[Value],
    deferred: Value,
    asked: Value,
    teacher: ir.Model,
    prepare: Callable[[Operators, Value], Value],
) -> list[Value]:
    """What the student has said, and in deferred rows the teacher, which is run where some are."""
    places = op.Transpose(op.NonZero(deferred), perm=[1, 0])
    taught, kept = op.part(f"{op.name}/deferred"), op.part(f"{op.name}/kept")
    rows = taught.GatherND(asked, places)
    raws = taught.inline(teacher, prepare(taught, rows))
    hard = [like(taught.GatherND(value, places), value) for value in said]
    answer = form.teacher(taught, hard, raws, rows)
    taught.gives(
        [taught.ScatterND(whole, places, part) for whole, part in zip(said, answer, strict=True)]
    )
    kept.gives([kept.Identity(value) for value in said])
    answer = op.either(op.Greater(op.Size(places), 0), taught, kept)
    return [like(value, whole) for value, whole in zip(answer, said, strict=True)]


def _router(op: Operators, score: ir.Value, router: Router) -> tuple[ir.Value, ir.Value]:
    """The threshold, of the score's type, and which rows are under it and not under `skip`."""
    dtype = op.dtype if score.dtype is None else score.dtype.numpy()
    as_held = round_up if dtype == np.float32 else float
    knob = op.constant(np.array(as_held(router.threshold), dtype), f"{op.name}/threshold")
    least = np.array(np.finfo(dtype).min)  # a row marked with -inf is deferred at any threshold
    deferred = op.Not(op.GreaterOrEqual(score, op.Max(knob, least)))
    if router.skip is not None:
        skip = np.array(as_held(router.skip), dtype)  # NaN is not under it
        deferred = op.And(deferred, op.Not(op.Less(score, skip)))
    return knob, deferred


def _model(
    op: Operators, inputs: list[ir.Value], outputs: list[ir.Value], parts: Collection[ir.Model]
) -> ir.Model:
    """A whole model of some operators, with the domains that its parts use."""
    found = [entry for part in parts for entry in part.graph.opset_imports.items()]
    imports = {domain: max(v for name, v in found if name == domain) for domain, _ in found}
    imports.pop("ai.onnx", None)
    imports[""] = op.opset
    inside: dict[str, Any] = {"nodes": op.nodes, "initializers": op.constants}
    graph = ir.Graph(inputs, outputs, name="joint", opset_imports=imports, **inside)
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", op.opset)])
    version = max(LEAST_IR, needed, *(part.ir_version for part in parts))
    model = ir.Model(graph, ir_version=version)
    passes.NameFixPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model


@dataclass(frozen=True)
class Rows:
    """What becomes of raw output where that is an array, a row for each input: all of it traced."""

    joint: JointModel  # its score and its task's own code say what is in the graph
    # by role: what the graph says of some rows, and the `output_kind` that makes logits of it
    said: Mapping[str, tuple[np.ndarray, str | None]]

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """The score of the student's raw outputs, (n,), and its answer."""
        raw = self._raw(op, "student", raws[0])
        score = traced_score(op, self.joint.router.score, raw, self._tried("student"))
        said = self._traced(op, "said", self.joint.of_student, raw)
        return score, [op.typed(said, self.wider)]

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """The answer to deferred rows, of which the student has said so."""
        raw = self._raw(op, "teacher", raws[0])
        return [op.typed(self._traced(op, "taught", self._taught, *said, raw), self.wider)]

    def _taught(self, said: Array, raw: Array) -> Array:
        taught = self.joint.kind.shared(raw)
        return self.joint.mix(said, taught) if self.joint.blend else taught

    def outputs(self, op: Operators, answer: list[Value]) -> list[Output]:
        """The joint graph's outputs, beside score and deferred."""
        found = {"prediction": self._traced(op, "meant", self.joint.predict, *answer)}
        found["output"] = answer[0]
        wire = self.joint.kind.tensors(self.joint.classes)
        return [
            (name, value, ir.DataType.from_numpy(np.dtype(wire[name].dtype)), value.shape[1:])
            for name, value in found.items()
        ]

    def _traced(
        self, op: Operators, name: str, function: Callable[..., Array], *given: ir.Value
    ) -> ir.Value:
        return traced(op, name, f"what task {self.joint.task!r} makes of answers", function, *given)

    def _raw(self, op: Operators, role: str, raw: ir.Value) -> ir.Value:
        """Raw output as it is computed with, of known type and shape."""
        own, kind = self.said[role]
        raw.type = ir.TensorType(ir.DataType.from_numpy(own.dtype))
        raw.shape = ir.Shape([None, *own.shape[1:]])
        raw = op.typed(raw, as_float(own).dtype)
        return raw if kind is None else self._traced(op, f"{role}_logits", KINDS[kind], raw)

    @property
    def wider(self) -> np.dtype[Any]:
        """The type of the answer, whoever gave it."""
        return np.result_type(*map(self._tried, self.said))

    def _tried(self, role: str) -> np.ndarray:
        own, kind = self.said[role]
        return as_float(own) if kind is None else KINDS[kind](own)


@dataclass(frozen=True)
class Images:
    """What becomes of raw output in detection: boxes, labels and scores of each image."""

    joint: JointModel
    heads: Mapping[str, Head]

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """See `Rows`."""
        head = self.heads["student"]
        found = find(op, head, raws, given)
        score = detection_score(op, self.joint.router.score, head, found, raws)
        return score, self._answer(op, "student", found)

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """See `Rows`."""
        return self._answer(op, "teacher", find(op, self.heads["teacher"], raws, given))

    @property
    def _most(self) -> int:
        return max(head.rows for head in self.heads.values())

    def _answer(self, op: Operators, role: str, found: Found) -> list[Value]:
        """Boxes, labels and scores, with as many rows as both models need."""
        scale = self.joint.rescale
        scores = rescaled(op, found, None if scale is None else getattr(scale, role))
        missing = self._most - self.heads[role].rows
        if not missing:
            return [found.boxes, found.labels, scores]
        below = [0, 0, 0, missing]
        return [
            op.Pad(found.boxes, [0, 0, 0, 0, missing, 0]),
            op.Pad(found.labels, below, -1),
            op.Pad(scores, below),
        ]

    def outputs(self, op: Operators, answer: list[Value]) -> list[Output]:
        """See `Rows`."""
        boxes, labels, scores = answer
        return [
            ("boxes", boxes, FLOAT, (self._most, 4)),
            ("labels", labels, ir.DataType.INT64, (self._most,)),
            ("scores", scores, FLOAT, (self._most,)),
        ]


Form = Rows | Images
