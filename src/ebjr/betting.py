"""Betting: tests of a promise that may be looked at after every row, for as long as one likes.

A game against the promise: capital 1, and a bet on every row that is fair or worse as long
as the promise is kept. Such capital ever reaches ``1 / alpha`` with probability at most `alpha`
(Ville 1939). Capital is spread over a fixed set of bets, small and large, and over the times at
which they start: half starts at the first row, and fresh money joins every 512 rows, so that a
promise broken after a long quiet time is found soon. Any such mixture is again a fair game.
Memory is constant, and any split of the rows into batches gives the same answers.

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

BLOCK = 512  # fresh money joins the game every so many rows

ODDS = np.geomspace(1e-3, 1e4, 32)
"""Sizes of bets. A bet is best where the odds of a loss are 1 + this, times what was promised."""

ODDS_SHARES = 1 / (1 + np.log(ODDS) ** 2)
"""The money on each: most on a doubling, some on every other size."""


class Bets:
    """Capital as logarithms, spread over bets by `shares` (bets,), and over starting times.

    Half starts at once and ``(1/log2(k+1) - 1/log2(k+2)) / 2`` with the k-th block: all add up to
    1. Money that waits for a later block does not count, which only makes the test stricter.
    """

    def __init__(self, shares: np.ndarray, alpha: float) -> None:
        self.shares = np.log(shares / shares.sum())
        self.limit = -math.log(alpha)
        self.wealth = self.shares + math.log(0.5)
        self.rows = 0
        self.peak = math.log(0.5)
        self.alarm: int | None = None

    def bet(self, growth: np.ndarray, watched: np.ndarray | None = None) -> None:
        """Play rows of one block: `growth` (bets, rows) is the log of what a bet is multiplied by.

        `watched` (rows,) marks the rows after which the capital can have risen.
        """
        # sums run from row to row, so that they do not depend on where the batches end
        if self.rows and self.rows % BLOCK == 0:  # fresh money at the start of the k-th block
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
        """The most that 1 of capital ever became, as log10; the alarm is at ``-log10(alpha)``."""
        return self.peak / math.log(10)

    def state(self) -> dict[str, Any]:
        """Everything that changes."""
        figures = {"rows": self.rows, "peak": self.peak, "alarm": self.alarm}
        return {**figures, "wealth": self.wealth.tolist()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.wealth = read_numbers(state["wealth"], len(self.shares), "wealth")
        self.peak = float(read_numbers([state["peak"]], 1, "peak")[0])
        self.rows = read_count(state["rows"], "rows")
        self.alarm = None if state["alarm"] is None else read_count(state["alarm"], "alarm")


@contextmanager
def resuming() -> Iterator[None]:
    """Whatever is wrong with what a monitor is made of is one kind of error."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"cannot resume the monitor: {error.args[0]} is missing") from None
    except (TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise ValueError(f"cannot resume the monitor: {error}") from None


class SequentialTest:
    """A monitor: a test that can be written to a file and taken up again."""

    FORMAT: ClassVar[str]
    _bets: Bets

    @property
    def rows(self) -> int:
        """How many live rows have been seen."""
        return self._bets.rows

    def state(self) -> dict[str, Any]:
        """Everything needed to go on later, for JSON."""
        raise NotImplementedError

    @classmethod
    def _build(cls, state: Mapping[str, Any]) -> Self:
        raise NotImplementedError

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """A monitor that goes on exactly where the one that gave `state` stopped."""
        if not isinstance(state, Mapping):
            raise ValueError("cannot resume the monitor: its state is not a mapping")
        with resuming():
            if state["format"] != cls.FORMAT:
                raise ValueError(f"its format is {state['format']!r}, not {cls.FORMAT!r}")
            return cls._build(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as JSON, whole or not at all."""
        with write_whole(path) as file:
            json.dump(self.state(), file, allow_nan=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Take up the monitor that `save` wrote."""
        try:
            state = json.loads(read_text(path))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no monitor file {path}") from None
        except json.JSONDecodeError:
            raise ValueError(f"cannot resume the monitor: {path} is not JSON") from None
        return cls.from_state(state)


def odds_growth(value: np.ndarray, mean: float, odds: np.ndarray = ODDS) -> np.ndarray:
    """(bets, values): log of ``(1 + c value) / (1 + c mean)`` for the bets on a larger mean."""
    return np.log1p(np.outer(odds, value)) - np.log1p(odds * mean)[:, None]


def refuted_mean(value: np.ndarray, count: np.ndarray, alpha: float) -> float:
    """The largest mean of `value` (k,), met `count` (k,) times, that bets refute; 0 if none is."""
    from scipy.optimize import brentq  # takes as long as NumPy to import

    shares = np.log(ODDS_SHARES / ODDS_SHARES.sum())
    gained = np.log1p(np.outer(ODDS, value)) @ count + shares

    def over(mean: float) -> float:  # falls as the mean that the bets play against grows
        money = gained - count.sum() * np.log1p(ODDS * mean)
        return float(logsumexp(money)) + math.log(alpha)

    if over(0.0) <= 0:
        return 0.0
    top = float(value.max())
    return top if over(top) > 0 else float(brentq(over, 0.0, top, xtol=1e-15))


def blocks(first: int, n: int) -> Iterator[slice]:
    """Cut n rows where blocks of all rows ever seen end, `first` being the number of the first."""
    ends = [0, *range(BLOCK - first % BLOCK, n, BLOCK), n]
    return (slice(start, stop) for start, stop in pairwise(ends) if start < stop)


def read_numbers(values: Any, n: int, name: str) -> np.ndarray:
    """(n,) finite numbers of a state that came from a file; ValueError if it holds others."""
    array = np.array([float(value) for value in values])
    if len(array) != n or not np.isfinite(array).all():
        raise ValueError(f"its {name} is damaged")
    return array


def read_count(value: Any, name: str) -> int:
    """A count of a state that came from a file; ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"its {name} is damaged")
    return value
