"""The joint graph: student, score, router, and the teacher in a branch of an ``If``.

The deferred rows are gathered, the teacher answers them inside the branch, and its answers are
scattered back. If no row is deferred, the teacher does not run. Another joint model's score may
read this answer.
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
"""Older graphs are converted: opset 13 defines softmax, axes and branches as they are now."""

FLOAT = ir.DataType.FLOAT

LEAST_IR = 4
"""Since IR 4 an initializer that is also an input is a default, as the threshold needs."""

Output = tuple[str, Value, ir.DataType, tuple[Any, ...]]
"""Name, value, type, and dimensions beside the batch."""


def opset_of(model: ir.Model) -> int:
    """Return a graph's version of ONNX's own operators."""
    found = model.graph.opset_imports
    return max((found[domain] for domain in ("", "ai.onnx") if domain in found), default=1)


def convert(path: Path, model: ir.Model, opset: int) -> None:
    """Convert a file's graph to another version of the operators."""
    from onnxscript import version_converter

    before, failed = opset_of(model), None
    if before == opset:
        return
    try:
        with quiet("onnxscript", logging.CRITICAL + 1):  # it logs a traceback; we raise
            version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:
        failed = error
    if failed or opset_of(model) != opset:
        raise ModelError(
            f"{path} has opset {before} and cannot be converted to opset {opset}, which the joint "
            f"graph has; export it again with opset {opset}"
        ) from failed
    forget_shapes(model)


def read_parts(
    given: Given, outputs: Mapping[str, Sequence[str]], opset: int | None
) -> tuple[dict[str, ir.Model], list[ir.Value]]:
    """Read the models' graphs, by role, in one opset, and the weights that several share.

    A file is read and converted once. If several models have the same file (by its hash), its
    weights are not in their parts, but in the outer graph.
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
    """Read a model's file as a part: functions inlined, one input, the named outputs."""
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
            f"{model.path} cannot become part of the joint graph: {one_line(error)}"
        ) from error
    forget_shapes(part)
    return part


def joint_graph(
    forms: Sequence["Form"], parts: Mapping[str, ir.Model], shared: list[ir.Value], given: Given
) -> ir.Model:
    """Build all models, scores and routers as one graph.

    `forms` are the joint models, the innermost first: the answer of one is the student's output in
    the next. The graphs `parts`, one more than `forms` and of one opset, are consumed; `shared` are
    weights that several use. The outermost threshold is an input, the others are constants.
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
    """Replace deferred rows of the student's answer by the teacher's, in a branch of an ``If``."""
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
    """Return the threshold in the score's type, and which rows are under it but not `skip`."""
    dtype = op.dtype if score.dtype is None else score.dtype.numpy()
    as_held = round_up if dtype == np.float32 else float
    knob = op.constant(np.array(as_held(router.threshold), dtype), f"{op.name}/threshold")
    least = np.array(np.finfo(dtype).min)  # a score of -inf is deferred at any threshold
    deferred = op.Not(op.GreaterOrEqual(score, op.Max(knob, least)))  # a NaN is deferred
    if router.skip is not None:
        skip = np.array(as_held(router.skip), dtype)  # a NaN is not skipped
        deferred = op.And(deferred, op.Not(op.Less(score, skip)))
    return knob, deferred


def _model(
    op: Operators, inputs: list[ir.Value], outputs: list[ir.Value], parts: Collection[ir.Model]
) -> ir.Model:
    """Make a model of operators, with the domains that the parts use."""
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
    """A joint model whose raw output has a row for each input: its own code is traced."""

    joint: JointModel
    # by role: the graph's output for some rows, and the `output_kind` to turn it into logits
    said: Mapping[str, tuple[np.ndarray, str | None]]

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """Return the score of the student's raw outputs, (n,), and its answer."""
        raw = self._raw(op, "student", raws[0])
        score = traced_score(op, self.joint.router.score, raw, self._tried("student"))
        said = self._traced(op, "said", self.joint.of_student, raw)
        return score, [op.typed(said, self.wider)]

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """Return the answer to deferred rows, given the student's answer `said` to them."""
        raw = self._raw(op, "teacher", raws[0])
        return [op.typed(self._traced(op, "taught", self._taught, *said, raw), self.wider)]

    def _taught(self, said: Array, raw: Array) -> Array:
        taught = self.joint.kind.shared(raw)
        return self.joint.mix(said, taught) if self.joint.blend else taught

    def outputs(self, op: Operators, answer: list[Value]) -> list[Output]:
        """Return the joint graph's outputs, without score, deferred and stage."""
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
        return traced(op, name, f"task {self.joint.task!r}", function, *given)

    def _raw(self, op: Operators, role: str, raw: ir.Value) -> ir.Value:
        """Convert raw output to logits of known type and shape."""
        own, kind = self.said[role]
        raw.type = ir.TensorType(ir.DataType.from_numpy(own.dtype))
        raw.shape = ir.Shape([None, *own.shape[1:]])
        raw = op.typed(raw, as_float(own).dtype)
        return raw if kind is None else self._traced(op, f"{role}_logits", KINDS[kind], raw)

    @property
    def wider(self) -> np.dtype[Any]:
        """The type that holds the answers of both models."""
        return np.result_type(*map(self._tried, self.said))

    def _tried(self, role: str) -> np.ndarray:
        own, kind = self.said[role]
        return as_float(own) if kind is None else KINDS[kind](own)


@dataclass(frozen=True)
class Images:
    """A joint detector: boxes, labels and scores of each image."""

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
        """Return boxes, labels and scores, padded to the rows that both models need."""
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
