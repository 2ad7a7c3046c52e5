"""Any number of models recorded at once: as if each were recorded alone."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from tiny import CLASSES, write_images, write_linear, write_pair

import ebjr
from ebjr import Cost, Outcomes, Preprocess, RecordingNote, look, mirrored, record, record_all
from ebjr.data.open import open_data
from ebjr.journal import Journal

RNG = np.random.default_rng(4)
INPUTS = RNG.normal(size=(40, 3))
TARGETS = INPUTS.argmax(1)


def one(batch):
    return batch


def two(batch):
    return 2 * batch


def three(batch):
    return 3 * batch


TASKS = {
    "classification": (TARGETS, [one, two, three]),
    "multilabel": (RNG.integers(0, 2, (40, 3)), [one, two, three]),
    "regression": (RNG.normal(size=40), [lambda x: x[:, 0], lambda x: x[:, :2], lambda x: x]),
}


@pytest.mark.parametrize("task", TASKS)
def test_three_at_once_are_three_alone(tmp_path, task):
    targets, models = TASKS[task]
    found = record_all(models, INPUTS, targets, task=task, batch_size=7)
    found.save(tmp_path / "o.npz")
    assert found.roles == ("student", "model-2", "teacher")
    for table in (found, Outcomes.load(tmp_path / "o.npz")):
        for role, model in zip(found.roles, models, strict=True):
            alone = record(model, models[-1], INPUTS, targets, task=task)
            np.testing.assert_array_equal(table.said_by(role), alone.student)
            assert table.cost_of(role).seconds > 0


def test_a_student_and_a_teacher_are_the_case_of_two():
    about = {"labels": ("a", "b", "c"), "models": {"student": {"path": "s.onnx"}}}
    pair = record(one, two, INPUTS, TARGETS, student_cost=Cost(flops=1), **about)
    both = record_all([one, two], INPUTS, TARGETS, costs=[Cost(flops=1), Cost()], **about)
    assert pair.fingerprint == both.fingerprint
    assert (pair.models, pair.labels) == (both.models, both.labels)
    assert pair.student_cost.flops == both.student_cost.flops == 1


def test_one_object_with_looks_is_run_for_each():
    images, asked = RNG.integers(0, 256, (9, 4, 5, 3), np.uint8), []

    def corner(batch):
        asked.append(len(batch))
        return batch[:, 0, 0].astype(float)

    found = record_all([corner, mirrored(corner), corner], images, [0] * 9, preprocess=None)
    np.testing.assert_array_equal(found.student, images[:, 0, 0])
    np.testing.assert_array_equal(found.said_by("model-2"), images[:, 0, -1])
    assert asked == [9, 9, 9]


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
@pytest.mark.parametrize("batches", [1, 3])
def test_three_go_on_where_they_were_stopped(tmp_path, batches):
    left = [batches]

    def stops(batch):
        if left[0] == 0:
            raise RuntimeError("out of order")
        left[0] -= 1
        return two(batch)

    def kept(models, size):
        with Journal(tmp_path / "o.npz") as journal:
            found = record_all(models, INPUTS, TARGETS, keep=journal, batch_size=size)
            journal.remove()
            return found

    stops.__name__ = "two"
    with pytest.raises(RuntimeError):
        kept([one, stops, three], 7)
    with pytest.raises(
        ValueError, match=r"with other settings \(model-2 name 'two', now 'three', "
    ):
        kept([one, three, two], 7)
    with pytest.raises(ValueError, match="with other settings"):
        kept([one, three], 7)
    found = kept([one, two, three], 5)
    assert found.fingerprint == record_all([one, two, three], INPUTS, TARGETS).fingerprint


class Named:
    """A model that names its classes, and counts what it is asked."""

    def __init__(self, *labels):
        self.labels, self.rows = labels, 0

    def __call__(self, batch):
        self.rows += len(batch)
        return batch


class Features(Named):
    input_shape = (None, 3)


@pytest.mark.parametrize(
    ("models", "about", "sentence"),
    [
        ([one], {}, "give at least 2 models, the cheapest first, not 1"),
        (
            [one, two, three],
            {"costs": [Cost(flops=9), Cost(flops=8), Cost()]},
            r"cheapest model first: student \(one\) costs 9 flops an example, but model-2 \(two\) "
            "after it costs 8",
        ),
        ([one, two, three], {"costs": [Cost()]}, "costs must have one value for each of 3 models"),
        (
            [one, two, three],
            {"preprocess": ["auto"] * 2},
            "preprocess must have one value for each of 3 models, not 2",
        ),
        ([one, lambda x: x[:, :2], three], {}, "model-2 .<lambda>. as student and teacher .three."),
        (
            [Named("a", "b", "c"), Named("a", "c", "b"), one],
            {},
            r"student \(Named\) as student and model-2 \(Named\) as teacher: .*in another order",
        ),
        ([one, two, three], {"task": "specialized", "known_classes": [0, 1]}, "not for speciali"),
        ([one, two, three], {"task": "detection"}, "more than two models work for class"),
    ],
)
def test_models_that_do_not_fit_are_one_sentence(models, about, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        record_all(models, INPUTS, TARGETS, **about)
    assert "\n" not in str(caught.value)


def test_an_order_is_refused_after_one_batch_and_a_tenth_is_none():
    teacher = Named()
    costs = [Cost(flops=1), Cost(flops=50), Cost(flops=40)]
    with pytest.raises(ValueError, match=r"model-2 \(two\) costs 50 flops"):
        record_all([one, two, teacher], INPUTS, TARGETS, costs=costs, batch_size=4)
    assert teacher.rows == 4
    costs[1] = Cost(flops=43)
    assert (
        record_all([one, two, teacher], INPUTS, TARGETS, costs=costs).between_costs[0].flops == 43
    )


def test_a_look_of_features_is_refused_before_a_model_runs():
    teacher = Named()
    with pytest.raises(
        ValueError, match=r"a look needs images, .*one \(mirror=true\) takes \(40, "
    ):
        record_all([one, mirrored(one), teacher], INPUTS, TARGETS)
    assert teacher.rows == 0


def test_measured_times_refuse_nothing_and_are_told_where_they_are_long_enough(monkeypatch):
    def slow(batch):
        time.sleep(0.05)
        return batch

    record_all([slow, one, two], INPUTS, TARGETS)  # a few milliseconds order nothing
    monkeypatch.setattr("ebjr.recording.LEAST_SECONDS", 0.0)
    with pytest.warns(RecordingNote, match=r"cheapest model first: student \(slow\) costs .* sec"):
        record_all([slow, one, two], INPUTS, TARGETS)


# Files


@pytest.fixture
def zoo(run, tmp_path):
    """A folder with three models of images, and these."""
    write_pair(tmp_path)
    write_linear(tmp_path / "middle.onnx", 12 * np.eye(3)[::-1] + RNG.normal(size=(3, 3)))
    write_images(tmp_path / "images")
    return tmp_path


NAMES = ("student", "middle", "teacher")
MODELS = [word for name in NAMES for word in ("--model", f"{name}.onnx")]
DATA = ["--data", "images", "-o", "o.npz"]


def test_a_look_of_a_file_is_given_its_preprocessing(zoo):
    small, _, big = (ebjr.load_model(f"{name}.onnx") for name in NAMES)
    way, data = "size=8,mean=0/0/0,std=1/1/1", open_data("images")
    found = record_all([small, look(small, mirror=True), big], data, preprocess=way, folder=".")
    given = found.models["student"]["preprocess"]
    assert found.models["model-2"]["preprocess"] == {**given, "mirror": True}
    assert found.models["model-2"]["sha256"] == found.models["student"]["sha256"]
    images = [image for batch in open_data("images").batches(64) for image in batch.inputs]
    flipped = [np.ascontiguousarray(image[:, ::-1]) for image in images]
    expected = ebjr.Preprocessed(small, Preprocess.parse(way))(flipped)
    np.testing.assert_allclose(found.said_by("model-2"), expected, rtol=1e-6)
    assert found.cost_of("model-2").flops == found.student_cost.flops > 0


@pytest.mark.parametrize("preprocess", ["auto", "infer"])
def test_a_look_keeps_the_preprocessing_that_it_was_made_with(zoo, preprocess):
    small, _, big = (ebjr.load_model(f"{name}.onnx") for name in NAMES)
    way = Preprocess(size=8, mean=(0.1,) * 3, std=(1,) * 3)
    small, big = (ebjr.Preprocessed(model, way) for model in (small, big))
    models, data = [small, mirrored(small), big], open_data("images")
    found = record_all(models, data, preprocess=preprocess)
    assert found.models["model-2"]["preprocess"] == {**way.as_dict(), "mirror": True}
    with pytest.raises(ValueError, match="student is a look with its own preprocessing, size=8,"):
        record_all(models, data, preprocess=way.as_text())


def test_a_look_of_arrays_costs_what_its_model_does_and_has_no_entry(zoo):
    small, _, big = (ebjr.load_model(f"{name}.onnx") for name in NAMES)
    arrays = RNG.random((30, 3, 8, 8), np.float32)
    found = record_all([small, mirrored(small), big], arrays)
    assert found.cost_of("model-2").flops == found.student_cost.flops > 0
    assert found.models.keys() == {"student", "teacher"}


def test_the_command_records_any_number_and_looks_of_the_first(run, zoo):
    words = ["--look", "mirror", "--look", "shift=2/-1", *DATA]
    code, printed, error = run("record", *MODELS, *words, "--json")
    assert code == 0, error
    figures = json.loads(printed)["models"]
    assert [each["name"] for each in figures] == [
        *("student.onnx", "student.onnx mirror=true", "student.onnx shift=2/-1"),
        *("middle.onnx", "teacher.onnx"),
    ]
    found = Outcomes.load("o.npz")
    assert [each["role"] for each in figures] == list(found.roles)
    assert found.roles[1:-1] == ("model-2", "model-3", "model-4")
    for each in figures:
        right = (found.said_by(each["role"]).argmax(1) == found.targets).mean()
        assert each["quality"] == right
        assert each["cost"] == found.cost_of(each["role"]).as_dict()
    assert found.models["model-3"]["preprocess"] == {"size": 8, "shift": [2, -1]}
    assert found.labels == CLASSES
    code, printed, error = run("record", *MODELS, *words)
    assert code == 0, error
    for each in figures:
        assert each["role"] in printed
        assert each["name"] in printed


def test_a_pair_with_a_look_is_three_models(run, zoo):
    pair = ["--student", "student.onnx", "--teacher", "teacher.onnx", "--look", "mirror"]
    code, _, error = run("record", *pair, *DATA, "--student-flops", "5", "--teacher-flops", "9")
    assert code == 0, error
    found = Outcomes.load("o.npz")
    assert [found.cost_of(role).flops for role in found.roles] == [5, 5, 9]


def test_preprocessing_is_given_once_or_for_each(run, zoo):
    ways = ["size=8,mean=0/0/0,std=1/1/1", "size=8,resize=crop", "size=8,range=-1..1"]
    each = [word for way in ways for word in ("--preprocess", way)]
    code, _, error = run("record", *MODELS, *each, "--look", "mirror", *DATA)
    assert code == 0, error
    found = Outcomes.load("o.npz").models
    assert [found[role]["preprocess"] for role in ("student", "model-3", "teacher")] == [
        Preprocess.parse(way).as_dict() for way in ways
    ]
    assert found["model-2"]["preprocess"]["mirror"]
    code, _, error = run("record", *MODELS, *each[:2], *DATA)
    assert code == 0, error
    found = Outcomes.load("o.npz").models
    assert len({json.dumps(found[role]["preprocess"]) for role in found}) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*MODELS, "--student", "a.onnx"], "--student does not go with --model"),
        ([*MODELS, "--teacher-output", "x"], "--teacher-output does not go with --model"),
        (MODELS[:2], "give --student and --teacher, or --model at least twice"),
        (["--student", "student.onnx"], "give --student and --teacher, or --model"),
        (
            [*MODELS, "--look", "color=bgr"],
            "--look must be like mirror, shift=2/0 or size=192, not 'color=",
        ),
        ([*MODELS, "--look", ""], "--look must be like mirror, shift=2/0 or size=192, not ''"),
        ([*MODELS, "--look", "size=16"], "student takes only images of 8 x 8 pixels"),
        (
            [*MODELS, *["--preprocess", "size=8"] * 2],
            "give --preprocess once, or once for each of 3",
        ),
        (
            [*MODELS, "--task", "specialized", "--known-classes", "0"],
            "more than two models work for classification",
        ),
    ],
)
def test_bad_words_are_one_sentence(run, zoo, words, sentence):
    code, _, error = run("record", *words, *DATA)
    assert code == 2
    (said,) = (line for line in error.splitlines() if line.startswith("ebjr: "))
    assert sentence in said
    assert not (zoo / "o.npz").exists()


def test_an_order_that_flops_contradict_is_one_sentence(run, zoo):
    write_linear(zoo / "wide.onnx", RNG.normal(size=(3, 3)))
    models = ["--model", "student.onnx", "--model", "deep.py:deep", "--model", "teacher.onnx"]
    (zoo / "deep.py").write_text(
        "import torch\n"
        "torch.manual_seed(0)\n"
        "deep = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.AdaptiveAvgPool2d(1), "
        "torch.nn.Flatten())\n"
    )
    pytest.importorskip("torch")
    code, _, error = run("record", *models, "--preprocess", "size=8,mean=0/0/0,std=1/1/1", *DATA)
    assert code == 2
    assert "give the cheapest model first: model-2 (" in error
    assert "after it costs 18" in error


def test_features_take_no_look(run, zoo):
    np.savez("rows.npz", inputs=INPUTS, targets=TARGETS)
    (zoo / "rows.py").write_text(
        "def small(batch):\n    return batch\n\n\ndef big(batch):\n    return 2 * batch\n"
    )
    words = ["--student", "rows.py:small", "--teacher", "rows.py:big", "--look", "mirror"]
    code, _, error = run("record", *words, "--data", "rows.npz", "-o", "o.npz")
    assert code == 2
    assert "a look needs images" in error


def test_a_note_about_a_guess_is_said_once_for_all_looks_of_a_model(zoo):
    small, _, big = (ebjr.load_model(f"{name}.onnx") for name in NAMES)
    with pytest.warns(RecordingNote) as notes:
        record_all([small, mirrored(small), big], open_data("images"), preprocess="infer")
    assert len({str(each.message) for each in notes}) == 2
