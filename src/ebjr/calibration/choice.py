"""Choice: which score, and which blend, has the best deferral curve for this pair.

What counts is that the teacher is right where the student is wrong, so candidates are compared by
the area under the joint model's curve. The area is a mean over rows up to their ranks, so that
one influence value per row gives standard errors; noise that two candidates share cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ebjr.arrays import Array
from ebjr.blend import Blend
from ebjr.calibration.learned import can_learn, cross_fitted, fit_learned
from ebjr.curve import area_influence, score_values
from ebjr.errors import CalibrationError
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score, is_fitted

MOST_EXAMPLES = 100_000
"""The most examples that choose score and blend: more would not change the choice."""

Candidates = Sequence[str | Callable[..., Array] | Score] | None  # simplest first; None: the task's

NOISE = 1.645
"""How many standard errors behind the best still count as noise: one-sided 95 %."""


@dataclass(frozen=True)
class RankedScore:
    """A score and how well it defers on some outcomes.

    `gain` is the mean row quality over all deferral rates, minus that of random deferral. `behind`
    is how far the area is behind the best candidate's on the same rows. Each has a standard error.
    """

    score: Score
    gain: float
    gain_error: float
    behind: float
    behind_error: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the gain."""
        return self.gain - 1.96 * self.gain_error, self.gain + 1.96 * self.gain_error


def blend_candidates(outcomes: Outcomes) -> list[float | Blend]:
    """Return the blends that compete: the task's, and those that the examples suggest."""
    kind = outcomes.kind
    more = kind.weights(outcomes.student, outcomes.teacher, outcomes.targets)
    return list(dict.fromkeys([*kind.blends, *more]))


def rank_scores(
    outcomes: Outcomes, candidates: Candidates = None, blend: float | Blend = 0.0
) -> list[RankedScore]:
    """Return the candidates by the area under their deferral curves, best first.

    `candidates` are scores, simplest first, by default those of `Task.candidates`.

    Raises
    ------
    CalibrationError
        No candidate can be fitted to these examples.
    """
    ranked = _compare(outcomes, candidates, blend)
    return sorted(ranked, key=lambda entry: -entry.gain)  # stable: ties keep the order


def choose_score(outcomes: Outcomes, candidates: Candidates = None) -> Score:
    """Return the simplest score that only noise puts behind the best, or a simpler, better one.

    A difference to the best can be significant although it is small. A simpler candidate with a
    larger gain is not passed over because its smaller difference happens to be significant.
    """
    ranked = _compare(outcomes, candidates)
    level = [entry.behind <= NOISE * entry.behind_error for entry in ranked]
    simple = ranked[: level.index(True) + 1]
    return max(simple, key=lambda entry: entry.gain).score  # ties: the first, which is the simplest


def choose_blend(
    outcomes: Outcomes, score: Score, candidates: Sequence[float | Blend] | None = None
) -> float | Blend:
    """Return the best blend of the simplest kind that only noise puts behind the best.

    The kinds are none, a weight, and a weight with temperatures. No weight is simpler than another,
    so among weights the area decides.
    """
    outcomes = at_most(outcomes)
    values, kept = score_values(score, outcomes), outcomes.student_quality
    tried = blend_candidates(outcomes) if candidates is None else candidates
    influences = [
        area_influence(values, kept, outcomes.deferred_quality(weight)) for weight in tried
    ]
    best = max(influences, key=np.mean)
    level = min(
        _kind(weight)
        for weight, influence in zip(tried, influences, strict=True)
        if best.mean() - influence.mean() <= NOISE * _standard_error(best - influence)
    )
    simplest = [place for place, weight in enumerate(tried) if _kind(weight) == level]
    return tried[max(simplest, key=lambda place: influences[place].mean())]  # ties: the first


def _kind(blend: float | Blend) -> int:
    """Return the number of fitted parts of a blend: 0, 1 (weight) or 2 (temperatures too)."""
    return 0 if blend == 0 else 2 if isinstance(blend, Blend) else 1


def _compare(
    outcomes: Outcomes, candidates: Candidates, blend: float | Blend = 0.0
) -> list[RankedScore]:
    """Return the candidates in order, each with its gain and how far it is behind the best."""
    outcomes = at_most(outcomes)
    candidates = outcomes.kind.candidates(outcomes.student) if candidates is None else candidates
    kept, deferred = outcomes.student_quality, outcomes.deferred_quality(blend)
    chance = (kept + deferred) / 2
    scores, influences = [], []
    for candidate in candidates:
        if isinstance(candidate, str) and is_fitted(candidate):
            if candidate != outcomes.kind.learned or not can_learn(outcomes, blend):
                continue
            score, values = fit_learned(outcomes, blend), cross_fitted(outcomes, blend)
        else:
            score = as_score(candidate)
            values = score_values(score, outcomes)
        scores.append(score)
        influences.append(area_influence(values, kept, deferred))
    if not scores:
        known = outcomes.kind.compared(outcomes.student)
        raise CalibrationError(
            f"none of the scores {', '.join(map(str, candidates))} can be fitted to these "
            f"{len(outcomes)} examples: use a score that is not fitted, like {known[0]}"
        )
    best = max(influences, key=np.mean)
    return [
        RankedScore(
            score,
            gain=float(influence.mean() - chance.mean()),
            gain_error=_standard_error(influence - chance),
            behind=float(best.mean() - influence.mean()),
            behind_error=_standard_error(best - influence),
        )
        for score, influence in zip(scores, influences, strict=True)
    ]


def at_most(outcomes: Outcomes) -> Outcomes:
    """Return at most `MOST_EXAMPLES` of the outcomes, drawn at random."""
    if len(outcomes) <= MOST_EXAMPLES:
        return outcomes
    return outcomes.split(MOST_EXAMPLES / len(outcomes))[0]


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))
