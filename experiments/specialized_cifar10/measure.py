"""Measure the demo's specialized students: `python -m experiments.specialized_cifar10.measure`.

Reads the shipped outcomes (`record` makes them) and writes `results.json`: for each student and
popular share the cost at the teacher's accuracy, the threshold chosen on one half, drawn in the
mix, and reported on the other, mean over many splits; and eq. 15. The shipped student of the
classification demo, which is three times as large and knows all classes, is measured beside them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ebjr import Outcomes
from ebjr.demo import shipped
from ebjr.demo.specialized import DEMO, TRAFFIC
from ebjr.tasks.specialized.known_classes import Traffic
from experiments.specialized.measure import energy_gap, known_accuracy, over_splits
from runs import about, save

SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
SPLITS = 10
TOLERANCE = DEMO.goal["tolerance"]


def tables() -> dict[str, Outcomes]:
    """The demo's, and the pair of the classification demo."""
    found = {}
    for name in DEMO.students:
        with shipped(f"{name}.npz", DEMO.task) as path:
            found[name] = Outcomes.load(path)
    with shipped("outcomes.npz", "classification") as path:
        found["the shipped pair's"] = replace(
            Outcomes.load(path), teacher_cost=next(iter(found.values())).teacher_cost
        )
    return found


def by_share(table: Outcomes) -> dict[str, Any]:
    """The paper's score and a softmax, without blend, and `auto` with one, by popular share."""
    known = table.task == "specialized"
    scores = ("specialized_energy", "known_softmax") if known else ("energy", "softmax")
    ways: dict[str, dict[str, Any]] = {score: {"score": score, "blend": 0.0} for score in scores}
    return {
        f"{share:g}": {
            way: over_splits(
                table,
                Traffic(share, TRAFFIC.popular_classes),
                splits=SPLITS,
                tolerance=TOLERANCE,
                **how,
            )
            for way, how in {**ways, "auto": {}}.items()
        }
        for share in SHARES
    }


def main() -> None:
    """Measure and write."""
    popular = TRAFFIC.popular_classes
    found = {
        name: {
            "knows": "all ten" if table.known_classes is None else list(table.known_classes),
            "mflops": round((table.student_cost.flops or 0) / 1e6, 2),
            "right_on_popular": known_accuracy(table, popular),
            "eq_15": energy_gap(table, popular),
            "by_popular_share": by_share(table),
        }
        for name, table in tables().items()
    }
    teacher = next(iter(tables().values()))
    made = about(seed=0) | {
        "splits": SPLITS,
        "tolerance": TOLERANCE,
        "popular": list(popular),
        "teacher": {
            "accuracy": round(100 * teacher.quality("teacher"), 2),
            "mflops": round((teacher.teacher_cost.flops or 0) / 1e6, 2),
        },
    }
    save("results", made | found, Path(__file__).parent)


if __name__ == "__main__":
    main()
