"""Recording through errors and kills: what was recorded is kept, and no example is asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from boxes import random_scene
from tiny import SIZE, write_images, write_linear, write_pair

import ebjr
from ebjr import Outcomes, RecordingNote, record, record_batches
from ebjr.data.open import open_data
from ebjr.journal import Journal

RNG = np.random.default_rng(3)
INPUTS = RNG.normal(size=(40, 3))


class Dies:
    """A model that fails after a number of batches, and counts the rows that it is asked about."""

    def __init__(self, answer, batches=10**9, error=RuntimeError):
        self.answer, self.left, self.error, self.rows = answer, batches, error, 0
        self.name = "same"

    def __call__(self, batch):
        if self.left == 0:
            raise self.error("out of order")
        self.left -= 1
        self.rows += len(batch)
        return self.answer(batch)


def kept(output, *models_and_data, **about):
    """Record with a journal, which stays where the run is not done."""
    with Journal(output) as journal:
        found = record(*models_and_data, keep=journal, **about)
        journal.remove()
        return found


def same(ours: Outcomes, theirs: Outcomes) -> None:
    assert ours.fingerprint == theirs.fingerprint
    assert ours.kind.equal(ours.targets, theirs.targets)
    assert np.asarray(ours.student).dtype == np.asarray(theirs.student).dtype
    assert (ours.labeled, ours.labels, ours.metric) == (
        theirs.labeled,
        theirs.labels,
        theirs.metric,
    )


def detections(seed):
    truth, found = random_scene(np.random.default_rng(seed), 40)
    return truth, lambda batch: [found[int(row[0])] for row in batch]


TRUTH, FOUND = detections(1)
NUMBERED = np.stack([np.arange(40.0), np.arange(40.0)], axis=1)
TASKS = {
    "classification": (INPUTS, RNG.integers(0, 3, 40), lambda x: 2 * x),
    "multilabel": (INPUTS, RNG.integers(0, 2, (40, 3)), lambda x: 2 * x),
    "regression": (INPUTS, RNG.normal(size=40), lambda x: x[:, 0]),
    "detection": (NUMBERED, TRUTH, FOUND),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
def test_every_task_goes_on_where_it_stopped(tmp_path, task, batches, error):
    inputs, targets, answer = TASKS[task]
    whole = record(answer, answer, inputs, targets, task=task)
    student, output = Dies(answer), tmp_path / "o.npz"
    with pytest.raises(error, match="out of order"):
        kept(
            output,
            *(student, Dies(answer, batches, error), inputs, targets),
            **{"task": task, "batch_size": 7},
        )
    again, counts = Dies(answer), []
    done = kept(
        output,
        again,
        Dies(answer),
        inputs,
        targets,
        task=task,
        batch_size=5,
        progress=counts.append,
    )
    same(done, whole)
    assert again.rows == 5 + 40 - 7 * batches  # the first batch is compared anew
    assert sum(counts) == 40
    assert not list(tmp_path.iterdir())


def test_what_was_taken_up_is_said(tmp_path):
    words = (INPUTS, INPUTS.argmax(1))
    with pytest.raises(RuntimeError) as caught:
        kept(tmp_path / "o", Dies(np.asarray, 2), Dies(np.asarray), *words, batch_size=8)
    assert caught.value.__notes__[0].startswith("the finished part is in ")
    with pytest.warns(RecordingNote, match="resuming after 16 examples that an earlier run record"):
        kept(tmp_path / "o", Dies(np.asarray), Dies(np.asarray), *words)


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
def test_the_costs_are_those_of_all_examples(tmp_path):
    def slow(batch):
        time.sleep(0.03)
        return batch

    class Far(Dies):
        bytes_moved = 0

        def __call__(self, batch):
            self.bytes_moved += 100 * len(batch)
            return super().__call__(batch)

    words = (INPUTS, [0] * 40)
    with pytest.raises(RuntimeError):
        kept(tmp_path / "o", Dies(slow, 4), Far(np.asarray), *words, batch_size=8)
    done = kept(tmp_path / "o", Dies(np.asarray), Far(np.asarray), *words, batch_size=8)
    assert done.student_cost.seconds >= 4 * 0.03 / 40
    assert done.teacher_cost.bytes == 100


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"inputs": INPUTS[::-1]}, "over data that have changed since"),
        ({"targets": [1] * 40}, "over data that have changed since"),
        ({"task": "specialized", "known_classes": [0, 1]}, "task 'classification', now 'speciali"),
        ({"teacher": lambda x: x}, r"teacher name 'same', now '<lambda>'"),
    ],
)
def test_another_recording_is_not_gone_on_with(tmp_path, changed, says):
    words = {"inputs": INPUTS, "targets": [0] * 40, "batch_size": 8}
    with pytest.raises(RuntimeError):
        kept(tmp_path / "o", Dies(np.asarray, 2), Dies(np.asarray), **words)
    left = (tmp_path / "o.part").read_bytes()
    models = {"student": Dies(np.asarray), "teacher": Dies(np.asarray)}
    with pytest.raises(ValueError, match=f"{says}.*--restart"):
        kept(tmp_path / "o", **{**models, **words, **changed})
    assert (tmp_path / "o.part").read_bytes() == left
    assert models["student"].rows == 0


def test_a_stream_cannot_be_gone_on_with(tmp_path):
    with (
        Journal(tmp_path / "o") as journal,
        pytest.raises(ValueError, match="keep= is for data and arrays: a stream cannot"),
    ):
        record_batches(np.asarray, np.asarray, [(INPUTS, [0] * 40)], keep=journal)


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """A folder with a pair, its images, of which three are none, and the models loaded."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    monkeypatch.chdir(tmp_path)
    for name in ("blue/0000.png", "green/0016.png", "red/0047.png"):
        (write_images(Path("images"), 48) / name).write_bytes(b"")
    for name in ("blue/0000.png", "green/0016.png"):
        Path("images", name).write_bytes(b"")
    write_pair(Path())
    return [ebjr.load_model("student.onnx"), ebjr.load_model("teacher.onnx")]


RECORD = ["record", "--student", "student.onnx", "--teacher", "teacher.onnx", "--data"]


class Stops(Exception):
    pass


def stop_after(rows):
    """Progress that interrupts a run."""
    done = 0

    def count(added):
        nonlocal done
        done += added
        if done >= rows:
            raise Stops

    return count


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
@pytest.mark.parametrize("rows", [1, 20, 45])
def test_examples_that_could_not_be_read_count_as_read(pair, rows):
    whole = record(*pair, open_data("images"))
    with pytest.raises(Stops):
        kept("o.npz", *pair, open_data("images"), batch_size=5, progress=stop_after(rows))
    data = open_data("images")
    same(kept("o.npz", *pair, data, batch_size=9), whole)
    names = ["blue/0000.png", "green/0016.png", "red/0047.png"]
    assert [name for name, _ in data.unreadable] == names


def test_another_model_under_the_same_name_is_refused(pair):
    write_linear(Path("teacher.onnx"), np.eye(3))
    with pytest.raises(Stops), pytest.warns(RecordingNote):
        kept("o.npz", *pair, open_data("images"), batch_size=5, progress=stop_after(10))
    write_linear(Path("teacher.onnx"), 2 * np.eye(3))
    with (
        pytest.raises(ValueError, match=r"other settings \(teacher sha256 '[0-9a-f]{64}', now '"),
        pytest.warns(RecordingNote),
    ):
        kept("o.npz", *pair, open_data("images"))


@pytest.mark.parametrize("looks", [[], ["--look", "mirror"]])
def test_a_killed_record_goes_on_where_it_was(run, tmp_path, looks):
    """SIGKILL, at whatever it is doing, and again: the outcomes are those of a run left alone."""
    inputs = RNG.random((3_000, 3, SIZE, SIZE), np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=RNG.integers(0, 3, 3_000))
    write_pair(tmp_path)
    words = [*RECORD, "data.npz", *looks, "--json", "-o"]
    assert run(*words, "whole.npz")[0] == 0
    journal, size = tmp_path / "o.npz.part", 0
    for _ in range(2):
        ebjr = [sys.executable, "-m", "ebjr", *words, "o.npz", "--batch-size", "1"]
        process = subprocess.Popen(ebjr, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not journal.is_file() or journal.stat().st_size <= size + 9000:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        size = journal.stat().st_size
    assert not (tmp_path / "o.npz").exists()
    code, printed, error = run(*words, "o.npz")
    assert code == 0, error
    assert "examples that an earlier run recorded" in error
    assert json.loads(printed)["examples"] == 3_000
    ours, theirs = Outcomes.load("o.npz"), Outcomes.load("whole.npz")
    assert len(ours.roles) == 2 + len(looks) // 2
    for role in ours.roles:
        np.testing.assert_allclose(ours.said_by(role), theirs.said_by(role), atol=1e-5)
    np.testing.assert_array_equal(ours.targets, theirs.targets)
    assert not journal.exists()


def test_record_begins_anew_where_it_is_told_to(pair, run):
    words = [*RECORD, "images", "-o", "o.npz"]
    with pytest.raises(Stops), pytest.warns(RecordingNote):
        kept("o.npz", *pair, open_data("images"), batch_size=5, progress=stop_after(10))
    size = ("--student-preprocess", "size=8,resize=crop")
    code, _, error = run(*words, *size)
    assert code == 2
    assert "o.npz.part is of an interrupted run with other settings (" in error
    assert "student preprocess {'size': 8}, now {'size': 8, 'resize': 'crop'}" in error
    code, _, error = run(*words, "--restart")
    assert code == 0, error
    assert "earlier run" not in error
    assert len(Outcomes.load("o.npz")) == 45


def test_outcomes_that_cannot_be_saved_are_recorded_once(pair, run):
    """A half precision that the outputs exceed shows at the end, and costs no second run."""
    write_linear(Path("teacher.onnx"), 1e6 * np.eye(3))
    words = [*RECORD, "images", "-o", "o.npz"]
    code, _, error = run(*words, "--half")
    assert code == 2
    assert "the finished part is in o.npz.part; the same command resumes" in error
    code, _, error = run(*words)
    assert code == 0, error
    assert "resuming after 48 examples that an earlier run recorded" in error


def test_a_full_disk_is_named_and_costs_no_example(tmp_path):
    limits = pytest.importorskip("resource", reason="no limits of a process here")
    words = (INPUTS, INPUTS.argmax(1))
    before = limits.getrlimit(limits.RLIMIT_FSIZE)
    limits.setrlimit(limits.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large: '.*o\.npz\.part'"):
            kept(tmp_path / "o.npz", np.asarray, np.asarray, *words, batch_size=4)
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, before)
    assert (tmp_path / "o.npz.part").stat().st_size == 5000  # the last record is cut short
    with pytest.warns(RecordingNote, match=r"resuming after \d+ examples"):
        done = kept(tmp_path / "o.npz", np.asarray, np.asarray, *words)
    np.testing.assert_array_equal(done.student, INPUTS)
    np.testing.assert_array_equal(done.targets, INPUTS.argmax(1))
