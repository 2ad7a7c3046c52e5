"""The joint graph: student, score, router, and the teacher in a branch of an ``If``.

The student answers the whole batch; the deferred rows are gathered, the teacher answers them inside
the branch, and its answers are scattered back. Where nothing is deferred the other branch is taken,
and no node of the teacher is run.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx_ir.passes import common as passes

from ebjr.blend import Blend
from ebjr.errors import ModelError, one_line
from ebjr.export.detection import Found, Head, detection_score, find, rescaled
from ebjr.export.operators import Operators, Value
from ebjr.export.scores import log_softmax, logsumexp, score_graph
from ebjr.joint import JointModel
from ebjr.router import round_up
from ebjr.tasks.specialized.known_classes import other_class, relabel

LEAST_OPSET = 13
"""Older graphs are converted: since then softmax, axes and branches are what they are now."""

FLOAT = ir.DataType.FLOAT

LEAST_IR = 4
"""Since then a constant need not be an input, and one that is can be overridden: the threshold."""

Output = tuple[str, Value, ir.DataType, tuple[Any, ...]]
"""Name, value, type, and dimensions beside the batch."""

Prepare = Callable[[str, Operators, Value], Value]
"""What makes the input of the student or of the teacher of the joint graph's."""


@dataclass
class Part:
    """A model's graph, ready to become part of another.

    Attributes
    ----------
    path
        Its file.
    model
        The graph, of one input.
    """

    path: str
    model: ir.Model

    @property
    def opset(self) -> int:
        """Of ONNX's own operators."""
        found = self.model.graph.opset_imports
        return max((found[domain] for domain in ("", "ai.onnx") if domain in found), default=1)

    def convert(self, opset: int) -> None:
        """Convert to another version of the operators.

        Raises
        ------
        ModelError
            There is no way to.
        """
        if self.opset == opset:
            return
        from onnxscript import version_converter

        stuck = (
            f"{self.path} is of opset {self.opset} and cannot be converted to opset {opset}, which "
            f"the joint graph has; export it again with opset {opset}"
        )
        try:
            with _silent("onnxscript"):
                version_converter.convert_version(self.model, opset, fallback=True)
        except Exception as error:
            raise ModelError(stuck) from error
        if self.opset != opset:
            raise ModelError(stuck)
        _forget_shapes(self.model)


def read_part(
    role: str, path: str | os.PathLike[str], input_name: str, outputs: Sequence[str]
) -> Part:
    """A model's file as a part: functions inlined, one input, some outputs, names of its own.

    Weights that lie outside of the file stay there until they are written.

    Raises
    ------
    ModelError
        The file cannot be taken apart.
    """
    try:
        model = ir.load(path)
        passes.InlinePass()(model)
        passes.RemoveInitializersFromInputsPass()(model)
        for values, names in ((model.graph.inputs, [input_name]), (model.graph.outputs, outputs)):
            known = {value.name: value for value in values}
            values.clear()
            values.extend(known[name] for name in names)
        passes.RemoveUnusedNodesPass()(model)
        passes.OutputFixPass()(model)
    except Exception as error:
        raise ModelError(
            f"{path} cannot become part of another graph: {one_line(error)}"
        ) from error
    _forget_shapes(model)
    _name_after(role, model)
    return Part(str(path), model)


def _forget_shapes(model: ir.Model) -> None:
    """Leave shapes to the runtime: a dimension's name means another number in each model."""
    for node in model.graph.all_nodes():
        for value in node.outputs:
            value.shape = None


def _name_after(role: str, model: ir.Model) -> None:
    """Put the role before every name."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.name = f"{role}/{value.name}"
        for node in graph:
            node.name = f"{role}/{node.name or node.op_type}"
            for value in node.outputs:
                value.name = f"{role}/{value.name}" if value.name else value.name
    passes.NameFixPass()(model)


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library's log to itself: what it says ends in an error of ours."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


class Form(Protocol):
    """What raw outputs are, and what becomes of them, in operators."""

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """The score of the student's raw outputs, (n,), and its answer."""
        ...

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """The answer to deferred rows, of which the student has said so."""
        ...

    def outputs(self, op: Operators, answer: list[Value]) -> list[Output]:
        """The joint graph's outputs, beside score and deferred."""
        ...


def joint_graph(
    form: Form,
    student: Part,
    teacher: Part,
    given: ir.Value,
    prepare: Prepare,
    threshold: float,
    dtype: Any,
    opset: int,
) -> ir.Model:
    """Both models, the score and the router as one graph.

    Parameters
    ----------
    form
        The task, and what is known of both models.
    student, teacher
        Their graphs, which are taken apart.
    given
        The graph's input.
    prepare
        What makes each model's input of `given`, or of some of its rows.
    threshold
        The default of the input of that name.
    dtype
        Of the score, and of what is mixed.
    opset
        Of ONNX's own operators in both.
    """
    op = Operators(opset, dtype, "joint")
    knob = op.constant(_threshold(threshold, op.dtype), "threshold")
    raws = op.inline(student.model, prepare("student", op, given))
    score, said = form.student(op, raws, given)
    least = float(np.finfo(op.dtype).min)  # a row marked with -inf is deferred at any threshold
    deferred = op.Not(op.GreaterOrEqual(score, op.Max(knob, least)))
    places = op.Transpose(op.NonZero(deferred), perm=[1, 0])

    taught, kept = op.part("deferred"), op.part("kept")
    rows = taught.GatherND(given, places)
    raws = taught.inline(teacher.model, prepare("teacher", taught, rows))
    hard = [taught.GatherND(value, places) for value in said]
    answer = form.teacher(taught, hard, raws, rows)
    taught.gives(
        [taught.ScatterND(whole, places, part) for whole, part in zip(said, answer, strict=True)]
    )
    kept.gives([kept.Identity(value) for value in said])
    answer = op.either(op.Greater(op.Size(places), 0), taught, kept)

    batch = given.shape[0]
    outputs = [
        *form.outputs(op, answer),
        ("score", op.Cast(score, to=int(FLOAT)), FLOAT, ()),
        ("deferred", op.Identity(deferred), ir.DataType.BOOL, ()),
    ]
    ready = [_output(name, value, kind, batch, *dims) for name, value, kind, dims in outputs]
    return _model(op, [given, knob], ready, (student.model, teacher.model))


def _output(name: str, value: ir.Value, dtype: ir.DataType, *shape: Any) -> ir.Value:
    value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    return value


def _model(
    op: Operators,
    inputs: list[ir.Value],
    outputs: list[ir.Value],
    parts: tuple[ir.Model, ...],
) -> ir.Model:
    """A whole model of some operators, with the domains that its parts use."""
    imports: dict[str, int] = {}
    for part in parts:
        for domain, version in part.graph.opset_imports.items():
            imports[domain] = max(version, imports.get(domain, 0))
    imports.pop("ai.onnx", None)
    imports[""] = op.opset
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=op.nodes,
        initializers=op.constants,
        name="joint",
        opset_imports=imports,
    )
    needed = helper.find_min_ir_version_for([helper.make_opsetid("", op.opset)])
    version = max(LEAST_IR, needed, *(part.ir_version for part in parts))
    model = ir.Model(graph, ir_version=version)
    passes.NameFixPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)
    return model


def _threshold(threshold: float, dtype: np.dtype[Any]) -> np.ndarray:
    return np.array(round_up(threshold) if dtype == np.float32 else threshold, dtype)


def _columns(op: Operators, raw: Value, count: int | None) -> Value:
    """Raw output as (n, k) of the type that is computed in."""
    whole = op.Unsqueeze(raw, [1]) if count is None else raw
    cast = op.to(whole, op.dtype)
    cast.type = ir.TensorType(ir.DataType.from_numpy(op.dtype))
    cast.shape = ir.Shape([None, count or 1])
    return cast


def _as_it_is(op: Operators, joint: JointModel, raw: Value) -> Value:
    return raw


def _of_prediction(op: Operators, joint: JointModel, raw: Value) -> Value:
    return op.columns(raw, 0, 1)


def _of_teacher(op: Operators, joint: JointModel, raw: Value) -> Value:
    """`ebjr.tasks.specialized.known_classes.to_teacher`."""
    column, unknown = _unknown(joint)
    spread = np.where(unknown, math.log(unknown.sum()), 0.0).astype(op.dtype)
    return op.Sub(op.Gather(raw, column, axis=1), spread)


def _unknown(joint: JointModel) -> tuple[np.ndarray, np.ndarray]:
    """The student's column of each of the teacher's classes, and which are none of its own."""
    column = relabel(np.arange(joint.classes or 0), joint.known_classes)
    return column, column == other_class(joint.known_classes)


def _refined(op: Operators, joint: JointModel, student: Value, teacher: Value) -> Value:
    """`ebjr.tasks.specialized.known_classes.refine`."""
    _, unknown = _unknown(joint)
    own = op.Gather(teacher, np.flatnonzero(unknown), axis=1)
    other = op.Unsqueeze(logsumexp(op, own), [1])
    spread = op.Add(op.Sub(teacher, other), math.log(unknown.sum()))
    return op.Add(student, op.Where(unknown, spread, 0.0))


def _mixed_specialized(op: Operators, joint: JointModel, student: Value, teacher: Value) -> Value:
    if joint.blend == 0:
        return teacher
    return _mixed_logits(op, joint, _refined(op, joint, student, teacher), teacher)


def _mixed_logits(op: Operators, joint: JointModel, student: Value, teacher: Value) -> Value:
    """`ebjr.blend.blend_logits`."""
    blend = joint.blend if isinstance(joint.blend, Blend) else Blend(joint.blend)
    weight = float(blend)
    if weight == 0:
        return teacher
    one = log_softmax(op, _over(op, teacher, blend.teacher_temperature))
    other = log_softmax(op, _over(op, student, blend.student_temperature))
    other = op.Add(other, math.log(weight))
    apart = op.Where(op.Equal(one, other), 0.0, op.Neg(op.Abs(op.Sub(one, other))))
    whole = op.Add(op.Max(one, other), op.Log(op.Add(op.Exp(apart), 1.0)))  # logaddexp
    return op.Sub(whole, math.log1p(weight))


def _over(op: Operators, logits: Value, temperature: float) -> Value:
    return logits if temperature == 1 else op.Div(logits, temperature)


def _mixed_predictions(op: Operators, joint: JointModel, student: Value, teacher: Value) -> Value:
    """`ebjr.blend.blend_predictions`."""
    weight, own = float(joint.blend), op.columns(teacher, 0, 1)
    if weight == 0:
        return own
    return op.Div(op.Add(own, op.Mul(student, weight)), 1 + weight)


@dataclass(frozen=True)
class Rows:
    """The form of tasks whose raw output is an array: a row for each input.

    Attributes
    ----------
    joint
        The joint model, for its task, score and blend.
    columns
        For each role the k of its raw output (n, k); None where that is (n,).
    """

    joint: JointModel
    columns: Mapping[str, int | None]

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """See `Form`."""
        raw = _columns(op, raws[0], self.columns["student"])
        score = score_graph(op, self.joint.router.score, raw)
        return score, [_SAID[self.joint.task](op, self.joint, raw)]

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """See `Form`."""
        raw = _columns(op, raws[0], self.columns["teacher"])
        return [_MIXED[self.joint.task](op, self.joint, said[0], raw)]

    def outputs(self, op: Operators, answer: list[Value]) -> list[Output]:
        """See `Form`."""
        (output,) = answer
        whole = op.Cast(output, to=int(FLOAT))
        if self.joint.task == "regression":
            number = op.Cast(op.Squeeze(output, [1]), to=int(ir.DataType.DOUBLE))
            return [("prediction", number, ir.DataType.DOUBLE, ()), ("output", whole, FLOAT, (1,))]
        label = op.ArgMax(output, axis=1, keepdims=0)
        return [
            ("prediction", label, ir.DataType.INT64, ()),
            ("output", whole, FLOAT, (self.columns["teacher"],)),
        ]


@dataclass(frozen=True)
class Images:
    """The form of detection: boxes, labels and scores of each image.

    Attributes
    ----------
    joint
        The joint model, for its score and its common scale.
    heads
        Both detectors.
    """

    joint: JointModel
    heads: Mapping[str, Head]

    def student(self, op: Operators, raws: list[Value], given: Value) -> tuple[Value, list[Value]]:
        """See `Form`."""
        head = self.heads["student"]
        found = find(op, head, raws, given)
        score = detection_score(op, self.joint.router.score, head, found, raws)
        return score, self._answer(op, "student", found)

    def teacher(
        self, op: Operators, said: list[Value], raws: list[Value], given: Value
    ) -> list[Value]:
        """See `Form`."""
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
        """See `Form`."""
        boxes, labels, scores = (op.Identity(value) for value in answer)
        return [
            ("boxes", boxes, FLOAT, (self._most, 4)),
            ("labels", labels, ir.DataType.INT64, (self._most,)),
            ("scores", scores, FLOAT, (self._most,)),
        ]


_SAID: Mapping[str, Callable[[Operators, JointModel, Value], Value]] = {
    "classification": _as_it_is,
    "specialized": _of_teacher,
    "regression": _of_prediction,
}
_MIXED: Mapping[str, Callable[[Operators, JointModel, Value, Value], Value]] = {
    "classification": _mixed_logits,
    "specialized": _mixed_specialized,
    "regression": _mixed_predictions,
}
