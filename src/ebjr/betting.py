"""Betting: tests of a promise that may be read after every row, for as long as you like.

They play a game against the promise: start with capital 1, and on every row make a bet that is fair
or worse while the promise is kept. Such capital ever reaches ``1 / alpha`` with probability at most
`alpha` (Ville 1939). The capital is spread over a fixed set of bets, small and large, and over
starting times: half starts at the first row, and new money joins every 512 rows, so that a promise
broken after a long quiet time is found soon. A mixture of fair games is fair. Memory is constant,
and any split of the rows into batches gives the same answers.

Sources: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", JRSS B
2024; Shin, Ramdas & Rinaldo, "E-detectors", NEJSDS 2023.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from ebjr.arrays import logsumexp
from ebjr.files import read_text, write_whole

BLOCK = 512  # rows between two additions of new money

ODDS = np.geomspace(1e-3, 1e4, 32)
"""Sizes of bets. A bet is best if the odds of a loss are 1 + its size, times the promised odds."""

ODDS_SHARES = 1 / (1 + np.log(ODDS) ** 2)
"""The money on each bet: most on a doubling, some on every other size."""


class Bets:
    """Capital as logarithms, spread over bets by `shares` (bets,), and over starting times.

    Half starts at once and ``(1/log2(k+1) - 1/log2(k+2)) / 2`` with the k-th block; all add up to
    1. Money that waits for a later block is not counted, which only makes the test stricter.
    """

    def __init__(self, shares: np.ndarray, alpha: float) -> None:
        self.shares = np.log(shares / shares.sum())
        self.limit = -math.log(alpha)
        self.wealth = self.shares + math.log(0.5)
        self.rows = 0
        self.peak = math.log(0.5)
        self.alarm: int | None = None

    def bet(self, growth: np.ndarray, watched: np.ndarray | None = None) -> None:
        """Play rows of one block: `growth`, (bets, rows), is the log growth of each bet.

        `watched` (rows,) marks the rows after which the capital can have risen.
        """
        # cumulative sums, so that results do not depend on where batches end
        if self.rows and self.rows % BLOCK == 0:  # new money at the start of the k-th block
            k = self.rows // BLOCK
            fresh = math.log((1 / math.log2(k + 1) - 1 / math.log2(k + 2)) / 2)
            self.wealth = np.logaddexp(self.wealth, self.shares + fresh)
        path = np.cumsum(np.column_stack([self.wealth, growth]), axis=1)[:, 1:]
        self.wealth = path[:, -1].copy()
        where = np.flatnonzero(np.ones(path.shape[1]) if watched is None else watched)
        if len(where):
            capital = logsumexp(path[:, where].T)
            self.peak = max(self.peak, float(capital.max()))
            if self.alarm is None and self.peak >= self.limit:
                self.alarm = self.rows + int(where[np.argmax(capital >= self.limit)]) + 1
        self.rows += path.shape[1]

    @property
    def evidence(self) -> float:
        """The largest capital that 1 ever became, as log10; the alarm is at ``-log10(alpha)``."""
        return self.peak / math.log(10)

    def state(self) -> dict[str, Any]:
        """Return everything that changes."""
        figures = {"rows": self.rows, "peak": self.peak, "alarm": self.alarm}
        return {**figures, "wealth": self.wealth.tolist()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Resume from what `state` returned."""
        self.wealth = read_numbers(state["wealth"], len(self.shares), "wealth")
        self.peak = float(read_numbers([state["peak"]], 1, "peak")[0])
        self.rows = read_count(state["rows"], "rows")
        self.alarm = None if state["alarm"] is None else read_count(state["alarm"], "alarm")


@contextmanager
def resuming() -> Iterator[None]:
    """Turn any error while a monitor is rebuilt into one ValueError."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"cannot resume the monitor: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise ValueError(f"cannot resume the monitor: {error}") from None


class SequentialTest:
    """A monitor: a sequential test that can be saved and resumed."""

    FORMAT: ClassVar[str]
    _bets: Bets

    @property
    def rows(self) -> int:
        """The number of live rows so far."""
        return self._bets.rows

    def state(self) -> dict[str, Any]:
        """Return everything needed to resume, for JSON."""
        raise NotImplementedError

    @classmethod
    def _build(cls, state: Mapping[str, Any]) -> Self:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Make a monitor that resumes exactly where the one that returned `state` stopped."""
        if not isinstance(state, Mapping):
            raise ValueError("cannot resume the monitor: the state is not a mapping")
        with resuming():
            if state["format"] != cls.FORMAT:
                raise ValueError(f"the format is {state['format']!r}, not {cls.FORMAT!r}")
            return cls._build(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as JSON, whole or not at all."""
        with write_whole(path) as file:
            json.dump(self.state(), file, allow_nan=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load the monitor that `save` wrote."""
        try:
            state = json.loads(read_text(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no monitor file {path}") from None
        except json.JSONDecodeError:
            raise ValueError(f"cannot resume the monitor: {path} is not JSON") from None
        return cls.from_state(state)


def odds_growth(value: np.ndarray, mean: float, odds: np.ndarray = ODDS) -> np.ndarray:
    """Return log of ``(1 + c value) / (1 + c mean)``, (bets, values), for bets on a larger mean."""
    return np.log1p(np.outer(odds, value)) - np.log1p(odds * mean)[:, None]


def refuted_mean(value: np.ndarray, count: np.ndarray, alpha: float) -> float:
    """Return the largest mean of `value` (k,), seen `count` (k,) times, that bets refute, or 0."""
    from scipy.optimize import brentq  # as slow to import as NumPy

    shares = np.log(ODDS_SHARES / ODDS_SHARES.sum())
    gained = np.log1p(np.outer(ODDS, value)) @ count + shares

    def over(mean: float) -> float:  # falls as the mean rises
        money = gained - count.sum() * np.log1p(ODDS * mean)
        return float(logsumexp(money)) + math.log(alpha)

    if over(0.0) <= 0:
        return 0.0
    top = float(value.max())
    return top if over(top) > 0 else float(brentq(over, 0.0, top, xtol=1e-15))


def blocks(first: int, n: int) -> Iterator[slice]:
    """Cut n rows where blocks of all rows so far end; `first` is the number of the first."""
    ends = [0, *range(BLOCK - first % BLOCK, n, BLOCK), n]
    return (slice(start, stop) for start, stop in pairwise(ends) if start < stop)


def read_numbers(values: Any, n: int, name: str) -> np.ndarray:
    """Return (n,) finite numbers of a saved state; ValueError if they are damaged."""
    array = np.array([float(value) for value in values])
    if len(array) != n or not np.isfinite(array).all():
        raise ValueError(f"{name} is damaged")
    return array


def read_count(value: Any, name: str) -> int:
    """Return a count of a saved state; ValueError if it is damaged."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is damaged")
    return value
