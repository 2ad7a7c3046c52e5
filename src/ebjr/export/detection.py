"""Detectors like DETR inside the graph: a fixed number of boxes, no suppression.

Each class of each box is a candidate, and the best `limit` of them are an image's detections, as
`ebjr.backends.detectors` decodes them outside. In a graph every image has as many rows; those
beyond its count hold boxes of 0, the label -1 and the score 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ebjr.backends.detectors import LAYOUTS, OnnxDetector, detr_outputs
from ebjr.errors import ModelError
from ebjr.export.images import place_images
from ebjr.export.operators import Operators, Value
from ebjr.scores import Score
from ebjr.tasks.detection.scale import LEAST_SCORE, ConfidenceMap

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Head:
    """A detector's graph, as far as the joint graph reads it.

    Attributes
    ----------
    detector
        The detector.
    outputs
        The names of its boxes, logits, and bin logits where there are some.
    queries, columns, bins
        How many boxes an image has, how many logits a box, and how many bins a side, or none.
    """

    detector: OnnxDetector
    outputs: tuple[str, ...]
    queries: int
    columns: int
    bins: int

    @property
    def rows(self) -> int:
        """At most so many detections are reported on an image."""
        classes = self.detector.classes if self.columns == self.detector.classes else 1
        return min(self.detector.limit, self.queries * classes)


def head_of(role: str, detector: OnnxDetector, example: np.ndarray) -> Head:
    """What is read of a detector.

    Raises
    ------
    ModelError
        Its number of boxes is not fixed, or it suppresses boxes.
    """
    if detector.layout is not LAYOUTS["detr"] or detector.nms is not None:
        raise ModelError(
            f"the {role} {detector.path} needs its boxes decoded and suppressed outside of its "
            "graph; only detectors like DETR, with a fixed number of boxes and no suppression, can "
            "be exported"
        )
    answers = detector.model.answer_all(detector.preprocess(example))
    names = detr_outputs(answers, detector.classes)
    count, queries, columns = answers[names[1]].shape
    bins = sum(answers[name].size for name in names[2:]) // (count * queries * 4)
    return Head(detector, names, queries, columns, bins)


@dataclass(frozen=True)
class Found:
    """What is on n images, in the graph: the best first.

    Attributes
    ----------
    boxes, labels, scores
        (n, rows, 4), (n, rows) and (n, rows).
    real
        (n, rows) bool: which rows are detections.
    query
        (n, rows): which of the head's boxes each one is.
    """

    boxes: Value
    labels: Value
    scores: Value
    real: Value
    query: Value


def find(op: Operators, head: Head, raws: list[Value], images: Value) -> Found:
    """The detections of a head on images (n, height, width, 3), in pixels of these."""
    op = op.computing(np.float32)
    boxes, logits = (op.to(raw, np.float32) for raw in raws[:2])
    classes = head.detector.classes
    if head.columns == classes:
        flat = op.Reshape(op.Sigmoid(logits), [0, head.queries * classes])
        scores, index = op.TopK(flat, [head.rows], outputs=2)
        query, labels = op.Div(index, classes), op.Mod(index, classes)
    else:  # a softmax, whose last class is "nothing"
        likely = op.Slice(op.Softmax(logits, axis=2), [0], [classes], [2])
        best = op.reduce("ReduceMax", likely)
        scores, query = op.TopK(best, [head.rows], outputs=2)
        labels = op.GatherElements(op.ArgMax(likely, axis=2, keepdims=0), query, axis=1)
    real = op.Greater(scores, np.float32(head.detector.above))
    placed = _placed(op, head, boxes, images)
    chosen = op.GatherND(placed, op.Unsqueeze(query, [2]), batch_dims=1)
    return Found(
        boxes=op.Where(op.Unsqueeze(real, [2]), chosen, 0.0),
        labels=op.Where(real, labels, -1),
        scores=op.Where(real, scores, 0.0),
        real=real,
        query=query,
    )


def _placed(op: Operators, head: Head, boxes: Value, images: Value) -> Value:
    """Center, width and height from 0 to 1, as corners in pixels of the images."""
    shape = op.Shape(images)
    own = (op.Gather(shape, 1), op.Gather(shape, 2))
    size, (sides, top, left) = place_images(op, own, head.detector.preprocess)
    exact = op.computing(np.float64)

    def four(y: Value, x: Value) -> Value:
        """(4,): x, y, x, y."""
        pair = [exact.Unsqueeze(exact.to(exact.value(one), np.float64), [0]) for one in (x, y)]
        return exact.Concat(*pair, *pair, axis=0)

    center = op.Slice(boxes, [0], [2], [2])
    half = op.Mul(op.Max(op.Slice(boxes, [2], [4], [2]), 0.0), 0.5)
    corners = op.Concat(op.Sub(center, half), op.Add(center, half), axis=2)
    pixels = op.Mul(corners, op.Cast(four(*size), to=int(FLOAT)))
    scale = exact.Div(four(*own), four(*sides))
    moved = exact.Mul(exact.Sub(exact.to(pixels, np.float64), four(top, left)), scale)
    return op.Cast(exact.Min(exact.Max(moved, 0.0), four(*own)), to=int(FLOAT))


def rescaled(op: Operators, found: Found, change: ConfidenceMap | None) -> Value:
    """The scores on the common scale, as `ConfidenceMap` puts them there."""
    if change is None:
        return found.scores
    exact = op.computing(np.float64)
    least = exact.Max(exact.to(found.scores, np.float64), LEAST_SCORE)
    score = exact.Min(least, 1 - LEAST_SCORE)
    low, high = exact.Log(score), exact.Log(exact.Sub(1.0, score))
    odds = exact.Add(exact.Sub(exact.Mul(low, change.a), exact.Mul(high, change.b)), change.c)
    chance = exact.Div(1.0, exact.Add(exact.Exp(exact.Neg(odds)), 1.0))
    return op.Where(found.real, op.Cast(chance, to=int(FLOAT)), np.float32(0.0))


# Scores, in double precision as outside


def detection_score(
    op: Operators, score: Score, head: Head, found: Found, raws: list[Value]
) -> Value:
    """A score of the detections on n images as a part of the graph: (n,).

    Raises
    ------
    ValueError
        It has no form in ONNX operators.
    """
    if not score.named or score.name not in DETECTION_FORMS:
        raise ValueError(
            f"the score {score.title} has no form in ONNX operators; of detections these have: "
            f"{', '.join(DETECTION_FORMS)}"
        )
    given = dict(score.parameters)
    above = given.pop("above", 0.0 if score.name == "max_confidence" else 0.3)
    top, empty = given.pop("top", None), given.pop("empty", -math.inf)
    value = op.to(found.scores, np.float64)
    chosen = op.And(found.real, op.Greater(found.scores, np.float32(above)))
    if top is not None:
        chosen = op.And(chosen, np.arange(head.rows) < top)
    weight = op.Cast(chosen, to=int(ir.DataType.DOUBLE))
    count = op.reduce("ReduceSum", weight)
    made = DETECTION_FORMS[score.name](op, value, weight, count, (head, found, raws), **given)
    return op.Where(op.Greater(count, 0.0), made, float(empty))


def _energy(
    op: Operators,
    score: Value,
    weight: Value,
    count: Value,
    parts: tuple[Head, Found, list[Value]],
    part: str = "both",
    reduce: str = "mean",
) -> Value:
    """`ebjr.tasks.detection.scores.detection_energy`."""
    head, found, raws = parts
    terms = []
    if part != "boxes":
        logits = op.Slice(op.to(raws[1], np.float64), [0], [head.detector.classes], [2])
        terms.append(_logsumexp(op, logits))
    if part != "classes":
        bins = op.Reshape(op.to(raws[2], np.float64), [-1, head.queries, 4, head.bins])
        terms.append(op.reduce("ReduceMean", _logsumexp(op, bins)))
    whole = terms[0] if len(terms) == 1 else op.Add(*terms)
    total = _sum(op, op.GatherElements(whole, found.query, axis=1), weight)
    return total if reduce == "sum" else op.Div(total, op.Max(count, 1.0))


def _sum(op: Operators, values: Value, weight: Value) -> Value:
    """Of the rows that count."""
    return op.reduce("ReduceSum", op.Where(op.Greater(weight, 0.0), values, 0.0))


def _logsumexp(op: Operators, x: Value) -> Value:
    top = op.reduce("ReduceMax", x, keep=True)
    total = op.reduce("ReduceSum", op.Exp(op.Sub(x, top)), keep=True)
    return op.Squeeze(op.Add(op.Log(total), top), [-1])


DETECTION_FORMS: Mapping[str, Callable[..., Value]] = {
    "detection_energy": _energy,
    "box_count": lambda op, score, weight, count, _: op.Neg(count),
    "expected_errors": lambda op, score, weight, count, _: op.Neg(
        _sum(op, op.Mul(score, op.Sub(1.0, score)), weight)
    ),
    "max_confidence": lambda op, score, weight, count, _: op.reduce(
        "ReduceMax", op.Mul(score, weight)
    ),
    "mean_confidence": lambda op, score, weight, count, _: op.Div(
        _sum(op, score, weight), op.Max(count, 1.0)
    ),
}
"""By the score's name: of confidences (n, rows), which of them count, and how many."""
