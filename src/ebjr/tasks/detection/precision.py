"""Detection: COCO's mean average precision (mAP), of one detector and of a joint one.

Whether a detection is right depends on one image and one detector. So each is matched once, and the
joint model's mAP for any choice of deferred images is an exact sum of cached values. Only the
ranking of all detections by score depends on both detectors, whose scores are not on one scale
(`scale.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ebjr.router import deferral_key
from ebjr.tasks.detection.boxes import (
    Detections,
    GroundTruth,
    box_area,
    box_intersection,
    box_iou,
    check_detections,
    check_labels,
    check_listed,
)

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's overlaps: AP is the mean over them
RECALLS = np.linspace(0.0, 1.0, 101)  # the recalls at which COCO reads the precision
PER_CLASS = 100  # COCO's most detections of a class on an image
SHOWN = 0.3  # F1 counts detections with a score above this: those that a person would see


@dataclass(frozen=True, eq=False)
class Matches:
    """Which of a detector's d detections on n images are right, image by image, best first."""

    image: np.ndarray  # (d,)
    label: np.ndarray  # (d,)
    score: np.ndarray  # (d,)
    hit: np.ndarray  # (d, t) bool: right at each overlap
    ignored: np.ndarray  # (d, t) bool: in a crowd: neither right nor wrong
    boxes: np.ndarray  # (n, classes): labeled boxes, without crowds

    def __len__(self) -> int:
        """The number of images."""
        return len(self.boxes)

    def rescored(self, change: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Return the matches with other scores, by an increasing map like a `ConfidenceMap`."""
        return replace(self, score=np.asarray(change(self.score), np.float64))

    def f1(self) -> np.ndarray:
        """Return each image's F1 at the first overlap, (n,): ``2 hits / (detections + boxes)``.

        It counts detections with a score above `SHOWN`; an empty answer to an empty image counts 1.
        """
        shown = (self.score > SHOWN) & ~self.ignored[:, 0]
        found = np.bincount(self.image[shown], minlength=len(self))
        hits = np.bincount(self.image[shown & self.hit[:, 0]], minlength=len(self))
        all_boxes = found + self.boxes.sum(axis=1)
        return np.divide(2 * hits, all_boxes, out=np.ones(len(self)), where=all_boxes > 0)

    def take(self, images: Any) -> Self:
        """Return the matches on `images`, rows (m,) or a mask (n,); rows may repeat."""
        rows = np.arange(len(self))[np.asarray(images)]
        first = np.searchsorted(self.image, np.arange(len(self) + 1))
        count = np.diff(first)[rows]
        chosen = np.repeat(first[rows] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        found = {name: getattr(self, name)[chosen] for name in ("label", "score", "hit", "ignored")}
        image = np.repeat(np.arange(len(rows)), count)
        return replace(self, image=image, boxes=self.boxes[rows], **found)


def match_detections(detections: Sequence[Detections], truth: Sequence[GroundTruth]) -> Matches:
    """Match detections with labeled boxes, as COCO does.

    For each class and overlap the detections, best first, take the free box that they overlap most.
    Detections that match only a crowd are ignored. Source: Lin et al., "Microsoft COCO", ECCV 2014,
    and the data set's evaluation code.

    Raises
    ------
    ValueError
        `truth` has no box.
    """
    _check_pairs(detections, truth)
    parts = [_match_image(*pair) for pair in zip(detections, truth, strict=True)]
    classes = detections[0].classes
    boxes = np.stack([np.bincount(real.labels[~real.crowd], minlength=classes) for real in truth])
    if not boxes.any():
        raise ValueError(
            f"none of the {len(truth)} images has a labeled box, so there is nothing to find"
        )
    rows, hit, ignored = zip(*parts, strict=True)
    pairs = list(zip(detections, rows, strict=True))
    return Matches(
        image=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        label=np.concatenate([found.labels[row] for found, row in pairs]),
        score=np.concatenate([found.scores[row] for found, row in pairs]).astype(np.float64),
        hit=np.concatenate(hit),
        ignored=np.concatenate(ignored),
        boxes=boxes,
    )


def _match_image(found: Detections, real: GroundTruth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows that count, best first, and which of them hit and are ignored."""
    rows = np.argsort(-found.scores, kind="stable")
    rows = rows[_rank_in_class(found.labels[rows]) < PER_CLASS]
    hit = np.zeros((len(rows), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    for label in np.unique(real.labels):
        own = np.flatnonzero(found.labels[rows] == label)
        there = real.labels == label
        boxes = found.boxes[rows[own]].astype(np.float64)
        overlap = _overlap(boxes, real.boxes[there].astype(np.float64), real.crowd[there])
        hit[own], ignored[own] = _match_class(overlap, real.crowd[there])
    return rows, hit, ignored


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - first
    return rank


def _overlap(boxes: np.ndarray, real: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    overlap = box_iou(boxes, real)
    if crowd.any():
        shared = box_intersection(boxes, real[crowd])
        area = np.broadcast_to(box_area(boxes)[:, None], shared.shape)
        overlap[:, crowd] = np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
    return overlap


def _match_class(overlap: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match greedily at all overlaps at once: (d, g) to two arrays (d, t)."""
    hit = np.zeros((len(overlap), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    solid = np.flatnonzero(~crowd)
    free = np.ones((len(THRESHOLDS), len(solid)), bool)
    in_crowd = overlap[:, crowd].max(axis=1, initial=0.0)
    for row in np.flatnonzero(overlap.max(axis=1, initial=0.0) >= THRESHOLDS[0]):
        own = overlap[row, solid]
        possible = free & (own >= THRESHOLDS[:, None])
        hit[row] = possible.any(axis=1)
        if hit[row].any():  # ties: the last box, like COCO
            values = np.where(possible, own, -1.0)[:, ::-1]
            best = len(solid) - 1 - values.argmax(axis=1)
            taken = np.flatnonzero(hit[row])
            free[taken, best[taken]] = False
        ignored[row] = ~hit[row] & (in_crowd[row] >= THRESHOLDS)
    return hit, ignored


def average_precision(matches: Matches, per_threshold: bool = False) -> Any:
    """Return COCO's AP of one detector; with `per_threshold` one per overlap, (t,), AP50 first."""
    return JointPrecision(matches, matches)(np.zeros(len(matches), bool), per_threshold)


class JointPrecision:
    """The joint model's exact AP for any choice of the images that the teacher answers.

    Scores are on one scale. Only the first `overlaps` count; 1 is AP50.
    """

    def __init__(self, student: Matches, teacher: Matches, overlaps: int | None = None) -> None:
        if not np.array_equal(student.boxes, teacher.boxes):
            raise ValueError(
                "student and teacher must be matched on the same images and classes, but their "
                f"labels differ: {student.boxes.shape} and {teacher.boxes.shape} images and classes"
            )
        self.images = len(student)
        self._overlaps = len(THRESHOLDS[:overlaps])
        totals = student.boxes.sum(axis=0)
        present = np.flatnonzero(totals)
        # how many of COCO's recalls the k-th right detection of a class reaches
        reached = [
            np.bincount(np.searchsorted(np.arange(1, m + 1) / m, RECALLS), minlength=m)
            for m in totals[present]
        ]
        self._weight = np.concatenate(reached).astype(np.float64)
        self._boxes = student.boxes[:, present]
        both = (student, teacher)
        image, label, score, hit, ignored = (
            np.concatenate([getattr(one, name) for one in both])
            for name in ("image", "label", "score", "hit", "ignored")
        )
        # COCO breaks ties by image, and within an image by the detector's order
        order = np.lexsort((image, -score, label))
        order = order[np.isin(label[order], present)]
        self._image, self._label = image[order], np.searchsorted(present, label[order])
        self._teachers = np.repeat([False, True], [len(one.label) for one in both])[order]
        label = self._label
        start = np.searchsorted(label, np.arange(len(present)))
        self._hit, self._skipped = hit[order, :overlaps].T, ignored[order, :overlaps].T
        # a segment is one overlap and class; the precision falls between right detections, so that
        # only these are looked at
        overlap, self._right = np.nonzero(self._hit)
        self._segment = overlap * len(present) + label[self._right]
        self._overlap = overlap
        self._start = start[label[self._right]]
        self._first_weight = (np.cumsum(totals[present]) - totals[present])[label[self._right]]
        # ignored detections before each right one, as a range of all ignored
        where, self._ignored = np.nonzero(self._skipped)
        keys = where * (len(label) + 1) + self._ignored
        self._ignored_from = np.searchsorted(keys, overlap * (len(label) + 1) + self._start)
        self._ignored_to = np.searchsorted(keys, overlap * (len(label) + 1) + self._right)
        self._classes = len(present)

    def __call__(
        self, deferred: Any, per_threshold: bool = False, times: np.ndarray | None = None
    ) -> Any:
        """Return the AP, or one per overlap (t,), if `deferred`, (n,) bool, are deferred.

        `times`, (n,), is how often each image counts; classes that are then absent do not count.
        """
        mask = np.asarray(deferred)
        if mask.shape != (self.images,) or mask.dtype != bool:
            raise ValueError(
                f"deferred must be {self.images} booleans, one per image, not {mask.dtype} "
                f"of shape {mask.shape}"
            )
        active = mask[self._image] == self._teachers
        if times is not None:
            active = active * times[self._image]
        chosen, segment, rank, seen = self._ranked(active)
        precision = rank / seen
        # the best precision at this recall or higher, per segment; `lift` keeps segments apart
        segments = self._overlaps * self._classes
        lift = 2.0 * (segments - segment)
        envelope = np.maximum.accumulate((precision + lift)[::-1])[::-1] - lift
        classes = self._classes
        if times is None:
            recalls = self._weight[self._first_weight[chosen] + rank - 1]
        else:
            boxes = times @ self._boxes
            classes = int(np.count_nonzero(boxes))
            if not classes:
                raise ValueError("none of the remaining images has a labeled box")
            own = boxes[segment % self._classes]
            recalls = _reached(rank / own) - _reached((rank - active[self._right[chosen]]) / own)
        total = np.bincount(self._overlap[chosen], envelope * recalls, minlength=self._overlaps)
        by_overlap = total / (len(RECALLS) * classes)
        return by_overlap if per_threshold else float(by_overlap.mean())

    def _ranked(self, active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return right `active` detections, their segments, and the right and all up to each."""
        counted = np.zeros(len(active) + 1, np.int64)
        np.cumsum(active, out=counted[1:])
        here = active[self._right]
        chosen = np.flatnonzero(here)
        segment = self._segment[chosen]
        segments = self._overlaps * self._classes
        count = np.bincount(segment, here[chosen], minlength=segments).astype(np.int64)
        rank = np.cumsum(here[chosen]) - (np.cumsum(count) - count)[segment]
        seen = counted[self._right[chosen] + 1] - counted[self._start[chosen]]
        if len(self._ignored):
            skipped = np.zeros(len(self._ignored) + 1, np.int64)
            np.cumsum(active[self._ignored], out=skipped[1:])
            seen -= skipped[self._ignored_to[chosen]] - skipped[self._ignored_from[chosen]]
        return chosen, segment, rank, seen

    def curve(self, score: np.ndarray, rates: Any = None) -> np.ndarray:
        """Return the AP when ``round(rate * n)`` images with the lowest scores are deferred, (r,).

        Ties go in the order of the images, NaN first; by default rates are 0, 0.01, ..., 1.
        """
        values = np.asarray(score, np.float64)
        if values.shape != (self.images,):
            raise ValueError(
                f"score must be {self.images} numbers, one per image, not {values.shape}"
            )
        points = RECALLS if rates is None else np.asarray(rates, np.float64)
        if not ((points >= 0) & (points <= 1)).all():
            raise ValueError("deferral rates must lie in 0..1")
        place = np.argsort(np.argsort(deferral_key(values), kind="stable"))
        counts = np.rint(points * self.images)
        each, back = np.unique(counts, return_inverse=True)
        return np.array([self(place < number) for number in each])[back]

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each image's part in the AP, (n,), if the student answers, and if the teacher.

        To first order, a detection adds its worth as a right one, and costs those below it its
        worth as a wrong one. An image's gain is the mean of that at both ends; the remainder is
        spread evenly, so that the means are the two detectors' APs.
        """
        none, every = np.zeros(self.images, bool), np.ones(self.images, bool)
        worth = (self._worth(none) + self._worth(every)) / 2
        gain = np.bincount(
            self._image, np.where(self._teachers, worth, -worth), minlength=self.images
        )
        low, high = self(none), self(every)
        student = np.full(self.images, low)
        return student, student + self.images * gain + (high - low - gain.sum())

    def _worth(self, deferred: np.ndarray) -> np.ndarray:
        """Return the change of the AP, (d,), for one more of each detection, to first order."""
        active = deferred[self._image] == self._teachers
        chosen, segment, rank, seen = self._ranked(active)
        precision = rank / seen
        # each right detection reads the precision of the best one from there on
        lift = 2.0 * (self._overlaps * self._classes - segment)
        raised = (precision + lift)[::-1]
        top = np.maximum.accumulate(raised)
        place = np.maximum.accumulate(np.where(raised == top, np.arange(len(top)), 0))
        read_at = len(top) - 1 - place[::-1] if len(top) else place
        read = np.bincount(
            read_at, self._weight[self._first_weight[chosen] + rank - 1], minlength=len(chosen)
        )
        # a detection before it adds one to `seen`, and a right one also to `rank`
        one_seen, one_right = -read * precision / seen, read / seen
        edges = np.searchsorted(self._label, np.arange(self._classes + 1))
        starts, ends = edges[self._label], edges[self._label + 1]  # of the detection's class
        share = (len(RECALLS) / self._boxes.sum(axis=0))[self._label]  # recalls per right detection
        worth = np.zeros(len(active))
        for number in range(self._overlaps):
            mine = self._overlap[chosen] == number
            at = self._right[chosen[mine]]
            costs, adds = (_from_each(at, part[mine], ends) for part in (one_seen, one_right))
            hit, ignored = self._hit[number], self._skipped[number]
            counted = np.concatenate([[0], np.cumsum(active & ~ignored)])
            following = np.searchsorted(at, np.arange(len(active)))
            before = following - np.searchsorted(at, starts)
            level = (before + 1) / (counted[:-1] - counted[starts] + 1)
            inside = following < np.searchsorted(at, ends)
            after = precision[read_at][mine][following[inside]]
            level[inside] = np.maximum(level[inside], after)
            worth += np.where(hit, share * level + adds + costs, np.where(ignored, 0, costs))
        return worth / (len(RECALLS) * self._classes * self._overlaps)


def _reached(recall: np.ndarray) -> np.ndarray:
    """Return how many of COCO's recalls each recall reaches; a recall of 0 reaches none."""
    return np.where(recall > 0, np.searchsorted(RECALLS, recall, side="right"), 0)


def _from_each(at: np.ndarray, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return, for each place, the sum of `values` (at places `at`) from it up to its end."""
    total = np.zeros(len(ends) + 1)
    np.cumsum(np.bincount(at, values, minlength=len(ends)), out=total[1:])
    return total[ends] - total[:-1]


def matched_gains(student: Matches, teacher: Matches, weighted: bool = False) -> np.ndarray:
    """Return how many more boxes the teacher finds per image, (n,), averaged over the overlaps.

    `weighted` counts each box by its score on the common scale, a better target to learn.
    """
    return _found(teacher, weighted) - _found(student, weighted)


def count_boxes(
    found: Sequence[Detections], real: Sequence[Detections], label: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, (n,) each, the boxes that two detectors show, and their matches at overlap 0.5."""
    one, other = ([each.above(SHOWN) for each in some] for some in (found, real))
    matches = match_detections(one, [GroundTruth(each.boxes, each.labels) for each in other])

    def count(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        wanted = images if label is None else images[labels == label]
        return np.bincount(wanted, minlength=len(one))

    hits = matches.hit[:, 0]
    shown = matches.boxes.sum(axis=1) if label is None else matches.boxes[:, label]
    right = count(matches.image[hits], matches.label[hits])
    return count(matches.image, matches.label), shown, right


def _found(matches: Matches, weighted: bool) -> np.ndarray:
    weight = matches.hit.mean(axis=1) * (matches.score if weighted else 1.0)
    return np.bincount(matches.image, weight, minlength=len(matches))


def _check_pairs(detections: Any, truth: Any) -> None:
    check_detections(detections)
    check_listed(GroundTruth, truth=truth)
    if len(detections) != len(truth):
        raise ValueError(
            "detections and truth must have the same length, one per image, not "
            f"{len(detections)} and {len(truth)}"
        )
    if not detections:
        raise ValueError("there are no images")
    check_labels(truth, detections[0].classes)
