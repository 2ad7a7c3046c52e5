"""A teacher far away: asked again, left alone while it is away, asked no more than agreed."""

from __future__ import annotations

import gc
import logging
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from far import teach
from hypothesis import given
from hypothesis import strategies as st

from ebjr import (
    Cost,
    FarTeacher,
    JointClassifier,
    Link,
    ModelError,
    Outcomes,
    Router,
    TeacherUnavailable,
    TradeOffCurve,
    calibrate,
    load_model,
    over_link,
    record,
)
from ebjr.errors import OutputWarning
from ebjr.link.far import MANY, Breaker, Bucket
from ebjr.model import Answer, ModelFacts, TeacherFailed, may_answer_fewer

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("stamina", reason="the extra `remote` is not installed")

X = np.array([[0.5, 0.0], [5.0, 0.0], [0.25, 0.0]], np.float32)
QUICK = Link(retries=0, failures=2, probe_seconds=0.05)


def student(x):
    return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)


def wait_until(true, seconds=10.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


def test_it_says_what_the_teacher_says(far):
    np.testing.assert_array_equal(FarTeacher(load_model(far.url))(X), teach(X))


def test_a_failure_that_passes_is_seen_in_the_log_alone(caplog, monkeypatch):
    # a server that another test has run lets a line like these through every ten seconds
    monkeypatch.setattr(logging.getLogger("ebjr.link.far"), "filters", [])
    calls = []

    def moody(x):
        calls.append(len(x))
        if len(calls) < 3:
            raise TeacherUnavailable("not now", retry_after_seconds=0.01)
        return teach(x)

    caplog.set_level(logging.INFO, "ebjr.link.far")
    np.testing.assert_array_equal(FarTeacher(moody, Link(retries=2))(X), teach(X))
    assert len(calls) == 3
    told = [record.getMessage() for record in caplog.records if record.name.startswith("ebjr")]
    assert told == [f"moody, attempt {number} of 3: not now" for number in (1, 2)]


@pytest.mark.parametrize(
    ("error", "link", "attempts"),
    [
        (TeacherUnavailable("no"), Link(retries=1), 2),
        (TeacherUnavailable("no"), Link(retries=0), 1),
        (TeacherUnavailable("later", retry_after_seconds=60), Link(retries=3), 1),
        (ModelError("refused"), Link(retries=3), 1),
        (ZeroDivisionError("a bug"), Link(retries=3), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(error, link, attempts):
    calls = []

    def away(x):
        calls.append(1)
        raise error

    teacher = FarTeacher(away, link)
    with pytest.raises(type(error)):
        teacher(X)
    teacher.close()
    assert len(calls) == attempts


def test_a_teacher_that_is_away_is_left_alone_and_found_again(far):
    teacher = FarTeacher(load_model(far.url, timeout_seconds=0.5), QUICK)
    far.behave("error")
    for _ in range(2):
        with pytest.raises(TeacherUnavailable, match="status 500"):
            teacher(X)
    asked = far.seen()["asked"]
    for _ in range(100):
        with pytest.raises(TeacherUnavailable, match="is not called until it is back: tea"):
            teacher(X)
    assert far.seen()["asked"] == asked
    assert teacher.state == "open"
    far.behave("right")
    wait_until(lambda: teacher.state == "half-open")
    np.testing.assert_array_equal(teacher(X), teach(X))
    assert teacher.state == "closed"


def test_a_health_check_that_lies_costs_one_call_at_a_time(far):
    teacher = FarTeacher(load_model(far.url), QUICK)
    far.behave("garbage")  # the metadata and the health are right, the answers are not
    for _ in range(2):
        with pytest.raises(TeacherUnavailable):
            teacher(X)
    for _ in range(3):
        wait_until(lambda: teacher.state == "half-open")
        with pytest.raises(TeacherUnavailable, match="cannot be reached"):
            teacher(X)
        assert teacher.state == "open"
    teacher.close()


def test_a_look_that_fails_in_any_way_is_not_the_last_one():
    class Odd:
        here, looks = False, 0

        def __call__(self, x):
            if not self.here:
                raise TeacherUnavailable("away")
            return x

        def check(self):
            self.looks += 1
            if self.looks < 3:
                raise OSError("the network is unreachable")
            self.here = True

    odd = Odd()
    teacher = FarTeacher(odd, Link(retries=0, failures=1, probe_seconds=0.01))
    with pytest.raises(TeacherUnavailable, match="away"):
        teacher(np.ones(1))
    wait_until(lambda: teacher.state == "half-open")
    assert teacher(np.ones(1)) == 1
    teacher.close()


def test_inputs_that_are_refused_do_not_open_the_circuit(far):
    teacher = FarTeacher(load_model(far.url), QUICK)
    far.behave("refuse")
    for _ in range(5):
        with pytest.raises(ModelError, match="refused these inputs"):
            teacher(X)
    assert teacher.state == "closed"


class Answering:
    """A server that answers with a status to what is below 0, and says that it is there or not."""

    def __init__(self, status, retry_after=None, there=True):
        self.error = TeacherUnavailable(f"status {status}", retry_after)
        self.error.status, self.there, self.asked = status, there, 0

    def check(self):
        if not self.there:
            raise TeacherUnavailable("not ready")

    def __call__(self, x):
        self.asked += 1
        if (x < 0).any():
            raise self.error
        return x


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_on_some_inputs_and_is_there_is_asked_about_the_others(status):
    teacher = FarTeacher(Answering(status), QUICK)
    for _ in range(3):
        for _ in range(MANY - 1):
            with pytest.raises(TeacherFailed, match=f"status {status}") as caught:
                teacher(-np.ones(1))
            assert may_answer_fewer(caught.value)
        assert teacher.state == "closed"
        assert teacher(np.ones(1)) == 1
    for number in range(MANY + 5):  # one that fails all the time is not believed
        with pytest.raises(TeacherUnavailable) as caught:
            teacher(-np.ones(1))
        assert may_answer_fewer(caught.value) == (number < MANY - 1)
    assert teacher.state == "half-open"
    assert teacher(np.ones(1)) == 1
    assert teacher.state == "closed"
    teacher.close()


@pytest.mark.parametrize(
    ("status", "retry_after", "there"),
    [
        *((503, 60.0, True), (429, None, True), (504, None, True), (None, None, True)),
        *((500, None, False), (503, None, False)),
    ],
)
def test_a_server_that_is_busy_or_not_ready_is_away_whatever_the_inputs(status, retry_after, there):
    teacher = FarTeacher(
        Answering(status, retry_after, there), replace(QUICK, failures=1, probe_seconds=5.0)
    )
    with pytest.raises(TeacherUnavailable) as caught:
        teacher(-np.ones(1))
    assert teacher.state == "open"
    assert not may_answer_fewer(caught.value)
    with pytest.raises(TeacherUnavailable, match="is not called until it is back"):
        teacher(np.ones(1))
    teacher.close()


def test_a_teacher_that_nobody_has_any_more_is_not_looked_for(far):
    teacher = FarTeacher(load_model(far.url, timeout_seconds=0.5), QUICK)
    far.behave("error")
    for _ in range(2):
        with pytest.raises(TeacherUnavailable):
            teacher(X)
    del teacher
    gc.collect()  # what tenacity remembers of failed attempts goes in circles
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "ebjr-probe"])


class Chatty:
    """Asked about each row by itself: of what it is asked, it has no answer to some."""

    facts = ModelFacts("chatty", calls=8)

    def __init__(self, poison=lambda x: x < 0, check=lambda: None):
        self.poison, self.check, self.asked = poison, check, 0

    def __call__(self, x):
        self.asked += len(x)
        if self.poison(x).all():
            raise TeacherUnavailable("status 500")
        return x


def failed(teacher, times, x=-X):
    for _ in range(times):
        with pytest.raises(TeacherUnavailable):
            teacher(x)


def test_what_one_client_sends_does_not_keep_the_teacher_from_the_others():
    teacher = FarTeacher(Chatty(), replace(QUICK, probe_seconds=5.0))
    for poisons in (6, 50, MANY, 20):  # above `MANY`, one call at a time
        failed(teacher, poisons, -np.ones(1))
        for _ in range(10):
            assert teacher(np.ones(1)) == 1
        assert teacher.state == "closed"
    threads = [threading.Thread(target=failed, args=(teacher, 2, -np.ones(1))) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert [float(teacher(np.ones(1))[0]) for _ in range(50)] == [1.0] * 50
    for thread in threads:
        thread.join()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "ebjr-probe"])
    assert teacher(np.ones(1)) == 1
    teacher.close()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_teacher_asked_by_rows_is_left_alone_once_a_look_fails_too(hangs):
    back = threading.Event()

    def check():
        if hangs and not back.is_set():
            back.wait(10)
        if not back.is_set():
            raise TeacherUnavailable("cannot be reached")

    chatty = Chatty(lambda x: np.full(len(x), not back.is_set()), check)
    teacher = FarTeacher(chatty, QUICK)
    failed(teacher, 2, np.ones(1))
    wait_until(lambda: teacher.state == "open", 1.0)
    before = chatty.asked
    failed(teacher, 100, np.ones(1))
    assert chatty.asked == before
    back.set()
    wait_until(lambda: teacher.state == "half-open")
    assert teacher(np.ones(1)) == 1
    assert teacher.state == "closed"
    teacher.close()


def test_one_that_says_it_is_there_and_never_answers_is_asked_by_one_call_at_a_time(caplog):
    inside, go = threading.Event(), threading.Event()

    def poison(x):
        if len(x) == 1:
            inside.set()
            assert go.wait(10)
        return np.ones(len(x), bool)

    teacher = FarTeacher(Chatty(poison), QUICK)
    failed(teacher, 2, np.ones(MANY))  # many rows at once are as many failures
    wait_until(lambda: teacher.state == "half-open")
    trial = threading.Thread(target=failed, args=(teacher, 1, np.ones(1)))
    trial.start()
    assert inside.wait(10)
    asked = teacher.teacher.asked
    failed(teacher, 5, np.ones(2))
    assert teacher.teacher.asked == asked
    go.set()
    trial.join()
    failed(teacher, 1, np.ones(2))
    assert teacher.teacher.asked == asked + 2
    assert caplog.text.count("gets one call at a time: status 500") == 1
    teacher.close()


@given(
    st.lists(st.sampled_from(["enter", "succeed", "fail", "judge"]), max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_a_breaker_that_doubts_opens_by_a_look_alone_and_lets_one_pass_again(steps, there):
    breaker, doubted = Breaker(failures=2, many=4), False
    for step, found in zip(steps, there, strict=False):
        before = breaker.state
        if step == "enter":
            assert not (breaker.enter() and before == "open")
        elif step == "judge" and doubted:
            opened, doubted = breaker.judge(found), False
            assert not (found and opened)
        elif step == "fail":
            doubted = breaker.fail() or doubted
            assert breaker.state == before
        elif step == "succeed":
            breaker.succeed()
    breaker.half_open()
    breaker.fail()
    if breaker.state == "half-open":
        assert breaker.enter()
        assert not breaker.enter()
    breaker.succeed()
    assert breaker.state == "closed"


@given(st.lists(st.sampled_from(["enter", "succeed", "fail", "half_open"]), max_size=40))
def test_a_breaker_lets_nobody_pass_while_open_and_one_while_half_open(steps):
    breaker, passed = Breaker(failures=2), 0
    for step in steps:
        before = breaker.state
        result = getattr(breaker, step)()
        if step == "enter":
            if before == "open":
                assert not result
            if before == "half-open":
                passed += result
                assert passed <= 1
        if breaker.state != "half-open":
            passed = 0
        if before == "open":
            assert breaker.state in ("open", "half-open")


@given(
    st.floats(0.5, 50),
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 60)), min_size=1, max_size=30),
)
def test_a_bucket_never_gives_more_than_its_rate_and_one_second(rate, asks):
    now = [0.0]
    bucket, given_rows = Bucket(rate, clock=lambda: now[0]), 0
    for wait, rows in asks:
        now[0] += wait
        granted = bucket.take(rows)
        assert 0 <= granted <= rows
        given_rows += granted
        assert given_rows <= max(1.0, rate) + rate * now[0] + 1e-6


def test_rows_over_the_rate_limit_keep_the_students_answer(far):
    teacher = FarTeacher(load_model(far.url), Link(rows_per_second=2))
    joint = JointClassifier(student, teacher, Router("max_logit", 9.0))
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    answer = joint(x)
    assert answer.deferred.tolist() == [True, True, False, False]
    assert answer.degraded.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(answer.output[:2], teach(x[:2]))
    np.testing.assert_array_equal(answer.output[2:], student(x[2:]))
    assert joint(x).degraded.all()
    strict = JointClassifier(student, teacher, Router("max_logit", 9.0), when_unavailable="error")
    with pytest.raises(TeacherUnavailable, match="limited to 2 rows a second"):
        strict(x)


def test_the_rows_that_a_limited_teacher_answers_are_blended_with_their_own(far):
    teacher = FarTeacher(load_model(far.url), Link(rows_per_second=1))
    whole = JointClassifier(student, teach, Router("max_logit", 9.0), blend=0.5)
    limited = JointClassifier(student, teacher, Router("max_logit", 9.0), blend=0.5)
    np.testing.assert_allclose(limited(X).output[0], whole(X).output[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("rate", "lost", "asked"), [(1, [], 1), (2, [], 2), (3, [1], 3), (4, [0, 1], 4)]
)
def test_only_rows_that_were_sent_are_billed_and_one_without_an_answer_takes_no_other(
    rate, lost, asked
):
    def chat(batch):
        heard = ~np.isin(np.arange(len(batch)), lost)
        marks = None if heard.all() else heard
        return Answer(
            teach(batch[heard]), answered=marks, why="odd", spent=np.ones((len(batch), 3))
        )

    joint = JointClassifier(
        student, FarTeacher(chat, Link(rows_per_second=rate)), Router("max_logit", 99.0)
    )
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutputWarning)
        answer = joint(x)
    there = np.setdiff1d(np.arange(asked), lost)
    assert np.flatnonzero(answer.deferred).tolist() == there.tolist()
    np.testing.assert_array_equal(answer.output[there], teach(x[there]))
    assert answer.spent[:, 2].tolist() == [1.0] * asked + [0.0] * (5 - asked)


def test_an_attempt_that_failed_is_billed_too():
    calls = []

    def late(batch):
        calls.append(len(batch))
        spent = np.full((len(batch), 3), float(len(calls)))
        if len(calls) % 3:
            error = TeacherUnavailable("it is busy")
            error.spent = spent
            raise error
        return Answer(teach(batch), spent=spent)

    x = np.zeros((2, 2), np.float32)
    for retries, bill in ((2, 1 + 2 + 3), (1, 4 + 5)):
        teacher = FarTeacher(late, Link(retries=retries))
        joint = JointClassifier(student, teacher, Router("max_logit", 99.0))
        assert joint(x).spent[:, 2].tolist() == [bill, bill]


def test_only_rows_that_were_sent_are_billed_if_none_is_answered():
    def away(batch):
        error = TeacherUnavailable("it is busy")
        error.spent = np.ones((len(batch), 3))
        raise error

    link = Link(rows_per_second=2, retries=0)
    joint = JointClassifier(student, FarTeacher(away, link), Router("max_logit", 99.0))
    assert joint(np.zeros((5, 2), np.float32)).spent[:, 2].tolist() == [1.0, 1.0, 0, 0, 0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"retries": -1}, "retries must be a whole number from 0 to 100, not -1"),
        ({"retries": 1.5}, "retries must be a whole number"),
        ({"rows_per_second": 0}, "rows_per_second must be a number from 0.001"),
        ({"failures": True}, "failures must be a whole number"),
        ({"when_unavailable": "pray"}, "when_unavailable must be one of student, error, queue"),
        ({"queue": ""}, "queue must be the name of a file"),
        ({"colour": 1}, "a link has no 'colour'; it has retries"),
    ],
)
def test_a_link_that_cannot_be_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Link.from_dict(values)


def test_recording_a_far_teacher_measures_what_moves_over_the_link(far):
    tiled = np.tile(X, (20, 1))
    table = record(student, load_model(far.url), tiled)
    assert table.student_cost.bytes == 0
    assert 20 < table.teacher_cost.bytes < 100
    near = record(student, teach, X, [0, 1, 2])
    assert near.teacher_cost.bytes is None


def test_a_budget_of_bytes_defers_as_many_rows_as_it_pays_for():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 400)
    clear = 5 * np.eye(3)[targets]
    costs = {"student_cost": Cost(flops=1.0), "teacher_cost": Cost(flops=9.0, seconds=0.01)}
    near = Outcomes(clear + rng.normal(0, 4, clear.shape), clear, targets, **costs)
    table = over_link(near, bytes=3000, seconds=0.04)
    assert table.teacher_cost.as_dict() == {"flops": 9.0, "seconds": 0.05, "bytes": 3000}
    point = calibrate(table, goal="budget", bytes=600, score="softmax", blend=0.0)
    assert point.deferral_rate == pytest.approx(0.2, abs=0.003)
    assert point.cost.bytes <= 600
    assert TradeOffCurve.of(table, "softmax").cost_in("bytes")[-1] == 3000
    with pytest.raises(ValueError, match="do not say what both models cost in bytes"):
        calibrate(near, goal="budget", bytes=600, score="softmax", blend=0.0)
    certified = calibrate(table, goal="budget", bytes=900, score="softmax", blend=0.0, delta=0.1)
    assert certified.certified.statement
    assert certified.deferral_rate < 0.3
