"""The page at / in a real browser, against a real server under load."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, write_linear

from ebjr import (
    JointClassifier,
    JointConfig,
    JointDetector,
    Preprocess,
    Preprocessed,
    Router,
    TeacherUnavailable,
    load_joint,
    load_model,
)
from ebjr.link.far import FarTeacher, Link
from ebjr.tasks.detection.boxes import Detections

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import uvicorn
from playwright import sync_api

from ebjr.serving.app import Served, build_app, served_of

pytestmark = pytest.mark.browser


@contextmanager
def running(served: Served | list[Served], port: int = 0, **options) -> Iterator[str]:
    """A server in a thread of its own: its address."""
    app = build_app(served, **options)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def load(address: str) -> Iterator[None]:
    """Somebody who asks for a few rows, some thirty times a second."""
    images = np.random.default_rng(0).integers(0, 200, (8, 8, 8, 3), np.uint8)
    tensor = {"name": "image", "shape": [8, 8, 8, 3], "datatype": "UINT8"}
    body = json.dumps({"inputs": [{**tensor, "data": images.ravel().tolist()}]}).encode()
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.03):
            urllib.request.urlopen(f"{address}/v2/models/joint/infer", body).close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


@pytest.fixture(scope="module")
def busy(calibrated) -> Iterator[str]:
    """The address of a server under load."""
    with running(served_of(JointConfig.read(calibrated))) as address, load(address):
        yield address


@pytest.fixture
def page(new_page):
    """A page that may not say anything to its console, nor ask anybody but its own server."""
    troubles: list[str] = []
    opened = new_page(viewport={"width": 1280, "height": 900})
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("request", lambda request: troubles.extend(strange(opened, request)))
    opened.troubles = troubles
    yield opened
    assert troubles == []


def strange(page, request) -> list[str]:
    own = ("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:")
    return [] if request.url.startswith(own) else [request.url]


def router(address: str) -> dict:
    with urllib.request.urlopen(f"{address}/v1/router") as answer:
        return json.load(answer)


def opened(page, address: str):
    page.goto(address)
    connected = re.compile(r"^(Connected|The server answers again)\.$")
    sync_api.expect(page.locator("#connection")).to_have_text(connected)
    return page


def says(page, name: str, words) -> None:
    sync_api.expect(page.locator(f"#{name}")).to_contain_text(words)


def test_of_several_models_one_is_chosen_and_it_alone_is_shown_moved_and_asked(page, calibrated):
    config = JointConfig.read(calibrated)
    both = [served_of(replace(config, name=name, threshold=0.5)) for name in ("one", "other")]
    with running(both) as address:
        opened(page, address)
        says(page, "title", "EBJR: one")
        page.select_option("#models", label="other")
        says(page, "title", "EBJR: other")
        page.fill("#threshold", "0.25")
        page.press("#threshold", "Enter")
        says(page, "knob-said", "The knob is at threshold 0.25.")
        for name, threshold in (("one", 0.5), ("other", 0.25)):
            with urllib.request.urlopen(f"{address}/v1/router?model={name}") as answer:
                assert json.load(answer)["threshold"] == threshold
        page.set_input_files("#file", png(image(0)))
        says(page, "try-said", "The score,")
        page.reload()
        says(page, "title", "EBJR: other")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_fits_and_has_no_fault_that_axe_knows(page, busy, width, scheme):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    opened(page, busy)
    page.set_input_files("#file", png(image(0)))
    says(page, "try-said", "The score,")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.getAnimations().length") == 0  # there is no motion to reduce


def png(pixels: np.ndarray) -> dict:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()}


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (8, 8, 3), np.uint8)


def test_the_load_is_shown_as_it_is_counted(page, busy, calibrated):
    opened(page, busy)
    says(page, "deferred-sub", "rows in the last")
    assert float(page.inner_text("#throughput").removesuffix(" rows/s")) > 0
    assert page.inner_text("#median").endswith("ms")
    assert page.locator("#scores .live-bar").count() > 0
    assert page.locator("#curve .here").count() == 1
    for stage in ("wait for the teacher", "teacher's batch", "whole request"):
        cells = page.locator("#stages tr", has_text=stage).locator("td").all_inner_texts()
        assert all(float(cell) > 0 for cell in cells[:3])
    quality = JointConfig.read(calibrated).calibration["held_out"]["quality"]
    assert f"{100 * quality:.2f} %" == page.inner_text("#quality")


def test_the_knob_is_moved_by_keys_and_the_live_rate_follows(page, busy):
    opened(page, busy)
    page.focus("#knob")
    page.keyboard.press("End")
    says(page, "knob-said", "The knob is at threshold ∞")
    assert router(busy)["threshold"] == "inf"
    assert page.get_attribute("#knob", "aria-valuetext") == "100.0 % deferred"
    says(page, "deferred", "100.0 %")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    says(page, "share", "0.5 %")
    says(page, "knob-said", "The knob is at threshold 0.")
    assert router(busy)["deferral_rate"] == pytest.approx(0.005)
    page.get_by_role("button", name="match-teacher").click()
    sync_api.expect(page.get_by_role("button", name="match-teacher")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert router(busy)["threshold"] == router(busy)["operating_points"]["match-teacher"]


def test_a_threshold_is_typed_and_what_is_none_is_said_to_be(page, busy):
    opened(page, busy)
    page.get_by_label("Threshold", exact=True).fill("0.625")
    page.keyboard.press("Enter")
    says(page, "knob-said", "The knob is at threshold 0.625.")
    assert router(busy)["threshold"] == 0.625
    page.get_by_label("Threshold", exact=True).fill("high")
    page.get_by_role("button", name="Set").click()
    says(page, "knob-said", "A threshold must be a number")
    assert router(busy)["threshold"] == 0.625


def test_the_threshold_is_short_in_its_box_and_stays_exact_until_somebody_types(page, busy):
    opened(page, busy)
    page.get_by_role("button", name="match-teacher").click()
    says(page, "knob-said", "The knob is at threshold")
    exact = router(busy)["threshold"]
    box = page.get_by_label("Threshold", exact=True)
    sync_api.expect(box).to_have_attribute("title", str(exact))
    shown = box.input_value()
    assert len(shown) < len(str(exact))
    assert float(shown) == pytest.approx(exact, rel=0.05)
    page.get_by_role("button", name="Set").click()
    says(page, "knob-said", f"The knob is already at threshold {exact}.")
    assert router(busy)["threshold"] == exact
    box.fill(shown)
    page.keyboard.press("Enter")
    says(page, "knob-said", f"The knob is at threshold {float(f'{float(shown):.4g}')}.")
    assert router(busy)["threshold"] == float(shown)


def test_cards_keep_their_last_figures_while_there_is_no_traffic(page, busy):
    opened(page, busy)
    says(page, "deferred-sub", "rows in the last")
    quiet = "Object.assign(state.live, {rows: 0, deferral_rate: null});"
    quiet += "for (const stage in state.live.latency) state.live.latency[stage] = {p50: null};"
    texts = "['deferred', 'median', 'stages'].map((id) => get(id).textContent)"
    before, after, words = page.evaluate(
        f"(() => {{ show(); const before = {texts}; {quiet} show();"
        f" return [before, {texts}, get('deferred-sub').textContent]; }})()"
    )
    assert after == before
    assert "%" in before[0]
    assert words.startswith("the last; no rows in the last")


def test_three_stages_are_named_with_the_rows_that_each_answered(page, tmp_path):
    linear = [write_linear(tmp_path / f"{n}.onnx", n * np.eye(3)[::-1]) for n in (6, 9, 20)]
    models = [Preprocessed(load_model(path, threads=1), Preprocess(size=8)) for path in linear]
    two = JointClassifier(*models[:2], Router("softmax", 0.55))
    joint = JointClassifier(two, models[2], Router("softmax", 0.4))
    with running(Served(joint)) as address, load(address):
        opened(page, address)
        for words in ("wait for the student", "wait for model-2", "wait for the teacher"):
            says(page, "stages", words)
        page.set_input_files("#file", png(np.full((8, 8, 3), (90, 90, 120), np.uint8)))
        says(page, "try-said", "The score,")
        names = [page.locator(f"#{side}-title").inner_text() for side in ("student", "teacher")]
        assert names == ["model-2 (answers)", "teacher"]
        rows = page.locator("#stages tr", has_text="model-2's batch").locator("td").last
        sync_api.expect(rows).to_have_text(re.compile(r"^[\d,]+$"))


def test_the_autopilot_is_given_a_target_and_let_go(page, busy):
    opened(page, busy)
    page.get_by_label("Autopilot holds").fill("deferral_rate=0.5")
    page.keyboard.press("Enter")
    says(page, "knob-said", "the autopilot holds deferral_rate=0.5")
    says(page, "state", "Holds deferral_rate=0.5 between deferral rates of")
    page.get_by_role("button", name="Turn off").click()
    says(page, "state", "Off.")
    assert router(busy)["autopilot"] is None


def test_an_alarm_of_the_monitor_is_told_at_the_top(page, busy):
    opened(page, busy)
    says(page, "alarm", "Alarm: scores drifted")
    says(page, "state", "Drifted: the scores by row")
    says(page, "state", "Would pay: the deferral rate is")
    assert page.get_attribute("#alarm", "role") == "alert"


def test_who_moved_the_knob_elsewhere_is_seen_here(page, busy):
    opened(page, busy)
    request = urllib.request.Request(f"{busy}/v1/router", b'{"deferral_rate": 0.75}', method="PUT")
    urllib.request.urlopen(request).close()
    says(page, "share", "75.0 %")


def test_an_image_is_answered_by_both_as_by_the_models_themselves(page, busy, calibrated):
    joint = load_joint(calibrated)
    opened(page, busy)
    for seed, threshold in ((1, -1.0), (2, 2.0)):
        page.get_by_label("Threshold", exact=True).fill(str(threshold))
        page.keyboard.press("Enter")
        says(page, "knob-said", f"threshold {threshold:g}")
        joint.router.threshold = threshold
        answer = joint(image(seed)[None])
        page.set_input_files("#file", png(image(seed)))
        says(page, "try-said", CLASSES[answer.prediction[0]])
        who = "teacher" if answer.deferred[0] else "student"
        says(page, f"{who}-title", f"{who} (answers)")
        for role in ("student", "teacher"):
            own = getattr(joint, role)(image(seed)[None])[0]
            names = page.locator(f"#{role} dt").all_inner_texts()
            assert names == [CLASSES[row] for row in np.argsort(-own)]
        said = f"Score {float(f'{answer.score[0]:.4g}')} against threshold"
        assert said in page.get_attribute("#gauge", "aria-label")
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
    says(page, "try-said", "image 0 cannot be read")
    page.troubles.clear()  # the browser notes the 400 on its console


def sees(*boxes):
    """A detector that finds the same on every image: (box, label, score)."""
    corners, labels, scores = zip(*boxes, strict=True)
    return lambda images: [
        Detections.of_scores(corners, scores, image.shape[:2], labels=labels, classes=3)
        for image in images
    ]


@pytest.mark.parametrize("width", [1280, 375])
def test_the_boxes_of_both_detectors_are_drawn_on_the_image(page, width):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    student = sees(([2, 2, 14, 20], 2, 0.4), ([0, 0, 3, 3], 0, 0.1))
    teacher = sees(([2, 2, 14, 22], 2, 0.9), ([20, 5, 39, 25], 1, 0.8))
    joint = JointDetector(student, teacher, Router("max_confidence", 0.5), blend=0.25)
    pixels = np.random.default_rng(0).integers(0, 200, (30, 40, 3), np.uint8)
    page.set_viewport_size({"width": width, "height": 900})
    with running(Served(joint, labels=CLASSES)) as address:
        opened(page, address)
        page.set_input_files("#file", png(pixels))
        says(page, "try-said", "The teacher answers 2 boxes (red, green). The score, 0.4, is below")
        says(page, "teacher-title", "teacher (answers)")
        says(page, "fused-title", "the answer: boxes of both models, fused")
        drawn = {"student": student, "teacher": teacher, "fused": lambda x: joint(x).prediction}
        for name, model in drawn.items():
            shown = model([pixels])[0].above(0.3)
            picture = page.get_by_role("img", name="The image with").and_(
                page.locator(f"#{name} svg")
            )
            assert picture.get_attribute("viewBox") == "0 0 40 30"
            found = picture.locator("rect").evaluate_all(
                "all => all.map(b => ['x', 'y', 'width', 'height'].map(k => b[k].baseVal.value))"
            )
            corners = [[x, y, x + w, y + h] for x, y, w, h in found]
            np.testing.assert_allclose(corners, shown.boxes, atol=0.02)
            words = [
                f"{CLASSES[k]} {s:.2f}" for k, s in zip(shown.labels, shown.scores, strict=True)
            ]
            assert picture.locator("text").all_text_contents() == words
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.get_by_label("Threshold", exact=True).fill("0.3")
        page.keyboard.press("Enter")
        says(page, "knob-said", "threshold 0.3")
        page.get_by_role("button", name="Ask both models").click()
        says(page, "try-said", "The student answers 1 box (red). The score, 0.4, is not below")
        assert not page.is_visible("#fused")


def test_an_image_may_be_dropped(page, busy):
    opened(page, busy)
    page.evaluate(
        """async (bytes) => {
            const carried = new DataTransfer();
            carried.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
            const drop = new DragEvent("drop", { dataTransfer: carried, bubbles: true });
            document.getElementById("drop").dispatchEvent(drop);
        }""",
        list(png(image(3))["buffer"]),
    )
    says(page, "try-said", "The score,")
    assert page.get_attribute("#preview", "alt") == "The chosen image, x.png"


def test_with_a_token_the_knob_wants_to_see_it(page, calibrated):
    with running(served_of(JointConfig.read(calibrated)), token="sesame") as address:
        opened(page, address)
        page.focus("#knob")
        page.keyboard.press("End")
        says(page, "knob-said", "The knob was not moved: the knob needs the header Authorization")
        page.troubles.clear()
        page.get_by_label("Bearer token").fill("sesame")
        page.focus("#knob")
        page.keyboard.press("End")
        says(page, "knob-said", "The knob is at threshold ∞")
        assert router(address)["threshold"] == "inf"


def test_with_a_token_to_ask_both_models_want_to_see_it(page, calibrated):
    with running(served_of(JointConfig.read(calibrated)), infer_token="ask") as address:
        opened(page, address)
        page.set_input_files("#file", png(np.full((8, 8, 3), (90, 90, 120), np.uint8)))
        says(page, "try-said", "a query needs the header Authorization")
        page.troubles.clear()
        page.get_by_label("Bearer token").fill("ask")
        page.set_input_files("#file", png(np.full((8, 8, 3), (90, 120, 90), np.uint8)))
        says(page, "try-said", "The score,")


def test_a_server_that_goes_away_is_missed_and_found_again(page, calibrated):
    served = JointConfig.read(calibrated)
    with running(served_of(served)) as address:
        opened(page, address)
    says(page, "connection", "The server does not answer. The figures shown are the last ones")
    page.focus("#knob")
    page.keyboard.press("End")
    says(page, "knob-said", "The knob was not moved: The server does not answer.")
    with running(served_of(served), port=int(address.rpartition(":")[2])):
        says(page, "connection", "The server answers again.")
    page.troubles.clear()


def two_columns(x):
    return np.stack([x[:, 0], x[:, 1]], axis=1)


two_columns.input_shape = (None, 2)
two_columns.input_name = "x"
two_columns.input_dtype = np.float32


def test_a_teacher_that_is_away_is_told_and_the_student_answers(page):
    pytest.importorskip("stamina", reason="the extra `remote` is not installed")

    def away(x):
        raise TeacherUnavailable("the cable is cut")

    far = FarTeacher(away, Link(retries=0, failures=1))
    joint = JointClassifier(two_columns, far, Router("max_logit", 5.0))
    with running(Served(joint)) as address:
        opened(page, address)
        says(page, "state", "Reached. away answers over its link")
        page.get_by_label("One row of numbers").fill("4 1")
        page.get_by_role("button", name="Ask both models").click()
        says(page, "try-said", "but the teacher cannot answer: the student answers 0, marked")
        says(page, "teacher", "the cable is cut")
        says(page, "alarm", "Alarm: teacher away.")
    far.close()
    page.troubles.clear()


def test_rows_of_numbers_are_tried_and_no_calibration_is_needed(page):
    joint = JointClassifier(two_columns, lambda x: 3 - two_columns(x), Router("max_logit", 5.0))
    with running(Served(joint, labels=("<b>yes</b>", "no"))) as address:
        opened(page, address)
        assert not page.is_visible("#slider-label")
        assert not page.is_visible("#curve-section")
        page.get_by_label("One row of numbers, 2 of them").fill("1.5, 4")
        page.get_by_role("button", name="Ask both models").click()
        says(
            page, "try-said", "The teacher answers <b>yes</b>. The score, 4, is below the threshold"
        )
        page.get_by_label("One row of numbers").fill("1 2 3")
        page.get_by_role("button", name="Ask both models").click()
        says(page, "try-said", "A row must have 2 numbers, and this one has 3.")


def words_of(texts):
    """(n, 2): how often texts say no and yes."""
    return np.array([[text.count("no"), text.count("yes")] for text in np.ravel(texts)], float)


words_of.input_dtype = object


def test_a_text_is_typed_and_answered(page):
    joint = JointClassifier(words_of, words_of, Router("margin", 0.2))
    with running(Served(joint, labels=("no", "yes"))) as address:
        opened(page, address)
        page.get_by_label("A text").fill("yes, oh yes")
        page.get_by_role("button", name="Ask both models").click()
        says(page, "try-said", "The student answers yes")


def test_a_calibration_that_defers_everything_is_shown(page, calibrated):
    served = served_of(JointConfig.read(calibrated))
    chosen = {**served.calibration["chosen_on"], "threshold": np.inf}
    known = {**served.calibration, "chosen_on": chosen, "verdict": "It does not pay."}
    with running(replace(served, calibration=known)) as address:
        opened(page, address)
        says(page, "about", "As calibrated, at threshold ∞. It does not pay.")


def test_every_control_is_reached_by_tab_and_shows_its_focus(page, busy):
    opened(page, busy)
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.innerText")
        )
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate("document.activeElement === document.body") or (
            page.evaluate(outline) == "solid"
        )
    for name in ("knob", "threshold", "Set", "match-teacher", "file", "ask"):
        assert name in reached
