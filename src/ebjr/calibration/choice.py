"""Which score, and which blend, for this pair: the one with the best deferral curve.

What counts is the teacher right where the student is wrong, not the student's error alone; so
candidates are compared by the area under the joint model's curve. The area is a mean over rows up
to their ranks, so that its standard error, and that of the difference of two areas on the same
rows, follow from one influence value for each row: no resampling, and noise that two candidates
share cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ebjr.arrays import Array
from ebjr.blend import Blend
from ebjr.calibration.learned import can_learn, cross_fitted, fit_learned
from ebjr.curve import score_values
from ebjr.errors import CalibrationError
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key
from ebjr.scores import Score, as_score, is_fitted

MOST_EXAMPLES = 100_000
"""The most examples that score and blend are chosen on: more would not move the choice."""

NOISE = 1.645
"""How many standard errors behind the best still count as noise: one-sided 95 %."""


@dataclass(frozen=True)
class RankedScore:
    """A score and how well it defers on one table of outcomes.

    `gain` is the mean row quality over all deferral rates, minus that of random routing; `behind`,
    how far the area is behind the best candidate's, on the same rows. Each has its standard error.
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
    """The blends that compete for some outcomes: the task's, and what the examples suggest."""
    kind = outcomes.kind
    more = kind.weights(outcomes.student, outcomes.teacher, outcomes.targets)
    return list(dict.fromkeys([*kind.blends, *more]))


def rank_scores(
    outcomes: Outcomes,
    candidates: Sequence[str | Callable[..., Array] | Score] | None = None,
    blend: float | Blend = 0.0,
) -> list[RankedScore]:
    """The candidates by the area under their deferral curves, the best first.

    `candidates` are scores, the simplest first; those of `Task.candidates` if left out. A
    CalibrationError says that none of them can be fitted to these examples.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> [(str(entry.score), entry.gain) for entry in rank_scores(outcomes, ["energy"])]
    [('energy', 0.125)]
    """
    ranked = _compare(outcomes, candidates, blend)
    return sorted(ranked, key=lambda entry: -entry.gain)  # stable: a tie keeps the order


def choose_score(
    outcomes: Outcomes,
    candidates: Sequence[str | Callable[..., Array] | Score] | None = None,
    blend: float | Blend = 0.0,
) -> Score:
    """The simplest candidate that is not behind the best one by more than noise, or a better one.

    A difference to the best may be lost in noise or stand out, however large it is: candidates that
    are simpler and have the larger gain are not passed over because theirs stands out.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> str(choose_score(outcomes))
    'softmax'
    """
    tried = score_candidates(_some(outcomes), candidates, blend)
    return tried.scores[tried.best_score(slice(None))]


def choose_blend(
    outcomes: Outcomes, score: Score, candidates: Sequence[float | Blend] | None = None
) -> float | Blend:
    """The best of the simplest kind of blend that is not behind the best one by more than noise.

    The kinds are none at all, a weight, and a weight with temperatures. Of two weights neither is
    the simpler one, so that among them the area alone decides.

    Examples
    --------
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> choose_blend(outcomes, as_score("energy"))
    0.0
    """
    some = _some(outcomes)
    blends = blend_candidates(some) if candidates is None else candidates
    tried = score_candidates(some, [score], blends=blends)
    return tried.blends[tried.best_blend(0, slice(None))]


def _kind(blend: float | Blend) -> int:
    """How much there is to fit in a blend: nothing, a weight, or a weight with temperatures."""
    return 0 if blend == 0 else 2 if isinstance(blend, Blend) else 1


def area_influence(score: np.ndarray, kept: np.ndarray, deferred: np.ndarray) -> np.ndarray:
    """(n,): each row's part in the area under a deferral curve: their mean is the area.

    A row that a share u of the rows scores below is kept at a share u of the deferral rates, so
    the area is the mean of ``deferred + u (kept - deferred)``, ties counting half. The ranks are
    estimated from the same rows; the second term here, which sums to zero, is what a row adds to
    the others' ranks (the Hajek projection), so that the standard error is honest about that too.
    Rows with NaN and ``-inf``, always deferred, count as a tie below all others, so that a score
    gains nothing by deferring many of them.
    """
    n = len(score)
    key = deferral_key(score)
    order = np.argsort(key)
    ranked = key[order]
    change = kept - deferred
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))  # of groups of equal scores
    size = np.diff(first, append=n)
    total = np.add.reduceat(change[order], first)
    above = np.cumsum(total[::-1])[::-1] - total / 2
    share, raised = np.empty(n), np.empty(n)
    share[order] = np.repeat((first + size / 2) / n, size)
    raised[order] = np.repeat(above / n, size)
    return deferred + share * change + raised - raised.mean()


@dataclass(frozen=True)
class Candidates:
    """What competes for some outcomes, as numbers, so that any rows can be chosen on.

    `values` has each score's (n,), `deferred` the quality of each row's deferred answer by blend,
    (n,), and `kept` the student's.
    """

    scores: Sequence[Score]
    values: Sequence[np.ndarray]
    blends: Sequence[float | Blend]
    deferred: Sequence[np.ndarray]
    kept: np.ndarray
    for_score: np.ndarray  # the quality of deferred answers at which scores are compared

    def best_score(self, rows: np.ndarray | slice) -> int:
        """The place of the score that `choose_score` takes on some rows."""
        influences = self.influences(rows)
        best = max(influences, key=np.mean)
        simple = range(1 + [_is_level(best, each) for each in influences].index(True))
        return max(simple, key=lambda place: influences[place].mean())  # of a tie the simplest

    def best_blend(self, score: int, rows: np.ndarray | slice) -> int:
        """The place of the blend that `choose_blend` takes on some rows."""
        values, kept = self.values[score][rows], self.kept[rows]
        influences = [area_influence(values, kept, each[rows]) for each in self.deferred]
        best = max(influences, key=np.mean)
        kinds = [_kind(blend) for blend in self.blends]
        level = min(
            kind for kind, each in zip(kinds, influences, strict=True) if _is_level(best, each)
        )
        simplest = [place for place, kind in enumerate(kinds) if kind == level]
        return max(simplest, key=lambda place: influences[place].mean())  # the first of equals

    def influences(self, rows: np.ndarray | slice = slice(None)) -> list[np.ndarray]:
        """Of each score, see `area_influence`."""
        kept, deferred = self.kept[rows], self.for_score[rows]
        return [area_influence(values[rows], kept, deferred) for values in self.values]


def score_candidates(
    outcomes: Outcomes,
    candidates: Sequence[str | Callable[..., Array] | Score] | None = None,
    blend: float | Blend = 0.0,
    blends: Sequence[float | Blend] = (),
) -> Candidates:
    """The scores that compete on outcomes, fitted where they have to be, and blends beside them.

    Values of a fitted score are cross-fitted. CalibrationError: none of them can be fitted.
    """
    names = outcomes.kind.candidates(outcomes.student) if candidates is None else candidates
    scores, values = [], []
    for name in names:
        if isinstance(name, str) and is_fitted(name):
            if name != outcomes.kind.learned or not can_learn(outcomes, blend):
                continue
            scores.append(fit_learned(outcomes, blend))
            values.append(cross_fitted(outcomes, blend))
        else:
            scores.append(as_score(name))
            values.append(score_values(scores[-1], outcomes))
    if not scores:
        known = outcomes.kind.compared(outcomes.student)
        raise CalibrationError(
            f"none of the scores {', '.join(map(str, names))} can be fitted to these "
            f"{len(outcomes)} examples; name one that is not fitted, such as {known[0]}"
        )
    deferred = [outcomes.deferred_quality(each) for each in blends]
    plain = outcomes.deferred_quality(blend)
    return Candidates(scores, values, blends, deferred, outcomes.student_quality, plain)


def _compare(
    outcomes: Outcomes,
    candidates: Sequence[str | Callable[..., Array] | Score] | None,
    blend: float | Blend,
) -> list[RankedScore]:
    """The candidates in their order, each with its gain and how far it is behind the best."""
    tried = score_candidates(_some(outcomes), candidates, blend)
    chance, influences = (tried.kept + tried.for_score) / 2, tried.influences()
    best = max(influences, key=np.mean)
    return [
        RankedScore(
            score,
            gain=float(influence.mean() - chance.mean()),
            gain_error=_standard_error(influence - chance),
            behind=float(best.mean() - influence.mean()),
            behind_error=_standard_error(best - influence),
        )
        for score, influence in zip(tried.scores, influences, strict=True)
    ]


def _is_level(best: np.ndarray, other: np.ndarray) -> bool:
    """Whether influences are behind the best ones by no more than noise."""
    return bool(best.mean() - other.mean() <= NOISE * _standard_error(best - other))


def _some(outcomes: Outcomes) -> Outcomes:
    """At most `MOST_EXAMPLES` of the outcomes, drawn at random."""
    if len(outcomes) <= MOST_EXAMPLES:
        return outcomes
    return outcomes.split(MOST_EXAMPLES / len(outcomes))[0]


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))
