"""Tables: a study and other results, for a person on one screen and as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from ebjr.calibration.stages import StagedPoint
from ebjr.costs import Cost, flops_text, further_columns, millijoules_text, ms_text
from ebjr.curve import OperatingPoint
from ebjr.data.looks import LOOK_KEYS
from ebjr.data.preprocess import Preprocess
from ebjr.errors import counted
from ebjr.evaluation.profile import Profile, Setting
from ebjr.evaluation.ranking import Standing
from ebjr.evaluation.report import EQUATIONS, UNLABELED, gain_words, point_title, price_words
from ebjr.evaluation.tests import Comparison
from ebjr.metric import METRICS, Metric
from ebjr.outcomes import Outcomes
from ebjr.quantize import Quantized
from ebjr.recalibration import FEW, OVER, AuditedThreshold, Recalibration
from ebjr.scores import score_title
from ebjr.stats import Interval
from ebjr.study import Study
from ebjr.sweep import Sweep, known_text, saving_text
from ebjr.tasks.detection.precision import SHOWN


def study_figures(study: Study, compared: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Return a study's figures for JSON; tests in `compared` follow the study's own."""
    promise = study.point.certified
    best = f"best_{study.outcomes.metric}"
    return {
        "goal": study.goal.as_dict(),
        "goal_metric": study.goal_metric,
        "chosen_on": study.point.as_dict(),
        "held_out": study.result.as_dict(),
        best: study.best_accuracy.as_dict(),
        "intervals": {name: asdict(interval) for name, interval in study.intervals.items()},
        "comparisons": [test.as_dict() for test in (*study.comparisons, *compared)],
        "scores": {name: result.as_dict() for name, result in study.other_results.items()},
        "ranking": [_standing(entry) for entry in study.ranking],
        "headroom": None if study.headroom is None else study.headroom.as_dict(),
        "promise": None if promise is None else promise.as_dict(),
        "verdict": study.verdict.text,
        "standing": study.verdict.standing,
        **({} if study.staged is None else study.staged.stages_dict()),
    }


def _standing(entry: Standing) -> dict[str, Any]:
    """Return a score's figures, with the gain on each half under its own name."""
    elsewhere = asdict(entry.elsewhere)
    return {
        "score": elsewhere.pop("score"),
        "calibration_gain": asdict(entry.gain),
        "held_out_gain": elsewhere.pop("gain"),
        **{name: value for name, value in elsewhere.items() if not math.isnan(value)},
    }


def print_study(
    console: Console,
    study: Study,
    joint_seconds: float | None = None,
    compared: Sequence[Comparison] = (),
    details: bool = False,
) -> None:
    """Print the verdict, a row per model, and the promise; with `details` the tests and scores too.

    `joint_seconds`, the measured time of an example, replaces the sum of the models' times.
    """
    verdict, measure = study.verdict, study.outcomes.measure
    console.print(escape(f"{verdict.goal}\n{verdict.price}\n"), highlight=False)
    if not study.outcomes.labeled:
        _say(console, f"{UNLABELED.format(title=measure.title)}\n")
    costs = [*further_columns(study.result.cost, study.result.cost), "ms"]
    print_table(console, _models(study, joint_seconds, details), spare=costs)
    if study.staged is not None:
        _print_stages(console, study, study.staged, details)
    if (promised := study.point.certified) is not None:
        price = price_words(promised) if details else ""
        words = filter(None, (f"\nPromise: {promised.statement}", price, verdict.promise))
        console.print(escape("\n".join(words)), highlight=False)
    if details or compared:
        _say(console, f"\n{_intervals(study.intervals, measure)}\n")
        print_table(console, _tests([*study.comparisons, *compared]), spare=["p chi²"])
    if details:
        console.print()
        ranking = _ranking(study.ranking, score_title(study.point.score), measure)
        print_table(console, ranking, spare=["AURC"])
        if (found := study.headroom) is not None:
            _say(console, f"\n{found.text}")
        console.print(escape(f"\n{_margin_words(study)}"), highlight=False)
    chosen = f"\nChosen on {counted(len(study.calibration), 'other example')}"
    _say(
        console, chosen + ("." if details else "; --details shows every score, interval and test.")
    )


def _print_stages(console: Console, study: Study, found: StagedPoint, details: bool) -> None:
    """Print each stage and its share of the inputs; with `details` the chains that competed."""
    table = plain_table("stage", "asked", "MFLOPs", "ms", "where")
    for role, share, cost, where in study.stages:
        table.add_row(role, f"{share:.1%}", flops_text(cost), ms_text(cost), escape(where))
    console.print()
    print_table(console, table)
    if found.alone is not None:
        roles, measure = found.alone.roles, study.outcomes.measure
        _say(
            console,
            f"\nOn the calibration examples {roles[0]} alone is as good: "
            f"{measure.text(found.alone.quality)} at {found.percent(found.alone):.1f} % of the "
            f"teacher's {found.compared_in}.",
        )
    if details:
        unit = f"{found.compared_in}, of the teacher's"
        compared = plain_table("chain", study.outcomes.measure.title, unit, "")
        for one in found.candidates:
            figures = study.outcomes.measure.text(one.quality), f"{found.percent(one):.1f}%"
            compared.add_row(", ".join(one.roles), *figures, "level" if one.level else "")
        console.print()
        print_table(console, compared)


def _margin_words(study: Study) -> str:
    plain = study.plain_point
    if study.point.certified is not None:
        return "No margin: the guarantee takes its place."
    if plain is None and study.goal.limits_quality:
        return "The goal did not choose this threshold on these examples, so no margin is shown."
    if plain is None:
        return f"No margin: goal {study.goal.kind} limits no quality."
    return (
        f"Margin: {study.point.margin:g} standard errors, because a plain pick falls short on new "
        f"examples. {study.point.deferral_rate:.1%} of the calibration examples are deferred; "
        f"without a margin {plain.deferral_rate:.1%} would be."
    )


def print_sweep(console: Console, sweep: Sweep) -> None:
    """Print a sweep's candidates, a row each, and what each saves at other popular shares."""
    measure = sweep.study.outcomes.measure
    table = plain_table("student", "knows", measure.title, "deferred", "MFLOPs", "cheaper", "score")
    for name, study in sweep.studies.items():
        here = study.result
        table.add_row(
            escape(name),
            known_text(study.outcomes),
            measure.text(here.quality),
            f"{here.deferral_rate:.1%}",
            flops_text(here.cost),
            saving_text(here.saving_in(sweep.unit)),
            escape(point_title(here)),
            style="bold" if name == sweep.best else None,
        )
    print_table(console, table, spare=["MFLOPs"])
    for name, reason in sweep.failed.items():
        _say(console, f"{name} does not reach the goal: {reason}")
    shares = sorted({share for row in sweep.by_share.values() for share in row})
    if shares:
        popular = plain_table("times cheaper by popular share", *(f"{s:.0%}" for s in shares))
        for name, row in sweep.by_share.items():
            cells = [saving_text(row[s].saving_in(sweep.unit)) if s in row else "" for s in shares]
            popular.add_row(escape(name), *cells, style="bold" if name == sweep.best else None)
        console.print()
        print_table(console, popular)
    _say(console, f"\n{sweep.best} is best on the calibration half:\n")


def print_recalibration(console: Console, found: Recalibration, details: bool = False) -> None:
    """Print the status, today's threshold and the new one, their promises, and the slices."""
    today, measure = found.today, METRICS[found.today.metric]
    _say(console, f"{found.statement}\n")
    further = further_columns(today.cost, today.cost)
    table = plain_table(
        *("", measure.title, "deferred", "MFLOPs", "ms"), *further, "cheaper", "threshold"
    )
    table.add_row(*_joint_row(f"today, on {today.n:,}", today))
    if found.study is not None:
        held_out = found.study.result
        table.add_row(*_joint_row(f"chosen now, on {held_out.n:,} others", held_out), style="bold")
    print_table(console, table, spare=[*further, "ms"])
    before = found.config.certificate
    after = None if found.study is None else found.study.point.certified
    for word, promised in (("Promised", before), ("The new threshold's promise", after)):
        if promised is not None:
            _say(console, f"\n{word}: {promised.statement}")
    _print_slices(console, found, measure, details)


MOST_SLICES = 10
"""How many slices within the limit are shown without details."""


def _print_slices(console: Console, found: Recalibration, measure: Metric, details: bool) -> None:
    """Print slices over the limit, then those with the largest losses; with `details` all."""
    judged = [one for one in found.slices if one.loss is not None]
    judged.sort(key=lambda one: (one.standing != OVER, -one.loss.estimate if one.loss else 0.0))
    over = sum(one.standing == OVER for one in judged)
    shown = judged if details else judged[: over + MOST_SLICES]
    if shown:
        table = plain_table(
            *("slice", "examples", "deferred", measure.title, found.promise or ""),
            *(f"by {1 - found.alpha:.0%}, all", "then", f"limit {found.limit:.4g}"),
        )
        for one in shown:
            ends = "" if one.loss is None else f"{one.loss.low:.4g} to {one.loss.high:.4g}"
            table.add_row(
                escape(f"{one.column} {one.name}"),
                f"{one.n:,}",
                f"{one.deferral_rate:.1%}",
                measure.text(one.quality),
                "" if one.loss is None else f"{one.loss.estimate:.4g}",
                ends,
                "" if one.loss_after is None else f"{one.loss_after:.4g}",
                one.standing,
                style="bold" if one.standing == OVER else None,
            )
        console.print()
        print_table(console, table, spare=["deferred"])
    left = len(judged) - len(shown)
    few = sum(one.standing == FEW for one in found.slices)
    words = [
        f"{left} more slices are within the limit: --details shows them." if left else "",
        f"{few} slices have fewer than {found.least} examples: too few to judge." if few else "",
    ]
    if any(words):
        _say(console, "\n" + " ".join(filter(None, words)))


def print_audits(console: Console, found: AuditedThreshold) -> None:
    """Print what a server's audits show, and its last windows, a row each."""
    _say(console, f"{found.statement}")
    past = [] if found.windows is None else found.windows.past[-MOST_SLICES:]
    if past:
        table = plain_table("window until", "rows", "audited", "deferred", "risk", "bounds", "")
        for one in past:
            rate, bounds = f"{one.deferred / one.rows:.1%}", f"{one.lower:.4g} to {one.upper:.4g}"
            figures = f"{one.rows:,}", f"{one.audited:,}", rate, f"{one.risk:.4g}", bounds
            table.add_row(escape(one.ended), *figures, one.status)
        console.print()
        print_table(console, table)


def recorded_models(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return each model's role, name, quality and cost; a second look's name has its changes."""
    first: dict[str, Mapping[str, Any]] = {}
    found = []
    for role in outcomes.roles:
        about = outcomes.models.get(role, {})
        place, how = about.get("path") or about.get("url") or role, about.get("preprocess", {})
        usual = first.setdefault(place, how)
        look = {key: how[key] for key in how.keys() & LOOK_KEYS if how[key] != usual.get(key)}
        name = " ".join(filter(None, (Path(place).name, Preprocess.from_dict(look).as_text())))
        quality, cost = outcomes.quality(role), outcomes.cost_of(role).as_dict()
        found.append({"role": role, "name": name, "quality": quality, "cost": cost})
    return found


def print_recorded(console: Console, outcomes: Outcomes, path: Path) -> None:
    """Print each model's quality and cost per example, and the file that holds the outcomes."""
    measure, costs = outcomes.measure, [*map(outcomes.cost_of, outcomes.roles)]
    common = sum(costs[1:], costs[0])
    more = further_columns(common, common)
    table = plain_table("", "model", measure.title, "MFLOPs", "ms/example", *more)
    for one, cost in zip(recorded_models(outcomes), costs, strict=True):
        quality, further = measure.text(one["quality"]), further_columns(common, cost).values()
        figures = quality, flops_text(cost), ms_text(cost), *further
        table.add_row(one["role"], escape(one["name"]), *figures)
    console.print(table)
    console.print(f"{counted(len(outcomes), 'example')} in {path}", soft_wrap=True)


def empty_words(outcomes: Outcomes) -> Iterator[str]:
    """Say how many images have no labeled box, and on how many the student finds none."""
    if outcomes.kind.targets_are != "boxes":
        return
    counts = {
        "have no labeled box and count as empty": [len(real) for real in outcomes.targets],
        f"have no box from the student with a score above {SHOWN:g}; most scores defer them": [
            len(found.above(SHOWN)) for found in outcomes.student
        ],
    }
    for words, boxes in counts.items():
        if 0 in boxes:
            yield f"{boxes.count(0)} of {len(outcomes)} images {words}"


def print_profile(console: Console, found: Profile) -> None:
    """Print what a model costs, a row per known figure."""
    memory = found.peak_memory_bytes
    rows = {
        "FLOPs per example": None if found.flops is None else f"{found.flops:,.0f}",
        "parameters": None if found.parameters is None else f"{found.parameters:,}",
        "peak memory": None if memory is None else f"{memory / 2**20:,.1f} MiB",
    }
    for latency in found.latencies:
        p50, p95 = 1e3 * latency.p50_seconds, 1e3 * latency.p95_seconds
        rows[f"batch of {latency.batch_size}"] = f"p50 {p50:.3f} ms, p95 {p95:.3f} ms"
    for power in found.powers:
        words = f"{millijoules_text(power.joules)} mJ, {power.how}"
        rows[f"an example in a batch of {power.batch_size}"] = words
    _print_rows(console, found.name, rows)
    for power in found.powers[:1]:
        _say(console, f"\njoules are {power.how}: {power.source}")


def print_exported(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `export.Exported.as_dict` says of an exported file."""
    taken, data = found["input"], found["data"]
    beside = "" if data is None else f", with {Path(data).name} beside it"
    rows = {
        "size": f"{found['bytes'] / 1e6:,.1f} MB{beside}",
        "opset, IR version": f"{found['opset']}, {found['ir_version']}",
        "input": f"{taken['name']} {taken['dtype']} {taken['shape']}",
        "threshold": f"{found['threshold']:g} unless given, for {score_title(found['score'])}",
        "against the joint model": f"same decisions, output within {found['difference']:.1e}",
    }
    _print_rows(console, found["path"], rows)


def print_tuning(console: Console, settings: Sequence[Setting]) -> None:
    """Print a model's speed at each setting, fastest first, and the flags of the best two."""
    table = plain_table("threads", "overlap", "batch", "examples/s", "ms/batch")
    for each in settings:
        rate, time = f"{each.examples_per_second:,.0f}", f"{1e3 * each.batch_seconds:.3f}"
        table.add_row(str(each.threads), str(each.overlap), str(each.batch_size), rate, time)
    console.print(table)
    best, quick = settings[0], min(settings, key=lambda each: each.batch_seconds)
    _say(
        console,
        f"\nmost examples per second: --threads {best.threads} --overlap {best.overlap} "
        f"--batch-size {best.batch_size}\nquickest answer: --threads {quick.threads} --batch-size "
        f"{quick.batch_size}",
    )


def print_quantized(
    console: Console, found: Quantized, seconds: Mapping[str, Mapping[str, float]]
) -> None:
    """Print a model's size and speed before and after, and how much its answers changed."""
    table = plain_table("", "before", "after")
    sizes = (found.bytes_before, found.bytes_after)
    table.add_row("size", *(f"{size / 2**20:,.2f} MiB" for size in sizes))
    for name, both in seconds.items():
        times = (f"{1e3 * value:.3f} ms" for value in both.values())
        table.add_row(name.replace("_", " of "), *times)
    console.print(table)
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.operators.items())
    agreed = found.agreement
    alike = "" if agreed is None else f"{agreed:.2%} of the predictions are the same; "
    _say(
        console,
        f"\n{kinds} in eight bits, calibrated on {counted(found.examples, 'example')}: {alike}"
        f"outputs moved by {found.difference:.3f} standard deviations\n{found.path}",
    )


def _print_rows(console: Console, title: str, rows: Mapping[str, str | None]) -> None:
    table = plain_table(escape(title), "")
    for name, text in rows.items():
        if text is not None:
            table.add_row(name, escape(text))
    console.print(table)


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)


def _models(study: Study, joint_seconds: float | None, details: bool) -> Table:
    """Make the table of both models and the joint one; with `details` of every other score too."""
    result, measure = study.result, study.outcomes.measure
    further = further_columns(result.cost, result.cost)
    table = plain_table(
        *("", measure.title, "deferred", "MFLOPs", "ms"), *further, "cheaper", "threshold"
    )
    for role in ("student", "teacher"):
        cost, quality = (getattr(result, f"{role}_{what}") for what in ("cost", "quality"))
        more = further_columns(result.cost, cost).values()
        figures = (measure.text(quality), "", flops_text(cost), ms_text(cost))
        before = [name for name, *_ in study.stages[:-1]]
        name = " + ".join(before) if before and role == "student" else role
        table.add_row(name, *figures, *more, "", "")
    measured = ms_text(Cost(seconds=joint_seconds))
    table.add_row(*_joint_row(f"joint: {point_title(result)}", result, measured), style="bold")
    table.add_row(*_joint_row(f"  for the best {measure.title}", study.best_accuracy))
    for name, other in study.other_results.items() if details else ():
        paper = f" (paper, {EQUATIONS[name]})" if name in EQUATIONS else ""
        table.add_row(*_joint_row(f"  {name}{paper}", other))
    return table


def _joint_row(name: str, point: OperatingPoint, measured: str | None = None) -> list[str]:
    saving = "" if point.saving is None else f"{point.saving:.2f}x"
    return [
        escape(name),
        METRICS[point.metric].text(point.quality),
        f"{point.deferral_rate:.1%}",
        flops_text(point.cost),
        measured or ms_text(point.cost),
        *further_columns(point.cost, point.cost).values(),
        saving,
        f"{point.threshold:.4g}",
    ]


def _intervals(intervals: dict[str, Interval], measure: Metric) -> str:
    """Return the joint model's 95 % intervals in words."""
    _, *ends = intervals[measure.name]
    low, high = (measure.text(float(measure.figure(end))) for end in ends)
    figures = f"{measure.title} {low} to {high}"
    if (saving := intervals.get("saving")) is not None:
        figures += f", {saving.low:.2f} to {saving.high:.2f} times cheaper"
    lines = [f"95 % intervals: {figures}"]
    if (joules := intervals.get("joules_saved")) is not None:
        lines.append(f"{joules.low:.1%} to {joules.high:.1%} of the teacher's joules saved")
    scale, form, words = 100, "+.2f", "points over the {}"
    if not measure.percent:
        lower = "lower" if measure.lower else "higher"
        scale, form, words = 1, "+.4g", f"{measure.title} {lower} than the {{}}'s"
    gains = [
        f"{scale * gain.low:{form}} to {scale * gain.high:{form}} {words.format(role)}"
        for role in ("teacher", "student")
        for gain in [intervals[f"gain_over_{role}"]]
    ]
    return ";\n".join([*lines, f"{' and '.join(gains)}."])


def _tests(tests: Sequence[Comparison]) -> Table:
    table = plain_table("joint against", *tests[0].cells, "verdict")
    for test in tests:
        verdict = {None: "could be chance", test.names[0]: "better"}.get(test.better, "worse")
        table.add_row(escape(test.names[1]), *test.cells.values(), verdict)
    return table


def _ranking(ranking: Sequence[Standing], chosen: str, measure: Metric) -> Table:
    """Make the table of scores, best first; AUROC and its like are of the student's own answers."""
    more = ("AUROC", "AURC", "AUGRC") if measure.binary else ()
    table = plain_table(
        "score, no blend", f"gain, {measure.gain_unit} (95 %)", *more, "of oracle's gain"
    )
    for entry in ranking:
        row = entry.elsewhere
        table.add_row(
            escape(entry.score),
            gain_words(entry, measure),
            *([f"{x:.4f}" for x in (row.auroc, row.aurc, row.augrc)] if measure.binary else []),
            "" if math.isnan(row.oracle_share) else f"{row.oracle_share:.1%}",
            style="bold" if entry.score == chosen else None,
        )
    return table


NAMES = 20
"""Characters that names keep in a narrow terminal before columns are left out."""


def plain_table(*columns: str) -> Table:
    """Make a table without lines, whose first column, the names, is aligned to the left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if number else "left",
            vertical="bottom",
            no_wrap=number > 0,
            overflow="fold",
        )
    return table


def print_table(console: Console, table: Table, spare: Sequence[str] = ()) -> None:
    """Print a plain table without cutting a figure, however narrow the terminal is.

    In a narrow terminal titles wrap, then the columns in `spare` are left out in order and named
    below the table; names wrap last.
    """
    left_out: list[str] = []
    if _least_width(table) > console.width:
        titles = [column.header for column in table.columns]
        full, waiting = table, [title for title in spare if title in titles]
        table = _narrowed(full, left_out)
        while waiting and _least_width(table) > console.width:
            left_out.append(waiting.pop(0))
            table = _narrowed(full, left_out)
    console.print(table)
    if left_out:
        _say(console, f"left out, for a wider terminal: {'; '.join(left_out)}")


def _widths(column: Column) -> list[int]:
    title = max(map(len, str(column.header).split("\n")))
    return [title, *(Text.from_markup(str(cell)).cell_len for cell in column.cells)]


def _least_width(table: Table) -> int:
    """Return the width at which no figure is cut; two spaces separate columns."""
    names, *figures = (max(_widths(column)) for column in table.columns)
    return min(names, NAMES) + sum(width + 2 for width in figures)


def _narrowed(table: Table, left_out: Collection[str]) -> Table:
    """Return the table without some columns, and with titles wrapped to the figures' width."""
    names, *figures = [column for column in table.columns if column.header not in left_out]
    titles = []
    for column in figures:
        title = str(column.header)
        titles.append(fill(title, max(*map(len, title.split()), *_widths(column)[1:], 1)))
    found = plain_table(str(names.header), *titles)
    cells = zip(*(column.cells for column in (names, *figures)), strict=True)
    for row, texts in zip(table.rows, cells, strict=True):
        found.add_row(*texts, style=row.style)
    return found
