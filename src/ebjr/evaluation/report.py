"""The report: one HTML file that opens in a browser with no network."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from ebjr.costs import Cost
from ebjr.curve import OperatingPoint, TradeOffCurve
from ebjr.errors import MissingExtra
from ebjr.evaluation.plots import relative_cost, score_histogram, thin_rows, trade_off_figure
from ebjr.files import write_whole
from ebjr.outcomes import Outcomes


def write_report(
    path: str | os.PathLike[str],
    held_out: Outcomes,
    point: OperatingPoint,
    *,
    others: Sequence[OperatingPoint] = (),
    crossings: Mapping[str, float] | None = None,
    title: str = "EBJR",
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a report on examples that no threshold was chosen on.

    Parameters
    ----------
    path
        The HTML file, written whole or not at all.
    held_out
        Every figure in the report is measured on these.
    point
        The operating point that was chosen, on other examples.
    others
        The same goal with other scores.
    crossings
        By score: where the densities of right and wrong cross.
    title
        Of the page.
    notes
        How it was made: shown as they are, at the end.

    Raises
    ------
    MissingExtra
        plotly is not installed.
    OSError
        The file cannot be written.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtra("report", "writing a report") from error
    points = {_name(point, chosen=True): point} | {_name(other): other for other in others}
    chosen = next(iter(points))
    made = {"EBJR": version("ebjr"), "Written on": date.today().isoformat()}
    page = Template(_asset("report.html")).substitute(
        title=html.escape(title),
        verdict=html.escape(verdict(held_out, point)),
        css=_asset("report.css"),
        table=_table(held_out, points),
        notes="\n".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
            for key, value in {**(notes or {}), **made}.items()
        ),
        options="\n".join(f"<option>{html.escape(name)}</option>" for name in points),
        data=_script_json(report_data(held_out, points, chosen, crossings or {})),
        plotly=get_plotlyjs(),
        script=_asset("report.js"),
    )
    with write_whole(path) as file:
        file.write(page)


def verdict(held_out: Outcomes, point: OperatingPoint) -> str:
    """What came of it, in two sentences.

    Examples
    --------
    >>> table = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [0, 1])
    >>> verdict(table, TradeOffCurve.of(table, "energy").at(index=1)).partition(" (")[0]
    'On 2 held-out examples the joint model is right on 100.00 %'
    """
    here = _on(held_out, point).at(threshold=point.threshold)
    return (
        f"On {len(held_out):,} held-out examples the joint model is right on "
        f"{100 * here.quality:.2f} % (teacher {100 * here.teacher_quality:.2f} %, student "
        f"{100 * here.student_quality:.2f} %). {here.verdict}"
    )


def report_data(
    held_out: Outcomes,
    points: Mapping[str, OperatingPoint],
    chosen: str,
    crossings: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that the page's script needs: figures, and each score's rows.

    Every row is exact: accuracy, rate and cost at that threshold, on all the held-out examples.
    """
    series = {}
    for name, point in points.items():
        curve = _on(held_out, point)
        calibrated = int(np.searchsorted(curve.threshold, point.threshold, side="left"))
        rows = thin_rows(curve, keep=[calibrated])
        thresholds = curve.threshold[rows]
        start = int(np.searchsorted(rows, calibrated))
        thresholds[start] = point.threshold
        series[name] = {
            "threshold": [value if math.isfinite(value) else None for value in thresholds.tolist()],
            "rate": curve.deferral_rate[rows].tolist(),
            "quality": curve.quality[rows].tolist(),
            "cost": relative_cost(held_out, curve.deferral_rate[rows])[0].tolist(),
            "start": start,
            "histogram": score_histogram(held_out, point, crossings.get(point.score)),
        }
    return {
        "chosen": chosen,
        "series": series,
        "curve": trade_off_figure(held_out, points, chosen),
        "student": held_out.student_cost.as_dict(),
        "teacher": held_out.teacher_cost.as_dict(),
        "teacher_quality": float(held_out.teacher_quality.mean()),
    }


def _on(held_out: Outcomes, point: OperatingPoint) -> TradeOffCurve:
    return TradeOffCurve.of(held_out, point.score_function or point.score, point.blend)


def _name(point: OperatingPoint, chosen: bool = False) -> str:
    blend = f", blend {point.blend:g}" if point.blend else ""
    return f"{point.score}{blend}{' (chosen)' if chosen else ''}"


def _table(held_out: Outcomes, points: Mapping[str, OperatingPoint]) -> str:
    """The rows of the table: both models, the joint model, and every other score."""
    rows = []
    for role in ("student", "teacher"):
        quality = getattr(held_out, f"{role}_quality").mean()
        cost = getattr(held_out, f"{role}_cost")
        rows.append(_row(f"{role} alone", quality, None, cost, None, None))
    for name, point in points.items():
        here = _on(held_out, point).at(threshold=point.threshold)
        words = f"joint: {name}" + (", the paper's (eq. 3)" if name == "energy" else "")
        rows.append(
            _row(words, here.quality, here.deferral_rate, here.cost, here.saving, here.threshold)
        )
    return "\n".join(rows)


def _row(
    name: str,
    quality: float,
    rate: float | None,
    cost: Cost,
    saving: float | None,
    threshold: float | None,
) -> str:
    cells = [
        f"{100 * quality:.2f} %",
        "" if rate is None else f"{100 * rate:.1f} %",
        "" if cost.flops is None else f"{cost.flops / 1e6:,.1f}",
        "" if cost.seconds is None else f"{1e3 * cost.seconds:.3f}",
        "" if saving is None else f"{saving:.2f}",
        "" if threshold is None else f"{threshold:.4g}",
    ]
    mark = ' class="chosen"' if "(chosen)" in name else ""
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{mark}><th scope="row">{html.escape(name)}</th>{inner}</tr>'


def _asset(name: str) -> str:
    return (files("ebjr.evaluation") / name).read_text(encoding="utf-8")


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
