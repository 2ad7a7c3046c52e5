"""What answers cost is added up row by row, and rows without an answer are nobody's guess."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import REQUESTS

from ebjr import JointClassifier, Router, TeacherUnavailable
from ebjr.model import Answer, TeacherFailed
from ebjr.serving.engine import Engine
from ebjr.serving.events import Asked, Observer

SECONDS = 30


def priced(tokens, dollars, sign=1.0):
    """A model whose every row costs the same, and whose answer to NaN is none."""

    def model(x):
        output = sign * np.stack([x, -x, 0 * x], axis=1)
        return Answer(output, spent=np.tile([tokens, 1.0, dollars], (len(x), 1)))

    return model


def free(x):
    return np.stack([x, -x, 0 * x], axis=1)


def joint_of(student, teacher, threshold=0.5, **how) -> JointClassifier:
    return JointClassifier(student, teacher, Router("max_logit", threshold), **how)


def said(engine, x, **how):
    return engine.ask(np.array(x, np.float64), **how).result(SECONDS).answer


class Heard(Observer):
    def __init__(self, *kinds):
        self.events = []
        self.handlers = dict.fromkeys(kinds, self.events.append)


@given(REQUESTS, st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.5]))
def test_every_row_costs_what_the_joint_model_says_of_it_alone(requests, small, large, blend):
    joint = joint_of(priced(10, 1e-6), priced(20, 1e-3), blend=blend)
    inputs = [np.array(request, np.float64) for request in requests]
    with Engine(joint, student_batch=small, teacher_batch=large) as engine:
        futures = [engine.ask(x) for x in inputs]
        answers = [future.result(SECONDS).answer for future in futures]
    for x, found in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(found.spent, joint(x).spent)
        np.testing.assert_allclose(found.spent[:, 0], np.where(found.deferred, 30, 10))


def test_three_models_add_up():
    inner = joint_of(priced(10, 1e-6), priced(20, 1e-5), 3.0)
    joint = joint_of(inner, priced(40, 1e-3), 1.0)
    with Engine(joint, student_batch=2) as engine:
        found = said(engine, [5.0, 2.0, 0.5])
    assert found.spent[:, 0].tolist() == [10, 30, 70]


@pytest.mark.parametrize(("student", "tokens"), [(free, [0, 20]), (priced(10, 0.0), [10, 30])])
def test_a_model_that_runs_here_spends_nothing(student, tokens):
    with Engine(joint_of(student, priced(20, 1e-3))) as engine:
        assert said(engine, [5.0, 0.1]).spent[:, 0].tolist() == tokens
        assert said(engine, [0.1]).spent[:, 0].tolist() == tokens[1:]
    with Engine(joint_of(free, free)) as engine:
        assert said(engine, [5.0, 0.1]).spent is None


def test_a_model_that_says_it_now_and_then_breaks_nothing():
    def moody(x):
        found = priced(10, 1e-6)(x)
        return found if x[0] > 2 else found.output

    with Engine(joint_of(moody, priced(20, 1e-3), 9.0), student_batch=1) as engine:
        tickets = [engine.ask(np.array([x])) for x in (1.0, 3.0) * 20]
        tokens = [one.result(SECONDS).answer.spent[0, 0] for one in tickets]
    assert tokens == [20, 30] * 20


def test_what_a_teacher_spends_in_vain_is_counted_too():
    def nonsense(x):
        return Answer(np.full((len(x), 3), np.nan), spent=np.tile([20.0, 1, 1e-3], (len(x), 1)))

    heard = Heard(Asked)
    with Engine(joint_of(priced(10, 1e-6), nonsense), observer=heard) as engine:
        found = said(engine, [0.1, 5.0])
        engine.tell()
    assert found.degraded.tolist() == [True, False]
    assert found.spent[:, 0].tolist() == [30, 10]
    assert [(event.stage, event.unanswered) for event in heard.events] == [
        ("student", 0),
        ("teacher", 1),
    ]


def away(x):
    raise TeacherUnavailable("the cloud is gone")


def failing(x):
    raise TeacherFailed("it returned NaN")


@pytest.mark.parametrize("teacher", [away, failing, lambda x: np.full((len(x), 3), np.nan)])
@pytest.mark.parametrize("policy", ["student", "error"])
def test_a_row_that_nobody_answers_fails_its_own_request_alone(teacher, policy):
    gate = threading.Event()

    def student(x):
        assert gate.wait(SECONDS)
        return free(x)

    with Engine(joint_of(student, teacher, -9.0, when_unavailable=policy)) as engine:
        first = engine.ask(np.ones(1))  # the others are one batch after it
        silent, clear, both = (engine.ask(np.array(x)) for x in ([np.nan], [5.0], [5.0, np.nan]))
        gate.set()
        for one in (silent, both):
            with pytest.raises(TeacherUnavailable):
                one.result(SECONDS)
        assert clear.result(SECONDS).answer.prediction.tolist() == [0]
        first.result(SECONDS)
        assert said(engine, [7.0]).prediction.tolist() == [0]


def test_a_row_without_an_answer_of_the_students_is_the_teachers_unmixed():
    joint = joint_of(free, lambda x: np.tile([0.0, 0.0, 9.0], (len(x), 1)), -9.0)
    with Engine(joint) as engine:
        found = said(engine, [np.nan, 5.0])
    assert found.prediction.tolist() == [2, 0]
    assert np.isnan(found.score[0])
    assert found.deferred.tolist() == [True, False]


def test_a_later_model_may_answer_what_those_before_it_did_not():
    inner = joint_of(free, away, 3.0)
    joint = joint_of(inner, lambda x: np.tile([0.0, 0.0, 9.0], (len(x), 1)), 1.0)
    with Engine(joint) as engine:
        assert said(engine, [np.nan]).prediction.tolist() == [2]


def test_a_row_without_an_answer_cannot_be_hurried():
    gate, entered = threading.Event(), threading.Event()

    def slow(x):
        entered.set()
        assert gate.wait(SECONDS)
        return np.tile([0.0, 0.0, 9.0], (len(x), 1))

    with Engine(joint_of(free, slow)) as engine:
        ticket = engine.submit(np.array([np.nan]))
        assert entered.wait(SECONDS)
        assert not engine.hurry(ticket)
        gate.set()
        while ticket.open:
            time.sleep(0.001)
        assert ticket.result().prediction.tolist() == [2]


class Elsewhere:
    """A model elsewhere whose every call takes as long as a gate of its row says."""

    url, calls, labels = "http://cloud.example/v1", 8, ("a", "b", "c")

    def __init__(self):
        self.lock, self.sizes = threading.Lock(), []
        self.now = self.most = 0
        self.slow = threading.Event()

    def __call__(self, x):
        with self.lock:
            self.sizes.append(len(x))
            self.now += 1
            self.most = max(self.most, self.now)
        if x[0] == 1.0:
            assert self.slow.wait(SECONDS)
        else:
            time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return free(x)


def test_a_slow_row_of_a_model_elsewhere_keeps_no_other_waiting():
    far = Elsewhere()
    with Engine(joint_of(far, free, -9.0)) as engine:
        slow = engine.ask(np.array([1.0]))
        others = engine.ask(np.linspace(2, 3, 40))
        assert len(others.result(SECONDS).answer.score) == 40
        assert not slow.done()
        far.slow.set()
        assert slow.result(SECONDS).answer.prediction.tolist() == [0]
    assert set(far.sizes) == {1}
    assert 2 < far.most <= far.calls


def test_seconds_of_a_model_that_bears_many_calls_are_shared_by_them():
    far = Elsewhere()
    with Engine(joint_of(far, free, -9.0), workers=2) as engine:
        engine.paces[0].row = 1.0
        assert engine.expected_seconds(80) == pytest.approx(80 * 2 / 8)
