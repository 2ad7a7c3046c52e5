"""Attainable: how much of the possible gain a score has, and what would bring the rest.

The oracle knows which answers are right. No router does: part of its gain is luck. The most
that a router could use is both models' answers. `headroom` measures a router that sees both answers
before it chooses. That is a ceiling and not a score, because it asks the teacher about every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ebjr.arrays import argmax, log_softmax
from ebjr.curve import TradeOffCurve, area_influence, oracle, score_values
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, score_title
from ebjr.stats import Interval
from ebjr.tasks.classification.learned import FEWEST, score_features

FOLDS = 5
MOST_EXAMPLES = 50_000
"""The most rows used of each half: more would not change a share."""

_RIDGE = 10.0
_LEAST = -30.0  # log-probabilities below this rule a class out


@dataclass(frozen=True, eq=False)
class Headroom:
    """The oracle's gain over random deferral, without blend, in five parts that sum to 1.

    Attributes
    ----------
    name
        The score's name.
    score
        The score's part: `oracle_share` of its curve.
    other_score
        The part that another score of the student's output would add: a router fitted to that
        output.
    examples
        The part that more examples would add to that fit, extrapolated from half and all of them.
    seeing_more
        The part that both models' answers show and the student's output does not: a score that sees
        more (the input, features, a second look) may get some of it.
    models
        The part that no router can get: only another student or teacher would change it.
    reached
        The score's share of the attainable part, which is all but `models`, with its 95 % interval.
    curve
        The attainable curve.
    """

    name: str
    score: float
    other_score: float
    examples: float
    seeing_more: float
    models: float
    reached: Interval
    curve: TradeOffCurve

    @property
    def attainable(self) -> float:
        """The share of the oracle's gain that a router could get."""
        return 1 - self.models

    def as_dict(self) -> dict[str, Any]:
        """Return the shares for JSON."""
        parts = ("score", "other_score", "examples", "seeing_more", "models", "attainable")
        return {name: getattr(self, name) for name in parts} | {"reached": asdict(self.reached)}

    @property
    def text(self) -> str:
        """The shares, and the parts of the rest, in words."""
        reached = self.reached
        return (
            f"Without a blend, a router that sees both models' answers before it chooses would get "
            f"{self.attainable:.1%} of the oracle's gain. {self.name} gets {self.score:.1%}: "
            f"{reached.estimate:.0%} ({reached.low:.0%} to {reached.high:.0%}) of what is "
            f"attainable. As for the rest, another score of the student's output may add "
            f"{self.other_score:.1%}, more examples {self.examples:.1%}, a score that sees more "
            f"than that output at most {self.seeing_more:.1%}, and only other models "
            f"{self.models:.1%}."
        )


def headroom(calibration: Outcomes, held_out: Outcomes, score: Score) -> Headroom | None:
    """Measure how much of the possible gain a score has on `held_out`, and where the rest is.

    None if that cannot be told: answers are not classes that are right or wrong, the examples have
    no labels, or the teacher is right and the student wrong on fewer than 50 examples of a half.

    Both routers are ridge regressions of the gain of deferral on a few log-probabilities and their
    products, fitted for each fifth of `held_out` to all other examples. If both models answer the
    same, nothing is gained, and the router that sees both knows it.

    Examples
    --------
    >>> from ebjr.scores import as_score
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 5, 4000)
    >>> logits = [3 * np.eye(5)[targets] + rng.normal(0, s, (4000, 5)) for s in (2.0, 1.0)]
    >>> found = headroom(*Outcomes(*logits, targets).split(), as_score("softmax"))
    >>> 0 < found.score < found.attainable < 1
    True
    """
    if not (held_out.kind.has_logits and held_out.measure.binary and held_out.labeled):
        return None
    halves = _at_most(calibration), _at_most(held_out)
    gains = [half.deferred_quality() - half.student_quality for half in halves]
    if min(int((gain > 0).sum()) for gain in gains) < FEWEST:
        return None
    return _parts(halves[1], score, _seeing_both(halves, gains), *_seeing_student(halves, gains))


def _parts(
    table: Outcomes, score: Score, both: np.ndarray, student: np.ndarray, of_half: np.ndarray
) -> Headroom:
    """Compute the parts from the gain that each router expects of each row."""
    kept, deferred = table.student_quality, table.deferred_quality()

    def gain(values: np.ndarray) -> np.ndarray:
        """Return each row's part, (n,), in the gain over random deferral."""
        return area_influence(values, kept, deferred) - (kept + deferred) / 2

    most, own = gain(-both), gain(score_values(score, table))
    whole, here, fitted, before, ceiling = (
        float(each.mean())
        for each in (gain(oracle(table)), own, gain(-student), gain(-of_half), most)
    )
    # a fit's loss falls as 1 / n: what is left is as much as the last doubling gained
    steps = np.maximum.accumulate([here, fitted, 2 * fitted - before, ceiling]) / whole
    parts = np.diff([*np.minimum(steps, max(here, ceiling) / whole), 1.0])
    other_score, examples, seeing_more, models = map(float, parts)
    return Headroom(
        name=score_title(score.title),
        score=here / whole,
        other_score=other_score,
        examples=examples,
        seeing_more=seeing_more,
        models=models,
        reached=_ratio(own, most),
        curve=TradeOffCurve.of(table, -both),
    )


def _ratio(one: np.ndarray, other: np.ndarray) -> Interval:
    """Return the ratio, at most 1, of two means over the same rows, with its interval."""
    share = one.mean() / other.mean()
    error = 1.96 * (one - share * other).std() / np.sqrt(len(one)) / abs(other.mean())
    return Interval(*(min(float(value), 1.0) for value in (share, share - error, share + error)))


def _seeing_both(halves: Sequence[Outcomes], gains: Sequence[np.ndarray]) -> np.ndarray:
    """Return the expected gain, (held out,), by both models' answers; 0 if they are the same."""
    differ = [
        np.flatnonzero(half.predictions("student") != half.predictions("teacher"))
        for half in halves
    ]
    features = [_both_say(half, rows) for half, rows in zip(halves, differ, strict=True)]
    known = [gain[rows] for gain, rows in zip(gains, differ, strict=True)]
    expected = np.zeros(len(halves[1]))
    expected[differ[1]] = _cross_fitted(features, known)
    return expected


def _seeing_student(
    halves: Sequence[Outcomes], gains: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected gain by the student's output, from fits to all examples and to half."""
    features = [_squared(score_features(half.student).astype(np.float64)) for half in halves]
    return _cross_fitted(features, gains), _cross_fitted(features, gains, share=0.5)


def _both_say(outcomes: Outcomes, rows: np.ndarray) -> np.ndarray:
    """Return both models' log-probabilities of both answers, and products: (rows, 14)."""
    said = [outcomes.kept()[rows], outcomes.deferred()[rows]]
    logs = [log_softmax(logits.astype(np.float64)) for logits in said]
    answers = np.stack([argmax(log) for log in logs], axis=1)
    seen = np.hstack([np.take_along_axis(log, answers, axis=1) for log in logs])
    return _squared(np.maximum(seen, _LEAST))


def _squared(features: np.ndarray) -> np.ndarray:
    """Return features, their squares and the products of every two."""
    one, other = np.triu_indices(features.shape[1])
    return np.hstack([features, features[:, one] * features[:, other]])


def _cross_fitted(
    features: Sequence[np.ndarray], gains: Sequence[np.ndarray], share: float = 1.0
) -> np.ndarray:
    """Return the expected gain, (held out,), of each row by a fit to a share of all others."""
    (others, own), (known, seen), rng = features, gains, np.random.default_rng(0)
    fold, found = rng.permutation(len(own)) % FOLDS, np.zeros(len(own))
    for k in range(FOLDS):
        left, out = fold != k, fold == k
        table, gain = np.concatenate([others, own[left]]), np.concatenate([known, seen[left]])
        rows = rng.permutation(len(table))[: round(share * len(table))]
        found[out] = _least_squares(table[rows], gain[rows], own[out])
    return found


def _least_squares(table: np.ndarray, gain: np.ndarray, rows: np.ndarray) -> np.ndarray:
    center, spread = table.mean(axis=0), table.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    table, rows = (table - center) / spread, (rows - center) / spread
    normal = table.T @ table + _RIDGE * np.eye(table.shape[1])
    return gain.mean() + rows @ np.linalg.solve(normal, table.T @ (gain - gain.mean()))


def _at_most(outcomes: Outcomes) -> Outcomes:
    if len(outcomes) <= MOST_EXAMPLES:
        return outcomes
    return outcomes.take(np.random.default_rng(0).permutation(len(outcomes))[:MOST_EXAMPLES])
