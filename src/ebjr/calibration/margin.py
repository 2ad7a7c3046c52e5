"""Margin: how far to exceed a goal on the examples that score, blend and threshold are picked on.

A pick favors what is lucky on its examples, and falls short elsewhere. By how much depends on the
pair, on what competes and on the goal. So the whole choice is made again, on one random half of the
examples after the other, and judged on the other half: the margin is the least with which it keeps
the goal there on average. It is counted in standard errors, whose number depends little on how many
examples there are.

Measured in `experiments/optimism.py`, beside constant margins.
"""

import numpy as np

from ebjr.calibration.choice import Candidates
from ebjr.curve import mean_at
from ebjr.router import deferral_key

HALVINGS = 20
MOST_EXAMPLES = 4_000
"""The most examples that are halved: more would hardly move the number of standard errors."""

FEWEST = 10
"""With fewer examples there is nothing to halve, and no margin."""

MARGINS = np.linspace(0.0, 3.0, 25)


def margin_for(tried: Candidates, needed: np.ndarray, limit: float) -> float:
    """The least of `MARGINS` with which the choice keeps a goal elsewhere, on average.

    The goal: the mean quality of a row is at most `limit` under the mean of `needed`, (n,). The
    largest margin where none is enough.
    """
    n = len(tried.kept)
    if n < FEWEST:
        return 0.0
    rng = np.random.default_rng(0)
    above = np.zeros(len(MARGINS))
    for _ in range(HALVINGS):
        order = rng.permutation(n)[:MOST_EXAMPLES]
        halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        for seen, others in (halves, halves[::-1]):
            above += _kept_elsewhere(tried, needed, limit, seen, others)
    enough = np.flatnonzero(above >= 0)
    return float(MARGINS[enough[0] if len(enough) else -1])


def _kept_elsewhere(
    tried: Candidates, needed: np.ndarray, limit: float, seen: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """(m,): by how much others are above the goal, chosen on those seen, by margin."""
    score = tried.best_score(seen)
    blend = tried.best_blend(score, seen)
    values = deferral_key(tried.values[score])
    kept, deferred = tried.kept - needed + limit, tried.deferred[blend] - needed + limit
    order = seen[np.argsort(values[seen])]
    ranked = values[order]
    new = np.append(True, ranked[1:] != ranked[:-1]) & (ranked > -np.inf)  # -inf is always deferred
    cuts = np.append(np.flatnonzero(new), len(seen))
    above, error = means_and_errors(kept[order], deferred[order], cuts)
    rows = first_with(surplus(above, error), MARGINS)
    threshold = np.append(ranked, np.inf)[cuts[rows]]
    place = np.argsort(values[others])
    count = np.searchsorted(values[others][place], threshold)
    return mean_at(kept[others][place], deferred[others][place], count)


def means_and_errors(
    kept: np.ndarray, deferred: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(k,) each: the mean where the first `count` rows are deferred, and its standard error."""
    mean = mean_at(kept, deferred, count)
    spread = mean_at(kept**2, deferred**2, count) - mean**2
    return mean, np.sqrt(np.maximum(spread, 0.0) / len(kept))


def surplus(above: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(k,): how many standard errors each row is above what is needed.

    Infinite where there is no error, as where the teacher answers all and is as good as itself.
    """
    slack = 1e-12  # a mean of n zeros and ones is not exact in binary
    sure = np.where(above >= -slack, np.inf, -np.inf)
    return np.divide(above, error, out=sure, where=error > slack)


def first_with(standing: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """(m,): the first row of (k,) that has each margin, or the one that comes nearest."""
    row = np.searchsorted(np.maximum.accumulate(standing), margins - 1e-9)
    return np.where(row < len(standing), row, standing.argmax())
