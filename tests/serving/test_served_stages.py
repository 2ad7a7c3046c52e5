"""More than two stages, served: what each says, who answers, and what the server tells of it."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import running
from tiny import SIZE, write_linear

from ebjr import (
    Cost,
    FarTeacher,
    JointClassifier,
    JointConfig,
    Link,
    Preprocess,
    Preprocessed,
    Router,
    TeacherUnavailable,
    load_model,
)
from ebjr.backends.entry import entry_of
from ebjr.joint import models_of
from ebjr.model import Answer
from ebjr.serving.engine import Engine
from ebjr.serving.events import Answered, Audited, Degraded, Observer
from ebjr.serving.served import Served, served_of

SECONDS = 30
HOW = ("prediction", "deferred", "degraded", "stage")
TOLD = pytest.mark.filterwarnings("ignore:the student answers instead")


def table_of(rng, rows, *, away=False, broken=0.0):
    """A model that looks up what it says of each row by its number."""
    logits = rng.normal(0, 3, (rows, 3))
    logits[rng.random(rows) < broken] = np.nan

    def model(x):
        if away:
            raise TeacherUnavailable("nobody is there")
        return logits[x]

    return model


@st.composite
def chains(draw):
    """A joint model of three or four models, each the next stage's student, and rows for it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, stages = draw(st.integers(1, 60)), draw(st.integers(3, 4))
    joint = table_of(rng, rows)
    for number in range(1, stages):
        share, last = draw(st.floats(0, 1)), number == stages - 1
        router = Router(draw(st.sampled_from(["max_logit", "margin", "softmax"])), 0.0)
        said = joint(np.arange(rows))
        scores = np.asarray(router.score(getattr(said, "output", said)))
        router.threshold = float(np.quantile(scores, share)) + 1e-9
        if not last and draw(st.booleans()):
            router.skip = float(np.quantile(scores, share / 2)) - 1e-9
        away, broken = draw(st.integers(0, 5)) == 0, draw(st.sampled_from([0.0, 0.0, 0.3]))
        teacher = table_of(rng, rows, away=away, broken=broken)
        joint = JointClassifier(joint, teacher, router, blend=draw(st.sampled_from([0.0, 0.3])))
    return joint, rng.permutation(rows)


@TOLD
@given(chains(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_engine_says_of_every_row_what_the_chain_says(chain, small, large, seed):
    joint, rows = chain
    cuts = np.random.default_rng(seed).integers(1, len(rows) + 1, 5)
    parts = [part for part in np.split(rows, np.unique(cuts)) if len(part)]
    with Engine(joint, student_batch=small, teacher_batch=large) as engine:
        found = [future.result(SECONDS).answer for future in map(engine.ask, parts)]
    alone = joint(rows)
    for name in HOW:
        columns = np.concatenate([getattr(answer, name) for answer in found])
        np.testing.assert_array_equal(columns, getattr(alone, name), name)
    for name in ("score", "output"):
        columns = np.concatenate([getattr(answer, name) for answer in found])
        np.testing.assert_allclose(columns, getattr(alone, name), rtol=1e-9)
    assert set(alone.stage.tolist()) <= set(range(len(models_of(joint))))


def line(*weights):
    """A model of numbers (n,)."""
    return lambda x: x[:, None] * np.array(weights, float)


def three(last=None, threshold=1.0, inner=3.0, **how) -> JointClassifier:
    """Rows from 3 on are the student's, from 1 on the second model's, and below the last one's."""
    two = JointClassifier(line(1, -1, 0), line(0, 1, -1), Router("max_logit", inner))
    return JointClassifier(two, last or line(-1, 0, 3), Router("max_logit", threshold), **how)


class Kept(Observer):
    """Keeps the events that it is told of."""

    def __init__(self):
        self.events = []

    def observe(self, event):
        self.events.append(event)


def test_the_router_with_the_knob_skips_what_python_skips():
    joint = JointClassifier(line(1, -1), line(-1, 1), Router("max_logit", 2.0, skip=1.0))
    x = np.array([0.5, 1.5, 2.5])
    with Engine(joint) as engine:
        found = engine.ask(x).result(SECONDS).answer
    assert found.deferred.tolist() == joint(x).deferred.tolist() == [False, True, False]


def test_a_joint_model_as_teacher_counts_its_own_models():
    two = JointClassifier(line(0, 1), line(1, 0), Router("max_logit", 1.0))
    joint = JointClassifier(line(1, -1), two, Router("max_logit", 2.0))
    with Engine(joint, observer=(told := Kept())) as engine:
        assert engine.stages == ("student", "teacher")
        found = engine.ask(np.array([3.0, 1.5, 0.5])).result(SECONDS).answer
    assert found.stage.tolist() == [0, 1, 2]
    (answered,) = (event for event in told.events if isinstance(event, Answered))
    assert answered.rows_by(("student", "model-2", "teacher")).tolist() == [1, 1, 1]
    assert answered.rows_by(("student", "teacher")).tolist() == [1, 2]


def test_audits_of_three_stages_ask_the_last_one_about_the_rows_that_were_drawn():
    asked = []

    def last(x):
        asked.extend(x.tolist())
        return x[:, None] * np.array([1.0, -1.0, 0.0])  # what the student says

    x = np.array([4.0, 2.0, 5.0, 1.5])
    with Engine(three(last), audit_rate=1.0, observer=(told := Kept())) as engine:
        engine.ask(x).result(SECONDS)
        until = time.monotonic() + SECONDS
        while len(asked) < 4 and time.monotonic() < until:
            time.sleep(0.001)
    assert sorted(asked) == sorted(x.tolist())
    audits = [event for event in told.events if isinstance(event, Audited)]
    assert sum(event.drawn.sum() for event in audits) == 4
    assert sum(event.contradicted.sum() for event in audits) == 2  # of the second model


@TOLD
def test_rows_that_an_inner_stage_missed_count_as_degraded_once_they_are_answers():
    def away(x):
        raise TeacherUnavailable("nobody is there")

    two = JointClassifier(line(1, -1, 0), away, Router("max_logit", 3.0))
    joint = JointClassifier(two, line(-1, 0, 3), Router("max_logit", 1.0))
    with Engine(joint, observer=(told := Kept())) as engine:
        found = engine.ask(np.array([0.5, 2.0, 2.5, 5.0])).result(SECONDS).answer
    assert found.degraded.tolist() == [False, True, True, False]
    assert found.stage.tolist() == [2, 0, 0, 0]
    assert sum(event.rows for event in told.events if isinstance(event, Degraded)) == 2


def trunk(x):
    return Answer(np.stack([x, -x], axis=1), features=10 * x)


def head(features):
    return np.stack([-features, features], axis=1)


head.continues = True


@pytest.mark.parametrize("around", [False, True])
def test_a_teacher_that_continues_is_given_the_features_of_its_rows(around):
    joint = JointClassifier(trunk, head, Router("max_logit", 2.0))
    if around:
        joint = JointClassifier(joint, line(5, -5), Router("max_logit", 3.0))
    x = np.random.default_rng(0).uniform(0, 4, 50)
    assert set(joint(x).stage.tolist()) == set(range(2 + around))
    with Engine(joint, student_batch=7, teacher_batch=5, audit_rate=0.5) as engine:
        found = [engine.ask(part).result(SECONDS).answer for part in np.split(x, [1, 9, 30])]
    for name in (*HOW, "output"):
        columns = np.concatenate([getattr(answer, name) for answer in found])
        np.testing.assert_array_equal(columns, getattr(joint(x), name))


@TOLD
def test_the_last_stage_may_be_far_away_and_what_it_misses_is_an_earlier_ones(far):
    two = JointClassifier(line(1, -1, 0), line(0, 1, -1), Router("max_logit", 3.0))
    inner = JointClassifier(
        lambda x: two.student(x[:, 0]), lambda x: two.teacher(x[:, 0]), two.router
    )
    link = Link(retries=0, failures=1, probe_seconds=0.05, retry_seconds=0.1)
    teacher = FarTeacher(load_model(far.url, timeout_seconds=5.0), link)
    joint = JointClassifier(inner, teacher, Router("max_logit", 1.0))
    x = np.array([[5.0, 0.0], [2.0, 0.0], [0.5, 0.0]], np.float32)
    try:
        with Engine(joint) as engine:
            assert engine.ask(x).result(SECONDS).answer.stage.tolist() == [0, 1, 2]
            far.behave("error")
            found = engine.ask(x).result(SECONDS).answer
            assert found.stage.tolist() == [0, 1, 1]
            assert found.degraded.tolist() == [False, False, True]
            np.testing.assert_array_equal(found.output, inner(x).output)
            joint.when_unavailable = "error"
            with pytest.raises(TeacherUnavailable):
                engine.ask(x[2:]).result(SECONDS)
            assert engine.ask(x[:2]).result(SECONDS).answer.stage.tolist() == [0, 1]
    finally:
        teacher.close()


@pytest.fixture
def files(tmp_path):
    """Three real classifiers of images, each surer than the one before."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    eye = np.eye(3)[::-1]
    weights = [4 * eye + 2, 7 * eye + [[0, 1, 0]] * 3, 20 * eye]
    return [write_linear(tmp_path / f"{n}.onnx", weight) for n, weight in enumerate(weights)]


def chain_of(paths, **how) -> JointClassifier:
    models = [Preprocessed(load_model(path, threads=1), Preprocess(size=SIZE)) for path in paths]
    two = JointClassifier(models[0], models[1], Router("softmax", 0.7))
    return JointClassifier(two, models[2], Router("softmax", 0.6), **how)


def test_a_joint_toml_of_stages_is_served_with_the_calibrated_cost_of_its_chain(files, tmp_path):
    from starlette.testclient import TestClient

    from ebjr.serving.app import build_app

    joint = chain_of(files)
    entries = [entry_of(joint.student, Cost(flops=3e3)), entry_of(joint.teacher, Cost(flops=1e4))]
    config = JointConfig(
        *entries,
        score="softmax",
        threshold=0.6,
        labels=("a", "b", "c"),
        calibration={"score_quantiles": np.linspace(0, 1, 101).tolist()},
    )
    config.save(tmp_path / "stages.toml")
    served = served_of(JointConfig.read(tmp_path / "stages.toml"), threads=1)
    assert [cost.flops for cost in served.costs] == [3e3, 1e4]
    images = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE, 3), np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": [*images.shape]}
    message = {"inputs": [{**tensor, "data": images.ravel().tolist()}]}
    message["outputs"] = [{"name": "stage"}]
    with TestClient(build_app(served, hold="flops=5000")) as client:
        found = client.post("/v2/models/joint/infer", json=message).json()
        held = client.get("/v1/router").json()
    said = {output["name"]: output["data"] for output in found["outputs"]}
    joint.router.threshold = found["parameters"]["threshold"]
    assert said["stage"] == joint(images).stage.tolist()
    assert held["autopilot"]["deferral_rate"] == pytest.approx(0.2)  # of 10,000 more than 3,000
    assert held["deferral_rate"] == pytest.approx(0.2)


def test_three_stages_of_onnx_files_are_served_over_http_and_the_server_names_them(files):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    httpx = pytest.importorskip("httpx2", reason="httpx2 is not installed")
    from ebjr.serving.app import build_app

    joint = chain_of(files)
    colors = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 3), np.uint8)
    images = np.ascontiguousarray(np.broadcast_to(colors, (64, SIZE, SIZE, 3)))
    alone = joint(images)
    counts = np.bincount(alone.stage, minlength=3)
    assert counts.min() > 3
    app = build_app(Served(joint), audit_rate=0.1)
    with running(app) as address:
        server = "{}:{}".format(*address)
        with triton.InferenceServerClient(server) as client:
            image = triton.InferInput("image", images.shape, "UINT8")
            for binary in (True, False):
                image.set_data_from_numpy(images, binary_data=binary)
                wanted = [triton.InferRequestedOutput(one, binary_data=binary) for one in HOW]
                found = client.infer("joint", [image], outputs=wanted)
                for name in HOW:
                    np.testing.assert_array_equal(found.as_numpy(name), getattr(alone, name))
        status = httpx.get(f"http://{server}/v1/status").json()
        assert status["stages"] == ["student", "model-2", "teacher"]
        assert [*status["live"]["stages"].values()] == (2 * counts).tolist()
        for stage in status["stages"]:
            assert status["live"]["latency"][stage]["p50"] > 0
        assert status["live"]["waiting"].keys() == {"student", "model-2", "teacher", "audit"}
        metrics = httpx.get(f"http://{server}/metrics").text
        for stage, rows in zip(status["stages"], 2 * counts, strict=True):
            label = f'{{model="joint",stage="{stage}"}}'
            assert f"ebjr_answered_rows_total{label} {float(rows)}" in metrics
            assert f"ebjr_failures_total{label} 0.0" in metrics
            assert f"ebjr_batch_rows_count{label}" in metrics
        assert 'ebjr_failures_total{model="joint",stage="audit"} 0.0' in metrics
        place = int(np.flatnonzero(alone.stage == 1)[0])
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, SIZE, SIZE, 3]}
        asked = {"inputs": [{**tensor, "data": images[place].ravel().tolist()}]}
        both = httpx.post(f"http://{server}/v1/both", json=asked).json()
        assert (both["student"]["stage"], both["teacher"]["stage"]) == (1, 2)
        assert both["answer"]["prediction"] == alone.prediction[place]
