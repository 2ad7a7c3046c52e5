"""The report: one HTML file that needs no network."""

from __future__ import annotations

import html
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from string import Template
from typing import Any

import numpy as np

from ebjr.costs import (
    Cost,
    alone_cost,
    common_unit,
    flops_text,
    further_columns,
    joint_cost,
    ms_text,
)
from ebjr.curve import OperatingPoint
from ebjr.evaluation import evaluate, plots
from ebjr.evaluation.attainable import Headroom
from ebjr.evaluation.bootstrap import resamples
from ebjr.evaluation.groups import OTHERS, Group, by_rows, group_gains
from ebjr.evaluation.ranking import Standing
from ebjr.evaluation.tests import Comparison
from ebjr.files import packaged_text, write_whole
from ebjr.metric import Metric
from ebjr.outcomes import Outcomes
from ebjr.scores import score_title
from ebjr.stats import Interval
from ebjr.task import Task

UNLABELED = (
    "These examples have no labels: the teacher's own answers are taken for right, and every "
    "{title} is agreement with it."
)

_asset = partial(packaged_text, "ebjr.evaluation")


def page_words(measure: Metric, kind: Task) -> dict[str, str]:
    """Return the page's texts for a metric and a task."""
    known = tomllib.loads(_asset("words.toml"))
    applies = {"any": True, "binary": measure.binary, "boxes": kind.takes_images}
    applies["whole"] = measure.rows is None
    shown = kind.metrics[-1] if measure.rows is None else measure
    names = {"metric": measure.title, "Metric": measure.title.capitalize(), "shown": shown.title}
    names |= {"rows": measure.rows_title or measure.title, "drawn": f"{resamples(measure):,}"}
    names["better"] = "less" if measure.lower else "more"
    words = {key: text for part, on in applies.items() if on for key, text in known[part].items()}
    return {"metric": measure.title} | {k: text.format(**names) for k, text in words.items()}


@dataclass(frozen=True)
class Extra:
    """A section of a report: a figure like those of `plots`, its table, and a caption.

    `name`, one word, is the plot's id in the page. The table has columns `head` and a row of cells
    by name, with the row `marked` highlighted.
    """

    name: str
    title: str
    figure: Mapping[str, Any]
    head: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    marked: str | None
    caption: str

    @property
    def html(self) -> str:
        """The section; the page's script draws its plot."""
        title = html.escape(self.title)
        words = f"{title}. The same figures are in the table below."
        plot = f'<div id="{self.name}" class="plot" role="img" aria-label="{words}"></div>'
        plot += f'\n<div class="legend" id="{self.name}-legend"></div>'
        rows = [_cells(name, cells, name == self.marked) for name, cells in self.rows.items()]
        shown = f"{plot}{_html_table(self.head, rows)}"
        return _section(f"{self.name}-extra", title, shown, html.escape(self.caption))


MOST_GROUPS = 5
"""How many classes are shown with the largest gains over a model, and how many with losses."""


def groups_extra(held_out: Outcomes, point: OperatingPoint) -> list[Extra]:
    """Make the section on classes that gain and lose by deferral; [] if there is only one."""
    groups, measure = group_gains(held_out, point), by_rows(held_out, point).measure
    if len(groups) < 2:
        return []
    one, several = tomllib.loads(_asset("words.toml"))["groups"][held_out.kind.targets_are]
    counts = " and ".join(
        f"{sum(group.sure[role] < 0 for group in groups):,} lose and "
        f"{sum(group.sure[role] > 0 for group in groups):,} gain against the {role}"
        for role in OTHERS
    )
    caption = (
        f"Of {len(groups):,} {several}, {counts} by more than chance explains, with all of them "
        "tested together. Each interval is of its row alone. If rows are left out, the largest "
        "gains and losses are shown, which are partly luck."
    )
    gains = [f"{measure.gain_unit} over the {role} (95 %)" for role in OTHERS]
    head = (one, "examples", "deferred", "joint", "student", "teacher", *gains)
    shown = _telling(groups)
    rows = {group.name: _group_cells(group, measure) for group in shown}
    title = f"Which {several} gain and lose by deferral"
    return [Extra("groups", title, plots.groups_figure(shown, measure), head, rows, None, caption)]


def _telling(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that gain and lose most answers against either model, worst first."""
    chosen = set(range(len(groups))) if len(groups) <= 4 * MOST_GROUPS else set[int]()
    for role in OTHERS if not chosen else ():
        answers = np.array([group.n * group.over[role].estimate for group in groups])
        order = np.argsort(answers, kind="stable").tolist()
        chosen |= {k for k in order[:MOST_GROUPS] if answers[k] < 0}
        chosen |= {k for k in order[-MOST_GROUPS:] if answers[k] > 0}
    return sorted((groups[k] for k in chosen), key=lambda group: group.over["teacher"].estimate)


def _group_cells(group: Group, measure: Metric) -> list[str]:
    figures = [measure.words(measure.quality(mean)) for mean in group.means[1:]]
    gains = [gain_words(group.over[role], measure) for role in OTHERS]
    return [f"{group.n:,}", f"{100 * group.means[0]:.1f} %", *figures, *gains]


def write_report(
    path: str | os.PathLike[str],
    held_out: Outcomes,
    point: OperatingPoint,
    *,
    others: Sequence[OperatingPoint] = (),
    crossings: Mapping[str, float] | None = None,
    best: OperatingPoint | None = None,
    intervals: Mapping[str, Interval] | None = None,
    comparisons: Sequence[Comparison] = (),
    ranking: Sequence[Standing] = (),
    found: Headroom | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    verdict: str = "",
    title: str = "EBJR",
    notes: Mapping[str, str] | None = None,
    extras: Sequence[Extra] = (),
) -> None:
    """Write a report on held-out examples, whole or not at all.

    - `held_out`: The examples behind every figure in the report.
    - `point`: The operating point, chosen on other examples, with its certificate.
    - `others`, `best`: The same goal with other scores, and the point of the best accuracy.
    - `crossings`: By score: where the densities of right and wrong cross.
    - `intervals`: By figure: what `bootstrap` found at `point`.
    - `comparisons`: Tests of the joint model against other models.
    - `ranking`: The scores, best first.
    - `found`: The score's share of the oracle's gain, and the attainable curve.
    - `samples`: Examples to show, see `make_samples`.
    - `verdict`: The first line.
    - `notes`: How the report was made, shown verbatim at the end.
    - `extras`: More sections.
    """
    points, chosen, measure = *_named(point, others), held_out.measure
    words = page_words(measure, held_out.kind)
    ranked = _ranking(ranking, score_title(point.score), measure, words["ranking_words"])
    extras = [*groups_extra(held_out, point), *extras, *ranked]
    made = {**(notes or {}), "EBJR": version("ebjr"), "Written on": date.today().isoformat()}
    unlabeled = "" if held_out.labeled else UNLABELED.format(title=measure.title)
    body = Template(_asset("report.html")).substitute(
        title=html.escape(title),
        verdict=html.escape(f"{verdict} {unlabeled}".strip()),
        promise=_promise(point.certified, words["promise_words"]),
        live=_live(points, held_out, found),
        table=_table(held_out, points, best),
        further="".join(f'<th scope="col">{title}</th>' for title in _further(held_out, Cost())),
        **words,
        chance=_chance(intervals or {}, comparisons, measure, words["chance_words"]),
        extras="\n".join(extra.html for extra in extras),
        notes="\n".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
            for key, value in made.items()
        ),
    )
    data = report_data(held_out, points, chosen, crossings or {}, found)
    data["samples"] = samples
    _write_page(path, title, body, data | {"extras": {each.name: each.figure for each in extras}})


def write_live_curve(
    path: str | os.PathLike[str],
    held_out: Outcomes,
    point: OperatingPoint,
    *,
    others: Sequence[OperatingPoint] = (),
    found: Headroom | None = None,
    title: str = "EBJR",
) -> None:
    """Write a report's knob and trade-off curve alone, for an iframe.

    The page posts its height to its parent as ``{"height": pixels}``. Arguments and errors are
    those of `write_report`.
    """
    points, chosen = _named(point, others)
    data = report_data(held_out, points, chosen, {}, found) | {"extras": {}}
    _write_page(path, title, _live(points, held_out, found), data, _asset("frame.css"))


def _named(
    point: OperatingPoint, others: Sequence[OperatingPoint]
) -> tuple[dict[str, OperatingPoint], str]:
    chosen = f"{point_title(point)} (chosen)"
    return {chosen: point} | {point_title(other): other for other in others}, chosen


def _live(points: Mapping[str, OperatingPoint], held_out: Outcomes, found: Headroom | None) -> str:
    options = "\n".join(f"<option>{html.escape(name)}</option>" for name in points)
    words = page_words(held_out.measure, held_out.kind)
    return Template(_asset("live.html")).substitute(
        options=options, attainable=html.escape(found.text if found else ""), **words
    )


def _write_page(
    path: str | os.PathLike[str], title: str, body: str, data: Mapping[str, Any], css: str = ""
) -> None:
    """Write one file that holds its styles, data and scripts."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII
    page = Template(_asset("page.html")).substitute(
        title=html.escape(title),
        css=_asset("report.css") + css,
        body=body,
        data=text.replace("<", "\\u003c"),  # `</script>` would end the element
        script="\n".join(map(_asset, ("svg.js", "plot.js", "report.js"))),
    )
    with write_whole(path) as file:
        file.write(page)


def price_words(certificate: Any) -> str:
    """Return the bound and the price of a certificate, in two sentences."""
    return (
        f"On the {certificate.n:,} calibration examples {certificate.observed:.4g} was observed, "
        f"and this threshold alone would have passed a tolerance of {certificate.bound:.4g}. "
        f"The price of the guarantee: {certificate.deferral_rate:.1%} of them are deferred instead "
        f"of the {certificate.naive_deferral_rate:.1%} of a pick without one "
        f"({100 * certificate.price:+.1f} points)."
    )


def report_data(
    held_out: Outcomes,
    points: Mapping[str, OperatingPoint],
    chosen: str,
    crossings: Mapping[str, float],
    found: Headroom | None = None,
) -> dict[str, Any]:
    """Return the data of the page's script: figures, and each score's rows on `held_out`."""
    measure = held_out.measure
    return {
        "chosen": chosen,
        "series": {
            name: _series(held_out, each, crossings.get(each.score))
            for name, each in points.items()
        },
        "curve": plots.trade_off_figure(
            held_out, points, chosen, None if found is None else found.curve
        ),
        "accent": plots.PALETTE["chosen"],
        "unit": common_unit(held_out.student_cost, held_out.teacher_cost),
        "student": held_out.student_cost.as_dict(),
        "teacher": held_out.teacher_cost.as_dict(),
        "alone": alone_cost(held_out.student_cost, held_out.teacher_cost).as_dict(),
        "teacher_quality": held_out.quality("teacher"),
        "metric": {
            "title": measure.title,
            "percent": measure.percent,
            "sign": -1 if measure.lower else 1,
        },
    }


def _series(held_out: Outcomes, point: OperatingPoint, crossing: float | None) -> dict[str, Any]:
    """Return the rows of one score's curve, with the calibrated threshold, and its figures."""
    curve = point.curve(held_out)
    calibrated = int(np.searchsorted(curve.threshold, point.threshold, side="left"))
    rows = plots.thin_rows(curve, keep=[calibrated])
    start = int(np.searchsorted(rows, calibrated))
    thresholds, rates = curve.threshold[rows], curve.deferral_rate[rows]
    thresholds[start] = point.threshold
    cost, _ = plots.relative_cost(held_out.student_cost, held_out.teacher_cost, rates)
    if held_out.kind.targets_are == "numbers":
        histogram = plots.residual_figure(held_out, point)
    else:
        histogram = plots.score_histogram(held_out, point, crossing)
    return {
        "threshold": [value if math.isfinite(value) else None for value in thresholds.tolist()],
        "rate": rates.tolist(),
        "quality": curve.quality[rows].tolist(),
        "cost": cost.tolist(),
        "start": start,
        "histogram": histogram,
        "reliability": plots.reliability_figure(held_out, point),
    }


def point_title(point: OperatingPoint) -> str:
    """Return the point's score, and its blend if there is one."""
    return score_title(point.score) + (f", blend {point.blend:g}" if point.blend else "")


def _table(
    held_out: Outcomes, points: Mapping[str, OperatingPoint], best: OperatingPoint | None
) -> str:
    """Return the table's rows: both models, the joint model, and every other score."""
    costs = held_out.student_cost, alone_cost(held_out.student_cost, held_out.teacher_cost)
    alone = [
        _row(f"{role} alone", held_out, cost, held_out.quality(role))
        for role, cost in zip(("student", "teacher"), costs, strict=True)
    ]
    joint = []
    for name, point in points.items():
        paper = f", the paper's ({EQUATIONS[name]})" if name in EQUATIONS else ""
        joint.append(_joint_row(f"joint: {name}{paper}", held_out, point))
    if best is not None:
        words = f"joint: {point_title(best)}, for the best {held_out.measure.title}"
        joint.insert(1, _joint_row(words, held_out, best))
    return "\n".join(alone + joint)


def _further(held_out: Outcomes, cost: Cost) -> dict[str, str]:
    """Return the columns beside FLOPs and time that are known of both models."""
    return further_columns(joint_cost(held_out.student_cost, held_out.teacher_cost, 0.0), cost)


EQUATIONS = {"energy": "eq. 3", "specialized_energy": "eq. 17"}
"""Where the paper defines a score."""


def _joint_row(words: str, held_out: Outcomes, point: OperatingPoint) -> str:
    here = evaluate(held_out, point)
    saving = "" if here.saving is None else f"{here.saving:.2f}"
    rate, threshold = f"{100 * here.deferral_rate:.1f} %", f"{here.threshold:.4g}"
    return _row(words, held_out, here.cost, here.quality, (rate, saving, threshold))


def _row(
    name: str, held_out: Outcomes, cost: Cost, quality: float, joint: Sequence[str] = ("", "", "")
) -> str:
    rate, *rest = joint
    figures = [held_out.measure.words(quality), rate, flops_text(cost), ms_text(cost)]
    cells = [*figures, *_further(held_out, cost).values(), *rest]
    return _cells(name, cells, marked="(chosen)" in name)


def _promise(certificate: Any, rests: str) -> str:
    """Return the section on the promise: its bound, price and assumptions; empty without one."""
    if certificate is None:
        return ""
    paragraphs = f'<p class="stated">{html.escape(certificate.statement)}</p>' + "".join(
        f"<p>{html.escape(text)}</p>" for text in (price_words(certificate), rests)
    )
    return _section("promise", "What is promised", paragraphs)


def _figures(measure: Metric) -> dict[str, tuple[str, str, float]]:
    if measure.percent:
        own, gain, scale = "{:.2f} %", "{:+.2f}", 100.0
        over = "points over the {}"
    else:
        own, gain, scale = "{:.4g}", "{:+.3g}", 1.0
        over = f"{measure.title} {'below' if measure.lower else 'above'} the {{}}'s"
    return {
        measure.name: (measure.title, own, scale),
        "deferral_rate": ("deferred", "{:.1f} %", 100),
        "gain_over_teacher": (over.format("teacher"), gain, scale),
        "gain_over_student": (over.format("student"), gain, scale),
        "saving": ("times cheaper", "{:.2f}", 1),
        "joules_saved": ("of the teacher's joules saved", "{:.1f} %", 100),
    }


def _chance(
    intervals: Mapping[str, Interval],
    comparisons: Sequence[Comparison],
    measure: Metric,
    caption: str,
) -> str:
    """Return the section with the joint model's intervals and the tests' verdicts."""
    if not intervals and not comparisons:
        return ""
    rows = []
    for name, (words, form, scale) in _figures(measure).items():
        if name in intervals:
            here, low, high = (form.format(scale * x) for x in intervals[name])
            rows.append(_cells(words, [here, f"{low.removesuffix(' %')} to {high}"]))
    table = _html_table(("the joint model", "here", "95 % interval"), rows) if rows else ""
    verdicts = "".join(
        f"<li>{html.escape(test.verdict)} {html.escape(test.details)}</li>" for test in comparisons
    )
    tests = f'<ul class="verdicts">{verdicts}</ul>' if verdicts else ""
    inner = f'<div class="columns">{table}{tests}</div>'
    return _section("chance", "Is it more than chance?", inner, caption)


def gain_words(entry: Standing | Interval, measure: Metric) -> str:
    """Return a gain in the metric's unit, with its interval."""
    interval = entry.gain if isinstance(entry, Standing) else entry
    gain, low, high = (measure.gain_text(value) for value in interval)
    return f"{gain} ({low} to {high})"


def _ranking(
    ranking: Sequence[Standing], chosen: str, measure: Metric, caption: str
) -> list[Extra]:
    """Return the section on the scores by gain; [] without a ranking."""
    rows = {}
    for entry in ranking:
        row = entry.elsewhere
        share = "" if math.isnan(row.oracle_share) else f"{100 * row.oracle_share:.1f} %"
        figures = [f"{x:.4f}" for x in (row.auroc, row.aurc, row.augrc)] if measure.binary else []
        rows[entry.score] = [gain_words(entry, measure), share, *figures]
    more = ("AUROC", "AURC", "AUGRC") if measure.binary else ()
    head = ("score", f"gain, {measure.gain_unit} (95 %)", "of the oracle's", *more)
    figure = plots.ranking_figure(ranking, chosen, measure)
    title = "Which score defers best"
    return [Extra("ranking", title, figure, head, rows, chosen, caption)] if rows else []


def _section(name: str, title: str, inner: str, caption: str = "") -> str:
    below = f'<p class="caption">{caption}</p>' if caption else ""
    return (
        f'<section aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
        f"{inner}{below}\n</section>"
    )


def _html_table(head: Sequence[str], rows: Sequence[str]) -> str:
    columns = "".join(f'<th scope="col">{html.escape(words)}</th>' for words in head)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(head[0])}">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cells(name: str, cells: Sequence[str], marked: bool = False) -> str:
    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    mark = ' class="chosen"' if marked else ""
    return f'<tr{mark}><th scope="row">{html.escape(name)}</th>{inner}</tr>'
