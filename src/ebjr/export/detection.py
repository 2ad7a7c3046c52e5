"""Detectors like DETR inside the graph: a fixed number of boxes (`Layout.fixed`), and no NMS.

An image's detections are the best `limit` pairs of box and class, as in `ebjr.backends.detectors`.
Padding rows have boxes of 0, the label -1 and the score 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ebjr.backends.detectors import OnnxDetector
from ebjr.backends.layouts import LAYOUTS, Fixed
from ebjr.errors import ModelError
from ebjr.export.images import place_images
from ebjr.export.operators import Operators, Value
from ebjr.scores import Score
from ebjr.tasks.detection.scale import LEAST_SCORE, ConfidenceMap

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Head:
    """What the joint graph reads of a detector's graph."""

    detector: OnnxDetector
    fixed: Fixed  # its layout's
    outputs: tuple[str, ...]  # their names, as in `Fixed`
    queries: int  # boxes on an image
    bins: int  # for a side, or 0
    softmax: bool  # the last logit means "nothing"

    @property
    def rows(self) -> int:
        """The most detections on an image."""
        single = self.softmax or self.detector.layout.by_label
        return min(self.detector.limit, self.queries * (1 if single else len(self.columns)))

    @property
    def columns(self) -> np.ndarray:
        """The column or label of each reported class."""
        return np.array(self.detector.numbers)


def head_of(role: str, detector: OnnxDetector, example: np.ndarray) -> Head:
    """Return a detector's head; a ModelError if it needs NMS or its number of boxes varies."""
    fixed = detector.layout.fixed
    if fixed is None or detector.nms is not None:
        known = ", ".join(name for name, layout in LAYOUTS.items() if layout.fixed)
        raise ModelError(
            f"the {role} {detector.path} (layout {detector.layout_name or 'own'}) decodes and "
            "suppresses boxes outside its graph; only detectors like DETR, with a fixed number of "
            f"boxes and no suppression, can be exported: those with the layouts {known}"
        )
    answers = detector.model.answer_all(detector.preprocess(example))
    names = fixed.names(answers, detector.classes)
    boxes, *others = (answers[name] for name in names)
    bins = others[1].size // boxes.size if len(others) > 1 else 0
    softmax = bool(others) and others[0].shape[2] > detector.classes
    return Head(detector, fixed, names, boxes.shape[1], bins, softmax)


@dataclass(frozen=True)
class Found:
    """The detections on n images as values of the graph, the best first."""

    boxes: Value  # (n, rows, 4)
    labels: Value  # (n, rows)
    scores: Value  # (n, rows)
    real: Value  # (n, rows), bool: which rows are not padding
    query: Value  # (n, rows): the index of the head's box
    logits: Value  # (n, queries, classes), of all of the head's boxes


def find(op: Operators, head: Head, raws: list[Value], images: Value) -> Found:
    """Return a head's detections on images (n, height, width, 3), in pixels of these."""
    op = op.computing(np.float32)
    corners, logits = _read(op, head, [op.to(raw, np.float32) for raw in raws])
    classes = len(head.columns)
    if not head.softmax:
        flat = op.Reshape(op.Sigmoid(logits), [0, head.queries * classes])
        scores, index = op.TopK(flat, [head.rows], outputs=2)
        query, labels = op.Div(index, classes), op.Mod(index, classes)
    else:  # drop a box whose best class is "nothing" or not reported
        likely = op.Slice(op.Softmax(logits, axis=2), [0], [-1], [2])
        ours = op.Gather(likely, head.columns, axis=2)
        best = op.reduce("ReduceMax", ours)
        best = op.Where(op.Less(best, op.reduce("ReduceMax", likely)), np.float32(0), best)
        scores, query = op.TopK(best, [head.rows], outputs=2)
        labels = op.GatherElements(op.ArgMax(ours, axis=2, keepdims=0), query, axis=1)
        logits = op.Gather(logits, head.columns, axis=2)
    real = op.Greater(scores, np.float32(head.detector.above))
    placed = _placed(op, head, corners, images)
    chosen = op.GatherND(placed, op.Unsqueeze(query, [2]), batch_dims=1)
    return Found(
        boxes=op.Where(op.Unsqueeze(real, [2]), chosen, 0.0),
        labels=op.Where(real, labels, -1),
        scores=op.Where(real, scores, 0.0),
        real=real,
        query=query,
        logits=logits,
    )


def _read(op: Operators, head: Head, raws: list[Value]) -> tuple[Value, Value]:
    """Return corners in the layout's unit, and logits of our classes, or of all for a softmax."""
    boxes, scores = op.Slice(raws[0], [0], [4], [2]), op.Slice(raws[0], [4], [2**31], [2])
    corners = boxes if head.fixed.corners else _corners(op, boxes)
    if head.detector.layout.by_label:
        score, label = op.Slice(scores, [0], [1], [2]), op.Slice(scores, [1], [2], [2])
        own = op.Equal(label, head.columns.astype(np.float32))
        return corners, op.Where(own, _log_odds(op, score), -math.inf)
    logits = raws[1] if len(head.outputs) > 1 else _log_odds(op, scores)
    return corners, logits if head.softmax else op.Gather(logits, head.columns, axis=2)


def _corners(op: Operators, boxes: Value) -> Value:
    center, half = op.Slice(boxes, [0], [2], [2]), op.Slice(boxes, [2], [4], [2])
    half = op.Mul(op.Max(half, 0.0), 0.5)
    return op.Concat(op.Sub(center, half), op.Add(center, half), axis=2)


def _log_odds(op: Operators, scores: Value) -> Value:
    kept = op.Min(op.Max(scores, 0.0), 1 - np.finfo(np.float32).epsneg)
    return op.Sub(op.Log(kept), op.Log(op.Sub(1.0, kept)))


def _placed(op: Operators, head: Head, corners: Value, images: Value) -> Value:
    """Convert corners from the layout's unit to pixels of the images."""
    shape = op.Shape(images)
    own = (op.Gather(shape, 1), op.Gather(shape, 2))
    size, (sides, top, left) = place_images(op, own, head.detector.preprocess)
    exact = op.computing(np.float64)

    def four(y: Value, x: Value) -> Value:
        """Return x, y, x, y, (4,)."""
        pair = [exact.Unsqueeze(exact.to(exact.value(one), np.float64), [0]) for one in (x, y)]
        return exact.Concat(*pair, *pair, axis=0)

    pixels = corners
    if not head.fixed.pixels:
        pixels = op.Mul(corners, op.Cast(four(*size), to=int(FLOAT)))
    preprocess, pixels = head.detector.preprocess, exact.to(pixels, np.float64)
    if any(preprocess.shift):
        pixels = exact.Sub(pixels, np.array(preprocess.shift * 2, np.float64))
    if preprocess.mirror:
        swapped = exact.Mul(exact.Gather(pixels, [2, 1, 0, 3], axis=2), [-1.0, 1.0, -1.0, 1.0])
        pixels = exact.Add(four(0, size[1]), swapped)
    scale = exact.Div(four(*own), four(*sides))
    moved = exact.Mul(exact.Sub(pixels, four(top, left)), scale)
    return op.Cast(exact.Min(exact.Max(moved, 0.0), four(*own)), to=int(FLOAT))


def rescaled(op: Operators, found: Found, change: ConfidenceMap | None) -> Value:
    """Return the scores on the common scale, like `ConfidenceMap`."""
    if change is None:
        return found.scores
    exact = op.computing(np.float64)
    least = exact.Max(exact.to(found.scores, np.float64), LEAST_SCORE)
    score = exact.Min(least, 1 - LEAST_SCORE)
    low, high = exact.Log(score), exact.Log(exact.Sub(1.0, score))
    odds = exact.Add(exact.Sub(exact.Mul(low, change.a), exact.Mul(high, change.b)), change.c)
    chance = exact.Div(1.0, exact.Add(exact.Exp(exact.Neg(odds)), 1.0))
    return op.Where(found.real, op.Cast(chance, to=int(FLOAT)), np.float32(0.0))


# Scores, in double precision, as outside the graph


def detection_score(
    op: Operators, score: Score, head: Head, found: Found, raws: list[Value]
) -> Value:
    """Build a score of the detections on n images, (n,)."""
    if not score.named or score.name not in DETECTION_FORMS:
        raise ValueError(
            f"the score {score.title} cannot be exported; for detectors these can: "
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
        terms.append(_logsumexp(op, op.to(found.logits, np.float64)))
    if part != "classes":
        bins = op.Reshape(op.to(raws[2], np.float64), [-1, head.queries, 4, head.bins])
        terms.append(op.reduce("ReduceMean", _logsumexp(op, bins)))
    whole = terms[0] if len(terms) == 1 else op.Add(*terms)
    total = _sum(op, op.GatherElements(whole, found.query, axis=1), weight)
    return total if reduce == "sum" else op.Div(total, op.Max(count, 1.0))


def _sum(op: Operators, values: Value, weight: Value) -> Value:
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
"""Scores by name: functions of confidences (n, rows), their weights, and the number that count."""
