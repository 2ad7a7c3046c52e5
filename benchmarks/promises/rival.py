"""`bargain` 0.1.3 (MIT; "BARGAIN", SIGMOD 2026), its own code unchanged.

Its user gives a `Proxy` and an `Oracle` and it calls them row by row through a pool of threads.
Ours hold a pair's arrays and answer many rows at once; everything that draws, tests and decides is
the package's. `slow=True` leaves the pool of threads in, to show that nothing else differs.

What it promises, read in its source:

- `BARGAIN_A`: at least `target` of all answers are the oracle's. It orders rows by the proxy's
  score and looks at M = 20 prefixes, of 5 % more each. In each it draws rows ten at a time, without
  replacement, and bets against "the proxy is right on less than is needed here" until it knows at
  level delta; the first prefix that fails, or that looks hopeless after 50 rows (mean minus one
  standard deviation under what is needed), ends the search. Rows of the last passed prefix that
  were not drawn are the proxy's, all others the oracle's.
- `BARGAIN_P` (precision) does the same with "is it positive" under a budget of calls; what is left
  of the budget labels the next rows. It returns the passed prefix and every row that the oracle
  called positive.
- `BARGAIN_R` (recall, beta = 0, the only setting that keeps its promise) spends the whole budget on
  a uniform sample with replacement and lowers the threshold until a bet on the sampled positives
  passes; where none passes it returns all rows. `beta > 0` samples where positives are dense, and
  promises recall only among such regions.
- `BARGAIN_PR` promises both, without a budget: rows between its two thresholds go to the oracle.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.promises.pairs import Pair

PACKAGE = "bargain==0.1.3"


def install(folder: Path) -> None:
    """Make an environment with the package, if there is none, and look for it there last."""
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    sys.path.append(str(next(folder.glob("lib/python3*/site-packages"))))


@cache
def _classes() -> tuple[Any, type, type]:
    """The package, and its two base classes over arrays; a record is a row's number."""
    import BARGAIN

    class ArrayProxy(BARGAIN.Proxy):
        def __init__(self, answers: np.ndarray, scores: np.ndarray) -> None:
            super().__init__(verbose=False, max_workers=1)
            self.answers, self.scores = answers, scores

        def proxy_func(self, record: Any) -> tuple[Any, float]:
            return self.answers[int(record)], float(self.scores[int(record)])

    class ArrayOracle(BARGAIN.Oracle):
        def __init__(self, truth: np.ndarray) -> None:
            super().__init__(verbose=False, max_workers=1)
            self.truth, self.asked = truth, np.zeros(len(truth), bool)

        def oracle_func(self, record: Any, said: Any) -> tuple[bool, Any]:
            self.asked[int(record)] = True
            return bool(self.truth[int(record)] == said), self.truth[int(record)]

    return BARGAIN, ArrayProxy, ArrayOracle


@cache
def _quick() -> tuple[type, type]:
    """The same two that answer many rows at once."""
    _, proxy, oracle = _classes()

    class QuickProxy(proxy):  # type: ignore[valid-type, misc]
        def get_preds_and_scores(self, indxs: Any, records: Any) -> tuple[np.ndarray, np.ndarray]:
            rows = np.asarray(indxs, dtype=int)  # as its cache does: its last records are others
            return self.answers[rows], self.scores[rows]

    class QuickOracle(oracle):  # type: ignore[valid-type, misc]
        def get_pred(self, records: Any, indxs: Any = None) -> np.ndarray:
            rows = np.asarray(records, dtype=int)
            self.asked[rows] = True
            return np.asarray(self.truth[rows])

        def is_answer_correct(self, indxs: Any, records: Any, said: Any) -> np.ndarray:
            return np.asarray(self.get_pred(records) == np.asarray(said))

        def get_number_preds(self) -> int:
            return int(self.asked.sum())

    return QuickProxy, QuickOracle


def rival(
    pair: Pair,
    promise: str,
    at_least: float,
    delta: float,
    seed: int,
    calls: int | None = None,
    slow: bool = False,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows asked (n,) and final answers (n,): labels for ``"agreement"``, else yes or no.

    `promise` is ``"agreement"``, ``"precision"``, ``"recall"`` or ``"both"``; `calls` is the
    budget that precision and recall need; `options` are for the package's class.
    """
    package, proxy_class, oracle_class = _classes()
    if not slow:
        proxy_class, oracle_class = _quick()
    records = np.arange(len(pair))
    words = dict(delta=delta, target=at_least, seed=seed, **options)
    if promise == "agreement":
        proxy, oracle = proxy_class(pair.prediction, pair.score), oracle_class(pair.teacher)
        answers = package.BARGAIN_A(proxy, oracle, verbose=False, **words).process(records)
        return oracle.asked, np.asarray(answers)
    yes = (pair.positive > 0.5).astype(int)
    proxy = proxy_class(yes, np.maximum(pair.positive, 1 - pair.positive))
    oracle = oracle_class(pair.wanted.astype(int))
    if promise == "both":
        found = package.BARGAIN_PR(proxy, oracle, verbose=False, **words).process(records)
    else:
        search = {"precision": package.BARGAIN_P, "recall": package.BARGAIN_R}[promise]
        found = search(proxy, oracle, budget=calls, **words).process(records)
    answers = np.zeros(len(pair), bool)
    answers[np.asarray(found, dtype=int)] = True
    return oracle.asked, answers
