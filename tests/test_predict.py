"""Predict: any data, constant memory, and no kill costs an answer or gives one twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny import CLASSES, SIZE, write_images, write_linear

from ebjr import Detections, JointClassifier, JointDetector, Router
from ebjr.data.examples import Data, Examples
from ebjr.data.open import open_data
from ebjr.errors import ModelError, TeacherUnavailable
from ebjr.model import Answer
from ebjr.predict import SPENT, Answered, predict, write_answers


def colors(images):
    """Logits of an image's mean color, blue, green and red."""
    return np.stack([np.asarray(image).mean(axis=(0, 1))[::-1] / 9 for image in images])


class Dies:
    """A model that fails after a number of batches."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, images):
        self.left -= 1
        if self.left < 0:
            raise ModelError("out of order")
        return colors(images)


@pytest.fixture
def images(tmp_path):
    folder = write_images(tmp_path / "images", 50)
    for number, name in enumerate(("blue/0000.png", "green/0016.png", "red/0047.png")):
        (folder / name).write_bytes(b"no image" * number)
    return folder


def joint(student=colors):
    return JointClassifier(student, lambda batch: -colors(batch), Router("max_logit", 9.0))


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def expected(images, tmp_path):
    """What a run that nothing stops writes."""
    done = predict(joint(), open_data(images), tmp_path / "whole.jsonl", batch_size=7)
    assert (done.examples, len(done.unreadable), done.resumed) == (47, 3, 0)
    assert 0 < done.deferred < 47
    rows = rows_of(tmp_path / "whole.jsonl")
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)
    return rows


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("overlap", [1, 3])
def test_any_batches_and_any_overlap_give_the_same_answers(
    images, tmp_path, expected, batch_size, overlap
):
    output = tmp_path / "a.jsonl"
    predict(joint(), open_data(images), output, batch_size=batch_size, overlap=overlap)
    assert rows_of(output) == expected


@pytest.mark.parametrize("batches", [0, 1, 3, 6])
@pytest.mark.parametrize("overlap", [1, 2])
def test_an_interrupted_run_goes_on_where_it_stopped(images, tmp_path, expected, batches, overlap):
    output = tmp_path / "a.jsonl"
    with pytest.raises(ModelError, match="out of order"):
        predict(joint(Dies(batches)), open_data(images), output, batch_size=7, overlap=overlap)
    assert not output.exists()
    assert (tmp_path / "a.jsonl.part").exists() == (batches > 0)
    told = []
    done = predict(
        joint(),
        open_data(images),
        output,
        batch_size=5,
        tell=lambda *words: told.append(words),
    )
    assert done.resumed == 7 * batches
    assert (done.examples, len(done.unreadable)) == (47, 3)
    assert told[-1] == ("answering", 50, 50)
    assert rows_of(output) == expected
    assert not (tmp_path / "a.jsonl.part").exists()


@pytest.mark.parametrize("cut", [1, 10, 200, 700, 1500])
def test_a_journal_torn_anywhere_costs_no_answer(images, tmp_path, expected, cut):
    output, journal = tmp_path / "a.jsonl", tmp_path / "a.jsonl.part"
    with pytest.raises(ModelError):
        predict(joint(Dies(4)), open_data(images), output, batch_size=7)
    journal.write_bytes(journal.read_bytes()[:-cut])
    predict(joint(), open_data(images), output)
    assert rows_of(output) == expected


def test_all_but_the_file_itself_may_be_done(images, tmp_path, expected):
    output = tmp_path / "folder" / "a.jsonl"
    output.parent.mkdir()
    output.mkdir()  # the last step fails: there is a folder of that name
    with pytest.raises(OSError, match=r"a\.jsonl"):
        predict(joint(), open_data(images), output)
    output.rmdir()
    done = predict(joint(Dies(0)), open_data(images), output)
    assert done.resumed == 47
    assert rows_of(output) == expected


def test_answers_of_another_threshold_are_not_gone_on_with(images, tmp_path, expected):
    output = tmp_path / "a.jsonl"
    with pytest.raises(ModelError):
        predict(joint(Dies(2)), open_data(images), output, batch_size=7, about={"data": "x"})
    other = joint()
    other.router.threshold = 5.0
    with pytest.raises(ValueError, match=r"threshold 9\.0, now 5\.0.*restart") as refused:
        predict(other, open_data(images), output, about={"data": "x"})
    assert "score" not in str(refused.value)
    with pytest.raises(ValueError, match="data 'x', now 'y'"):
        predict(joint(), open_data(images), output, about={"data": "y"})
    done = predict(other, open_data(images), output, about={"data": "x"}, restart=True)
    assert (done.examples, done.resumed) == (47, 0)


def test_parquet_holds_the_same_rows(images, tmp_path, expected):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    output = tmp_path / "a.parquet"
    predict(joint(), open_data(images), output, labels=CLASSES)
    table = parquet.read_table(output)
    assert table.column("label").to_pylist() == [CLASSES[row["prediction"]] for row in expected]
    assert table.drop_columns("label").to_pylist() == expected


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_answers_say_which_of_three_models_gave_them(suffix, images, tmp_path):
    middle = lambda batch: 0.9 * colors(batch)  # noqa: E731
    inner = JointClassifier(colors, middle, Router("max_logit", 15.0))
    three = JointClassifier(inner, lambda batch: -colors(batch), Router("max_logit", 12.6))
    output = tmp_path / f"a.{suffix}"
    predict(three, open_data(images), output, batch_size=7)
    if suffix == "jsonl":
        found = [row["stage"] for row in rows_of(output)]
    elif suffix == "csv":
        with output.open(newline="") as file:
            found = [int(row["stage"]) for row in csv.DictReader(file)]
    else:
        parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        found = parquet.read_table(output).column("stage").to_pylist()
    (batch, _), *_ = open_data(images).parts(64, 0)
    assert found == three(batch.inputs).stage.tolist()
    assert set(found) == {0, 1, 2}
    if suffix == "jsonl":
        named = {row["stage"]: row["answered_by"] for row in rows_of(output)}
        assert named == {0: "student", 1: "model-2", 2: "teacher"}


def test_csv_holds_the_same_rows_after_a_kill_too(images, tmp_path, expected):
    output = tmp_path / "a.csv"
    with pytest.raises(ModelError, match="out of order"):
        predict(joint(Dies(3)), open_data(images), output, batch_size=7, labels=CLASSES)
    assert not output.exists()
    assert predict(joint(), open_data(images), output, labels=CLASSES).resumed == 21
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = ["score", "deferred", "degraded", "stage", "answered_by"]
    assert [*rows[0]] == ["name", "prediction", "label", *told]
    assert [row.pop("label") for row in rows] == [CLASSES[each["prediction"]] for each in expected]
    texts = ("name", "answered_by")
    assert [{k: v if k in texts else json.loads(v) for k, v in row.items()} for row in rows] == (
        expected
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_what_only_a_late_row_has_is_written(suffix, tmp_path):
    rows = [{"name": f'{n}, "a"\nb', "prediction": [0.5, n], "score": None} for n in range(5000)]
    rows[4000]["late"] = "abc"
    output = tmp_path / f"a.{suffix}"
    write_answers(lambda start: iter([Answered(written(rows), [])]), output, len(rows), {})
    if suffix == "csv":
        with output.open(newline="") as file:
            found = list(csv.DictReader(file))
        assert (found[7]["prediction"], found[7]["score"], found[7]["late"]) == ("[0.5, 7]", "", "")
    else:
        tables = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        found = rows_of(output) if suffix == "jsonl" else tables.read_table(output).to_pylist()
        assert (found[7]["prediction"], found[7]["score"]) == ([0.5, 7], None)
    assert (found[7]["name"], found[4000]["late"], len(found)) == ('7, "a"\nb', "abc", 5000)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_answers_say_what_each_row_has_cost(suffix, images, tmp_path):
    def priced(tokens, dollars, sign=1):
        def model(batch):
            spent = np.tile([tokens, 1.0, dollars], (len(batch), 1))
            return Answer(sign * colors(batch), spent=spent)

        return model

    output = tmp_path / f"a.{suffix}"
    both = JointClassifier(priced(5, 0.0), priced(40, 0.25, -1), Router("max_logit", 9.0))
    done = predict(both, open_data(images), output, batch_size=7)
    assert done.dollars == 0.25 * done.deferred > 0
    if suffix == "parquet":
        tables = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
        found = tables.read_table(output).to_pylist()
    elif suffix == "csv":
        with output.open(newline="") as file:
            found = [
                {key: json.loads(row[key]) for key in ("deferred", *SPENT)}
                for row in csv.DictReader(file)
            ]
    else:
        found = rows_of(output)
    for row in found:
        wanted = (45, 2, 0.25) if row["deferred"] else (5, 1, 0.0)
        assert tuple(row[name] for name in SPENT) == wanted
        assert isinstance(row["tokens_in"], int)
    unpriced = JointClassifier(priced(5, 0.0), priced(40, np.nan, -1), Router("max_logit", 9.0))
    done = predict(unpriced, open_data(images), tmp_path / "b.jsonl")
    assert done.dollars is None  # no bill rather than a wrong one
    assert {row["dollars"] for row in rows_of(tmp_path / "b.jsonl")} == {0.0, None}


class Chats:
    """A model elsewhere that refuses some rows, each for money, and may be away for some calls."""

    url, labels = "http://127.0.0.1:9/v1", ("no", "yes")

    def __init__(self, refuses=(), away=lambda call, rows: False, charges=None):
        self.refuses, self.away, self.asked, self.calls = {*refuses}, away, [], 0
        self.charges = charges  # for rows too that it does not answer as it is away

    def __call__(self, rows):
        numbers = rows[:, 0].astype(int)
        self.calls += 1
        if self.away(self.calls, numbers):
            error = TeacherUnavailable("away")
            error.spent = self.charges and np.tile([5.0, 1.0, 0.125], (len(rows), 1))
            raise error
        self.asked += numbers.tolist()
        heard = ~np.isin(numbers, [*self.refuses])
        spent = np.tile([5.0, 1.0, 0.125], (len(rows), 1))
        output = np.stack([rows[heard, 0], -rows[heard, 0]], axis=1)
        return Answer(output, answered=heard, why="some are refused", spent=spent)


@pytest.fixture
def hundred(tmp_path):
    np.savez(tmp_path / "rows.npz", inputs=np.arange(100.0)[:, None])
    return open_data(tmp_path / "rows.npz")


def talk(student, teacher, data, output, **how):
    """A prediction with two chat models, warnings apart: what the second one is asked is lost."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joint = JointClassifier(student, teacher, Router("max_logit", 0.0))
        return predict(joint, data, output, **how)


@pytest.mark.parametrize("batch_size", [1, 33, 64, 99, 100])
@pytest.mark.parametrize("lost", [[99], [0, 50], [30, 31, 32, 33]])
def test_refused_rows_are_named_and_paid_once_in_batches_of_any_size(
    hundred, tmp_path, batch_size, lost
):
    student, teacher = Chats([*lost, 7]), Chats(lost)
    done = talk(student, teacher, hundred, tmp_path / "a.jsonl", batch_size=batch_size)
    assert done.unreadable == [
        (f"rows.npz:{n}", "no model has answered it, for $0.25") for n in lost
    ]
    assert (done.read, done.examples) == (100, 100 - len(lost))
    assert student.asked == [*range(100)]
    assert teacher.asked == sorted([*lost, 7])
    assert done.dollars == 0.125 * (100 + len(lost) + 1)


@pytest.mark.parametrize("charges", [None, True])
@pytest.mark.parametrize("batch_size", [1, 10, 32])
def test_models_that_are_away_end_the_run_and_no_row_is_lost(
    hundred, tmp_path, batch_size, charges
):
    output = tmp_path / "a.jsonl"

    def gone(away):
        return [Chats(away=away, charges=charges) for _ in range(2)]

    away = lambda call, rows: rows.max() >= 20  # noqa: E731
    with pytest.raises(TeacherUnavailable, match="rows in a row have no answer from Chats"):
        talk(*gone(away), hundred, output, batch_size=batch_size)
    done = talk(Chats(), Chats(), hundred, output)
    assert (done.resumed, done.examples) == (20 - 20 % batch_size, 100)
    away = lambda call, rows: rows.max() >= 98  # noqa: E731
    with pytest.raises(TeacherUnavailable, match="rows in a row have no answer from"):
        talk(*gone(away), hundred, output, batch_size=batch_size)


def test_a_row_that_brings_a_server_down_is_named_once_the_next_is_answered(hundred, tmp_path):
    away = lambda call, rows: rows.tolist() == [5]  # noqa: E731
    both = Chats(away=away), Chats(away=away)
    done = talk(*both, hundred, tmp_path / "a.jsonl", batch_size=1)
    assert done.unreadable == [("rows.npz:5", "no model has answered it")]


def test_models_that_refuse_everything_are_not_paid_for_all_of_it(hundred, tmp_path):
    student, teacher = Chats(range(100)), Chats(range(100))
    with pytest.raises(TeacherUnavailable, match=r"64 rows in a row have no answer from Chats or"):
        talk(student, teacher, hundred, tmp_path / "a.jsonl", batch_size=8)
    assert len(student.asked) < 100
    done = talk(student, teacher, hundred, tmp_path / "a.jsonl")
    assert (done.dollars, len(done.unreadable)) == (25.0, 100)  # the first run's, too


def written(rows):
    return [{**row, "deferred": False, "degraded": False} for row in rows]


@pytest.mark.parametrize("name", ["a.json", "a", "a.txt", "a.csv.gz"])
def test_a_suffix_that_says_no_known_form_is_refused_before_the_work(name, images, tmp_path):
    with pytest.raises(ValueError, match=r"\.jsonl, \.csv, \.parquet, but is .*a"):
        predict(joint(Dies(0)), open_data(images), tmp_path / name)
    assert [*tmp_path.glob("a*")] == []


def test_boxes_of_images_with_none_fit_in_parquet_too(images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

    def find(images):
        counts = [int(image.mean()) % 3 for image in images]
        return [
            Detections.of_scores(
                np.tile([0.0, 0, 4, 4], (n, 1)), [0.5] * n, (8, 8), labels=[0] * n, classes=1
            )
            for n in counts
        ]

    output = tmp_path / "a.parquet"
    model = JointDetector(find, find, Router("max_confidence", 0.4))
    predict(model, open_data(images), output, batch_size=1)
    predict(model, open_data(images), tmp_path / "a.jsonl")
    assert parquet.read_table(output).to_pylist() == rows_of(tmp_path / "a.jsonl")


def test_overlap_has_several_batches_in_work_and_no_more():
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Barrier(3, timeout=30)

    def student(batch):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # goes on only when three are here
        with lock:
            now -= 1
        return np.stack([batch, -batch], axis=1)

    taken = []

    def batches():
        for number in range(9):
            taken.append(number)
            yield np.full(2, float(number))

    model = JointClassifier(student, student, Router("max_logit", -1.0))
    answers = model.stream(batches(), overlap=3)
    first = next(answers)
    assert len(taken) == 4  # three in work, one that waits
    scores = [first.score[0], *(answer.score[0] for answer in answers)]
    assert scores == list(range(9))
    assert most == 3


def test_a_batch_that_fails_fails_at_its_turn():
    model = JointClassifier(Dies(1), colors, Router("max_logit", -1.0))
    answers = model.stream([[np.ones((2, 2, 3))]] * 3, overlap=2)
    assert next(answers).score.shape == (1,)
    with pytest.raises(ModelError, match="out of order"):
        next(answers)
    with pytest.raises(ValueError, match="overlap must be at least 1, but is 0"):
        model.stream([], overlap=0)


def test_a_killed_process_is_gone_on_with(run, tmp_path):
    """SIGKILL, at whatever it is doing, and again: the answers are those of a run left alone."""
    rng = np.random.default_rng(0)
    inputs = rng.random((4_000, 3, SIZE, SIZE), np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs)
    np.savez(tmp_path / "some.npz", inputs=inputs[:200], targets=rng.integers(0, 3, 200))
    write_linear(tmp_path / "student.onnx", rng.normal(0, 9, (3, 3)))
    write_linear(tmp_path / "teacher.onnx", rng.normal(0, 9, (3, 3)))
    pair = ("--student", "student.onnx", "--teacher", "teacher.onnx")
    assert run("record", *pair, "--data", "some.npz", "-o", "o.npz")[0] == 0
    goal = ("--goal", "budget", "--deferral-rate", "0.3")
    assert run("calibrate", "o.npz", *goal, "-o", "joint.toml")[0] == 0
    words = ["predict", "joint.toml", "--data", "data.npz", "-o"]
    assert run(*words, "whole.jsonl")[0] == 0
    words = [*words, "a.jsonl", "--json"]
    journal, size = tmp_path / "a.jsonl.part", 0
    for _ in range(2):
        ebjr = [sys.executable, "-m", "ebjr", *words, "--batch-size", "1", "--threads", "1"]
        process = subprocess.Popen(ebjr, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not journal.is_file() or journal.stat().st_size <= size + 2000:
            assert process.poll() is None, "it was done before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        size = journal.stat().st_size
    assert not (tmp_path / "a.jsonl").exists()
    code, printed, error = run(*words)
    assert code == 0
    figures = json.loads(printed)
    assert 0 < figures["resumed"] < figures["examples"] == 4_000
    assert f"{figures['resumed']:,} answers come from an interrupted run" in error
    both = [rows_of(tmp_path / name) for name in ("a.jsonl", "whole.jsonl")]
    scores = [[row.pop("score") for row in rows] for rows in both]
    assert both[0] == both[1]
    np.testing.assert_allclose(*scores, atol=1e-4)  # batches of one and of many round unlike
    assert not journal.exists()


def test_a_run_that_stops_says_where_its_answers_are(run, tmp_path):
    folder = write_images(tmp_path / "images", 60)
    for name in ("student", "teacher"):
        write_linear(tmp_path / f"{name}.onnx", np.eye(3)[::-1] * (6 if name[0] == "s" else 20))
    pair = ("--student", "student.onnx", "--teacher", "teacher.onnx")
    run("record", *pair, "--data", "images", "-o", "o.npz")
    run("calibrate", "o.npz", "--goal", "budget", "--deferral-rate", "0.2", "-o", "joint.toml")
    bad = folder / "red" / "0059.png"
    kept = bad.read_bytes()
    bad.write_bytes(b"")
    words = ("predict", "joint.toml", "--data", "images", "-o", "a.jsonl", "--batch-size", 8)
    code, _, error = run(*words, "--strict")
    assert code == 2
    kept_in = "the finished part is in a.jsonl.part; the same command resumes from it"
    assert kept_in in error
    code, printed, _ = run(*words, "--json")
    assert code == 0
    assert 0 < json.loads(printed)["resumed"] < 60
    bad.write_bytes(kept)
    code, _, error = run(*words, "--threshold", "0.9", "--strict")
    assert code == 0


def test_memory_does_not_grow_with_the_data(tmp_path):
    """What is held at once is a few batches, whatever the length: counted, not timed."""
    alive, most = 0, 0

    class Rows(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= 1

    class Many(Data):
        path, classes, files = Path("many"), None, tuple

        def __init__(self):
            self.unreadable = []

        def __len__(self):
            return 400

        def take(self, rows):
            raise NotImplementedError

        def _read(self, batch_size, start=0):
            nonlocal alive, most
            for number in range(start, 400, batch_size):
                inputs = np.zeros((batch_size, SIZE)).view(Rows)
                alive += 1
                most = max(most, alive)
                yield Examples(inputs, None, [str(number + k) for k in range(batch_size)])

    model = JointClassifier(
        lambda x: np.eye(2)[np.zeros(len(x), int)],
        lambda x: np.eye(2)[: len(x)],
        Router("margin", -1),
    )
    done = predict(model, Many(), tmp_path / "a.jsonl", batch_size=4, overlap=2)
    assert done.examples == 400
    assert most <= 6


def test_answers_are_not_gone_on_with_over_other_images(images, tmp_path):
    """One image gone and a new one there: as many as before, and not the same."""
    output = tmp_path / "a.jsonl"
    with pytest.raises(ModelError):
        predict(joint(Dies(2)), open_data(images), output, batch_size=7)
    (images / "blue" / "0003.png").rename(images / "blue" / "0004.png")
    with pytest.raises(ValueError, match=r"a\.jsonl\.part .* data that have changed since"):
        predict(joint(), open_data(images), output)
    (images / "blue" / "0004.png").rename(images / "blue" / "0003.png")
    assert predict(joint(), open_data(images), output).resumed == 14


def test_a_second_run_beside_a_running_one_is_refused_and_harms_nothing(images, tmp_path, expected):
    pytest.importorskip("fcntl", reason="no locks of files here")
    output, refused = tmp_path / "a.jsonl", []

    def second(_what, done, _total):
        for restart in (False, True):
            with pytest.raises(BlockingIOError, match="another run is writing") as caught:
                predict(joint(Dies(0)), open_data(images), output, restart=restart)
            refused.append(caught.value)

    predict(joint(), open_data(images), output, tell=second)
    assert len(refused) > 2
    assert rows_of(output) == expected
