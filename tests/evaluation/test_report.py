from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ebjr import Cost, Outcomes, TradeOffCurve, evaluate, run_study

pytest.importorskip("plotly", reason="plotly is not installed")

CHROMIUM = Path("/usr/bin/chromium")


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


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (375, "dark")])
def test_the_page_works_with_no_network(study, report, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: install Debian's chromium to test in a browser")
    troubles: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector("#curve .main-svg")
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
        browser.close()
    assert troubles == []
    assert requests == [report.as_uri()]
