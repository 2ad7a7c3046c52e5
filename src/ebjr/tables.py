"""Tables: what a study found, for a person on one screen and for a machine as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ebjr.costs import Cost
from ebjr.curve import OperatingPoint
from ebjr.evaluation.report import UNLABELED, promise_words
from ebjr.evaluation.significance import Interval, McNemar, Standing
from ebjr.scores import score_title
from ebjr.study import Study


def study_figures(study: Study, compared: Sequence[McNemar] = ()) -> dict[str, Any]:
    """Everything a study found, for JSON.

    Parameters
    ----------
    study
        The study.
    compared
        Tests against other models, listed after those against student and teacher.
    """
    promise = study.point.certified
    return {
        "goal": dict(study.goal),
        "chosen_on": study.point.as_dict(),
        "held_out": study.result.as_dict(),
        "best_accuracy": study.best_accuracy.as_dict(),
        "intervals": {name: asdict(interval) for name, interval in study.intervals.items()},
        "comparisons": [test.as_dict() for test in (*study.comparisons, *compared)],
        "scores": {name: result.as_dict() for name, result in study.other_results.items()},
        "ranking": [_standing(entry) for entry in study.ranking],
        "promise": None if promise is None else promise.as_dict(),
        "verdict": study.result.verdict,
    }


def _standing(entry: Standing) -> dict[str, Any]:
    """The gain on either half under a name that says which."""
    elsewhere = asdict(entry.elsewhere)
    return {
        "score": elsewhere.pop("score"),
        "calibration_gain": asdict(entry.gain),
        "held_out_gain": elsewhere.pop("gain"),
        **elsewhere,
    }


def print_study(
    console: Console,
    study: Study,
    joint_seconds: float | None = None,
    compared: Sequence[McNemar] = (),
) -> None:
    """One screen: the models, the joint model and its intervals, the promise, and the scores.

    Parameters
    ----------
    console
        Where to print.
    study
        The study.
    joint_seconds
        Measured per example, instead of the sum of both models' times.
    compared
        Tests against other models.
    """
    goal = ", ".join(f"{key} {value}" for key, value in study.goal.items())
    _say(
        console,
        f"{len(study.calibration):,} examples to choose the threshold ({goal}), "
        f"{len(study.held_out):,} others to report on\n",
    )
    if not study.outcomes.labeled:
        _say(console, f"{UNLABELED}\n")
    console.print(_models(study, joint_seconds))
    _say(console, f"\n{study.result.verdict}")
    _say(console, _intervals(study.intervals))
    if study.point.certified is not None:
        statement, words = promise_words(study.point.certified)
        _say(console, f"\nPromise: {statement}\n{words}")
    console.print()
    console.print(_tests([*study.comparisons, *compared]))
    console.print()
    console.print(_ranking(study.ranking, score_title(study.point.score)))


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _models(study: Study, joint_seconds: float | None) -> Table:
    """Both models, the joint model, and every other score at the same goal."""
    result = study.result
    kind = result.cost.joules_are
    joules = [f"mJ, {kind}"] if kind else []
    table = plain_table(
        *("", "accuracy", "deferred", "MFLOPs", "ms"), *joules, "cheaper", "threshold"
    )
    for role in ("student", "teacher"):
        cost = getattr(result, f"{role}_cost")
        quality = getattr(result, f"{role}_quality")
        table.add_row(
            *(role, f"{quality:.2%}", "", flops_text(cost), ms_text(cost)),
            *([millijoules_text(cost.joules)] if kind else []),
            *("", ""),
        )
    chosen = f"joint: {score_title(result.score)}" + (
        f", blend {result.blend:g}" if result.blend else ""
    )
    measured = None if joint_seconds is None else f"{1e3 * joint_seconds:.3f}"
    table.add_row(*_joint_row(chosen, result, measured), style="bold")
    table.add_row(*_joint_row("  for the best accuracy", study.best_accuracy))
    for name, other in study.other_results.items():
        paper = " (paper, eq. 3)" if name == "energy" else ""
        table.add_row(*_joint_row(f"  {name}{paper}", other))
    return table


def _joint_row(name: str, point: OperatingPoint, measured: str | None = None) -> list[str]:
    saving = "" if point.saving is None else f"{point.saving:.2f}x"
    return [
        escape(name),
        f"{point.quality:.2%}",
        f"{point.deferral_rate:.1%}",
        flops_text(point.cost),
        measured or ms_text(point.cost),
        *([millijoules_text(point.cost.joules)] if point.cost.joules_are else []),
        saving,
        f"{point.threshold:.4g}",
    ]


def _intervals(intervals: dict[str, Interval]) -> str:
    """The joint model's figures with what they may be by chance."""
    accuracy, saving = intervals["accuracy"], intervals.get("saving")
    parts = [f"accuracy {accuracy.low:.2%} to {accuracy.high:.2%}"]
    if saving is not None:
        parts.append(f"{saving.low:.2f} to {saving.high:.2f} times cheaper")
    gains = [
        f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f} points over the {role}"
        for role in ("teacher", "student")
        for gain in [intervals[f"gain_over_{role}"]]
    ]
    return f"95 % intervals: {', '.join(parts)};\n{' and '.join(gains)}."


def _tests(tests: Sequence[McNemar]) -> Table:
    """McNemar's tests of the joint model, a row each."""
    table = plain_table(
        *("joint against", "only joint", "only other", "odds ratio (95 %)", "p exact", "p chi²"),
        "verdict",
    )
    table.columns[0].no_wrap = False  # file names are long
    table.columns[0].overflow = "fold"
    for test in tests:
        verdict = "could be chance"
        if test.better is not None:
            verdict = "better" if test.better == test.names[0] else "worse"
        table.add_row(
            escape(test.names[1]),
            f"{test.first_only:,}",
            f"{test.second_only:,}",
            f"{test.odds.estimate:.2f} ({test.odds.low:.2f} to {test.odds.high:.2f})",
            f"{test.p_exact:.2g}",
            f"{test.p_chi_square:.2g}",
            verdict,
        )
    return table


def _ranking(ranking: Sequence[Standing], chosen: str) -> Table:
    """Every score, the best first; AUROC and the like are of the student's own answers."""
    table = plain_table(
        "score, no blend", "gain, points (95 %)", "AUROC", "AURC", "AUGRC", "of oracle's gain"
    )
    for entry in ranking:
        row, gain = entry.elsewhere, entry.gain
        table.add_row(
            escape(entry.score),
            f"{100 * gain.estimate:.2f} ({100 * gain.low:.2f} to {100 * gain.high:.2f})",
            f"{row.auroc:.4f}",
            f"{row.aurc:.4f}",
            f"{row.augrc:.4f}",
            "" if math.isnan(row.oracle_share) else f"{row.oracle_share:.1%}",
            style="bold" if entry.score == chosen else None,
        )
    return table


def plain_table(*columns: str) -> Table:
    """A table without lines, the first column to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def flops_text(cost: Cost) -> str:
    """MFLOPs per example; nothing where they are not known."""
    return "" if cost.flops is None else f"{cost.flops / 1e6:,.1f}"


def ms_text(cost: Cost) -> str:
    """Milliseconds per example; nothing where they are not known."""
    return "" if cost.seconds is None else f"{1e3 * cost.seconds:.3f}"


def millijoules_text(joules: float | None) -> str:
    """Joules in millijoules; nothing where they are not known."""
    return "" if joules is None else f"{1e3 * joules:,.4g}"
