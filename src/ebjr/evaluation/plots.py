"""Plots as plain dictionaries of `data` and `layout`, in the small part of plotly's format needed.

The report draws them with its own `plot.js`; plotly can draw them too.
"""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ebjr.costs import Cost, alone_cost, break_even_rate
from ebjr.curve import OperatingPoint, TradeOffCurve, oracle, score_values
from ebjr.evaluation.groups import Group, by_rows
from ebjr.evaluation.ranking import Standing, reliability
from ebjr.files import packaged_text
from ebjr.metric import Metric
from ebjr.outcomes import Outcomes
from ebjr.router import is_deferred
from ebjr.scores import raw_output_of, score_title
from ebjr.stats import Interval
from ebjr.tasks.classification import ACCURACY

PALETTE: Mapping[str, str] = tomllib.loads(packaged_text("ebjr.evaluation", "palette.toml"))
"""One color per thing in every plot, distinct for color-blind readers (Okabe & Ito, 2008)."""

MOST_ROWS = 400
BINS = 60
MOST_DOTS = 2000


def thin_rows(curve: TradeOffCurve, keep: Sequence[int] = (), most: int = MOST_ROWS) -> np.ndarray:
    """Return rows that draw like the whole curve: `most` evenly in rate, both ends, and `keep`."""
    if len(curve) <= most:
        return np.arange(len(curve))
    rates = np.linspace(curve.deferral_rate[0], 1.0, most)
    even = np.searchsorted(curve.deferral_rate, rates).clip(0, len(curve) - 1)
    return np.unique(np.concatenate([even, [0, len(curve) - 1], np.asarray(keep, int)]))


_UNIT_WORDS = {
    "flops": "FLOPs",
    "dollars": "price",
    "seconds": "time",
    "joules": "energy use",
    "bytes": "bytes moved",
}


def relative_cost(
    student: Cost, teacher: Cost, deferral_rate: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return cost in percent of the teacher's, or the rate if unknown, and the axis title."""
    for unit, words in _UNIT_WORDS.items():
        if break_even_rate(student, teacher, unit) is not None:
            kind = student.joules_are if unit == "joules" else None
            title = f"{f'{kind} ' if kind else ''}{words} per example, % of the teacher's"
            alone = alone_cost(student, teacher)
            own, each, whole = (getattr(cost, unit) for cost in (student, teacher, alone))
            return 100 * (own + deferral_rate * each) / whole, title
    return 100 * deferral_rate, "deferral rate, %"


def _cost(outcomes: Outcomes, rates: np.ndarray) -> tuple[np.ndarray, str]:
    return relative_cost(outcomes.student_cost, outcomes.teacher_cost, rates)


def trade_off_figure(
    outcomes: Outcomes,
    points: Mapping[str, OperatingPoint],
    chosen: str | None = None,
    attainable: TradeOffCurve | None = None,
) -> dict[str, Any]:
    """Make the trade-off curve of each score, with both models, the oracle and random deferral.

    `attainable`, drawn below the oracle, is the curve of a router that sees both models' answers.
    Random deferral is the straight line between both models, in means of rows. `points` are by
    legend name; the point of `chosen` is emphasized, and the last trace.
    """
    best = TradeOffCurve.of(outcomes, oracle(outcomes))
    _, axis = _cost(outcomes, best.deferral_rate[:1])
    dashed = {"color": PALETTE["oracle"], "dash": "dash", "width": 2}
    data = [_line(best, "oracle", dashed), _random_line(outcomes)]
    if attainable is not None:
        style = {"color": PALETTE["attainable"], "dash": "dash", "width": 2}
        blended = chosen is not None and points[chosen].blend
        data.insert(1, _line(attainable, "attainable" + ", no blend" * bool(blended), style))
    for name, point in points.items():
        stressed = name == chosen
        if point.score == "random" and not stressed:
            continue
        curve = point.curve(outcomes)
        style = {"color": _color(point.score, stressed), "width": 4 if stressed else 1.75}
        data.append({**_line(curve, name, style), "zorder": int(stressed)})
    data += [_model(outcomes, "student"), _model(outcomes, "teacher")]
    if chosen is not None:
        data.append(_marker(outcomes, points[chosen]))
    rates = [rate for trace in data for rate in trace["x"]]
    return _figure(
        data,
        _axis(axis, range=[0, 1.03 * max(rates)]),
        {"title": {"text": outcomes.measure.axis}, "range": _span(outcomes, best, data)},
        shapes=[_rule(100.0, "dot")],
        annotations=[_note(100, 0.02, "break-even", shift=-5)],
    )


def _span(outcomes: Outcomes, best: TradeOffCurve, data: list[dict[str, Any]]) -> list[float]:
    """Return the range of qualities to show: both models and better, and little below them."""
    measure = outcomes.measure
    ends = [float(measure.drawn(outcomes.quality(role))) for role in ("student", "teacher")]
    if measure.percent:
        return [min(ends) - 0.6, max(y for trace in data for y in trace["y"]) + 0.4]
    seen = [*ends, *measure.drawn(best.quality).tolist()]
    margin = 0.06 * (max(seen) - min(seen))
    return [min(seen) - margin, max(seen) + margin]


CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8F98")
"""Colors of lines without their own; dashes tell lines of one color apart."""


def candidates_figure(
    candidates: Mapping[str, tuple[Outcomes, OperatingPoint]], best: str
) -> dict[str, Any]:
    """Make the trade-off curves of several students with one teacher, and their points."""
    data: list[dict[str, Any]] = []
    for number, (name, (outcomes, point)) in enumerate(candidates.items()):
        style = _cycled(number, name == best)
        data.append(_line(point.curve(outcomes), name, style))
        dot = _marker(outcomes, point)
        marker = {**dot["marker"], "size": 12, "color": style["color"]}
        data.append({**dot, "name": "its point", "marker": marker, "showlegend": False})
    outcomes, _ = candidates[best]
    data.append(_model(outcomes, "teacher"))
    _, axis = _cost(outcomes, np.array([0.0]))
    return _figure(
        data,
        _axis(axis, rangemode="tozero"),
        {"title": {"text": outcomes.measure.axis}},
        shapes=[_rule(100.0, "dot")],
    )


def stages_figure(
    chains: Mapping[tuple[str, ...], tuple[float, float]],
    taken: tuple[str, ...],
    unit: str,
    measure: Metric,
) -> dict[str, Any]:
    """Plot chains by their number of models, and each model alone: drawn quality against cost.

    The cost is in percent of the teacher's.
    """
    data = []
    for count in sorted(set(map(len, chains))):
        own = {", ".join(roles): place for roles, place in chains.items() if len(roles) == count}
        style = {"size": 9, "color": _cycled(count, False)["color"]}
        name = "one model alone" if count == 1 else f"{count} stages"
        hover = "%{text}: %{y:.2f} at %{x:.1f} %<extra></extra>"
        cost, quality = map(list, zip(*own.values(), strict=True))
        data.append(_trace("markers", name, cost, quality, hover, text=[*own], marker=style))
    marker = {"symbol": "diamond", "size": 16, "color": PALETTE["chosen"]}
    cost, quality = ([each] for each in chains[taken])
    hover = "chosen<extra></extra>"
    data.append(_trace("markers", "chosen", cost, quality, hover, marker=marker, zorder=3))
    title = f"{_UNIT_WORDS[unit]} per example, % of the teacher's"
    axis = _axis(title, rangemode="tozero")
    return _figure(data, axis, {"title": {"text": measure.axis}})


def shares_figure(
    savings: Mapping[str, Mapping[float, float]], best: str, share: float
) -> dict[str, Any]:
    """Plot how many times cheaper than the teacher each student is, by popular share (figure 6)."""
    data = [
        _trace(
            "lines+markers",
            name,
            100 * np.array(list(row)),
            list(row.values()),
            "%{y:.2f} times at %{x:.0f} %",
            line=_cycled(number, name == best),
            marker={"size": 9, "color": _cycled(number, False)["color"]},
        )
        for number, (name, row) in enumerate(savings.items())
    ]
    return _figure(
        data,
        _axis("popular share of the traffic, %"),
        {"title": {"text": "times cheaper than the teacher"}, "rangemode": "tozero"},
        shapes=[_rule(100 * share, "dot")],
    )


def _color(score: str, stressed: bool) -> str:
    """Return a score's color: its own, or that of its place among scores of the same output."""
    name = score.partition("(")[0]
    raw = None if name in PALETTE else raw_output_of(name)
    if stressed or raw is None or name not in raw.scores:
        return PALETTE["chosen"] if stressed else PALETTE.get(score, PALETTE["random"])
    return CYCLE[list(raw.scores).index(name) % len(CYCLE)]


def _cycled(number: int, stressed: bool) -> dict[str, Any]:
    dash = ("solid", "dash", "dot")[number // len(CYCLE) % 3]
    color = CYCLE[number % len(CYCLE)]
    return {"color": color, "dash": dash, "width": 4 if stressed else 1.75}


def score_histogram(
    outcomes: Outcomes, point: OperatingPoint, crossing: float | None = None
) -> dict[str, Any]:
    """Plot densities of the score for right and wrong student answers (figure 4), or for gains."""
    values = score_values(point.router.score, outcomes)
    usable = np.isfinite(values)
    names, right = ("student right", "student wrong"), outcomes.student_quality == 1
    if not outcomes.measure.binary:
        names = ("teacher adds nothing", "teacher adds")
        right = outcomes.teacher_quality <= outcomes.student_quality
    seen = values[usable] if usable.any() else np.array([0.0, 1.0])
    low, high = float(seen.min()), float(seen.max())
    ends = low, high if high > low else low + 1
    data = [
        _density(name, values[usable & rows], ends, PALETTE[color])
        for color, name, rows in zip(("right", "wrong"), names, (right, ~right), strict=True)
    ]
    known = [] if crossing is None else [crossing]
    return _figure(
        data,
        _axis(f"score: {score_title(point.score)}"),
        {"title": {"text": "density"}, "rangemode": "tozero"},
        shapes=[_rule(point.threshold, "solid"), *(_rule(each, "dash") for each in known)],
        annotations=[_note(each, 1.0, "crossing", shift=-4) for each in known],
        barmode="overlay",
        bargap=0,
    )


def _density(
    name: str, values: np.ndarray, ends: tuple[float, float], color: str
) -> dict[str, Any]:
    counts, edges = np.histogram(values, BINS, ends)
    density = counts / max(len(values), 1) / np.diff(edges)
    bars = {"type": "bar", "width": float(edges[1] - edges[0]), "opacity": 0.55}
    marker = {"color": color, "line": {"width": 0}}
    middle, hover = (edges[:-1] + edges[1:]) / 2, "%{y:.4g} at %{x:.4g}"
    return _trace(None, name, middle, density, hover, marker=marker, **bars)


def reliability_figure(outcomes: Outcomes, point: OperatingPoint) -> dict[str, Any]:
    """Plot both models' figures along the score, with 95 % intervals.

    Examples are in bins of equal counts, the lowest score first. For a softmax score a third trace
    shows the score itself.
    """
    outcomes = by_rows(outcomes, point)
    bins, measure = reliability(outcomes, point), outcomes.measure
    scale = 100 if measure.percent else 1
    middle = np.array([50 * (row.start + row.end) for row in bins])
    spans = [f"{row.n:,} examples, score {row.low:.4g} to {row.high:.4g}" for row in bins]
    data: list[dict[str, Any]] = []
    for role, shift in (("student", -0.5), ("teacher", 0.5)):  # so that bars do not overlap
        shares = [getattr(row, role) for row in bins]
        estimates, hover = [scale * share.estimate for share in shares], _hover(outcomes)
        line = _trace("lines+markers", role, middle + shift, estimates, f"{hover}, %{{text}}")
        style = {"marker": _marker_of(role, 9), "line": {"width": 2}}
        data.append({**line, **style, "error_y": _bars(shares, scale), "text": spans})
    if measure.binary and point.score.partition("(")[0] == "softmax":
        said = [100 * row.mean for row in bins]
        line = {"dash": "dot", "width": 1.5, "color": PALETTE["random"]}
        data.append(_trace("lines", "the score itself", middle, said, "%{y:.2f} %", line=line))
    deferred = is_deferred(score_values(point.router.score, outcomes), point.threshold)
    return _figure(
        data,
        _axis("examples, the lowest score first, %", range=[-1, 101]),
        {"title": {"text": measure.axis}},
        shapes=[_rule(100 * float(deferred.mean()), "solid")],
    )


def residual_figure(outcomes: Outcomes, point: OperatingPoint) -> dict[str, Any]:
    """Plot both models' residuals against the score, of at most `MOST_DOTS` evenly ranked rows."""
    values = score_values(point.router.score, outcomes)
    order = np.argsort(values)[: np.isfinite(values).sum()]
    rows = order[np.unique(np.linspace(0, len(order) - 1, MOST_DOTS).astype(int))[: len(order)]]
    data = [
        _trace(
            "markers",
            role,
            values[rows],
            (outcomes.targets - outcomes.predictions(role))[rows],
            "%{y:.4g} at %{x:.4g}",
            marker={**_marker_of(role, size), "opacity": 0.5},
        )
        for role, size in (("student", 5), ("teacher", 3))
    ]
    return _figure(
        data,
        _axis(f"score: {score_title(point.score)}"),
        {"title": {"text": "target minus prediction"}, "zeroline": True},
        shapes=[_rule(point.threshold, "solid")],
    )


def ranking_figure(
    ranking: Sequence[Standing], chosen: str | None = None, measure: Metric = ACCURACY
) -> dict[str, Any]:
    """Plot each score's gain with its 95 % interval, best on top."""
    scale = 100 if measure.percent else 1
    hover, dots = f"%{{x:.3g}} {measure.gain_unit}<extra>%{{y}}</extra>", []
    for entry in ranking:
        stressed = entry.score == chosen
        marker = {"color": _color(entry.score, stressed), "size": 13 if stressed else 10}
        bars = _bars([entry.gain], scale) | {"color": marker["color"], "thickness": 2}
        trace = _trace("markers", entry.score, [scale * entry.gain.estimate], [], hover)
        dots.append(trace | {"y": [entry.score], "marker": marker, "error_x": bars})
    return _figure(
        dots,
        _axis(f"gain over random, {measure.gain_unit}"),
        {"autorange": "reversed", "automargin": True, "type": "category"},
        shapes=[_rule(0.0, "dot")],
        margin={"l": 10, "r": 12, "t": 8, "b": 50},
    )


def groups_figure(groups: Sequence[Group], measure: Metric) -> dict[str, Any]:
    """Plot each class's gain over both models alone, with 95 % intervals, first class on top."""
    scale, places = 100 if measure.percent else 1, np.arange(len(groups))
    data = []
    for role, shift in (("student", 0.14), ("teacher", -0.14)):  # so that bars do not overlap
        gains = [group.over[role] for group in groups]
        trace = _trace(
            "markers",
            role,
            [scale * gain.estimate for gain in gains],
            places + shift,
            f"%{{x:.3g}} {measure.gain_unit}: %{{text}}<extra>against the {role} alone</extra>",
            marker=_marker_of(role, 9),
            text=[f"{group.name}, {group.n:,} examples" for group in groups],
        )
        data.append(trace | {"error_x": _bars(gains, scale)})
    names = {"tickvals": places.tolist(), "ticktext": [group.name for group in groups]}
    return _figure(
        data,
        _axis(f"the joint model's gain, {measure.gain_unit}"),
        {"range": [len(groups) - 0.5, -0.5], **names},
        shapes=[_rule(0.0, "dot")],
        height=90 + 32 * len(groups),
    )


def _figure(
    data: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], **layout: Any
) -> dict[str, Any]:
    usual = {
        "showlegend": False,
        "margin": {"l": 58, "r": 12, "t": 12, "b": 50},
        "hovermode": "closest",
    }
    return {"data": data, "layout": {**usual, "xaxis": x, "yaxis": y, **layout}}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "zeroline": False, **more}


def _trace(mode: str | None, name: str, x: Any, y: Any, hover: str, **more: Any) -> dict[str, Any]:
    points = {"name": name, "x": rounded(x), "y": rounded(y)}
    kind = {"type": "scatter"} if mode is None else {"type": "scatter", "mode": mode}
    hover = hover if "<extra>" in hover else f"{hover}<extra>%{{fullData.name}}</extra>"
    return {**kind, **points, "hovertemplate": hover, **more}


def _note(x: float, y: float, text: str, shift: int) -> dict[str, Any]:
    """Make a note to the left of a vertical line; y is a share of the height."""
    place = {"x": x, "y": y, "yref": "paper", "xanchor": "right", "xshift": shift}
    return {"text": text, "showarrow": False, **place}


def _bars(intervals: Sequence[Interval], scale: float = 100) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": rounded([scale * (each.high - each.estimate) for each in intervals]),
        "arrayminus": rounded([scale * (each.estimate - each.low) for each in intervals]),
        "thickness": 1.5,
        "width": 3,
    }


def _marker_of(role: str, size: int) -> dict[str, Any]:
    """Return a role's marker: a colored circle, or a square that the page colors."""
    if role == "teacher":
        return {"symbol": "square", "size": size}
    return {"symbol": "circle", "size": size, "color": PALETTE["student"]}


def _line(curve: TradeOffCurve, name: str, style: dict[str, Any]) -> dict[str, Any]:
    rows = thin_rows(curve)
    return _through(curve.outcomes, curve.deferral_rate[rows], curve.quality[rows], name, style)


def _random_line(outcomes: Outcomes) -> dict[str, Any]:
    """Make the line of random deferral: straight in means of rows, bent by a root."""
    rates, measure = np.linspace(0, 1, 21), outcomes.measure
    low, high = (float(measure.mean(outcomes.quality(role))) for role in ("student", "teacher"))
    quality = np.asarray(measure.quality(low + rates * (high - low)))
    style = {"color": PALETTE["random"], "dash": "dot", "width": 2}
    return _through(outcomes, rates, quality, "random", style)


def _through(
    outcomes: Outcomes, rates: np.ndarray, quality: np.ndarray, name: str, style: dict[str, Any]
) -> dict[str, Any]:
    cost, _ = _cost(outcomes, rates)
    hover = f"{_hover(outcomes)} at %{{x:.1f}} %"
    return _trace("lines", name, cost, outcomes.measure.drawn(quality), hover, line=style)


def _model(outcomes: Outcomes, role: str) -> dict[str, Any]:
    """Make a model's own marker; the teacher alone costs 100 %, without the student."""
    cost = [100.0] if role == "teacher" else _cost(outcomes, np.array([0.0]))[0]
    quality = [outcomes.measure.drawn(outcomes.quality(role))]
    hover = f"{_hover(outcomes)} at %{{x:.1f}} %<extra>%{{fullData.name}} alone</extra>"
    return _trace("markers", role, cost, quality, hover, marker=_marker_of(role, 12), zorder=2)


def _marker(outcomes: Outcomes, point: OperatingPoint) -> dict[str, Any]:
    here = point.curve(outcomes).at(threshold=point.threshold)
    cost, _ = _cost(outcomes, np.array([here.deferral_rate]))
    marker = {"symbol": "diamond", "size": 16, "color": PALETTE["chosen"]}
    marker["line"] = {"width": 2, "color": "#ffffff"}
    quality, hover = [outcomes.measure.drawn(here.quality)], "%{y:.2f} % at %{x:.1f} %"
    hover += "<extra>operating point</extra>"
    return _trace("markers", "operating point", cost, quality, hover, marker=marker, zorder=3)


def _rule(x: float, dash: str) -> dict[str, Any]:
    """Make a full-height line, hidden at infinity; the page's knob moves a figure's first line."""
    visible = bool(np.isfinite(x))
    place = float(x) if visible else 0.0
    style = {"width": 2 if dash == "solid" else 1.5, "dash": dash}
    line = {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper"}
    return {**line, "line": style, "visible": visible}


def _hover(outcomes: Outcomes) -> str:
    return "%{y:.2f} %" if outcomes.measure.percent else "%{y:.4g}"


def rounded(values: Any, digits: int = 7) -> list[float]:
    """Round to seven digits, which draw like sixteen in half the file size."""
    return [float(f"{value:.{digits}g}") for value in values]
