"""Detections: a detector's output for one image, as NumPy arrays.

One row is one detection: a box, its class logits, and the class and score it is reported with. A
box reported for two classes is two rows. Boxes are x1, y1, x2, y2 in pixels of the image, before
any resizing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from scipy.special import expit, logit

from ebjr.arrays import as_float

_FORMAT = 1
_LARGEST_CLASS_COUNT = 65535


@dataclass(frozen=True, eq=False)
class Detections:
    """A detector's output for one image: b detections.

    Parameters
    ----------
    boxes
        (b, 4): x1, y1, x2, y2, in pixels of the image.
    logits
        (b, classes): raw class logits of each box, which eq. 12 needs. ``-inf`` rules a class out.
    size
        (height, width) of the image, in pixels.
    labels
        (b,): the reported class of each row; by default that of the largest logit.
    scores
        (b,), in [0, 1]: the reported confidence of each row; by default the sigmoid of the label's
        logit. Give them for heads without sigmoids, or after calibration.
    bins
        (b, 4, k): for each side the k logits of a distribution over distances (distribution focal
        loss), which eq. 13 needs; None for heads without.
    bin_width
        (b,): the distance between neighboring bins, in pixels of the model's input; None if it is
        the same for all boxes, or not the same for all bins.

    Raises
    ------
    ValueError
        `boxes` and the others differ in length, or have NaN, a box of negative size, a label
        outside the classes, or a score outside [0, 1].

    Examples
    --------
    >>> found = Detections(boxes=[[0, 0, 4, 4], [1, 1, 9, 3]], logits=[[2, -3], [-1, 0]],
    ...                    size=(8, 16))
    >>> len(found), found.labels, found.scores.round(2)
    (2, array([0, 1]), array([0.88, 0.5 ]))
    >>> found.above(0.6).boxes
    array([[0., 0., 4., 4.]])
    """

    boxes: np.ndarray
    logits: np.ndarray
    size: tuple[int, int]
    labels: np.ndarray = None  # type: ignore[assignment]
    scores: np.ndarray = None  # type: ignore[assignment]
    bins: np.ndarray | None = None
    bin_width: np.ndarray | None = None

    def __post_init__(self) -> None:
        boxes = checked_boxes(self.boxes)
        logits = _checked_logits(self.logits, len(boxes))
        if self.labels is None:
            labels = logits.argmax(axis=1) if len(boxes) else np.zeros(0, np.int64)
        else:
            labels = checked_labels(self.labels, len(boxes), logits.shape[1])
        if self.scores is None:
            scores = expit(logits[np.arange(len(boxes)), labels])
        else:
            scores = _checked_scores(self.scores, (len(boxes),))
        bins = None if self.bins is None else _checked_bins(self.bins, len(boxes))
        width = None if self.bin_width is None else _checked_width(self.bin_width, len(boxes))
        rows = {"boxes": boxes, "logits": logits, "labels": labels, "scores": scores}
        vars(self).update(rows, size=checked_size(self.size), bins=bins, bin_width=width)

    @classmethod
    def of_scores(cls, boxes: Any, scores: Any, size: tuple[int, int], **given: Any) -> Self:
        """Make the detections of a detector that returns scores but no logits.

        Parameters
        ----------
        boxes, size
            As in the class.
        scores
            (b, classes), the probability of each class; or (b,), with ``labels`` (b,) and
            ``classes``, the number of classes. The logits are their log-odds: a score of 0 is a
            logit of ``-inf``.
        **given
            ``labels``, ``classes``, ``bins``, ``bin_width``.

        Examples
        --------
        >>> found = Detections.of_scores([[0, 0, 4, 4]], [0.5], (8, 16), labels=[1], classes=3)
        >>> found.logits
        array([[-inf,   0., -inf]])
        """
        classes = given.pop("classes", None)
        values = _as_float(scores)
        if values.ndim == 1:
            if classes is None or given.get("labels") is None:
                raise ValueError(
                    "scores of shape (b,) need labels and classes, the number of classes; "
                    "or give scores of shape (b, classes)"
                )
            labels = checked_labels(given["labels"], len(values), classes)
            given["scores"] = _checked_scores(values, values.shape)
            logits = np.full((len(values), classes), -np.inf, values.dtype)
            logits[np.arange(len(values)), labels] = _log_odds(values)
        else:
            logits = _log_odds(_checked_scores(values, values.shape))
        return cls(boxes, logits, size, **given)

    @classmethod
    def none(cls, classes: int, size: tuple[int, int]) -> Self:
        """Make an image without detections, B = 0."""
        return cls(np.zeros((0, 4), np.float32), np.zeros((0, classes), np.float32), size)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        height, width = self.size
        return f"Detections({len(self)} of {self.classes} classes on {width} x {height} pixels)"

    @property
    def classes(self) -> int:
        """The number of the detector's classes."""
        return int(self.logits.shape[1])

    def take(self, rows: Any) -> Self:
        """Return some of the detections by an index array, a mask or a slice."""
        if isinstance(rows, list):
            rows = np.array(rows, int)
        chosen = object.__new__(type(self))  # skip the checks: these rows have passed them
        for name, value in vars(self).items():
            vars(chosen)[name] = value if name == "size" or value is None else value[rows]
        return chosen

    def top(self, k: int) -> Self:
        """Return the k with the highest scores, highest first; ties keep their order.

        Raises
        ------
        ValueError
            `k` is negative.
        """
        if k < 0:
            raise ValueError(f"k must be at least 0, not {k}")
        return self.take(np.argsort(-self.scores, kind="stable")[:k])

    def above(self, score: float) -> Self:
        """Return the detections with a score above `score`, in order."""
        return self.take(self.scores > score)

    def nms(self, iou: float = 0.6) -> Self:
        """Return the detections that `nms` keeps, best first."""
        return self.take(nms(self.boxes, self.scores, self.labels, iou))

    def expand(self, above: float = 0.001, limit: int | None = None) -> Self:
        """Return one row per box and class with a sigmoid above `above`, highest first.

        COCO's figures use these: a box is reported for each class it may be. At most `limit` rows
        are kept.

        Raises
        ------
        ValueError
            `above` is outside [0, 1).

        Examples
        --------
        >>> found = Detections([[0, 0, 1, 1]], [[2.0, 1.0, -9.0]], (8, 8))
        >>> found.expand(above=0.1).labels
        array([0, 1])
        """
        if not 0 <= above < 1:
            raise ValueError(f"above must lie in 0..1, under 1, not {above}")
        # 1e-3: a logit too many is compared again below, as a sigmoid
        rows, labels = np.nonzero(self.logits >= logit(above) - 1e-3)
        values = expit(self.logits[rows, labels])
        likely = values > above
        if limit is not None and likely.sum() > limit > 0:
            likely &= values >= np.partition(values, -limit)[-limit]
        chosen = np.flatnonzero(likely)
        chosen = chosen[np.argsort(-values[chosen], kind="stable")][:limit]
        found = self.take(rows[chosen])
        vars(found).update(labels=labels[chosen], scores=values[chosen])
        return found

    @property
    def numbers(self) -> np.ndarray:
        """A few numbers, (4,), that distinguish one image's detections from another's."""
        return np.array([*self.size, self.boxes.sum(), self.scores.sum()], np.float64)

    def with_scores(self, scores: Any) -> Self:
        """Return the same detections with other scores (b,), such as calibrated ones."""
        return replace(self, scores=scores)


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The g labeled boxes of one image.

    Parameters
    ----------
    boxes
        (g, 4): x1, y1, x2, y2, in pixels; an image without boxes is fine.
    labels
        (g,): their classes, from 0.
    crowd
        (g,) bool: a region of many objects, in which COCO counts detections neither for nor against
        the detector; by default none.

    Raises
    ------
    ValueError
        `boxes` and `labels` differ in length, or have NaN, a box of negative size or a negative
        label.

    Examples
    --------
    >>> len(GroundTruth([[0, 0, 4, 4]], [17])), len(GroundTruth([], []))
    (1, 0)
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        boxes = checked_boxes(self.boxes)
        labels = checked_labels(self.labels, len(boxes), _LARGEST_CLASS_COUNT)
        crowd = np.zeros(len(boxes), bool) if self.crowd is None else np.asarray(self.crowd, bool)
        if crowd.shape != (len(boxes),):
            raise ValueError(f"crowd must have shape ({len(boxes)},), not {crowd.shape}")
        vars(self).update(boxes=boxes, labels=labels, crowd=crowd)

    def __len__(self) -> int:
        return len(self.boxes)


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the intersection over union of all pairs of boxes, (n, m); 0 of two without area."""
    shared = box_intersection(first, second)
    union = box_area(first)[:, None] + box_area(second)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def box_intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the shared area of all pairs of boxes (n, 4) and (m, 4): (n, m), in square pixels."""
    x1, y1, x2, y2 = first.T[:, :, None]
    left, top, right, bottom = second.T[:, None]
    width = np.minimum(x2, right) - np.maximum(x1, left)
    height = np.minimum(y2, bottom) - np.maximum(y1, top)
    return np.maximum(width, 0) * np.maximum(height, 0)


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes (n, 4): (n,), in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray | None = None, iou: float = 0.6
) -> np.ndarray:
    """Return the rows of boxes (n, 4), best first, that non-maximum suppression keeps, per class.

    From the best down, each box removes those that overlap it by more than `iou`.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must lie in 0..1, not {iou}")
    labels = np.zeros(len(boxes), int) if labels is None else labels
    order = np.argsort(-scores, kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    groups = np.split(by_class, np.flatnonzero(np.diff(labels[by_class])) + 1)
    kept = np.zeros(len(boxes), bool)
    for group in groups:
        kept[group[_suppress(boxes[group], iou)]] = True
    return order[kept[order]]


def _suppress(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Return which boxes of one class, best first, are kept."""
    alive = np.ones(len(boxes), bool)
    if len(boxes) < 2:
        return alive
    overlaps = box_iou(boxes, boxes) > iou
    for row in range(len(boxes) - 1):
        if alive[row]:
            alive[row + 1 :] &= ~overlaps[row, row + 1 :]
    return alive


def pack_detections(detections: Sequence[Detections], half: bool = False) -> dict[str, np.ndarray]:
    """Pack the detections on n images, with equal classes and bins, into a few arrays.

    `half` stores logits and bins in half precision; mAP depends on none of them.
    """
    check_detections(detections)
    if not len(detections):
        raise ValueError("there are no images to pack")
    packed = {
        "format": np.array(_FORMAT),
        "size": np.array([found.size for found in detections]),
        **_packed(detections, ("boxes", "logits", "labels", "scores")),
    }
    filled = [found for found in detections if len(found)] or list(detections)
    for name in ("bins", "bin_width"):
        values = [getattr(found, name) for found in filled]
        missing = sum(value is None for value in values)
        if missing not in (0, len(values)):
            raise ValueError(
                f"{missing} of {len(values)} images have no {name} but the others do: "
                "pack detections of one detector at a time"
            )
        if not missing:
            packed[name] = np.concatenate(values)
    if half:
        for name in packed.keys() & {"logits", "bins"}:
            limit = np.finfo(np.float16).max
            narrow = np.where(np.isfinite(packed[name]), packed[name].clip(-limit, limit), -np.inf)
            packed[name] = narrow.astype(np.float16)
    return packed


def unpack_detections(packed: Mapping[str, np.ndarray]) -> list[Detections]:
    """Read what `pack_detections` returned."""
    if int(packed["format"]) != _FORMAT:
        raise ValueError(
            f"detections must be of format {_FORMAT}, not {int(packed['format'])}: "
            "update EBJR, if a newer version wrote them"
        )
    more = [name for name in ("bins", "bin_width") if name in packed]
    parts = _unpacked(packed, ("boxes", "logits", "labels", "scores", *more), "detections")
    sizes = map(tuple, packed["size"].tolist())
    return [Detections(size=size, **part) for size, part in zip(sizes, parts, strict=True)]


def pack_truth(truth: Sequence[GroundTruth]) -> dict[str, np.ndarray]:
    """Pack the labeled boxes of n images into a few arrays."""
    return _packed(truth, _OF_TRUTH)


def unpack_truth(packed: Mapping[str, np.ndarray]) -> list[GroundTruth]:
    """Read what `pack_truth` returned."""
    return [GroundTruth(**part) for part in _unpacked(packed, _OF_TRUTH, "labeled boxes")]


_OF_TRUTH = ("boxes", "labels", "crowd")


def _packed(images: Sequence[Any], names: Sequence[str]) -> dict[str, np.ndarray]:
    whole = {name: np.concatenate([getattr(one, name) for one in images]) for name in names}
    return {"count": np.array([len(one) for one in images]), **whole}


def _unpacked(
    packed: Mapping[str, np.ndarray], names: Sequence[str], what: str
) -> list[dict[str, np.ndarray]]:
    ends = np.cumsum(packed["count"])
    if any(len(packed[name]) != ends[-1] for name in names):
        raise ValueError(f"the arrays of {what} must have one row per box")
    columns = (np.split(packed[name], ends[:-1]) for name in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def check_listed(kind: type, **named: Any) -> None:
    """Raise TypeError unless each argument is a list of `kind`."""
    for name, images in named.items():
        listed = isinstance(images, list | tuple)
        wrong = [one for one in (images if listed else [images]) if not isinstance(one, kind)]
        if wrong or not listed:
            came = type(wrong[0] if wrong else images).__name__
            raise TypeError(f"{name} must be a list of {kind.__name__}, one per image, not {came}")


def check_labels(truth: Sequence[GroundTruth], classes: int, where: str = "") -> None:
    """Raise ValueError if a label is not one of the detectors' classes."""
    outside = [n for n, real in enumerate(truth) if (real.labels >= classes).any()]
    if outside:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, the detectors' classes, but {len(outside)} of "
            f"{len(truth)} images{where} have others, the first is "
            f"{truth[outside[0]].labels.max()}: map them to the detectors' classes first"
        )


def check_detections(detections: Any) -> None:
    """Raise unless these are a list of Detections with the same classes."""
    check_listed(Detections, detections=detections)
    classes = sorted({found.classes for found in detections})
    if len(classes) > 1:
        raise ValueError(
            f"detections must know the same classes, but some know {classes[0]} and some "
            f"{classes[-1]}"
        )


# Checks


def checked_boxes(boxes: Any) -> np.ndarray:
    """Return boxes (b, 4); ValueError unless finite with x1 <= x2 and y1 <= y2."""
    values = _as_float(boxes)
    if values.size == 0:
        values = values.reshape(0, 4)
    if values.ndim != 2 or values.shape[1] != 4:
        raise ValueError(f"boxes must have shape (b, 4), not {values.shape}")
    finite = np.isfinite(values).all(axis=1)
    _check(values, finite, "boxes must hold finite numbers", "leave such boxes out")
    ordered = (values[:, 2:] >= values[:, :2]).all(axis=1)
    _check(values, ordered, "boxes must have x1 <= x2 and y1 <= y2", "give x1, y1, x2, y2")
    return values


def checked_labels(labels: Any, count: int, classes: int) -> np.ndarray:
    """Return labels (b,); ValueError unless integers from 0 to classes - 1."""
    values = np.asarray(labels)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"labels must be {count} whole numbers, one per box, not {values.dtype} "
            f"of shape {values.shape}"
        )
    known, way = (values >= 0) & (values < classes), "map them to the detector's classes first"
    _check(values, known, f"labels must lie in 0..{classes - 1}", way)
    return values.astype(np.int64)


def checked_size(size: Any) -> tuple[int, int]:
    """Return an image's size, (height, width); ValueError unless both are positive."""
    sides = tuple(size) if isinstance(size, list | tuple | np.ndarray) else ()
    whole = all(isinstance(side, int | np.integer) and side > 0 for side in sides)
    if len(sides) != 2 or not whole:
        raise ValueError(f"size must be (height, width) in whole pixels, not {size!r}")
    return int(sides[0]), int(sides[1])


def _checked_logits(logits: Any, count: int) -> np.ndarray:
    values = _as_float(logits)
    if values.ndim != 2 or len(values) != count or values.shape[1] < 1:
        raise ValueError(
            f"logits must have shape ({count}, classes), one row per box, not {values.shape}"
        )
    _check(values, (values < np.inf).all(axis=1), "logits must be numbers below infinity")
    return values


def _checked_scores(scores: Any, shape: tuple[int, ...]) -> np.ndarray:
    values = _as_float(scores)
    if values.shape != shape:
        raise ValueError(f"scores must have shape {shape}, one per box, not {values.shape}")
    inside = (values >= 0) & (values <= 1)
    _check(values, inside, "scores must lie in 0..1", "give raw values as logits")
    return values


def _checked_bins(bins: Any, count: int) -> np.ndarray:
    values = _as_float(bins)
    if values.ndim != 3 or values.shape[:2] != (count, 4) or values.shape[2] < 2:
        raise ValueError(
            f"bins must have shape ({count}, 4, bins) with at least 2 bins, not {values.shape}"
        )
    _check(values, values < np.inf, "bins must be numbers below infinity")
    return values


def _checked_width(width: Any, count: int) -> np.ndarray:
    values = _as_float(width)
    if values.shape != (count,) or not ((values > 0) & np.isfinite(values)).all():
        raise ValueError(f"bin_width must be {count} positive numbers, one per box")
    return values


def _as_float(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"boxes, logits and scores must be numbers, not {array.dtype}")
    return np.asarray(as_float(array))


def _log_odds(scores: np.ndarray) -> np.ndarray:
    """Return log-odds; a score of 1 counts as the largest below it, to keep the logit finite."""
    return logit(np.minimum(scores, 1 - np.finfo(scores.dtype).epsneg))


def _check(values: np.ndarray, right: Any, what: str, way_out: str = "") -> None:
    """Raise ValueError with the number of values, or rows of values, that are not `right`."""
    if right.all():
        return
    first = values[~right][0]
    if right.ndim < values.ndim:
        first = f"box {int(np.argmin(right))}: {first.tolist()}"
    count = f"{int((~right).sum())} of {right.size} do not, the first is {first}"
    raise ValueError(f"{what}, but {count}" + (f"; {way_out}" if way_out else ""))
