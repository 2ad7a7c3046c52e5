from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from ebjr import Cost, Outcomes, TradeOffCurve, evaluate, run_study
from ebjr.evaluation.plots import trade_off_figure
from ebjr.evaluation.report import write_live_curve, write_report


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 5, 3_000)
    clear = 4 * np.eye(5)[targets]
    shared = rng.normal(0, 1.2, clear.shape)
    outcomes = Outcomes(
        clear + shared + rng.normal(0, 1.5, clear.shape),
        clear + shared,
        targets,
        student_cost=Cost(flops=1e6, seconds=1e-4),
        teacher_cost=Cost(flops=1e7, seconds=1e-3),
    )
    return run_study(outcomes)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    study.write_report(path, title="A & B </script><b>", notes={"<i>": "</script>"})
    return path


def page_data(report: Path) -> dict:
    found = re.search(r'id="data">(.*?)</script>', report.read_text(), re.DOTALL)
    return json.loads(found.group(1))


def test_every_row_in_the_page_is_exact(study, report):
    for name, series in page_data(report)["series"].items():
        point = study.point if name.endswith("(chosen)") else study.others[name]
        score = point.score_function
        curve = TradeOffCurve.of(study.held_out, score, point.blend)
        for row in range(0, len(series["threshold"]), 37):
            threshold = series["threshold"][row]
            here = curve.at(threshold=np.inf if threshold is None else threshold)
            assert series["quality"][row] == here.quality
            assert series["rate"][row] == here.deferral_rate
        start = series["start"]
        finite = np.isfinite(point.threshold)
        assert series["threshold"][start] == (point.threshold if finite else None)
        assert series["quality"][start] == evaluate(study.held_out, point).quality


def test_the_users_words_are_escaped(report):
    text = report.read_text()
    assert "<title>A &amp; B &lt;/script&gt;&lt;b&gt;</title>" in text
    assert "<dt>&lt;i&gt;</dt><dd>&lt;/script&gt;</dd>" in text


def test_nothing_is_left_when_the_report_cannot_be_written(study, tmp_path):
    with pytest.raises(FileNotFoundError):
        study.write_report(tmp_path / "nowhere" / "report.html", title="x")
    assert not list(tmp_path.iterdir())


def test_the_picture_along_the_score_is_counted_in_python(study, report):
    for name, series in page_data(report)["series"].items():
        point = study.point if name.endswith("(chosen)") else study.others[name]
        order = np.argsort(point.score_function(study.held_out.student), kind="stable")
        student, teacher = series["reliability"]["data"][:2]
        n = len(order) // 10
        for trace, quality in ((student, "student_quality"), (teacher, "teacher_quality")):
            tenths = getattr(study.held_out, quality)[order].reshape(10, n).mean(axis=1)
            assert trace["y"] == pytest.approx(100 * tenths, rel=1e-5)
            interval = binomtest(round(tenths[0] * n), n).proportion_ci(method="exact")
            assert trace["error_y"]["array"][0] == pytest.approx(
                100 * (interval.high - tenths[0]), rel=1e-4
            )
            assert trace["error_y"]["arrayminus"][0] == pytest.approx(
                100 * (tenths[0] - interval.low), rel=1e-4
            )
        rate = evaluate(study.held_out, point).deferral_rate
        assert series["reliability"]["layout"]["shapes"][0]["x0"] == pytest.approx(100 * rate)


def test_a_softmax_score_is_drawn_beside_the_accuracy_that_it_foretells(study, report):
    series = page_data(report)["series"]
    names = [trace["name"] for trace in series["softmax"]["reliability"]["data"]]
    assert names == ["student", "teacher", "the score itself"]
    assert len(series["energy"]["reliability"]["data"]) == 2
    said = series["softmax"]["reliability"]["data"][2]["y"]
    values = np.sort(study.others["softmax"].score_function(study.held_out.student))
    assert said == pytest.approx(100 * values.reshape(10, -1).mean(axis=1), rel=1e-5)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_chance_is_drawn_as_random_orders_are_on_average(study, task):
    table = study.held_out
    if task == "regression":
        table = Outcomes(table.student[:, :2], table.teacher[:, 0], table.targets, task)
    point = TradeOffCurve.of(table, "random").at(deferral_rate=0.5)
    figure = trade_off_figure(table, {"random": point})
    lines = [trace for trace in figure["data"] if trace["name"] == "random"]
    assert len(lines) == 1
    rng, ordered = np.random.default_rng(0), []
    for _ in range(50):
        curve = TradeOffCurve.of(table, rng.permutation(len(table)).astype(float))
        ordered.append(table.measure.drawn(curve.quality[:: len(table) // 20]))
    np.testing.assert_allclose(lines[0]["y"], np.mean(ordered, axis=0), rtol=0.005)


def test_what_is_attainable_is_a_line_and_a_sentence_and_neither_where_there_is_nothing(
    study, report, tmp_path
):
    lines = {trace["name"]: trace for trace in page_data(report)["curve"]["data"]}
    areas = [np.trapezoid(lines[name]["y"], lines[name]["x"]) for name in ("attainable", "oracle")]
    assert np.trapezoid(lines["random"]["y"], lines["random"]["x"]) < areas[0] < areas[1]
    assert html.escape(study.headroom.text) in report.read_text()
    write_report(tmp_path / "bare.html", study.held_out, study.point)
    text = (tmp_path / "bare.html").read_text()
    assert "attainable" not in {
        trace["name"] for trace in page_data(tmp_path / "bare.html")["curve"]["data"]
    }
    assert "attainable" not in text.partition("</main>")[0].partition("<body")[2]


def test_the_page_states_intervals_verdicts_ranking_and_the_best_accuracy(study, report):
    text = re.sub(r"\s+", " ", report.read_text())
    accuracy = study.intervals["accuracy"]
    assert f"<td>{100 * accuracy.low:.2f} to {100 * accuracy.high:.2f} %</td>" in text
    saving = study.intervals["saving"]
    assert f"<td>{saving.low:.2f} to {saving.high:.2f}</td>" in text
    for test in study.comparisons:
        ratio = test.odds.estimate
        odds = "" if np.isnan(ratio) else f"Odds ratio {ratio:.2f} (95"
        assert f"<li>{test.verdict} {odds}" in text
    for entry in study.ranking:
        row, gain = entry.elsewhere, [100 * x for x in (entry.gain.low, entry.gain.high)]
        assert f"({gain[0]:.2f} to {gain[1]:.2f})</td><td>{100 * row.oracle_share:.1f} %" in text
        assert f"<td>{row.auroc:.4f}</td><td>{row.aurc:.4f}</td><td>{row.augrc:.4f}</td>" in text
    assert f"for the best accuracy</th><td>{100 * study.best_accuracy.quality:.2f} %" in text
    dots = page_data(report)["extras"]["ranking"]["data"]
    assert [dot["y"][0] for dot in dots] == [entry.score for entry in study.ranking]
    assert dots[0]["x"][0] == pytest.approx(100 * study.ranking[0].gain.estimate, rel=1e-5)


def test_a_promise_is_stated_with_its_bound_price_and_assumption(study, report, tmp_path):
    assert "What is promised" not in report.read_text()
    certified = run_study(study.outcomes, tolerance=0.02, delta=0.1, score="softmax")
    certified.write_report(tmp_path / "report.html", title="x")
    text = html.unescape((tmp_path / "report.html").read_text())
    promise = certified.point.certified
    assert promise.statement in text
    assert f"would have passed a tolerance of {promise.bound:.4g}" in text
    assert f"{promise.deferral_rate:.1%} of them are deferred instead of the" in text
    assert f"({100 * promise.price:+.1f} points)" in text
    assert "Exchangeable means" in text


def test_a_report_without_statistics_leaves_their_sections_out(study, tmp_path):
    write_report(tmp_path / "report.html", study.held_out, study.point)
    text = (tmp_path / "report.html").read_text()
    assert "Is it more than chance?" not in text
    assert "Which score defers best" not in text
    assert "ranking" not in page_data(tmp_path / "report.html")["extras"]


def test_comparisons_with_others_join_the_verdicts_escaped(study, tmp_path):
    other = study.compare(study.held_out.targets, "<b>.npz")
    study.write_report(tmp_path / "report.html", title="x", compared=[other])
    text = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;.npz is better, by more than chance explains" in text
    assert "<b>.npz" not in text


def test_the_first_line_is_the_verdict_that_is_given(study, tmp_path):
    write_report(tmp_path / "report.html", study.held_out, study.point, verdict="Met <it>.")
    assert '<p class="verdict">Met &lt;it&gt;.</p>' in (tmp_path / "report.html").read_text()


def test_a_report_is_small(report):
    assert report.stat().st_size < 500_000


def test_the_live_curve_is_that_of_the_report_alone(study, report, tmp_path):
    others = list(study.others.values())
    live = {"others": others, "found": study.headroom}
    write_live_curve(tmp_path / "live.html", study.held_out, study.point, **live)
    alone, whole = page_data(tmp_path / "live.html"), page_data(report)
    assert alone["curve"] == whole["curve"]
    for name, series in alone["series"].items():
        assert series["quality"] == whole["series"][name]["quality"]
    places = re.findall(r'<(?:div|input) id="(\w+)"', (tmp_path / "live.html").read_text())
    assert places == ["knob", "curve"]


@pytest.mark.browser
def test_a_page_around_the_live_curve_learns_its_height(study, tmp_path, new_page):
    write_live_curve(tmp_path / "live.html", study.held_out, study.point)
    script = "window.heights = []; onmessage = (event) => window.heights.push(event.data.height);"
    frame = '<iframe src="live.html" style="width: 700px; height: 3000px"></iframe>'
    (tmp_path / "page.html").write_text(f"<script>{script}</script>{frame}")
    page = new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.frames[1].wait_for_selector("#curve .xtitle")
    page.wait_for_function("window.heights.length")
    page.wait_for_timeout(200)
    height = page.frames[1].evaluate("document.querySelector('main').offsetHeight")
    assert page.evaluate("window.heights.at(-1)") == height < 3000


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_the_page_works_with_no_network(study, report, new_page, width, scheme):
    troubles: list[str] = []
    requests: list[str] = []
    page = new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#curve .xtitle")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.inner_text("#accuracy") == f"{100 * study.result.quality:.2f} %"
    assert page.inner_text("#deferred") == f"{100 * study.result.deferral_rate:.1f} %"
    page.focus("#knob")
    page.keyboard.press("Home")
    student = f"{100 * study.result.student_quality:.2f} %"
    assert page.inner_text("#accuracy") == student
    assert "accuracy " + student in page.get_attribute("#knob", "aria-valuetext")
    page.keyboard.press("End")
    assert page.inner_text("#deferred") == "100.0 %"
    page.select_option("#score", "energy")
    energy = study.other_results["energy"]
    assert page.inner_text("#deferred") == f"{100 * energy.deferral_rate:.1f} %"
    page.keyboard.press("End")
    page.click("#reset")
    assert page.inner_text("#accuracy") == f"{100 * energy.quality:.2f} %"
    for plot in ("curve", "histogram", "reliability"):
        assert apart(page, plot)
    assert page.locator("#shown tbody tr").count() == len(page_data(report)["samples"])
    lines = len(page_data(report)["curve"]["data"])
    shown = "plots.curve.shown.length"
    names = page.locator("#curve-legend button")
    assert names.count() == lines
    names.first.click()
    assert names.first.get_attribute("aria-pressed") == "false"
    assert page.evaluate(shown) == lines - 1
    names.first.click()
    assert page.evaluate(shown) == lines
    assert troubles == []
    assert requests == [report.as_uri()]


@pytest.mark.browser
def test_the_mouse_tells_the_figures_of_the_nearest_point(study, report, new_page):
    page = new_page()
    page.goto(report.as_uri())
    page.locator("#curve").scroll_into_view_if_needed()
    place = page.evaluate(
        "(() => { const { node, x, y, data } = plots.curve; const last = data.at(-1);"
        " const { left, top } = node.getBoundingClientRect();"
        " return [left + x(last.x[0]), top + y(last.y[0])]; })()"
    )
    page.mouse.move(*place)
    told = page.inner_text("#curve .tip")
    assert f"{100 * study.result.quality:.2f} %" in told
    page.mouse.move(2, 2)
    assert page.locator("#curve .tip").is_hidden()


def apart(page, plot: str) -> bool:
    """Whether a plot's axis title is inside it, and its legend below it and not scrolled."""
    drawn = page.locator(f"#{plot}").bounding_box()
    title = page.locator(f"#{plot} .xtitle").bounding_box()
    legend = page.locator(f"#{plot}-legend").bounding_box()
    inside = (
        title["x"] >= drawn["x"]
        and title["x"] + title["width"] <= drawn["x"] + drawn["width"]
        and title["y"] + title["height"] <= drawn["y"] + drawn["height"]
    )
    scrolled = page.evaluate(
        f"(e => e.scrollHeight > e.clientHeight)(document.getElementById('{plot}-legend'))"
    )
    return inside and legend["y"] >= drawn["y"] + drawn["height"] and not scrolled
