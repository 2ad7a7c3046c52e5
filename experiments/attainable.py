"""The score's share of the attainable gain. `python -m experiments.attainable [--quick]`.

On each pair `auto` chooses a score, without a blend, on one half; on the other half its share of
the oracle's gain is measured beside the ceiling of `ebjr.evaluation.attainable`. Means over 10
splits; `reached` is the mean score's gain over the mean attainable one.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from ebjr import Outcomes, calibrate
from ebjr.evaluation.attainable import headroom
from experiments.frame import Run, start
from experiments.pairs import PAIRS

SPLITS = 10
MEASURED = ("cifar10", "cifar100_early_exit", "cifar100_densenet", "imagenet_160_260")
PARTS = ("score", "other_score", "examples", "seeing_more", "models", "attainable")


def measure(outcomes: Outcomes, splits: int) -> dict[str, Any]:
    """Mean shares of the oracle's gain, and which scores `auto` chose."""
    found, chosen = [], Counter[str]()
    for seed in range(splits):
        halves = outcomes.split(0.5, seed)
        score = calibrate(halves[0], blend=0.0).router.score
        told = headroom(*halves, score)
        assert told is not None, "these pairs differ on enough examples"
        chosen[score.name] += 1
        found.append([getattr(told, part) for part in PARTS])
    shares = dict(zip(PARTS, np.mean(found, axis=0).tolist(), strict=True))
    return {
        "splits": len(found),
        "chosen": dict(chosen),
        **{part: round(share, 4) for part, share in shares.items()},
        "attainable_deviation": round(float(np.std([row[-1] for row in found])), 4),
        "reached": round(shares["score"] / shares["attainable"], 4),
    }


def main(run: Run) -> dict[str, Any]:
    """Every pair that is on the machine."""
    figures = {}
    for name in MEASURED[: 1 if run.quick else None]:
        outcomes = PAIRS[name].load()
        splits = 2 if run.quick else SPLITS
        figures[name] = run.step(name, partial(measure, outcomes, splits))
    return figures


if __name__ == "__main__":
    start(main, "What is attainable")
