"""Section 3.1: McNemar's test and the odds ratio. `python -m experiments.significance [--quick]`.

The joint model against its teacher, against its student, and, the honest question, against the best
single network of about its cost. All of it is `ebjr.study`: `ebjr evaluate outcomes.npz --compare
other.npz --report report.html` says the same of any pair. On the held-out half of one split, whose
threshold was chosen on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ebjr import CalibrationError, Outcomes, run_study
from ebjr.study import Study
from experiments.frame import Run, start
from experiments.other_pairs import pairs as other
from experiments.pairs import here

SINGLE = {"imagenet_160_260": "lite0_224"}
"""By pair: a single network that costs as much as the joint model may."""

PAPER = {
    "cifar10": ("RANet", 1.42, 3.2e-5),
    "imagenet": ("RS-Net", 1.14, 2.4e-4),
}
"""By data set: whom the paper's joint model is tested against, the odds ratio, and p."""

NOT_HERE = {
    "cifar10": "RANet's weights are not at hand, and two cores do not train it well enough to be "
    "a fair rival; exits of several scales, of its kind, are in rivals_cifar10"
}
"""By data set: why its rival of the paper does not run here."""


def tests(study: Study) -> dict[str, Any]:
    """McNemar's test against teacher and student, and the intervals of the library's bootstrap."""
    return {
        "point": study.result.as_dict(),
        "tests": {test.names[1]: test.as_dict() for test in study.comparisons},
        "intervals": {
            name: [interval.estimate, interval.low, interval.high]
            for name, interval in study.intervals.items()
        },
    }


def beyond(outcomes: Outcomes) -> dict[str, Any]:
    """At the best accuracy within 60 % of the teacher's FLOPs."""
    most = 0.6 * (outcomes.teacher_cost.flops or 0.0)
    return tests(run_study(outcomes, "budget", flops=most))


def at_equal_cost(outcomes: Outcomes, single: str) -> dict[str, Any]:
    """Within the FLOPs of a single network, tested against that network."""
    alone = other.answers(single)
    study = run_study(outcomes, "budget", flops=float(alone["flops"]))
    said = np.argmax(alone["output"], axis=1)[study.held_out_rows]
    return {
        **tests(study),
        "single": {
            "name": single,
            "flops": float(alone["flops"]),
            "accuracy": float((said == study.held_out.targets).mean()),
            "test": study.compare(said, single).as_dict(),
        },
    }


def tried(job: Callable[[Outcomes], dict[str, Any]], outcomes: Outcomes) -> dict[str, Any]:
    """Return a job's finding, or why the goal cannot be reached."""
    try:
        return job(outcomes)
    except CalibrationError as error:
        return {"failed": str(error)}


def main(run: Run) -> dict[str, Any]:
    """Test every pair at hand."""
    found: dict[str, Any] = {}
    for name, pair in here(run):
        step = run.step(name, lambda pair=pair: tried(beyond, pair.load()))
        found[name] = {"title": pair.title, "within 60 % of the FLOPs": step}
        if "tests" in step:
            test = step["tests"]["the teacher"]
            run.compare(
                f"{pair.title}: odds against the teacher, within 60 % of its FLOPs",
                paper=None,
                ours=round(test["odds_ratio"], 3),
                interval=test["odds_interval"],
                pair=name,
                why=f"p = {test['p_value']:.2g}; the paper does not test against its teacher",
            )
        if pair.data in NOT_HERE:
            whom, odds, p = PAPER[pair.data]
            run.compare(
                f"{pair.title}: odds against {whom}",
                paper=odds,
                ours="does not run here",
                step="",
                why=f"{NOT_HERE[pair.data]}; the paper's p = {p:g}",
            )
        if name not in SINGLE:
            continue
        single = SINGLE[name]
        step = run.step(f"{name}, {single}", lambda p=pair, s=single: at_equal_cost(p.load(), s))
        found[name]["at equal cost"] = step
        test, (whom, odds, p) = step["single"]["test"], PAPER[pair.data]
        run.compare(
            f"{pair.title}: odds against the single network of that cost, {single}",
            paper=odds,
            ours=round(test["odds_ratio"], 3),
            interval=test["odds_interval"],
            pair=name,
            why=f"p = {test['p_value']:.2g} on {test['n']:,} images; here one network, in the "
            f"paper {whom}: p = {p:g} on 50,000",
        )
    return {"pairs": found}


if __name__ == "__main__":
    start(main, "Section 3.1: significance")
