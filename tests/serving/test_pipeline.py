"""Many callers at once get what the joint model says to each alone."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr import (
    JointClassifier,
    JointRegressor,
    LateAnswers,
    ModelError,
    Router,
    TeacherUnavailable,
)
from ebjr.errors import Overloaded
from ebjr.serving.events import Failed, Observer, Scored
from ebjr.serving.pipeline import Pipeline

SECONDS = 30


def student(x):
    return np.stack([x, -x, 0 * x], axis=1)


def teacher(x):
    return np.stack([-x, 0 * x, 3 * x], axis=1)


def joint_of(teacher=teacher, threshold=0.5, **how) -> JointClassifier:
    return JointClassifier(student, teacher, Router("max_logit", threshold), **how)


def said(ticket):
    return ticket.future.result(SECONDS)


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


@given(
    st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(1, 7),
    st.integers(1, 7),
    st.sampled_from([0.0, 0.5]),
)
def test_every_request_gets_what_the_joint_model_says_of_it_alone(requests, small, large, blend):
    joint = joint_of(blend=blend)
    inputs = [np.array(request, np.float64) for request in requests]
    with Pipeline(joint, student_batch=small, teacher_batch=large) as pipeline:
        tickets = [pipeline.submit(x) for x in inputs]
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
    with Pipeline(joint, student_batch=8) as pipeline:
        first = pipeline.submit(np.array([1.0]))
        assert slow.entered.wait(SECONDS)
        others = [pipeline.submit(np.array([2.0, 3.0])) for _ in range(5)]
        slow.open.set()
        for ticket in [first, *others]:
            said(ticket)
    assert slow.batches == [1, 8, 2]


def test_deferred_rows_of_many_student_batches_become_one_teacher_batch():
    slow = Gate(teacher)
    with Pipeline(joint_of(slow), student_batch=2, teacher_batch=16) as pipeline:
        tickets = [pipeline.submit(np.array([0.1]))]
        assert slow.entered.wait(SECONDS)
        tickets += [pipeline.submit(np.array([0.1, 5.0])) for _ in range(6)]
        while pipeline.waiting()["teacher"] < 6:
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
        with Pipeline(joint, student_batch=4) as pipeline:
            for _ in range(300):
                tickets = [pipeline.submit(np.linspace(-3, 3, n)) for n in (1, 3, 11)]
                for ticket in tickets:
                    found = said(ticket)
                    late = ~(found.answer.score >= found.threshold)
                    np.testing.assert_array_equal(found.answer.deferred, late)
    finally:
        moving.set()
        mover.join()


def test_a_request_may_bring_its_own_threshold():
    with Pipeline(joint_of(threshold=0.5)) as pipeline:
        one, other = (pipeline.submit(np.array([2.0]), threshold=t) for t in (None, 3.0))
        assert not said(one).answer.deferred[0]
        assert said(other).answer.deferred[0]
        assert said(other).threshold == 3.0


def test_beyond_the_queue_a_request_is_refused_and_told_when_to_come_again():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Pipeline(joint, queue_rows=4) as pipeline:
        tickets = [pipeline.submit(np.array([1.0]))]
        assert slow.entered.wait(SECONDS)
        tickets.append(pipeline.submit(np.ones(3)))
        with pytest.raises(Overloaded, match="3 rows are waiting already") as refused:
            pipeline.submit(np.ones(2))
        assert refused.value.retry_after_seconds > 0
        tickets.append(pipeline.submit(np.ones(1)))
        slow.open.set()
        for ticket in tickets:
            said(ticket)


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits():
    with Pipeline(joint_of(), queue_rows=4, student_batch=3) as pipeline:
        assert len(said(pipeline.submit(np.ones(10))).answer.prediction) == 10


def test_a_hurried_request_keeps_the_students_answer_and_marks_it():
    slow = Gate(teacher)
    with Pipeline(joint_of(slow)) as pipeline:
        ticket = pipeline.submit(np.array([0.1, 5.0]))
        assert slow.entered.wait(SECONDS)
        assert ticket.hurry()
        found = said(ticket).answer
        slow.open.set()
    assert found.degraded.tolist() == [True, False]
    assert not found.deferred.any()
    np.testing.assert_array_equal(found.output, student(np.array([0.1, 5.0])))


def test_a_request_that_the_student_has_not_seen_cannot_be_hurried():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Pipeline(joint) as pipeline:
        ticket = pipeline.submit(np.array([1.0]))
        assert slow.entered.wait(SECONDS)
        assert not ticket.hurry()
        slow.open.set()
        said(ticket)


def test_a_cancelled_request_frees_its_rows():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    with Pipeline(joint) as pipeline:
        first = pipeline.submit(np.array([1.0]))
        assert slow.entered.wait(SECONDS)
        gone, stays = pipeline.submit(np.ones(5)), pipeline.submit(np.ones(2))
        assert gone.future.cancel()
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
    with Pipeline(joint_of(teacher)) as pipeline:
        found = said(pipeline.submit(np.array([0.1, 5.0]))).answer
        again = said(pipeline.submit(np.array([5.0]))).answer
    assert found.degraded.tolist() == [True, False]
    assert not again.degraded.any()


def test_the_error_policy_fails_the_requests_that_needed_the_teacher_and_no_others():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    with Pipeline(joint_of(away, when_unavailable="error")) as pipeline:
        tickets = [pipeline.submit(np.array([x])) for x in (0.1, 5.0)]
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
    with Pipeline(joint, observer=Listener()) as pipeline:
        with pytest.raises(ModelError, match="the student failed on a batch: RuntimeError: no neg"):
            said(pipeline.submit(np.array([-1.0])))
        assert said(pipeline.submit(np.array([2.0]))).answer.prediction.tolist() == [0]
    assert heard == [("student", "no negatives")]


def test_inputs_of_different_shapes_do_not_meet_in_a_batch():
    wide = lambda x: np.stack([x.sum(axis=tuple(range(1, x.ndim))), np.ones(len(x))], axis=1)  # noqa: E731
    joint = JointClassifier(wide, wide, Router("max_logit", 0.5))
    with Pipeline(joint) as pipeline:
        tickets = [pipeline.submit(np.ones((2, k))) for k in (1, 2, 3, 2, 1)]
        sums = [said(ticket).answer.output[:, 0].tolist() for ticket in tickets]
    assert sums == [[1, 1], [2, 2], [3, 3], [2, 2], [1, 1]]


def test_rows_that_wait_for_the_teacher_are_bounded_too():
    slow = Gate(teacher)
    joint = JointClassifier(student, slow, Router("max_logit", 10.0))
    with Pipeline(joint, queue_rows=4, teacher_batch=1) as pipeline:
        tickets = [pipeline.submit(np.array([1.0]))]
        assert slow.entered.wait(SECONDS)
        tickets += [pipeline.submit(np.ones(1)) for _ in range(4)]
        while pipeline.waiting()["teacher"] < 4:
            time.sleep(0.001)
        with pytest.raises(Overloaded, match="4 rows are waiting already for the teacher"):
            pipeline.submit(np.ones(1))
        assert tickets[-1].hurry()  # nobody waits for what was answered
        tickets.append(pipeline.submit(np.ones(1)))
        slow.open.set()
        answers = [ticket.future.result(SECONDS).answer for ticket in tickets]
    assert [bool(answer.degraded[0]) for answer in answers] == [False] * 4 + [True, False]


def test_whatever_fails_beside_the_models_fails_its_batch_and_the_pipeline_goes_on():
    class Deaf(Observer):
        broken = True

        def observe(self, event):
            if self.broken and isinstance(event, Scored):
                raise RuntimeError("no ears")

    deaf = Deaf()
    joint = JointClassifier(student, teacher, Router("max_logit", 0.5))
    with Pipeline(joint, observer=deaf) as pipeline:
        with pytest.raises(ModelError, match="no ears"):
            pipeline.submit(np.ones(1)).future.result(SECONDS)
        deaf.broken = False
        assert len(pipeline.submit(np.ones(2)).future.result(SECONDS).answer.score) == 2


def test_all_late_rows_of_a_request_are_kept_under_its_one_id(tmp_path):
    both = threading.Barrier(2)

    def away(x):
        both.wait(SECONDS)  # two batches of one request fail at once
        raise TeacherUnavailable("no cloud in the sky")

    late = LateAnswers(tmp_path / "late.sqlite")
    joint = JointClassifier(
        student, away, Router("max_logit", 10.0), when_unavailable="queue", late=late
    )
    with Pipeline(joint, teacher_batch=2, teacher_workers=2) as pipeline:
        for _ in range(20):
            found = pipeline.submit(np.ones(4)).future.result(SECONDS).answer
            assert late.find(found.late, joint).waiting == (0, 1, 2, 3)
    late.close()


def test_a_teacher_that_hangs_does_not_keep_a_server_from_ending():
    hangs = Gate(teacher)
    pipeline = Pipeline(JointClassifier(student, hangs, Router("max_logit", 10.0)))
    pipeline.start()
    pipeline.submit(np.ones(1))
    assert hangs.entered.wait(SECONDS)
    began = time.monotonic()
    pipeline.stop(0.1)
    assert time.monotonic() - began < SECONDS
    hangs.open.set()


def test_stopping_answers_what_waits_and_takes_nothing_more():
    slow = Gate(student)
    joint = JointClassifier(slow, teacher, Router("max_logit", 0.5))
    pipeline = Pipeline(joint)
    pipeline.start()
    tickets = [pipeline.submit(np.array([0.1])) for _ in range(3)]
    slow.open.set()
    pipeline.stop()
    assert all(said(ticket).answer.deferred[0] for ticket in tickets)
    with pytest.raises(Overloaded, match="stopping"):
        pipeline.submit(np.array([1.0]))


def test_regressors_are_served_alike():
    joint = JointRegressor(
        lambda x: np.stack([x, 0.1 * x], axis=1), lambda x: x + 1, Router("predicted_std", -0.2)
    )
    with Pipeline(joint) as pipeline:
        found = said(pipeline.submit(np.array([1.0, 5.0]))).answer
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
    with Pipeline(joint, student_batch=6) as pipeline:
        found = said(pipeline.submit(x)).answer
    np.testing.assert_array_equal(found.prediction, joint(x).prediction.numpy())


@pytest.mark.parametrize(
    "wrong", [{"student_batch": 0}, {"queue_rows": 0}, {"max_wait_seconds": -1.0}]
)
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pipeline(joint_of(), **wrong)
