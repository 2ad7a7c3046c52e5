"""Scores of detections: how well an image fits what the student knows. Higher = keep.

Every score takes a list of n `Detections` and returns (n,), one number per image. Two parameters
that all share choose the boxes that count:

- `above`: boxes with a higher score. After non-maximum suppression these are the boxes that a
  person would see.
- `top`: at most this many boxes, the best. Before suppression these are the head's surest.

**No boxes, B = 0, is not "easy".** The means of eq. 12 and 13 are 0/0 then, a sum is 0, and for
`box_count` and `expected_errors` 0 is the highest score: an image on which the student saw nothing
would be kept first, whether it is empty or the student missed everything. So every score of such an
image is ``-inf``, which no threshold keeps, and the teacher looks. Use another `empty` if empty
images are known to be empty.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import numpy as np
from scipy.special import expit, logsumexp

from ebjr.errors import check_at_least, check_choice
from ebjr.scores import declare_raw_output
from ebjr.tasks.detection.boxes import Detections, box_area, box_iou, check_detections

PARTS = ("classes", "boxes", "both")
REDUCTIONS = ("mean", "sum")


class Which(TypedDict, total=False):
    """Which boxes of an image count, and its score without boxes; see the module."""

    above: float  # by default 0.3 in most scores
    top: int | None  # None: all
    empty: float  # -inf


def detection_energy(
    detections: Sequence[Detections],
    part: str = "both",
    above: float = 0.3,
    top: int | None = None,
    reduce: str = "mean",
    empty: float = -math.inf,
) -> np.ndarray:
    """Negative free energy of an image's boxes, ``-F(x)``, in nats (eq. 12-14).

    - `part`: ``"classes"`` (eq. 12): log-sum-exp of each box's class logits. ``"boxes"`` (eq. 13):
      the mean regression energy of its four sides; exact for heads that predict a distribution over
      bins: log-sum-exp of the bin logits plus the log of the bin width. ``"both"``: their sum
      (eq. 14), the paper's.
    - `above`, `top`: Which boxes count; see the module.
    - `reduce`: ``"mean"`` over the boxes, the paper's, or ``"sum"``: B times the mean.
    - `empty`: The score of an image without such boxes.

    Raises
    ------
    ValueError
        `part`, `reduce`, `above`, `top` or `empty` is out of range, or `detections` lack bin logits
        that `part` needs.

    Examples
    --------
    >>> sure = Detections([[0, 0, 4, 4]], [[5.0, -99.0]], (8, 8))
    >>> detection_energy([sure, Detections.none(2, (8, 8))], part="classes")
    array([  5., -inf])
    """
    check_choice("part", part, PARTS)
    check_choice("reduce", reduce, REDUCTIONS)

    def score(found: Detections) -> float:
        values = np.zeros(len(found))
        if part != "boxes":
            values += logsumexp(found.logits.astype(np.float64), axis=1)
        if part != "classes":
            values += _side_energy(found)
        return float(values.mean() if reduce == "mean" else values.sum())

    return _each(score, detections, above, top, empty)


def box_count(detections: Sequence[Detections], **which: Unpack[Which]) -> np.ndarray:
    """Minus the number of boxes: a better detector gains most on crowded images.

    Examples
    --------
    >>> two = Detections([[0, 0, 4, 4], [4, 4, 8, 8]], [[5.0], [1.0]], (8, 8))
    >>> box_count([two, two.top(1), two.top(0)])
    array([ -2.,  -1., -inf])
    """
    return _each(lambda found: -float(len(found)), detections, **which)


def expected_errors(detections: Sequence[Detections], **which: Unpack[Which]) -> np.ndarray:
    """Minus ``sum s (1 - s)``: the variance of the number of right boxes.

    A box that is right with probability s adds most at s = 1/2.

    Examples
    --------
    >>> found = Detections.of_scores([[0, 0, 4, 4], [4, 4, 8, 8]], [[0.5], [1.0]], (8, 8))
    >>> expected_errors([found])
    array([-0.25])
    """

    def score(found: Detections) -> float:
        scores = found.scores.astype(np.float64)
        return -float((scores * (1 - scores)).sum())

    return _each(score, detections, **which)


def max_confidence(detections: Sequence[Detections], **which: Unpack[Which]) -> np.ndarray:
    """The score of the best box, in [0, 1]; `above` is 0 by default.

    Examples
    --------
    >>> found = Detections.of_scores([[0, 0, 4, 4], [4, 4, 8, 8]], [[0.5], [0.75]], (8, 8))
    >>> max_confidence([found])
    array([0.75])
    """
    all_boxes: Which = {"above": 0.0, **which}
    return _each(lambda found: float(found.scores.max()), detections, **all_boxes)


def mean_confidence(detections: Sequence[Detections], **which: Unpack[Which]) -> np.ndarray:
    """The mean score of the boxes, in [0, 1].

    Examples
    --------
    >>> found = Detections.of_scores([[0, 0, 4, 4], [4, 4, 8, 8]], [[0.5], [0.75]], (8, 8))
    >>> mean_confidence([found])
    array([0.625])
    """
    return _each(lambda found: float(found.scores.astype(np.float64).mean()), detections, **which)


def learned_gain(detections: Sequence[Detections], weights: Sequence[float]) -> np.ndarray:
    """Minus the expected gain from the teacher on an image: linear in `detection_features`.

    `ebjr.tasks.detection.gain.fit_gain` fits the weights, a constant and one per entry of
    `FEATURES`. An image without boxes has features too, and its expected gain is what the teacher
    gained on such images.

    Examples
    --------
    >>> found = Detections([[0, 0, 4, 4]], [[5.0]], (8, 8))
    >>> learned_gain([found], [0.5] + [0.0] * len(FEATURES))
    array([-0.5])
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (len(FEATURES) + 1,):
        raise ValueError(
            f"weights must be {len(FEATURES) + 1} numbers, a constant and one per feature, not "
            f"{values.shape}"
        )
    return -(values[0] + detection_features(detections) @ values[1:])


def detection_features(detections: Sequence[Detections]) -> np.ndarray:
    """Return the features of a learned score, (n, features), as in `FEATURES`; counts as logs."""
    check_detections(detections)
    rows = [list(_features(found).values()) for found in detections]
    return np.array(rows, np.float64).reshape(len(rows), len(FEATURES))


_TOP = 10


def _features(found: Detections) -> dict[str, float]:
    scores = found.scores.astype(np.float64)
    seen, shown, best = found.above(0.2), found.above(0.3), found.top(_TOP)
    side = np.sqrt(box_area(seen.boxes.astype(np.float64)))
    some = found.above(0.1).top(_TOP * 5)
    overlap = box_iou(some.boxes, some.boxes).astype(np.float64)
    np.fill_diagonal(overlap, 0)
    probabilities = expit(best.logits.astype(np.float64))
    return {
        **{f"above {limit}": np.log1p((scores > limit).sum()) for limit in (0.05, 0.1, 0.2, 0.4)},
        "shown": float(len(shown)),
        "nothing": float(len(shown) == 0),
        "expected boxes": scores.sum(),
        "deviation": math.sqrt((scores * (1 - scores)).sum()),
        "best": scores.max(initial=0.0),
        "mean shown": _mean(shown.scores),
        "class energy": _mean(logsumexp(best.logits.astype(np.float64), axis=1)),
        "rivals": _mean(probabilities.sum(axis=1) - probabilities.max(axis=1, initial=0)),
        "side energy": 0.0 if best.bins is None else _mean(_side_energy(best)),
        "side entropy": 0.0 if best.bins is None else _mean(_side_entropy(best.bins)),
        "kinds": np.log1p(len(np.unique(seen.labels))),
        "small": np.log1p((side < 32).sum()),
        "large": np.log1p((side > 96).sum()),
        "overlap": _mean(overlap.max(axis=1, initial=0.0)),
    }


def _mean(values: np.ndarray) -> float:
    """Return the mean of the finite values; 0 without any."""
    finite = values[np.isfinite(values)]
    return float(finite.astype(np.float64).mean()) if len(finite) else 0.0


def _side_entropy(bins: np.ndarray) -> np.ndarray:
    """Return the mean entropy of a box's sides, (b,), in nats."""
    logits = bins.astype(np.float64)
    odds = logits - logsumexp(logits, axis=2, keepdims=True)
    return -(np.exp(odds) * np.where(odds > -700, odds, 0)).sum(axis=2).mean(axis=1)


FEATURES: tuple[str, ...] = tuple(_features(Detections.none(2, (1, 1))))
"""The names of the columns of `detection_features`."""

DETECTIONS = declare_raw_output(
    "detections",
    lambda name, parameters: [],
    (detection_energy, box_count, expected_errors, max_confidence, mean_confidence),
    fitted=[learned_gain],
)


def _each(
    score: Callable[[Detections], float],
    detections: Sequence[Detections],
    above: float = 0.3,
    top: int | None = None,
    empty: float = -math.inf,
) -> np.ndarray:
    """Return the score of each image's chosen boxes, or `empty` without boxes."""
    check_detections(detections)
    if not 0 <= above < 1:
        raise ValueError(f"above must be at least 0 and below 1, not {above}")
    check_at_least(1, top=top)
    if math.isnan(empty) or empty == math.inf:
        raise ValueError(f"empty must be a number below infinity, not {empty}")
    chosen = (
        found.above(above) if top is None else found.above(above).top(top) for found in detections
    )
    return np.array([score(found) if len(found) else empty for found in chosen], np.float64)


def _side_energy(found: Detections) -> np.ndarray:
    """Eq. 13 for each box, (b,): the mean over its sides of log-sum-exp plus log bin width."""
    if found.bins is None:
        raise ValueError(
            "the energy of boxes (eq. 13) needs bin logits, which this detector does not return: "
            "use part='classes'"
        )
    sides = logsumexp(found.bins.astype(np.float64), axis=2).mean(axis=1)
    return sides if found.bin_width is None else sides + np.log(found.bin_width)
