"""How far a threshold misses its goal on other data, by margin. `python -m experiments.optimism`.

Score, blend and threshold are chosen on n examples and judged on all others, over 40 draws of the
n. What matters is the mean: a goal that asks for at most 0.5 points under the teacher should come
out at most that much under it, on average. A margin costs deferral; both are here, for margins of
0, which is the plain pick, to 1 standard error. For budgets: what is deferred beyond them, and how
far the accuracy on the n examples flatters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from ebjr import CalibrationError, OperatingPoint, Outcomes, calibrate, evaluate
from ebjr.calibration.goal import MARGIN
from ebjr.scores import is_fitted
from experiments.frame import Run, start
from experiments.pairs import PAIRS

SPLITS = 40
SIZES = (500, 1_000, 2_000)
TOLERANCES = (0.0, 0.005, 0.01)
MARGINS = (0.0, 0.5, MARGIN, 1.0)
BUDGETS = (0.05, 0.1, 0.3)
"""Deferral rates."""

MEASURED = ("cifar10", "imagenet_160_260", "imagenet_224_260", "cifar100_early_exit")


def draws(outcomes: Outcomes, n: int, splits: int) -> Iterator[tuple[Outcomes, Outcomes, dict]]:
    """The n examples of each draw, all others, and the score and the blend chosen on the n."""
    for seed in range(splits):
        seen, others = outcomes.split(n / len(outcomes), seed)
        point = calibrate(seen, margin=0.0)
        fitted = is_fitted(point.router.score.name)
        score = point.router.score.name if fitted else point.router.score
        yield seen, others, {"score": score, "blend": point.blend}


def short_of(point: OperatingPoint, tolerance: float) -> float:
    """By how many points the joint model is under the teacher, beyond a tolerance."""
    return 100 * (point.teacher_quality - point.quality - tolerance)


def measure(outcomes: Outcomes, n: int, splits: int) -> dict[str, Any]:
    """Means over the draws: points short of each tolerance, by margin, and what is deferred."""
    short: dict[tuple[float, float], list[tuple[float, float]]] = {}
    beyond: dict[float, list[tuple[float, float]]] = {}
    failed = 0
    for seen, others, chosen in draws(outcomes, n, splits):
        for tolerance in TOLERANCES:
            for margin in MARGINS:
                try:
                    point = calibrate(seen, tolerance=tolerance, margin=margin, **chosen)
                except CalibrationError:
                    failed += 1
                    continue
                there = evaluate(others, point)
                found = (short_of(there, tolerance), there.deferral_rate)
                short.setdefault((tolerance, margin), []).append(found)
        for budget in BUDGETS:
            point = calibrate(seen, "budget", deferral_rate=budget, **chosen)
            there = evaluate(others, point)
            more = 100 * (there.deferral_rate - budget), 100 * (point.quality - there.quality)
            beyond.setdefault(budget, []).append(more)
    return {
        "failed": failed,
        "match-teacher": {
            f"{tolerance:g}": {f"{m:g}": _means(short[tolerance, m]) for m in MARGINS}
            for tolerance in TOLERANCES
        },
        "budget": {
            f"{budget:g}": dict(
                zip(
                    ("points_deferred_beyond", "points_that_flatter"),
                    np.round(np.mean(found, axis=0), 3).tolist(),
                    strict=True,
                )
            )
            for budget, found in beyond.items()
        },
    }


def _means(found: list[tuple[float, float]]) -> dict[str, float]:
    short, rate = np.array(found).T
    return {
        "points_short": round(float(short.mean()), 3),
        "standard_error": round(float(short.std() / len(short) ** 0.5), 3),
        "splits_short": round(float((short > 0).mean()), 3),
        "deferral_rate": round(float(rate.mean()), 4),
    }


def main(run: Run) -> dict[str, Any]:
    """Every pair at every size that leaves as many others."""
    figures: dict[str, Any] = {"splits": SPLITS, "margin": MARGIN}
    for name in MEASURED[: 1 if run.quick else None]:
        outcomes = PAIRS[name].load()
        sizes = [n for n in (*SIZES, 5_000) if 2 * n <= len(outcomes)]
        figures[name] = {
            str(n): run.step(
                f"{name}, {n}", partial(measure, outcomes, n, 4 if run.quick else SPLITS)
            )
            for n in sizes[: 1 if run.quick else None]
        }
    return figures


if __name__ == "__main__":
    start(main, "Optimism of the choice, and the margin against it")
