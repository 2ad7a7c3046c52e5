"""Many callers at once get what the joint model says to each alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import REQUESTS

from ebjr import (
    JointClassifier,
    JointRegressor,
    LateAnswers,
    ModelError,
    Router,
    TeacherUnavailable,
)
from ebjr.errors import Overloaded
from ebjr.serving.engine import Engine
from ebjr.serving.events import Failed, Observer, Observers
from ebjr.tasks.classification import TASK

SECONDS = 30


def student(x):
    return np.stack([x, -x, 0 * x], axis=1)


def teacher(x):
    return np.stack([-x, 0 * x, 3 * x], axis=1)


def joint_of(teacher=teacher, threshold=0.5, **how) -> JointClassifier:
    return JointClassifier(student, teacher, Router("max_logit", threshold), **how)


def said(future):
    return future.result(SECONDS)


class Gate:
    """A model that waits until it is let through, and keeps what it was given."""

    def __init__(self, model):
        self.model = model
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches = []

    def __call__(self, x):
        self.batches.append(len(x))
        self.entered.set()
        assert self.open.wait(SECONDS)
        return self.model(x)


@given(REQUESTS, st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.5]))
def test_every_request_gets_what_the_joint_model_says_of_it_alone(requests, small, large, blend):
    joint = joint_of(blend=blend)
    inputs = [np.array(request, np.float64) for request in requests]
    with Engine(joint, student_batch=small, teacher_batch=large) as engine:
        tickets = [engine.ask(x) for x in inputs]
        answers = [said(ticket).answer for ticket in tickets]
    for x, found in zip(inputs, answers, strict=True):
        alone = joint(x)
        np.testing.assert_array_equal(found.prediction, alone.prediction)
        np.testing.assert_allclose(found.output, alone.output)
        np.testing.assert_array_equal(found.score, alone.score)
        np.testing.assert_array_equal(found.deferred, alone.deferred)
        assert not found.degraded.any()


def test_rows_that_wait_while_a_model_works_become_one_batch():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Engine(joint, student_batch=8) as engine:
        first = engine.ask(np.array([1.0]))
        assert slow.entered.wait(SECONDS)
        others = [engine.ask(np.array([2.0, 3.0])) for _ in range(5)]
        slow.open.set()
        for ticket in [first, *others]:
            said(ticket)
    assert slow.batches == [1, 8, 2]


@pytest.mark.parametrize("stage", ["student", "teacher"])
def test_bulk_rows_yield_in_the_queue_of_each_model_and_fill_the_batches_of_others(stage):
    order = []

    def kept(model, x):
        order.append(x.tolist())
        return model(x)

    slow = Gate(lambda x: kept(teacher if stage == "teacher" else student, x))
    models = (student, slow) if stage == "teacher" else (slow, teacher)
    joint = JointClassifier(*models, Router("max_logit", 9.0 if stage == "teacher" else 0.0))
    with Engine(joint, student_batch=4, teacher_batch=4, workers=1, teacher_workers=1) as engine:
        first = engine.ask(np.array([0.5]))
        assert slow.entered.wait(SECONDS)
        bulk = [engine.ask(np.array([row, row]), priority=row) for row in (3, 2, 2)]
        urgent = [engine.ask(np.array([1, 1, 1]), priority=each) for each in (0, 1)]
        while engine.waiting()[stage] < 12:
            time.sleep(0.001)
        slow.open.set()
        for ticket in (first, *urgent, *bulk):
            assert not said(ticket).answer.degraded.any()
    assert order == [[0.5], [1] * 4, [1, 1, 2, 2], [2, 2, 3, 3]]


@pytest.mark.parametrize("priority", [-1, 2**64, 1.0, True, "2", None])
def test_a_priority_that_is_none_is_refused_in_one_sentence(priority):
    with Engine(joint_of()) as engine:
        with pytest.raises(
            ValueError, match="priority must be a whole number from 0 to 2"
        ) as caught:
            engine.submit(np.array([1.0]), priority=priority)
        assert "\n" not in str(caught.value)
        assert said(engine.ask(np.array([1.0]), priority=2**64 - 1)).rows == 1


def test_deferred_rows_of_many_student_batches_become_one_teacher_batch():
    slow = Gate(teacher)
    with Engine(joint_of(slow), student_batch=2, teacher_batch=16) as engine:
        tickets = [engine.ask(np.array([0.1]))]
        assert slow.entered.wait(SECONDS)
        tickets += [engine.ask(np.array([0.1, 5.0])) for _ in range(6)]
        while engine.waiting()["teacher"] < 6:
            time.sleep(0.001)
        slow.open.set()
        for ticket in tickets:
            said(ticket)
    assert slow.batches == [1, 6]


def test_each_answer_agrees_with_the_threshold_it_names_while_the_knob_moves():
    joint = joint_of()
    rng = np.random.default_rng(0)
    moving = threading.Event()

    def move():
        while not moving.is_set():
            joint.router.threshold = float(rng.choice([-2.0, 0.0, 2.0]))

    mover = threading.Thread(target=move)
    mover.start()
    try:
        with Engine(joint, student_batch=4) as engine:
            for _ in range(300):
                tickets = [engine.ask(np.linspace(-3, 3, n)) for n in (1, 3, 11)]
                for ticket in tickets:
                    found = said(ticket)
                    late = ~(found.answer.score >= found.threshold)
                    np.testing.assert_array_equal(found.answer.deferred, late)
    finally:
        moving.set()
        mover.join()


def test_a_request_may_bring_its_own_threshold():
    with Engine(joint_of(threshold=0.5)) as engine:
        one, other = (engine.ask(np.array([2.0]), threshold=t) for t in (None, 3.0))
        assert not said(one).answer.deferred[0]
        assert said(other).answer.deferred[0]
        assert said(other).threshold == 3.0


def test_a_hurried_request_keeps_the_students_answer_and_marks_it():
    slow = Gate(teacher)
    with Engine(joint_of(slow)) as engine:
        ticket = engine.submit(np.array([0.1, 5.0]))
        assert slow.entered.wait(SECONDS)
        assert engine.hurry(ticket)
        found = ticket.result()
        slow.open.set()
    assert found.degraded.tolist() == [True, False]
    assert not found.deferred.any()
    np.testing.assert_array_equal(found.output, student(np.array([0.1, 5.0])))


def test_a_request_that_the_student_has_not_seen_cannot_be_hurried():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Engine(joint) as engine:
        told = threading.Event()
        ticket = engine.submit(np.array([1.0]), reply=lambda ticket: told.set())
        assert slow.entered.wait(SECONDS)
        assert not engine.hurry(ticket)
        slow.open.set()
        assert told.wait(SECONDS)
        assert ticket.result().prediction.tolist() == [0]


def test_a_cancelled_request_frees_its_rows():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Engine(joint) as engine:
        first = engine.ask(np.array([1.0]))
        assert slow.entered.wait(SECONDS)
        gone, stays = engine.submit(np.ones(5)), engine.ask(np.ones(2))
        gone.cancel()
        slow.open.set()
        said(first)
        said(stays)
    assert slow.batches == [1, 2]


@pytest.mark.parametrize(
    "teacher",
    [
        lambda x: (_ for _ in ()).throw(TeacherUnavailable("the cloud is gone")),
        lambda x: np.zeros((len(x) + 1, 3)),
        lambda x: np.zeros((len(x), 7)),
        lambda x: None,
    ],
)
def test_a_teacher_that_is_away_or_answers_nonsense_degrades_its_rows(teacher):
    with Engine(joint_of(teacher)) as engine:
        found = said(engine.ask(np.array([0.1, 5.0]))).answer
        again = said(engine.ask(np.array([5.0]))).answer
    assert found.degraded.tolist() == [True, False]
    assert not again.degraded.any()


def test_the_error_policy_fails_the_requests_that_needed_the_teacher_and_no_others():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    with Engine(joint_of(away, when_unavailable="error")) as engine:
        tickets = [engine.ask(np.array([x])) for x in (0.1, 5.0)]
        with pytest.raises(TeacherUnavailable):
            said(tickets[0])
        assert said(tickets[1]).answer.prediction.tolist() == [0]


def test_a_model_that_raises_fails_its_batch_and_the_pipeline_goes_on():
    def moody(x):
        if (x < 0).any():
            raise RuntimeError("no negatives")
        return student(x)

    heard = []

    class Listener(Observer):
        def observe(self, event):
            if isinstance(event, Failed):
                heard.append((event.stage, str(event.error)))

    joint = JointClassifier(moody, teacher, Router("max_logit", 0.5))
    with Engine(joint, observer=Listener()) as engine:
        with pytest.raises(ModelError, match="the student failed on a batch: RuntimeError: no neg"):
            said(engine.ask(np.array([-1.0])))
        assert said(engine.ask(np.array([2.0]))).answer.prediction.tolist() == [0]
    assert heard == [("student", "no negatives")]


@pytest.mark.parametrize("stage", ["student", "teacher"])
def test_a_row_on_which_a_model_fails_costs_only_its_own_request(stage):
    def moody(x):
        if np.isnan(x).any() or (x == 0.25).any():
            raise ValueError("no such number")
        return teacher(x)

    slow = Gate(moody)
    models = (slow, teacher) if stage == "student" else (student, slow)
    joint = JointClassifier(*models, Router("max_logit", 0.0 if stage == "student" else 9.0))
    with Engine(joint, student_batch=8, teacher_batch=8, workers=1, teacher_workers=1) as engine:
        first = engine.ask(np.array([0.5]))
        assert slow.entered.wait(SECONDS)
        good = [engine.ask(np.array([0.5, row]), client=row) for row in range(1, 4)]
        bad = engine.ask(np.array([0.25, 0.5]), client="bad")
        while engine.waiting()[stage] < 8:
            time.sleep(0.001)
        slow.open.set()
        for ticket in (first, *good):
            np.testing.assert_array_equal(
                said(ticket).answer.output, teacher(ticket.result().inputs)
            )
            assert not ticket.result().answer.degraded.any()
        if stage == "student":
            with pytest.raises(ModelError, match="failed on a batch: ValueError: no such number"):
                said(bad)
        else:
            assert said(bad).answer.degraded.all()
    assert slow.batches == [1, 8, 4, 4, 2, 2]


def test_a_teacher_that_is_away_is_not_asked_again_for_parts_of_a_batch():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    slow = Gate(away)
    with Engine(joint_of(slow, 9.0), workers=1, teacher_workers=1) as engine:
        tickets = [engine.ask(np.array([0.5]))]
        assert slow.entered.wait(SECONDS)
        tickets += [engine.ask(np.array([0.5])) for _ in range(5)]
        while engine.waiting()["teacher"] < 5:
            time.sleep(0.001)
        slow.open.set()
        assert all(said(ticket).answer.degraded.all() for ticket in tickets)
    assert slow.batches == [1, 5]


def test_inputs_of_different_shapes_do_not_meet_in_a_batch():
    wide = lambda x: np.stack([x.sum(axis=tuple(range(1, x.ndim))), np.ones(len(x))], axis=1)  # noqa: E731
    joint = JointClassifier(wide, wide, Router("max_logit", 0.5))
    with Engine(joint) as engine:
        tickets = [engine.ask(np.ones((2, k))) for k in (1, 2, 3, 2, 1)]
        sums = [said(ticket).answer.output[:, 0].tolist() for ticket in tickets]
    assert sums == [[1, 1], [2, 2], [3, 3], [2, 2], [1, 1]]


def test_an_observer_that_fails_costs_nobody_an_answer(caplog):
    class Deaf(Observer):
        def observe(self, event):
            raise RuntimeError("no ears")

    with Engine(joint_of(), observer=Deaf()) as engine:
        assert len(engine.ask(np.ones(2)).result(SECONDS).answer.score) == 2
        engine.tell()
        assert len(engine.ask(np.ones(3)).result(SECONDS).answer.score) == 3
    assert "an observer failed" in caplog.text


def test_an_observer_that_fails_hides_nothing_from_those_after_it(caplog):
    seen = []
    deaf, other = Observer(), Observer()
    deaf.handlers = {Failed: lambda event: 1 / 0}
    other.handlers = {Failed: seen.append}
    Observers(deaf, other).observe(Failed("teacher", ValueError("no")))
    assert len(seen) == 1
    assert "ZeroDivisionError" in caplog.text


def test_stages_are_as_many_as_there_are_models():
    """A joint model as the student of another: each stage reads what was said before it."""
    middle = lambda x: np.stack([0 * x, 2 * x, -x], axis=1)  # noqa: E731
    inner = JointClassifier(student, middle, Router("max_logit", 3.0), blend=0.5)
    joint = JointClassifier(inner, teacher, Router("margin", 0.9))
    x = np.random.default_rng(0).uniform(0, 6, 200)
    alone = joint(x)
    assert 0 < alone.deferred.sum() < 200
    assert set(inner(x).deferred.tolist()) == {True, False}
    with Engine(joint, student_batch=7, teacher_batch=5) as engine:
        assert engine.stages == ("student", "model-2", "teacher")
        futures = [engine.ask(part) for part in np.split(x, [1, 2, 50, 120])]
        found = [said(future).answer for future in futures]
    for name in ("prediction", "score", "deferred", "degraded", "stage"):
        columns = np.concatenate([getattr(answer, name) for answer in found])
        np.testing.assert_array_equal(columns, getattr(alone, name))


def test_a_middle_stage_that_is_away_leaves_its_rows_to_the_next_router():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    inner = JointClassifier(student, away, Router("max_logit", 3.0))
    joint = JointClassifier(inner, teacher, Router("max_logit", 1.0))
    with Engine(joint) as engine:
        found = said(engine.ask(np.array([0.5, 2.0, 5.0]))).answer
    assert found.deferred.tolist() == [True, False, False]
    assert found.degraded.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.degraded, joint(np.array([0.5, 2.0, 5.0])).degraded)


def test_a_model_that_is_no_joint_model_answers_raw_output():
    with Engine(student, TASK, student_batch=2) as engine:
        assert engine.stages == ("teacher",)
        found = said(engine.ask(np.arange(5.0))).answer
    np.testing.assert_array_equal(found.output, student(np.arange(5.0)))


def test_clients_take_turns_so_that_a_large_request_keeps_nobody_waiting():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", -9.0))
    with Engine(joint, student_batch=8) as engine:
        order = []
        engine.submit(np.array([1.0]), client="first")
        assert slow.entered.wait(SECONDS)
        large = engine.ask(np.ones(400), client="greedy")
        small = engine.ask(np.ones(1), client="modest")
        for name, future in (("large", large), ("small", small)):
            future.add_done_callback(lambda _, name=name: order.append(name))
        slow.open.set()
        said(large)
        said(small)
    assert order == ["small", "large"]


def test_workers_help_the_model_whose_rows_wait():
    """Both cores work on one model where the other has nothing to do."""
    both = threading.Barrier(2, timeout=SECONDS)

    class Own:  # as one of our own backends, whose models bear several threads
        path = Path("student.onnx")

        def __call__(self, x):
            both.wait()
            return student(x)

    joint = JointClassifier(Own(), teacher, Router("max_logit", -9.0))
    with Engine(joint, student_batch=1, workers=2) as engine:
        for future in [engine.ask(np.ones(1)) for _ in range(4)]:
            said(future)


def test_long_batches_of_the_teacher_do_not_keep_the_student_waiting():
    slow = Gate(teacher)
    with Engine(joint_of(slow), workers=1) as engine:
        hard = engine.ask(np.array([0.1]))
        assert slow.entered.wait(SECONDS)
        assert not said(engine.ask(np.array([5.0]))).answer.deferred[0]
        slow.open.set()
        assert said(hard).answer.deferred[0]


def test_a_short_batch_that_ends_does_not_hide_that_a_long_one_is_at_work():
    gates = {0.1: threading.Event(), 0.2: threading.Event(), 0.3: threading.Event()}
    entered = {value: threading.Event() for value in gates}

    def slow(x):
        entered[x[0]].set()
        assert gates[x[0]].wait(SECONDS)
        return teacher(x)

    slow.path = "several-may-ask.onnx"
    with Engine(joint_of(slow), workers=2) as engine:
        engine.paces[1].row = 1.0
        long = engine.ask(np.array([0.1]))
        assert entered[0.1].wait(SECONDS)
        engine.paces[1].row = 0.001
        gates[0.2].set()
        said(engine.ask(np.array([0.2])))
        short = engine.ask(np.array([0.3]))
        assert entered[0.3].wait(SECONDS)
        assert not said(engine.ask(np.array([5.0]))).answer.deferred[0]
        for gate in gates.values():
            gate.set()
        assert said(long).answer.deferred[0]
        assert said(short).answer.deferred[0]


def test_a_lone_row_of_a_fast_student_is_answered_where_it_is_asked():
    threads = []

    def noted(x):
        threads.append(threading.get_ident())
        return student(x)

    joint = JointClassifier(noted, teacher, Router("max_logit", 0.5))
    with Engine(joint) as engine:
        said(engine.ask(np.ones(1)))  # how fast it is, is not known before
        ticket = engine.submit(np.ones(1), here=True)
        assert ticket.result().prediction.tolist() == [0]
        said(engine.ask(np.ones(2), here=True))
    assert [one == threading.get_ident() for one in threads] == [False, True, False]


def test_all_late_rows_of_a_request_are_kept_under_its_one_id(tmp_path):
    both = threading.Barrier(2)

    def away(x):
        both.wait(SECONDS)  # two batches of one request fail at once
        raise TeacherUnavailable("no cloud in the sky")

    late = LateAnswers(tmp_path / "late.sqlite")
    joint = JointClassifier(
        student, away, Router("max_logit", 10.0), when_unavailable="queue", late=late
    )
    with Engine(joint, teacher_batch=2, teacher_workers=2) as engine:
        for _ in range(20):
            found = engine.ask(np.ones(4)).result(SECONDS).answer
            assert late.find(found.late, joint).waiting == (0, 1, 2, 3)
    late.close()


def test_a_teacher_that_hangs_does_not_keep_a_server_from_ending():
    hangs = Gate(teacher)
    engine = Engine(JointClassifier(student, hangs, Router("max_logit", 10.0)))
    engine.start()
    engine.ask(np.ones(1))
    assert hangs.entered.wait(SECONDS)
    began = time.monotonic()
    engine.stop(0.1)
    assert time.monotonic() - began < SECONDS
    hangs.open.set()


def test_stopping_answers_what_waits_and_takes_nothing_more():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    engine = Engine(joint)
    engine.start()
    tickets = [engine.ask(np.array([0.1])) for _ in range(3)]
    slow.open.set()
    engine.stop()
    assert all(said(ticket).answer.deferred[0] for ticket in tickets)
    with pytest.raises(Overloaded, match="stopping"):
        engine.ask(np.array([1.0]))


def test_regressors_are_served_alike():
    joint = JointRegressor(
        lambda x: np.stack([x, 0.1 * x], axis=1), lambda x: x + 1, Router("predicted_std", -0.2)
    )
    with Engine(joint) as engine:
        found = said(engine.ask(np.array([1.0, 5.0]))).answer
    assert found.prediction.tolist() == [1.0, 6.0]


def test_torch_models_are_served_too():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = torch.nn.Linear(3, 4)
    joint = JointClassifier(
        lambda x: net(torch.as_tensor(x)),
        lambda x: 2 * net(torch.as_tensor(x)),
        Router("margin", 0.3),
    )
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    with Engine(joint, student_batch=6) as engine:
        found = said(engine.ask(x)).answer
    np.testing.assert_array_equal(found.prediction, joint(x).prediction.numpy())


@pytest.mark.parametrize(
    "wrong", [{"student_batch": 0}, {"workers": 0}, {"max_wait_seconds": -1.0}]
)
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Engine(joint_of(), **wrong)


def test_a_full_batch_of_a_later_model_goes_before_new_rows():
    asked, gate = [], threading.Event()

    def watched(name, model):
        def of(x):
            asked.append((name, len(x)))
            assert gate.wait(SECONDS)
            return model(x)

        return of

    models = watched("student", student), watched("teacher", teacher)
    joint = JointClassifier(*models, Router("max_logit", 9.0))
    with Engine(joint, student_batch=8, teacher_batch=4, workers=1) as engine:
        engine.paces[1].row = 1e-6  # known to be short: no spare worker beside it
        first = engine.ask(np.array([0.5]))
        while not asked:
            time.sleep(0.001)
        more = [engine.ask(np.full(8, 0.5)) for _ in range(2)]
        gate.set()
        for ticket in (first, *more):
            assert said(ticket).answer.deferred.all()
    places = [place for place, one in enumerate(asked) if one == ("student", 8)]
    assert len(places) == 2
    for place in places:
        assert asked[place + 1 : place + 3] == [("teacher", 4)] * 2


def test_rows_that_a_model_fails_on_count_for_their_address():
    asked, gate = [], threading.Event()

    def fails_on_negatives(x):
        asked.append(float(x[0]))
        gate.wait(SECONDS)
        if x[0] < 0:
            raise ValueError("a negative number")
        return student(x)

    joint = JointClassifier(fails_on_negatives, teacher, Router("max_logit", -9.0))
    with Engine(joint, student_batch=1, workers=1) as engine:
        bad = [engine.ask(np.array([-1.0]), client="bad")]
        while not asked:
            time.sleep(0.001)
        time.sleep(0.3)  # of work, which fails
        good = [engine.ask(np.array([1.0]), client="good")]
        for _ in range(3):
            bad.append(engine.ask(np.array([-2.0]), client="bad"))
            good.append(engine.ask(np.array([2.0]), client="good"))
        gate.set()
        for future in good:
            assert not said(future).answer.deferred.any()
        for future in bad:
            with pytest.raises(ModelError, match="a negative number"):
                said(future)
    assert asked == [-1, 1, 2, 2, 2, -2, -2, -2]


def test_a_batch_as_full_as_its_pace_lets_it_be_is_not_waited_for():
    with Engine(joint_of(), max_wait_seconds=59.0) as engine:
        for rows in (1, 2, 3) * 20:
            engine.paces[0].add(rows, 0.01 * rows)
        assert engine.paces[0].most == pytest.approx(2)
        for _ in range(4):  # 8 rows at once: 32 seem to be soon
            found = engine.ask(np.array([9.0, 9.0]))
        assert not said(found).answer.deferred.any()
