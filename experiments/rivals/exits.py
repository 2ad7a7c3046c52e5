"""Networks that leave early: by their own rule, and with EBJR on top, on recorded answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ebjr import Outcomes, as_score
from ebjr.blend import blend_logits
from ebjr.calibration import choose_blend, choose_score
from ebjr.scores import Score
from experiments.rivals.record import Answers

LEVELS = 50
"""Thresholds that an exit may choose from: quantiles of its score."""

Thresholds = tuple[float, ...]
"""One for each exit but the last."""


class Half(NamedTuple):
    """Accuracy and MFLOPs on some rows."""

    accuracy: float
    mflops: float


class Exits(NamedTuple):
    """What routes between a network's exits, and the accuracy there.

    Attributes
    ----------
    scores
        (exits - 1, n): an image leaves at the first exit whose score is at least its threshold.
    right
        (exits, n): 1 where an image that leaves there is answered rightly, else 0.
    flops
        (exits,): of an image that leaves there.
    """

    scores: np.ndarray
    right: np.ndarray
    flops: np.ndarray

    def leaving(self, thresholds: Thresholds) -> np.ndarray:
        """(n,): the exit at which each image leaves."""
        place = np.full(self.right.shape[1], len(self.scores))
        for k in reversed(range(len(self.scores))):
            place[self.scores[k] >= thresholds[k]] = k
        return place

    def answered(self, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each image is answered rightly, 1 or 0, and its FLOPs: (n,) each."""
        place = self.leaving(thresholds)
        return self.right[place, np.arange(len(place))], self.flops[place]

    def at(self, thresholds: Thresholds) -> Half:
        """Return the result of some thresholds."""
        right, flops = self.answered(thresholds)
        return Half(float(right.mean()), float(flops.mean()) / 1e6)

    def take(self, rows: np.ndarray) -> Exits:
        """Return a subset of the images."""
        return Exits(self.scores[:, rows], self.right[:, rows], self.flops)


class Rule(NamedTuple):
    """A network's own routing rule.

    Attributes
    ----------
    scores
        Of each exit but the last.
    blends
        The weight of its answer in those of the exits after it.
    common
        One threshold for all exits, as BranchyNet and MSDNet are run; else one for each.
    """

    scores: list[Score]
    blends: list[float]
    common: bool

    def on(self, answers: Answers, targets: np.ndarray) -> Exits:
        """Apply the rule to a network's answers.

        An image that goes on takes along what it was told: the answer of an exit is blended with
        those before it, from the last back, as joint models whose teacher is a joint model do.
        """
        each = np.moveaxis(answers.logits, 2, 0)
        right = []
        for k, logits in enumerate(each):
            mixed = logits
            for earlier in reversed(range(k)):
                mixed = blend_logits(each[earlier], mixed, self.blends[earlier])
            right.append((mixed.argmax(axis=1) == targets).astype(float))
        scores = [score(logits) for score, logits in zip(self.scores, each[:-1], strict=True)]
        return Exits(np.stack(scores), np.stack(right), answers.flops)

    def options(self, exits: Exits) -> Iterator[Thresholds]:
        """Thresholds to choose from; infinite ones never leave."""
        levels = np.linspace(0, 1, LEVELS)
        if self.common:
            for value in (*np.quantile(exits.scores, levels), np.inf):
                yield (value,) * len(exits.scores)
        else:
            each = [(*np.quantile(score, levels), np.inf) for score in exits.scores]
            yield from map(tuple, np.stack(np.meshgrid(*each), -1).reshape(-1, len(each)))


def own_rule(score: str, answers: Answers, targets: np.ndarray) -> list[Rule]:
    """The network's own: one score, one threshold, each exit's answer as it is."""
    count = len(answers.flops) - 1
    return [Rule([as_score(score)] * count, [0.0] * count, common=True)]


def on_top(answers: Answers, targets: np.ndarray) -> list[Rule]:
    """EBJR on top of it: each exit a student, all that comes after it the teacher.

    Score and blend of each exit are the library's choice on the examples that are given; without a
    blend it is a rule as well.
    """
    each = np.moveaxis(answers.logits, 2, 0)
    scores, blends = [], []
    for k, logits in enumerate(each[:-1]):
        scores.append(choose_score(Outcomes(logits, each[-1], targets)))
        blends.append(choose_blend(Outcomes(logits, each[k + 1], targets), scores[-1]))
    return [Rule(scores, blends, common=False), Rule(scores, [0.0] * len(blends), common=False)]


Options = dict[tuple[int, Thresholds], Half]
"""What each of several rules does at its thresholds."""


def as_good_as(accuracy: float, options: Options) -> tuple[int, Thresholds]:
    """Rule and thresholds that are the cheapest to reach an accuracy.

    Raises
    ------
    ValueError
        None does.
    """
    reached = [key for key, half in options.items() if half.accuracy >= accuracy - 1e-12]
    return min(reached, key=lambda key: options[key].mflops)


def best_within(mflops: float, options: Options) -> tuple[int, Thresholds]:
    """The most accurate ones that cost at most so much; the cheapest if none does."""
    allowed = [key for key, half in options.items() if half.mflops <= mflops + 1e-9]
    if not allowed:
        return min(options, key=lambda key: options[key].mflops)
    return max(allowed, key=lambda key: (options[key].accuracy, -options[key].mflops))
