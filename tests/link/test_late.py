"""Rows that the teacher could not answer are kept, and answered when it can, whatever happens."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import (
    Detections,
    JointClassifier,
    JointDetector,
    JointRegressor,
    LateAnswers,
    ModelError,
    OtherModel,
    Router,
    TeacherUnavailable,
)
from ebjr.data.preprocess import ImageFile
from ebjr.errors import EbjrError
from ebjr.link.late import TRIES
from ebjr.model import Answer


def student(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)[:, 0]
    return np.stack([x, -x, 0 * x], axis=1)


class Cloud:
    """A teacher that is there or not."""

    def __init__(self):
        self.here, self.batches = False, []

    def __call__(self, x):
        if not self.here:
            raise TeacherUnavailable("no cloud in the sky")
        self.batches.append(len(x))
        return -2 * student(x)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine's disk may take a while, and only some tests are about that."""
    monkeypatch.setattr("ebjr.link.late.PATIENCE_SECONDS", 20.0)


@pytest.fixture
def cloud():
    return Cloud()


@pytest.fixture
def late(tmp_path):
    opened = LateAnswers(tmp_path / "late.sqlite")
    yield opened
    opened.close()


def joint_of(teacher, late, **how):
    router = Router("max_logit", 2.0)
    return JointClassifier(student, teacher, router, when_unavailable="queue", late=late, **how)


def test_a_degraded_row_gets_the_teachers_answer_later(cloud, late):
    joint = joint_of(cloud, late)
    answer = joint(np.array([3.0, 1.0, 0.5]))
    assert answer.degraded.tolist() == [False, True, True]
    assert len(late) == 2
    assert late.find(answer.late, joint).waiting == (1, 2)
    assert late.deliver(joint) == 0
    cloud.here = True
    assert late.deliver(joint) == 2
    found = late.find(answer.late, joint)
    assert (found.rows.tolist(), found.waiting, found.errors) == ([1, 2], (), {})
    direct = joint(np.array([3.0, 1.0, 0.5]))
    np.testing.assert_array_equal(found.output, direct.output[1:])
    np.testing.assert_array_equal(found.prediction, direct.prediction[1:])
    assert direct.late is None
    assert late.find("another", joint) is None


def test_a_blend_is_mixed_into_a_late_answer_as_into_any(cloud, late):
    joint = joint_of(cloud, late, blend=0.5)
    answer = joint(np.array([1.0]))
    cloud.here = True
    late.deliver(joint)
    np.testing.assert_allclose(
        late.find(answer.late, joint).output, joint(np.array([1.0])).output, rtol=1e-12
    )


def test_what_waits_and_what_was_answered_outlive_the_process(cloud, tmp_path):
    path = tmp_path / "late.sqlite"
    first = LateAnswers(path)
    answers = [joint_of(cloud, first)(np.array([x])) for x in (0.25, 0.5)]
    first.close()
    second = LateAnswers(path)
    joint = joint_of(cloud, second)
    cloud.here = True
    assert second.deliver(joint, batch_size=1) == 2
    second.close()
    third = LateAnswers(path)
    for answer, x in zip(answers, (0.25, 0.5), strict=True):
        found = third.find(answer.late, joint)
        np.testing.assert_array_equal(found.output, -2 * student(np.array([x])))
    third.close()


KILLED = """
import sys, numpy as np
import ebjr.link.late
from ebjr import JointClassifier, LateAnswers, Router, TeacherUnavailable
ebjr.link.late.PATIENCE_SECONDS = 20.0
def away(x): raise TeacherUnavailable("gone")
joint = JointClassifier(lambda x: np.stack([x, -x, 0 * x], axis=1), away, Router("max_logit", 2.0),
                        when_unavailable="queue", late=LateAnswers(sys.argv[1]))
for number in range(100_000):
    print(joint(np.array([number / 1e6, 0.5])).late, flush=True)
"""


def test_every_row_that_was_said_to_be_kept_survives_a_sigkill(cloud, tmp_path):
    path = tmp_path / "late.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    ids = [process.stdout.readline().strip() for _ in range(40)]
    os.kill(process.pid, signal.SIGKILL)
    ids += [line.strip() for line in process.communicate()[0].splitlines() if len(line) >= 32]
    late = LateAnswers(path)
    joint = joint_of(cloud, late)
    assert all(late.find(id, joint).waiting == (0, 1) for id in ids)
    cloud.here = True
    assert late.deliver(joint) >= 2 * len(ids)
    for number, id in enumerate(ids):
        expected = -2 * student(np.array([number / 1e6, 0.5]))
        np.testing.assert_array_equal(late.find(id, joint).output, expected)
    late.close()


def test_the_callback_hears_of_every_answer_even_after_a_crash(cloud, tmp_path):
    heard, path = [], tmp_path / "late.sqlite"

    def crash(found):
        raise KeyboardInterrupt

    late = LateAnswers(path, callback=crash)
    answer = joint_of(cloud, late)(np.array([0.5, 0.25]))
    cloud.here = True
    with pytest.raises(KeyboardInterrupt):
        late.deliver(joint_of(cloud, late))
    late.close()
    late = LateAnswers(path, callback=heard.append)
    late.deliver(joint_of(cloud, late))
    late.deliver(joint_of(cloud, late))
    late.close()
    assert [(found.id, found.rows.tolist()) for found in heard] == [
        (answer.late, [0]),
        (answer.late, [1]),
    ]
    np.testing.assert_array_equal(heard[0].output, -2 * student(np.array([0.5])))


def test_a_callback_that_is_down_holds_up_neither_the_teacher_nor_other_answers(cloud, tmp_path):
    down, heard = [0.5], []

    def callback(found):
        if found.output[0, 0] == -2 * down[0]:
            raise OSError("nobody listens")
        heard.append(found.id)

    late = LateAnswers(tmp_path / "late.sqlite", callback=callback, keep_seconds=0)
    joint = joint_of(cloud, late)
    answers = [joint(np.array([value])) for value in (0.5, 0.25, 0.75)]
    cloud.here = True
    assert late.deliver(joint, batch_size=1) == 3
    late.deliver(joint)
    assert heard == [answer.late for answer in answers[1:]]
    for _ in range(3):  # what it has not heard of is not forgotten
        late.deliver(joint)
    down[0] = 7.0
    late.deliver(joint)
    late.deliver(joint)
    assert heard == [answers[1].late, answers[2].late, answers[0].late]
    late.close()


def test_a_failure_that_goes_on_is_logged_once(tmp_path, cloud, caplog):
    def callback(found):
        raise OSError("nobody listens")

    late = LateAnswers(tmp_path / "late.sqlite", callback=callback)
    joint = joint_of(cloud, late)
    joint(np.array([0.5, 0.25]))
    cloud.here = True
    for _ in range(5):
        late.deliver(joint)
    late.close()
    assert caplog.text.count("the callback failed on a late answer") == 1


def test_rows_wait_while_another_model_answers_in_the_teachers_place(late):
    error = TeacherUnavailable("away")

    def teacher(x):
        if error is not None:
            raise error
        return -2 * student(x)

    joint = joint_of(teacher, late)
    answer = joint(np.array([0.5, 0.25]))
    error = OtherModel("it is another model than it was")
    assert late.deliver(joint) == 0
    assert late.find(answer.late, joint).waiting == (0, 1)
    error = None
    assert late.deliver(joint) == 2


def test_a_row_that_cannot_be_read_does_not_hold_up_the_others(cloud, late, tmp_path):
    joint = joint_of(cloud, late)
    answer = joint(np.array([0.5, 0.25, 0.75]))
    with sqlite3.connect(tmp_path / "late.sqlite") as file:
        file.execute("UPDATE rows SET student = x'00' WHERE row = 1")
    cloud.here = True
    assert late.deliver(joint) == 3
    found = late.find(answer.late, joint)
    assert found.rows.tolist() == [0, 2]
    assert list(found.errors) == [1]


def test_inputs_that_are_refused_do_not_hold_up_the_others(late):
    def picky(x):
        if not late_now:
            raise TeacherUnavailable("not yet")
        if (x == 0.5).any():
            raise ModelError("no halves")
        return -2 * student(x)

    late_now = False
    joint = joint_of(picky, late)
    answer = joint(np.array([0.25, 0.5, 0.75]))
    late_now = True
    assert late.deliver(joint) == 3
    found = late.find(answer.late, joint)
    assert found.rows.tolist() == [0, 2]
    assert found.errors == {1: "no halves"}


def test_rows_that_a_limited_teacher_leaves_go_on_waiting(late):
    granted = [0]

    def limited(x):
        if not granted[0]:
            raise TeacherUnavailable("no more just now")
        some = min(granted[0], len(x))
        return Answer(-2 * student(x[:some]), None, np.arange(len(x)) < some)

    joint = joint_of(limited, late)
    answer = joint(np.array([0.1, 0.2, 0.3, 0.4]))
    granted[0] = 3
    assert late.deliver(joint, batch_size=4) == 4
    assert late.find(answer.late, joint).rows.tolist() == [0, 1, 2, 3]


def test_a_thread_delivers_by_itself(cloud, late):
    joint = joint_of(cloud, late)
    told = threading.Event()
    late.callback = lambda found: told.set()
    late.start(joint, every_seconds=0.01)
    joint(np.array([0.5]))
    cloud.here = True
    assert told.wait(10)
    late.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "ebjr-late"]


def test_answers_that_nobody_came_for_are_forgotten(cloud, tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite", keep_seconds=0)
    joint = joint_of(cloud, late)
    answers = [joint(np.array([0.5])), joint(np.array([0.25]))]
    late.deliver(joint)
    assert late.find(answers[0].late, joint).waiting == (0,)  # what waits is never forgotten
    cloud.here = True
    late.deliver(joint)
    late.deliver(joint)
    assert late.find(answers[0].late, joint) is None
    late.close()


def test_a_full_file_keeps_no_more_and_fails_no_answer(cloud, tmp_path, caplog):
    late = LateAnswers(tmp_path / "late.sqlite", most_bytes=2**16)
    joint = joint_of(cloud, late)
    rng = np.random.default_rng(0)
    answers = [joint(rng.normal(0, 0.1, (4, 500))) for _ in range(12)]
    assert all(answer.degraded.all() for answer in answers)
    kept = [answer for answer in answers if answer.late is not None]
    assert 0 < len(kept) < len(answers)
    assert "could not be kept for later" in caplog.text
    cloud.here = True
    assert late.deliver(joint) == 4 * len(kept)
    assert joint(rng.normal(0, 0.1, (4, 500))).late is None
    late.close()


@settings(max_examples=10)  # each waits for the disk
@given(
    st.lists(
        st.tuples(
            st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_]),
            st.lists(st.integers(1, 4), min_size=0, max_size=3),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_inputs_of_every_type_and_shape_come_back_as_they_were(tmp_path_factory, forms):
    late = LateAnswers(tmp_path_factory.mktemp("late") / "late.sqlite")
    cloud, seen = Cloud(), []

    def teacher(x):
        output = cloud(x)
        seen.extend(np.asarray(row) for row in x)
        return output

    joint = joint_of(teacher, late)
    sent = []
    for dtype, shape, listed in forms:
        rows = np.zeros((2, *shape), dtype)
        rows[1] = 1
        sent.extend(rows)
        joint(list(rows) if listed else rows)
    cloud.here = True
    assert late.deliver(joint) == len(sent)
    late.close()
    key = lambda array: (array.dtype.str, array.shape, array.tobytes())  # noqa: E731
    assert sorted(map(key, seen)) == sorted(map(key, sent))


@contextmanager
def locked(path):
    """Another process, a backup or a database shell, holds the file."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.rollback()
        other.close()


def test_a_locked_file_holds_up_no_answer_and_rows_are_kept_again_when_it_is_free(
    cloud, late, monkeypatch
):
    joint = joint_of(cloud, late)
    first = joint(np.array([0.5]))
    with locked(late.path), monkeypatch.context() as patch:
        patch.setattr("ebjr.link.late.PATIENCE_SECONDS", 0.5)
        began = time.monotonic()
        missed = joint(np.array([0.25]))
        assert 0.4 < time.monotonic() - began < 1.5
        began = time.monotonic()
        for _ in range(20):  # the next ones do not wait at all
            answer = joint(np.array([0.75]))
            assert (answer.degraded.tolist(), answer.late) == ([True], None)
        assert len(late) == 1
        assert late.find(first.late, joint).waiting == (0,)  # who writes keeps nobody from reading
        assert time.monotonic() - began < 1
    assert missed.late is None
    until = time.monotonic() + 10
    while (again := joint(np.array([0.125]))).late is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len(late) == 2
    cloud.here = True
    assert late.deliver(joint) == 2  # what was said not to be kept never shows
    assert late.find(again.late, joint).rows.tolist() == [0]
    assert len(late) == 0


def test_a_file_that_cannot_be_read_says_so_soon(cloud, late):
    joint = joint_of(cloud, late)
    answer = joint(np.array([0.5]))
    with sqlite3.connect(late.path) as other:
        other.execute("DROP INDEX waiting")
        other.execute("ALTER TABLE rows RENAME TO other")
    began = time.monotonic()
    with pytest.raises(EbjrError, match=r"late.sqlite cannot be read now: no such table"):
        late.find(answer.late, joint)
    assert time.monotonic() - began < 2
    other.close()


def test_a_locked_file_is_no_reason_to_ask_the_teacher_in_vain(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr("ebjr.link.late.WRITE_SECONDS", 0.2)
    late = LateAnswers(tmp_path / "late.sqlite")
    joint = joint_of(cloud, late)
    joint(np.array([0.5]))
    cloud.here = True
    with locked(late.path), pytest.raises(sqlite3.OperationalError, match="locked"):
        late.deliver(joint)
    assert cloud.batches == []
    assert late.deliver(joint) == 1
    late.close()


def test_many_threads_keep_rows_at_once_and_the_count_is_right(cloud, late):
    joint, ids = joint_of(cloud, late), []

    def ask(seed):
        for value in np.random.default_rng(seed).uniform(0, 1, 10):
            ids.append(joint(np.array([value, value])).late)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 80
    assert len(late) == 160
    assert all(late.find(id, joint).waiting == (0, 1) for id in ids)
    late.close()
    again = LateAnswers(late.path)
    assert len(again) == 160
    cloud.here = True
    assert again.deliver(joint) == 160
    assert len(again) == 0
    again.close()


def test_rows_that_the_teacher_answers_with_nonsense_are_given_up_and_hold_up_no_others(late):
    calls = []

    def teacher(x):
        if not here:
            raise TeacherUnavailable("not yet")
        calls.append(len(x))
        output = -2 * student(x)
        output[x == 0.5] = np.nan
        if (x == 0.25).any():
            raise ZeroDivisionError("a quarter")
        return output

    here = False
    joint = joint_of(teacher, late)
    answer = joint(np.array([0.5, 0.25, 0.75]))
    here = True
    for _ in range(TRIES):
        late.deliver(joint)
    found = late.find(answer.late, joint)
    assert (found.rows.tolist(), found.waiting) == ([2], ())
    assert found.errors == {
        0: "teacher returned NaN or infinity in 1 of 1 rows",
        1: "teacher failed with ZeroDivisionError: a quarter",
    }
    assert len(late) == 0
    asked = len(calls)
    late.deliver(joint)
    assert len(calls) == asked


def test_a_teacher_that_fails_for_a_while_loses_no_row(late):
    def teacher(x):
        if not here:
            raise TeacherUnavailable("not yet")
        return -2 * student(x) * (np.nan if broken else 1)

    here, broken = False, True
    joint = joint_of(teacher, late)
    answer = joint(np.array([0.5, 0.25]))
    here = True
    assert [late.deliver(joint) for _ in range(3)] == [0, 0, 0]
    broken = False
    assert late.deliver(joint) == 2
    assert late.find(answer.late, joint).errors == {}


@pytest.mark.parametrize("now", [0.0, 4e9])
def test_a_clock_that_is_set_deletes_no_answer_and_keeps_none_too_long(cloud, tmp_path, now):
    path, clock = tmp_path / "late.sqlite", pytest.MonkeyPatch()
    late = LateAnswers(path, keep_seconds=0.5)
    joint = joint_of(cloud, late)
    answer = joint(np.array([0.5]))
    cloud.here = True
    late.deliver(joint)
    with clock.context() as patch:
        patch.setattr(time, "time", lambda: now)
        late.deliver(joint)
        assert late.find(answer.late, joint).rows.tolist() == [0]
        time.sleep(0.6)
        late.deliver(joint)
        assert late.find(answer.late, joint) is None
    late.close()


def test_time_goes_on_where_it_was_when_the_file_is_opened_again(cloud, tmp_path):
    path = tmp_path / "late.sqlite"
    late = LateAnswers(path, keep_seconds=1000)
    joint = joint_of(cloud, late)
    old = joint(np.array([0.5]))
    cloud.here = True
    late.deliver(joint)
    late._ahead += 700  # as if it had been open for so long
    cloud.here = False
    new = joint(np.array([0.25]))
    late.close()
    late = LateAnswers(path, keep_seconds=1000)
    cloud.here = True
    late.deliver(joint)
    assert late.find(old.late, joint).rows.tolist() == [0]
    late._ahead += 310
    late.deliver(joint)
    assert late.find(old.late, joint) is None
    assert late.find(new.late, joint).rows.tolist() == [0]
    late.close()


def test_a_file_that_went_by_the_clock_is_read_on(cloud, tmp_path):
    path = tmp_path / "late.sqlite"
    late = LateAnswers(path)
    joint = joint_of(cloud, late)
    done = joint(np.array([0.5]))
    cloud.here = True
    late.deliver(joint)
    cloud.here = False
    waiting = joint(np.array([0.25]))
    late.close()
    with sqlite3.connect(path) as old:  # what an earlier version left
        old.execute("UPDATE rows SET changed = 1.7e9 + row")
    old.close()
    late = LateAnswers(path, keep_seconds=100)
    assert len(late) == 1
    cloud.here = True
    assert late.deliver(joint) == 1
    for answer in (done, waiting):
        assert late.find(answer.late, joint).rows.tolist() == [0]
    late._ahead += 101
    late.deliver(joint)
    assert late.find(done.late, joint) is None
    late.close()


def test_an_image_stays_the_file_that_it_came_as(cloud, late):
    import io

    from PIL import Image

    pixels = np.zeros((4, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    seen = []

    def teacher(x):
        output = cloud(x)
        seen.extend(x)
        return output

    joint = joint_of(teacher, late)
    joint([ImageFile.of(pixels, buffer.getvalue())])
    cloud.here = True
    late.deliver(joint)
    assert seen[0].file == buffer.getvalue()
    np.testing.assert_array_equal(seen[0], pixels)


def test_regressors_and_detectors_have_late_answers_too(cloud, late, tmp_path):
    answers = {"there": False}

    def far(model):
        def teacher(x):
            if not answers["there"]:
                raise TeacherUnavailable("away")
            return model(x)

        return teacher

    def detector(sure):
        return lambda images: [
            Detections.of_scores([[0, 0, 4, 4]], [sure], (8, 8), labels=[0], classes=1)
            for _ in images
        ]

    policy = {"when_unavailable": "queue", "late": late}
    regressor = JointRegressor(
        lambda x: np.stack([x, 0.1 * x], axis=1),
        far(lambda x: x + 1),
        Router("predicted_std", -0.2),
        **policy,
    )
    number = regressor(np.array([1.0, 5.0]))
    answers["there"] = True
    late.deliver(regressor)
    assert late.find(number.late, regressor).prediction.tolist() == [6.0]
    answers["there"] = False
    boxes = JointDetector(
        detector(0.4), far(detector(0.9)), Router("max_confidence", 0.5), **policy
    )
    found = boxes([np.zeros((8, 8, 3), np.uint8)])
    answers["there"] = True
    late.deliver(boxes)
    assert late.find(found.late, boxes).prediction[0].scores == pytest.approx([0.9])


def test_a_file_of_another_program_is_left_as_it_is(tmp_path):
    path = tmp_path / "notes.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match="cannot keep rows for later: it belongs to another program"
    ):
        LateAnswers(path)
    assert path.read_bytes() == before
    (tmp_path / "text.txt").write_text("not a database, but long enough to look like one" * 100)
    with pytest.raises(ValueError, match="cannot keep rows for later"):
        LateAnswers(tmp_path / "text.txt")


def test_the_policy_and_the_file_go_together(late):
    for how in ({"when_unavailable": "queue"}, {"late": late}):
        with pytest.raises(ValueError, match="go together"):
            JointClassifier(student, student, Router("max_logit", 2.0), **how)


@pytest.mark.parametrize("rows", [["no", "yes"], np.array([["no", "a"], ["yes", "b"]], object)])
def test_texts_wait_for_a_teacher_as_texts(tmp_path, rows):
    away, asked = [True], []

    def unsure(batch):
        return np.zeros((len(batch), 2))

    def teacher(batch):
        if away:
            raise TeacherUnavailable("away")
        asked.append(batch)
        return np.array([[0.0, "yes" in np.ravel(row)] for row in batch], float)

    with closing(LateAnswers(tmp_path / "late.sqlite")) as late:
        how = {"when_unavailable": "queue", "late": late}
        joint = JointClassifier(unsure, teacher, Router("softmax", 0.9), **how)
        id = joint(rows).late
        away.clear()
        late.deliver(joint)
        found = late.find(id, joint)
    assert found.prediction.tolist() == [0, 1]
    assert type(asked[0]) is type(rows)
    assert np.array_equal(np.array(asked[0], object), np.array(rows, object))
