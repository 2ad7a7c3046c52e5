"""A joint model against its rivals on CIFAR-10: `python -m experiments.rivals_cifar10 [--quick]`.

Is a joint model better than the best single model of its cost? And does EBJR on top of a network
that adapts by itself beat that network's own rule? The shipped pair stands against other routers,
agreement of two cheap students, single networks, mirrored images and eight-bit numbers, multi-exit
networks and a slimmable one, on the answers that `experiments.rivals.record` kept. Beside networks
that were trained for fewer epochs than its student, the pair has a student of as few. Everything is
chosen on one half of the test set and judged on the other: figures are means of splits, intervals
and tests are of the first split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebjr import CalibrationError, Cost, OperatingPoint, Outcomes, evaluate
from ebjr.blend import blend_logits
from ebjr.evaluation import joint_prediction
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.evaluation.tests import compare
from ebjr.stats import share_interval
from experiments import intervals
from experiments.baselines import beside as within_cost
from experiments.frame import COLORS, Run, start
from experiments.pairs import shipped_pair
from experiments.rivals import exits
from experiments.rivals.record import Answers, recorded
from experiments.rivals.routers import ROUTERS, Router, both, by_vote, named, ours, voted

SPLITS = 10
QUICK_SPLITS = 1
QUICK_IMAGES = 2000
BUDGETS = (10, 12, 15, 20, 25, 30, 40, 45, 50, 60, 75, 100, 125, 150, 200, 250, 300)
"""MFLOPs at which a curve is drawn."""

BUDGET = 100
"""MFLOPs at which routers are compared: room for two students and a few calls of the teacher."""

QUANTIZED = Path(__file__).parent / "quantized" / "results.json"
BATCH = "batch of 64"

Kept = Mapping[str, Answers]
"""What each rival said, by name."""

SECOND = {
    "agreement of two students": "pooled",
    "agreement of image and mirrored image": "mirrored",
    "agreement of student and its int8 copy": "int8_student",
}
"""What is asked beside the student, by the title of the cascade."""

AVERAGED = {
    "student, image and mirrored": ["mirrored"],
    "two students": ["pooled"],
    "two students, image and mirrored": ["pooled", "mirrored", "pooled_mirrored"],
}
"""What is averaged with the student, by the title of the whole: no training, no router."""

OURS = "ours: score and blend chosen"

EXITS = {
    "early exits on the teacher": "early_exits",
    "multi-scale exits": "multi_scale",
}

ALIKE = {
    "early exits on the teacher": "student_3",
    "multi-scale exits": "student_8",
}
"""The pair's student of as many epochs, by the multi-exit network that had no more."""

RULES = {
    "its own rule, max softmax": partial(exits.own_rule, "softmax"),
    "its own rule, entropy": partial(exits.own_rule, "entropy"),
    "EBJR on top": exits.on_top,
}


def flops_of(outcomes: Outcomes) -> tuple[float, float]:
    """Return the costs of student and teacher."""
    student, teacher = outcomes.student_cost.flops, outcomes.teacher_cost.flops
    assert student is not None
    assert teacher is not None
    return student, teacher


def rounded(values: Sequence[float], digits: int = 4) -> list[float]:
    """Convert to plain numbers for the result file."""
    return [round(float(value), digits) for value in values]


def judged(
    outcomes: Outcomes, router: Router, splits: int, *goal: str, **how: Any
) -> list[OperatingPoint]:
    """A router's points on the held-out halves; without splits where its goal is out of reach."""
    points = []
    for seed in range(splits):
        try:
            point = router(outcomes, seed, *goal, **how)
            points.append(evaluate(outcomes.split(0.5, seed)[1], point))
        except CalibrationError:
            continue
    return points


def at_teacher(
    outcomes: Outcomes, router: Router, splits: int, unit: str = "flops"
) -> dict[str, Any]:
    """A router at the teacher's accuracy, as the mean over splits; in MFLOPs or milliseconds."""
    points = judged(outcomes, router, splits)
    if not points:
        return {"splits": 0}
    cost = float(np.mean([getattr(point.cost, unit) for point in points]))
    word, scale = ("mflops", 1e-6) if unit == "flops" else ("milliseconds", 1e3)
    costs = (getattr(outcomes.student_cost, unit), getattr(outcomes.teacher_cost, unit))
    halves = [(outcomes.split(0.5, seed)[1], point) for seed, point in enumerate(points)]
    sure = intervals.factor(intervals.fixed(halves), *costs) if len(points) == splits else {}
    return {
        "splits": len(points),
        "deferral_rate": round(float(np.mean([point.deferral_rate for point in points])), 4),
        word: round(scale * cost, 3),
        "over_teacher_points": over_teacher(points),
        "times_cheaper": round(costs[1] / cost, 3),
        **sure,
    }


def over_teacher(points: Sequence[OperatingPoint]) -> float:
    """The mean of how far the joint model is over the teacher, in points of accuracy."""
    return round(
        100 * float(np.mean([point.quality - point.teacher_quality for point in points])), 3
    )


def of_router(outcomes: Outcomes, router: Router, splits: int) -> dict[str, Any]:
    """A router at the teacher's accuracy, and how accurate it is within `BUDGET`."""
    within = judged(outcomes, router, splits, "budget", flops=1e6 * BUDGET)
    return {
        "at the teacher's accuracy": at_teacher(outcomes, router, splits),
        f"within {BUDGET} MFLOPs": {
            "mflops": mflops(within),
            "over_teacher_points": over_teacher(within),
        },
    }


def routers(pair: Outcomes, kept: Kept, splits: int) -> dict[str, Any]:
    """Every router of the shipped pair."""
    found = {title: of_router(pair, router, splits) for title, router in ROUTERS.items()}
    for title, name in SECOND.items():
        second = one(kept[name], 0)
        mean_of = both(pair, *second)
        found[f"{title}: the vote"] = of_router(voted(pair, *second), by_vote, splits)
        found[f"{title}: softmax of their mean"] = of_router(
            mean_of, partial(named, "softmax"), splits
        )
        found[f"{title}: ours on their mean"] = of_router(mean_of, ours, splits)
    second = one(kept["pooled"], 0)
    found["ours over agreement"] = {"interval": over_agreement(pair, voted(pair, *second), splits)}
    return found


def over_agreement(pair: Outcomes, agreed: Outcomes, splits: int) -> list[float]:
    """The interval of how many points ours is over agreement within `BUDGET`."""
    rights = []
    for outcomes, router in ((pair, ours), (agreed, by_vote)):
        points = judged(outcomes, router, splits, "budget", flops=1e6 * BUDGET)
        rights.append(by_row(outcomes, points))
    return over(*rights)


def over(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> list[float]:
    """The interval of how many points one is over another, of the rows of each half, (n,)."""
    rng, found = np.random.default_rng(0), []
    for one, other in zip(mine, theirs, strict=True):
        times = intervals.times_drawn(len(one), -(-intervals.RESAMPLES // len(mine)), rng)
        found.append(100 * (times @ (one - other)) / len(one))
    return intervals.interval(np.concatenate(found), 2)


def by_row(outcomes: Outcomes, points: Sequence[OperatingPoint]) -> list[np.ndarray]:
    """(n,) of the judged half of each split: 1 where the joint model is right, else 0."""
    halves = [outcomes.split(0.5, seed)[1] for seed in range(len(points))]
    return [
        (joint_prediction(half, point) == half.targets).astype(float)
        for half, point in zip(halves, points, strict=True)
    ]


def single_networks(pair: Outcomes, kept: Kept) -> dict[str, tuple[np.ndarray, float]]:
    """Whatever answers without a router: logits (n, classes) and FLOPs, by title."""
    student, teacher = flops_of(pair)
    found = {"student": (pair.student, student), "teacher": (pair.teacher, teacher)}
    alone = {
        "pooled student": "pooled",
        "int8 student": "int8_student",
        "int8 teacher": "int8_teacher",
        "single network": "single",
    }
    for title, name in alone.items():
        found[title] = one(kept[name], 0)
    for title, names in AVERAGED.items():
        logits, flops = pair.student, student
        for count, name in enumerate(names, start=1):
            more, cost = one(kept[name], 0)
            logits, flops = blend_logits(more, logits, 1 / count), flops + cost
        found[title] = logits, flops
    for title, name in {"slimmable": "slimmable", **exits_in(kept)}.items():
        for k in range(len(kept[name].flops)):
            found[f"{title}, answer {k + 1}"] = one(kept[name], k)
    return found


def exits_in(kept: Kept) -> dict[str, str]:
    """The multi-exit networks that were recorded, by title."""
    return {title: name for title, name in EXITS.items() if name in kept}


def one(answers: Answers, k: int) -> tuple[np.ndarray, float]:
    """Return one of a network's answers: logits (n, classes) and FLOPs."""
    return answers.logits[:, :, k], float(answers.flops[k])


def equal_cost(pair: Outcomes, kept: Kept, splits: int) -> dict[str, Any]:
    """Every single network, and beside it the joint model that may cost as much."""
    student, teacher = flops_of(pair)
    _, rows = pair.split_rows(0.5, 0)
    found = {}
    for title, (logits, flops) in single_networks(pair, kept).items():
        right = logits.argmax(axis=1) == pair.targets
        held_out = share_interval(int(right[rows].sum()), len(rows))
        found[title] = {
            "mflops": round(flops / 1e6, 2),
            "accuracy": round(float(right.mean()), 4),
            "held_out": rounded([held_out.estimate, held_out.low, held_out.high]),
            **(beside(pair, logits, flops, splits) if student < flops < teacher else {}),
        }
    return found


def beside(pair: Outcomes, logits: np.ndarray, flops: float, splits: int) -> dict[str, Any]:
    """The joint model, the best within a network's cost on one half, against that network."""
    points = judged(pair, ours, splits, "budget", flops=flops)
    gains, answered = [], logits.argmax(axis=1)
    sure = within_cost(pair, (answered, flops), splits)["interval"]
    for seed, point in enumerate(points):
        rows = pair.split_rows(0.5, seed)[1]
        gains.append(point.quality - float((answered == pair.targets)[rows].mean()))
    held_out, rows = pair.split(0.5, 0)[1], pair.split_rows(0.5, 0)[1]
    interval = bootstrap(held_out, points[0])["accuracy"]
    test = compare(joint_prediction(held_out, points[0]), answered[rows], held_out.targets)
    return {
        "joint_mflops": mflops(points),
        "joint_over_it_points": round(100 * float(np.mean(gains)), 3),
        "interval": sure,
        "joint_held_out": rounded([interval.estimate, interval.low, interval.high]),
        "mcnemar_p": float(f"{test.p_value:.3g}"),
    }


def curve(outcomes: Outcomes, splits: int) -> list[dict[str, float]]:
    """A pair's best within each budget: means of splits, and the first one's interval."""
    student, teacher = flops_of(outcomes)
    budgets = (student, *(1e6 * each for each in BUDGETS), student + teacher)
    found = []
    for budget in (each for each in budgets if student <= each <= student + teacher):
        points = judged(outcomes, ours, splits, "budget", flops=budget)
        interval = bootstrap(outcomes.split(0.5, 0)[1], points[0])["accuracy"]
        accuracy = float(np.mean([point.quality for point in points]))
        ends = {"low": round(interval.low, 4), "high": round(interval.high, 4)}
        found.append({"mflops": mflops(points), "accuracy": round(accuracy, 4), **ends})
    return found


def mflops(points: Sequence[OperatingPoint]) -> float:
    """The mean cost."""
    return round(float(np.mean([point.cost.flops for point in points])) / 1e6, 2)


def mean(halves: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The mean of accuracies and MFLOPs."""
    accuracy, mflops = np.mean(halves, axis=0)
    return {"mflops": round(float(mflops), 2), "accuracy": round(float(accuracy), 4)}


def leave_early(answers: Answers, targets: np.ndarray, splits: int) -> dict[str, Any]:
    """A multi-exit network by its own rules and with EBJR on top: means of splits.

    `as_good` is where it is as good as its last exit on the half that is chosen on, and how many
    points over the last exit it lands on the other half; for EBJR on top also the interval of how
    many times fewer FLOPs than its own rule it takes there.
    """
    first, *_, dearest = answers.flops / 1e6
    budgets = [first, *(budget for budget in BUDGETS if first < budget < dearest), dearest]
    found: dict[str, Any] = {}
    spent: dict[str, Sequence[np.ndarray]] = {}
    for title, make in RULES.items():
        as_good, points, within, spent[title] = zip(
            *(turn(make, answers, targets, budgets, seed) for seed in range(splits)), strict=True
        )
        found[title] = {
            "as_good": {**mean(as_good), "points": round(float(np.mean(points)), 3)},
            "curve": [mean(halves) for halves in zip(*within, strict=True)],
        }
    top, own = STYLES
    ratios = intervals.ratio(list(zip(spent[own], spent[top], strict=True)))
    found[top]["as_good"]["times_fewer_interval"] = ratios
    return found


def turn(
    make: Callable[[Answers, np.ndarray], list[exits.Rule]],
    answers: Answers,
    targets: np.ndarray,
    budgets: Sequence[float],
    seed: int,
) -> tuple[exits.Half, float, list[exits.Half], np.ndarray]:
    """Rules on one split: as good as the last exit, the points over it, and in each budget.

    And what each image of the half that is judged costs where it is as good, (n,).
    """
    options, judged_on = tried(make, answers, targets, seed)
    here, there = halves_of(len(targets), seed)

    def judge(number: int, thresholds: exits.Thresholds) -> exits.Half:
        return judged_on[number].at(thresholds)

    last = answers.logits[:, :, -1].argmax(axis=1) == targets
    number, thresholds = exits.as_good_as(float(last[here].mean()), options)
    found = judge(number, thresholds)
    points = 100 * (found.accuracy - float(last[there].mean()))
    spent = judged_on[number].answered(thresholds)[1]
    within = [judge(*exits.best_within(budget, options)) for budget in budgets]
    return found, points, within, spent


def tried(
    make: Callable[[Answers, np.ndarray], list[exits.Rule]],
    answers: Answers,
    targets: np.ndarray,
    seed: int,
) -> tuple[exits.Options, list[exits.Exits]]:
    """Rules at all their thresholds on the chosen half, and each rule on the judged half."""
    here, there = halves_of(len(targets), seed)
    rules = make(Answers(answers.logits[here], answers.flops), targets[here])
    whole = [rule.on(answers, targets) for rule in rules]
    options = {
        (number, thresholds): chosen_on.at(thresholds)
        for number, rule in enumerate(rules)
        for chosen_on in (whole[number].take(here),)
        for thresholds in rule.options(chosen_on)
    }
    return options, [each.take(there) for each in whole]


def trained_alike(pair: Outcomes, kept: Kept, title: str, splits: int) -> dict[str, Any]:
    """The joint model over a multi-exit network by each rule, both trained for as many epochs.

    Within `BUDGET`; where the last exit costs less than the student, the network's best stands
    beside the student alone, which costs more.
    """
    answers, (student, cost) = kept[EXITS[title]], one(kept[ALIKE[title]], 0)
    dearest = float(answers.flops[-1])
    budget = 1e6 * BUDGET if cost < dearest else dearest
    alike = replace(pair, student=student, student_cost=Cost(flops=cost))
    points = judged(alike, ours, splits, "budget", flops=max(budget, cost))
    mine, found = by_row(alike, points), {}
    for rule, make in RULES.items():
        theirs, spent = [], []
        for seed in range(splits):
            options, judged_on = tried(make, answers, pair.targets, seed)
            number, thresholds = exits.best_within(budget / 1e6, options)
            right, flops = judged_on[number].answered(thresholds)
            theirs.append(right)
            spent.append(float(flops.mean()) / 1e6)
        gains = [100 * float((one - other).mean()) for one, other in zip(mine, theirs, strict=True)]
        found[rule] = {
            "mflops": round(float(np.mean(spent)), 2),
            "joint_over_it_points": round(float(np.mean(gains)), 3),
            "interval": over(mine, theirs),
        }
    return {
        "student_accuracy": round(float((student.argmax(axis=1) == pair.targets).mean()), 4),
        "joint_mflops": mflops(points),
        **found,
    }


def halves_of(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both halves, those of the pair's splits."""
    rows = np.arange(n)
    return Outcomes(rows, rows, rows, task="regression").split_rows(0.5, seed)


def slimmable_pair(targets: np.ndarray, answers: Answers) -> Outcomes:
    """The narrow network as the student of the wide one, which starts from the image again."""
    (narrow, cheap), (wide, dear) = one(answers, 0), one(answers, 1)
    return Outcomes(
        narrow, wide, targets, student_cost=Cost(flops=cheap), teacher_cost=Cost(flops=dear)
    )


def in_time(pair: Outcomes, kept: Kept, splits: int) -> dict[str, Any]:
    """Eight-bit numbers pay in time, not in FLOPs: pairs by the milliseconds of `quantized`."""
    milliseconds = json.loads(QUANTIZED.read_text())["milliseconds_per_image"][BATCH]
    students = {"student": pair.student, "int8 student": one(kept["int8_student"], 0)[0]}
    teachers = {"teacher": pair.teacher, "int8 teacher": one(kept["int8_teacher"], 0)[0]}
    found: dict[str, Any] = {"milliseconds": milliseconds}
    for student, cheap in students.items():
        for teacher, dear in teachers.items():
            outcomes = replace(
                pair,
                student=cheap,
                teacher=dear,
                student_cost=Cost(seconds=milliseconds[student] / 1e3),
                teacher_cost=Cost(seconds=milliseconds[teacher] / 1e3),
            )
            found[f"{student} -> {teacher}"] = at_teacher(outcomes, ours, splits, "seconds")
    return found


JOINT, SLIM = "joint model (student -> teacher)", "slimmable network (narrow -> wide)"

PAINT = {
    JOINT: COLORS["chosen"],
    SLIM: COLORS["slimmable"],
    "early exits on the teacher": COLORS["early exits"],
    "multi-scale exits": COLORS["multi-scale exits"],
}
"""Colors of what can be turned, by title; what stands alone is black."""

LEAST = 70
"""Percent: what is less often right than that is left out of the picture."""

TICKS = (8, 10, 15, 20, 30, 40, 60, 100, 150, 200, 300)

STYLES = {"EBJR on top": ("-", 1.8), "its own rule, max softmax": (":", 1.4)}
"""Lines of a multi-exit network's rules: style and width."""

LABELS = {
    "student": ("student", (6, -10)),
    "teacher": ("teacher", (4, 8)),
    "single network": ("single network", (6, -12)),
    "student, image and mirrored": ("student +\nmirrored image", (6, -25)),
    "two students": ("two students,\naveraged", (6, -4)),
    "two students, image and mirrored": ("two students, two images", (-55, 17)),
}
"""What stands alone in the picture: its label, and where that is, in points."""


def draw(run: Run, found: dict[str, Any]) -> None:
    """Accuracy against MFLOPs on the held-out halves."""
    with run.picture(figsize=(8.6, 5.2)) as axes:
        axis = axes[0, 0]
        lines = {JOINT: found["joint"], SLIM: found["slimmable"]}
        for title, points in lines.items():
            cost = [point["mflops"] for point in points]
            axis.plot(cost, percent(points, "accuracy"), color=PAINT[title], label=title, lw=2)
        joint = found["joint"]
        axis.fill_between(
            [point["mflops"] for point in joint],
            percent(joint, "low"),
            percent(joint, "high"),
            color=COLORS["chosen"],
            alpha=0.12,
            lw=0,
            label="joint model: 95 % interval on one half",
        )
        for title in found["multi-exit"]:
            for rule, (style, width) in STYLES.items():
                points = found["multi-exit"][title][rule]["curve"]
                cost = [point["mflops"] for point in points]
                axis.plot(
                    *(cost, percent(points, "accuracy")),
                    color=PAINT[title],
                    linestyle=style,
                    lw=width,
                    label=f"{title}: {rule}",
                )
        for title, (text, place) in LABELS.items():
            point = found["single networks"][title]
            middle, low, high = (100 * value for value in point["held_out"])
            axis.errorbar(
                point["mflops"],
                100 * point["accuracy"],
                yerr=[[middle - low], [high - middle]],
                fmt="o",
                ms=5,
                lw=1,
                color=COLORS["single"],
            )
            axis.annotate(
                text,
                (point["mflops"], 100 * point["accuracy"]),
                xytext=place,
                textcoords="offset points",
                fontsize=8.5,
            )
        axis.set_xscale("log")
        left = axis.get_xlim()[0]
        axis.set_xticks(TICKS, [str(tick) for tick in TICKS])
        axis.minorticks_off()
        axis.set_ylim(max(axis.get_ylim()[0], LEAST), 95.2)
        axis.set_xlim(left, 400)
        axis.set_xlabel("MFLOPs an image")
        axis.set_ylabel("accuracy, %")
        axis.legend(fontsize=8, frameon=False, loc="lower right")


def percent(points: Sequence[dict[str, float]], key: str) -> list[float]:
    """A column of a curve, in percent."""
    return [100 * point[key] for point in points]


BESIDE = {
    "single network": "one network",
    "slimmable, answer 2": "the slimmable network, wide",
    "student, image and mirrored": "the student on image and mirrored image",
    "two students": "two students averaged",
    "two students, image and mirrored": "two students on both images",
}
"""What the table calls a network without a router."""

LOGS = Path(__file__).parent
STUDENT = "cifar10_pair/train_student.log"
BEGUN = "46 epochs as the pooled student, "

AHEAD = {
    "single network": (BEGUN, "single"),
    "slimmable, answer 2": (BEGUN + "7 as the single network, ", "slimmable"),
}
"""What a network had before its own training, which a log has; together more than the student."""


def trained(log: str) -> str:
    """For how long a network was trained: epochs, and hours on two shared cores."""
    lines = (LOGS / log).read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    hours = sum(epoch["seconds"] for epoch in epochs) / 3600
    return f"{epochs[-1]['epoch']} epochs ({hours:.1f} h)"


def budget(title: str) -> str:
    """The training budget of a rival beside the pair's student's: a row's first words."""
    ours = f"the pair's student {trained(STUDENT)}"
    if title in AHEAD:
        before, name = AHEAD[title]
        return f"trained for {before}then {trained(f'rivals/train_{name}.log')}, {ours}"
    if title in EXITS:
        return f"trained for {trained(f'rivals/train_{EXITS[title]}.log')}, {ours}"
    if title.startswith("two students"):
        return f"no more training than {ours}, the second student 46 epochs"
    return f"no training beside the pair's: {ours}"


def tell(run: Run, found: dict[str, Any]) -> None:
    """The lines of the table."""
    for title, words in BESIDE.items():
        entry = found["single networks"][title]
        run.compare(
            f"CIFAR-10, accuracy of the joint model over {words} of {entry['mflops']:.0f} MFLOPs",
            paper=None,
            ours=entry["joint_over_it_points"],
            unit="points",
            interval=entry["interval"],
            step="single",
            why=f"{budget(title)}; the joint model takes {entry['joint_mflops']:.0f} MFLOPs; "
            f"McNemar's p on one half {entry['mcnemar_p']:.2g}",
        )
    for title, entry in found["multi-exit"].items():
        top, own = (entry[rule]["as_good"] for rule in STYLES)
        run.compare(
            f"CIFAR-10, {title}: FLOPs of its own rule over those of EBJR on top",
            paper=None,
            ours=round(own["mflops"] / top["mflops"], 3),
            unit="x",
            interval=top["times_fewer_interval"],
            step=EXITS[title],
            why=f"{budget(title)}; at the last exit's accuracy; on the other half "
            f"{top['points']:+.2f} points, its own rule {own['points']:+.2f}; the paper draws EBJR "
            "on RS-Net above all others and gives no number",
        )
    for title, entry in found["trained alike"].items():
        own, name = entry["its own rule, max softmax"], ALIKE[title]
        shared = entry["joint_mflops"] < 1.1 * own["mflops"]  # else the exits are all cheaper
        best = found["multi-exit"][title]["its own rule, max softmax"]["curve"][-1]
        run.compare(
            f"CIFAR-10, accuracy of the joint model over {title}, {own['mflops']:.0f} MFLOPs, both "
            "trained for as many epochs",
            paper=None,
            ours=own["joint_over_it_points"] if shared else "no equal cost",
            unit="points" if shared else "",
            interval=own["interval"] if shared else None,
            step="alike",
            why=f"the pair's student trained again, for {trained(f'rivals/train_{name}.log')}, is "
            f"right on {100 * entry['student_accuracy']:.1f} %; the joint model takes "
            f"{entry['joint_mflops']:.0f} MFLOPs"
            + (
                f"; over EBJR on top of the exits {entry['EBJR on top']['joint_over_it_points']:+} "
                "points"
                if shared
                else f", the exits {own['mflops']:.0f}, right on {100 * best['accuracy']:.1f} %"
            ),
        )
    told = {title: found["routers"][title]["at the teacher's accuracy"] for title in ROUTERS}
    for title in ("adaptive feeding (linear SVM)", "learned deferral (boosted trees)"):
        run.compare(
            f"CIFAR-10, {title} on the shipped pair: times fewer FLOPs",
            paper=None,
            ours=told[title]["times_cheaper"],
            unit="x",
            points=told[title]["over_teacher_points"],
            interval=told[title].get("interval"),
            pair="cifar10",
            step="routers",
            why=f"{budget(title)}; ours {told[OURS]['times_cheaper']:.2f}x at "
            f"{told[OURS]['over_teacher_points']:+.2f} points; the paper has adaptive feeding at "
            "1.3x and its own at 1.8x on COCO",
        )
    agreed, own = (
        found["routers"][title][f"within {BUDGET} MFLOPs"]
        for title in ("agreement of two students: the vote", OURS)
    )
    run.compare(
        f"CIFAR-10, accuracy of ours over agreement of two students, {agreed['mflops']:.0f} MFLOPs",
        paper=None,
        ours=round(own["over_teacher_points"] - agreed["over_teacher_points"], 3),
        unit="points",
        interval=found["routers"]["ours over agreement"]["interval"],
        step="routers",
        why=f"{budget('two students')}; both students are paid on every input",
    )
    eight = found["in time"]["int8 student -> int8 teacher"]
    run.compare(
        "CIFAR-10, both in eight-bit numbers: times less time than the int8 teacher",
        paper=None,
        ours=eight["times_cheaper"],
        unit="x",
        points=eight["over_teacher_points"],
        interval=eight.get("interval"),
        step="in time",
        why="milliseconds of experiments/quantized, batches of 64",
    )


def main(run: Run) -> dict[str, Any]:
    """Measure, draw and tell."""
    splits, pair, kept = SPLITS, shipped_pair(), recorded()
    if run.quick:
        splits, rows = QUICK_SPLITS, slice(QUICK_IMAGES)
        pair = pair.take(np.arange(QUICK_IMAGES))
        kept = {name: Answers(each.logits[rows], each.flops) for name, each in kept.items()}
    targets = pair.targets
    found: dict[str, Any] = {
        "routers": run.step("routers", lambda: routers(pair, kept, splits)),
        "joint": run.step("joint", lambda: curve(pair, splits)),
        "in time": run.step("in time", lambda: in_time(pair, kept, splits)),
        "slimmable": run.step(
            "slimmable", lambda: curve(slimmable_pair(targets, kept["slimmable"]), splits)
        ),
        "single networks": run.step("single", lambda: equal_cost(pair, kept, splits)),
        "multi-exit": {
            title: run.step(name, lambda name=name: leave_early(kept[name], targets, splits))
            for title, name in exits_in(kept).items()
        },
        "trained alike": run.step(
            "alike",
            lambda: {
                title: trained_alike(pair, kept, title, splits)
                for title in exits_in(kept)
                if ALIKE[title] in kept
            },
        ),
    }
    draw(run, found)
    tell(run, found)
    run.caption = (
        "Accuracy against cost on CIFAR-10, means of the held-out halves. Black: networks without "
        "a router, with 95 % intervals of one half. What was trained, and for how long, is in "
        "[rivals](rivals/README.md)."
    )
    return found


if __name__ == "__main__":
    start(main, "Rivals, CIFAR-10")
