"""Statistics for several files, from `scipy.special` alone.

``import scipy.stats`` takes several times as long as NumPy; these functions agree with it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betainc, betaincc, betaincinv, gammaln


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval.

    Examples
    --------
    >>> str(Interval(0.9412, 0.936, 0.9459))
    '0.9412 (0.936 to 0.9459)'
    """

    estimate: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.estimate, self.low, self.high))

    def __str__(self) -> str:
        return f"{self.estimate:.4g} ({self.low:.4g} to {self.high:.4g})"


def clopper_pearson(hits: int, n: int, alpha: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a share, wrong with probability at most `alpha`.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 1934.

    Examples
    --------
    >>> low, high = clopper_pearson(0, 10, 0.05)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    misses = n - hits
    low = float(betaincinv(hits, misses + 1, alpha / 2)) if hits else 0.0
    high = float(betaincinv(hits + 1, misses, 1 - alpha / 2)) if misses else 1.0
    return low, high


def share_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """Return a share, NaN of no examples, with its `clopper_pearson` interval.

    Examples
    --------
    >>> str(share_interval(0, 10))
    '0 (0 to 0.3085)'
    """
    return Interval(hits / n if n else math.nan, *clopper_pearson(hits, n, 1 - level))


def binomial_cdf(count: Any, n: Any, share: Any) -> np.ndarray:
    """Return P(Binomial(n, share) <= count), elementwise."""
    count = np.asarray(count)
    # much faster than `betaincc`, and as exact except for the rounding of 1 - share
    inside = betainc(np.maximum(n - count, 0.5), np.maximum(count, 0) + 1, 1 - share)
    return np.where(count < 0, 0.0, np.where(count >= n, 1.0, inside))


def hypergeometric_cdf(count: int, total: np.ndarray, bad: np.ndarray, drawn: int) -> np.ndarray:
    """Return P(at most `count` bad rows among `drawn` of `total`, of which `bad` are bad), (k,).

    Examples
    --------
    >>> hypergeometric_cdf(0, np.array([10]), np.array([5]), 2).round(4)
    array([0.2222])
    """
    hits = np.arange(min(count, drawn) + 1)[:, None]
    ways = _log_choices(bad, hits) + _log_choices(total - bad, drawn - hits)
    return np.minimum(np.exp(ways - _log_choices(total, drawn)).sum(axis=0), 1.0)


def _log_choices(of: np.ndarray, some: Any) -> np.ndarray:
    """Return the log of the number of ways to choose some; -inf if there are too few."""
    enough = np.where(some <= of, 0.0, -np.inf)
    return enough + gammaln(of + 1) - gammaln(some + 1) - gammaln(np.maximum(of - some, 0) + 1)


def critical_count(n: int, share: float, delta: float) -> int:
    """Return the largest c with ``P(Binomial(n, share) <= c) <= delta``; -1 if there is none."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        tail = betaincc(middle + 1, n - middle, share)  # P(at most `middle`)
        low, high = (middle, high) if tail <= delta else (low, middle)
    return low


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks, (n,), from 1 up, of values without NaN; equal values share their mean rank."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(size) - (size - 1) / 2)[group])


def same_length(**named: Any) -> list[np.ndarray]:
    """Return columns (n,) of one length as arrays; ValueError if they differ."""
    arrays = [np.asarray(value) for value in named.values()]
    if any(array.ndim != 1 for array in arrays) or len({len(array) for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"{', '.join(named)} must be (n,) and of the same length, not {shapes}")
    return arrays


def same_labels(**named: Any) -> list[np.ndarray]:
    """Return columns of labels (n,) of one length as arrays; ValueError if they cannot agree.

    A name is never equal to a number, and no label to a fraction: all would count as wrong.
    """
    arrays = same_length(**named)
    kinds = {name: _kind(array) for name, array in zip(named, arrays, strict=True) if len(array)}
    if len({*kinds.values()}) > 1 or "fractions" in kinds.values():
        said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        raise ValueError(f"labels must be all names or all whole numbers, but are {said}")
    return arrays


def _kind(labels: np.ndarray) -> str:
    kind = "U" if isinstance(labels[0], str) else labels.dtype.kind
    with np.errstate(invalid="ignore"):
        fractions = kind == "f" and bool((labels % 1 > 0).any())  # NaN may stand for unknown
    return {"U": "names", "S": "bytes"}.get(kind, "fractions" if fractions else "numbers")


def right_or_wrong(name: str, correct: Any) -> np.ndarray:
    """Return `correct` as (n,) bool; ValueError if it has other values than right and wrong."""
    array = np.asarray(correct)
    if array.ndim != 1 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must be (n,), True or 1 for a right answer, else 0")
    return array.astype(bool)
