from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ABOUT, INPUTS, TARGETS
from tiny import CLASSES, SIZE, write_images, write_pair

import ebjr
from ebjr import (
    Cost,
    JointClassifier,
    ModelError,
    Outcomes,
    Preprocess,
    RecordingNote,
    Router,
    TeacherUnavailable,
    record,
    record_batches,
)
from ebjr.data.open import open_data
from ebjr.data.preprocess import given_preprocess


def double(batch):
    return 2 * batch


@given(batch_size=st.integers(1, 40), kind=st.sampled_from(["numpy", "torch", "list"]))
@settings(max_examples=60, deadline=None)
def test_any_batch_size_and_kind_of_input_records_the_same(batch_size, kind):
    seen = []
    if kind == "torch":
        torch = pytest.importorskip("torch")
        inputs, targets = torch.as_tensor(INPUTS), torch.as_tensor(TARGETS)
    else:
        inputs = list(INPUTS) if kind == "list" else INPUTS
        targets = TARGETS.tolist() if kind == "list" else TARGETS

    def student(batch):
        seen.append(len(batch))
        return np.stack(batch) if kind == "list" else batch

    def teacher(batch):
        return double(np.stack(batch) if kind == "list" else batch)

    outcomes = record(student, teacher, inputs, targets, batch_size=batch_size)
    np.testing.assert_array_equal(outcomes.student, INPUTS)
    np.testing.assert_array_equal(outcomes.teacher, 2 * INPUTS)
    np.testing.assert_array_equal(outcomes.targets, TARGETS)
    assert max(seen) <= batch_size
    assert len(seen) == -(-23 // batch_size)


def test_both_models_are_given_the_same_batches_in_order():
    seen = {"student": [], "teacher": []}
    record(
        lambda batch: seen["student"].append(batch) or batch,
        lambda batch: seen["teacher"].append(batch) or batch,
        INPUTS,
        TARGETS,
        batch_size=5,
    )
    for batches in seen.values():
        np.testing.assert_array_equal(np.concatenate(batches), INPUTS)
    assert all(a is b for a, b in zip(seen["student"], seen["teacher"], strict=True))


def test_progress_counts_every_example():
    counts = []
    record(double, double, INPUTS, TARGETS, batch_size=10, progress=counts.append)
    assert counts == [10, 10, 3]


def test_record_measures_seconds_for_each_example():
    outcomes = record(double, lambda x: np.sort(x), INPUTS, TARGETS)
    for cost in (outcomes.student_cost, outcomes.teacher_cost):
        assert 0 < cost.seconds < 0.1
        assert cost.flops is None


def test_given_costs_are_kept_and_joined_by_the_measured_seconds():
    outcomes = record(double, double, INPUTS, TARGETS, **ABOUT)
    assert outcomes.student_cost == ABOUT["student_cost"]
    assert outcomes.teacher_cost.flops == 9e6
    assert outcomes.teacher_cost.seconds > 0
    assert (outcomes.labels, outcomes.models) == (ABOUT["labels"], ABOUT["models"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": TARGETS[:20]}, "there are 23 inputs but 20 targets"),
        ({"inputs": INPUTS[:0], "targets": []}, "there are no examples to record"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, not -3"),
        ({"student": lambda x: x[:, :3]}, "the student has 3 and the teacher 4"),
        ({"student": lambda x: x[:, 0]}, "the student's raw output has one column"),
        ({"teacher": lambda x: x[:, :1]}, r"sigmoid.*output_kind='logits'"),
        ({"targets": TARGETS + 1}, r"targets must lie in 0..3"),
        ({"targets": TARGETS / 2}, "targets must be integer labels"),
        ({"labels": ("a",)}, r"the data have 1 classes \(a\), but the models return 4"),
        ({"task": "juggling"}, "task must be one of"),
    ],
)
def test_data_that_do_not_fit_are_refused_in_one_sentence(changed, message):
    arguments = {"student": double, "teacher": double, "inputs": INPUTS, "targets": TARGETS}
    with pytest.raises(ValueError, match=message) as caught:
        record(**{**arguments, **changed})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x[1:], r"was given 23 inputs and must return 23 rows, but returned shape \(22,"),
        (lambda x: x.sum(), r"must return 23 rows, but returned shape \(\)"),
        (lambda x: None, "must return 23 rows"),
        (lambda x: x * np.nan, "returned NaN or infinite outputs: check its preprocessing"),
        (lambda x: x + np.inf, "returned NaN or infinite outputs"),
        (lambda x: np.full(x.shape, "cat"), "returned"),
    ],
)
def test_a_model_that_answers_nonsense_is_a_model_error(role, model, message):
    models = {"student": double, "teacher": double, role: model}
    with pytest.raises(ModelError, match=f"the {role} .*{message}|the {role} {message}"):
        record(**models, inputs=INPUTS, targets=TARGETS)


@pytest.mark.parametrize("thing", ["text", 3, None])
def test_inputs_that_are_no_batch_are_a_type_error(thing):
    with pytest.raises(TypeError, match="inputs must be an array with a batch dimension or a list"):
        record(double, double, thing, TARGETS)


def test_a_stream_is_recorded_like_an_array():
    parts = [(INPUTS[:9], TARGETS[:9].tolist()), (INPUTS[9:], TARGETS[9:])]
    ours = record_batches(double, double, iter(parts), **ABOUT)
    np.testing.assert_array_equal(ours.student, 2 * INPUTS)
    np.testing.assert_array_equal(ours.targets, TARGETS)


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="there are no examples to record"):
        record_batches(double, double, iter([]))


def test_a_batch_whose_targets_are_out_of_step_is_refused():
    """Two wrongs of opposite sign must not make the lengths right and every label wrong."""
    parts = [(INPUTS[:3], TARGETS[:2]), (INPUTS[3:5], TARGETS[2:5])]
    with pytest.raises(ValueError, match="3 inputs but 2 targets"):
        record_batches(double, double, iter(parts))


def test_a_joint_model_is_recorded_as_a_teacher():
    inner = JointClassifier(double, lambda x: -x, Router("max_logit", 1e9))
    outcomes = record(double, inner, INPUTS, TARGETS)
    np.testing.assert_array_equal(outcomes.teacher, -INPUTS)


def test_a_stand_in_for_an_unreachable_teacher_is_not_recorded_as_the_teacher():
    """A joint teacher that could only give its student's answers must not pass for whole."""

    def unreachable(batch):
        raise TeacherUnavailable("the link is down")

    inner = JointClassifier(double, unreachable, Router("max_logit", 1e9))
    with pytest.raises(TeacherUnavailable):
        record(double, inner, INPUTS, TARGETS)


def test_a_single_number_is_no_column_of_targets():
    with pytest.raises((ValueError, TypeError), match="targets"):
        record(double, double, INPUTS, 3)


class Counting:
    """A model that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        return 2 * batch


BAD_TARGETS = [
    (np.where(np.arange(23) == 20, 4, TARGETS), "targets must lie in 0..3, but 1 of 23 do not", 1),
    (np.where(np.arange(23) == 20, -1, TARGETS), "0..3, but 1 of 23 do not, the first is -1", 1),
    (TARGETS + 0.5, "targets must be integer labels, not float64", 0),
    ([f"class {label}" for label in TARGETS], "targets must be integer labels", 0),
    (np.eye(4)[TARGETS], r"targets must have shape \(n,\), not \(23, 4\)", 0),
    (TARGETS[1:], "23 inputs but 22 targets", 0),
]


@pytest.mark.parametrize(("targets", "message", "calls"), BAD_TARGETS)
def test_bad_targets_are_found_before_the_work_is_done(targets, message, calls):
    student, teacher = Counting(), Counting()
    with pytest.raises(ValueError, match=message):
        record(student, teacher, INPUTS, targets, batch_size=2)
    assert student.calls == teacher.calls == calls


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 4], "targets must lie in 0..3, but 1 of 2 in batch 3 do not, the first is 4"),
        ([0.0, 1.0], "targets must be integer labels, not float64"),
        ([0], "a batch has 2 inputs but 1 targets"),
    ],
)
def test_a_bad_batch_of_a_stream_is_found_before_a_model_runs_on_it(targets, message):
    student, teacher = Counting(), Counting()
    parts = [(INPUTS[:2], [0, 1]), (INPUTS[:2], [2, 3]), (INPUTS[:2], targets)]
    with pytest.raises(ValueError, match=message):
        record_batches(student, teacher, iter(parts))
    assert student.calls == teacher.calls == 2


def test_a_task_that_is_not_known_is_refused_before_a_model_runs():
    student = Counting()
    with pytest.raises(ValueError, match="task must be one of"):
        record(student, double, INPUTS, TARGETS, task="juggling")
    assert student.calls == 0


def test_models_of_different_classes_are_found_in_the_first_batch():
    student = Counting()
    with pytest.raises(ValueError, match="the student has 4 and the teacher 3"):
        record(student, lambda batch: batch[:, :3], INPUTS, TARGETS, batch_size=2)
    assert student.calls == 1


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda batch: batch[:, :3], "4 classes in batch 1 and 3 classes in batch 3"),
        (lambda batch: batch[:, 0], r"4 classes in batch 1 and shape \(2,\) in batch 3"),
    ],
)
def test_classes_that_change_on_the_way_are_named_with_their_batch(role, changed, said):
    batches = iter([double, double, changed])
    models = {"student": double, "teacher": double, role: lambda batch: next(batches)(batch)}
    message = f"the {role} must answer the same classes in every batch, but returned {said}"
    with pytest.raises(ModelError, match=message) as caught:
        record(**models, inputs=INPUTS, targets=TARGETS, batch_size=2)
    assert "\n" not in str(caught.value)


# without labels


def test_without_labels_the_teachers_answers_are_the_labels(tmp_path):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 50, 3))
    table = record(lambda rows: student[rows], lambda rows: teacher[rows], np.arange(50))
    assert not table.labeled
    np.testing.assert_array_equal(table.targets, teacher.argmax(axis=1))
    assert table.teacher_quality.min() == 1
    agreed = (student.argmax(axis=1) == teacher.argmax(axis=1)).mean()
    assert table.student_quality.mean() == agreed
    table.save(tmp_path / "o.npz")
    assert not Outcomes.load(tmp_path / "o.npz").labeled
    assert not any(part.labeled for part in table.split())
    assert record(lambda rows: student[rows], lambda rows: teacher[rows], [0, 1], [0, 1]).labeled


@pytest.mark.parametrize("given", [[[0, 1], None], [None, [0, 1]]])
def test_labels_for_some_batches_alone_are_refused(given):
    stream = ((np.eye(2), labels) for labels in given)
    with pytest.raises(ValueError, match="up to batch 2 have labels: label all batches or none"):
        record_batches(lambda rows: rows, lambda rows: rows, stream)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0.0, np.nan], "1 of 2 targets are NaN: remove examples without a label, or give no"),
        ([0, -1], "the first is -1: remove examples without a label"),
    ],
)
def test_labels_that_are_missing_for_some_examples_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        record(lambda rows: rows, lambda rows: rows, np.eye(2), targets)


def test_an_argument_that_record_does_not_have_is_named_before_a_model_runs():
    student = Counting()
    with pytest.raises(TypeError, match="unknown argument 'student_flops'; known are student_"):
        record(student, double, INPUTS, TARGETS, student_flops=3.0)
    assert student.calls == 0


# one door for Python and the command line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the tiny pair and its images, where relative paths begin."""
    write_pair(tmp_path)
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pair(**options):
    return [ebjr.load_model(f"{role}.onnx", **options) for role in ("student", "teacher")]


def test_python_and_the_command_make_the_same_table(run, folder):
    words = "record --student student.onnx --teacher teacher.onnx --data images -o outcomes.npz"
    code, _, error = run(*words.split())
    assert code == 0, error
    theirs = Outcomes.load("outcomes.npz")
    with pytest.warns(RecordingNote, match="no (student|teacher)_preprocess= given; inferred from"):
        ours = record(*pair(), open_data("images"), joules=True, folder=".")
    for field in fields(Outcomes):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in ("student", "teacher", "targets"):
            np.testing.assert_array_equal(one, other)
        elif field.name.endswith("_cost"):  # its seconds are measured, and differ
            assert one.seconds > 0
            one, other = (cost.as_dict() | {"seconds": 0} for cost in (one, other))
            assert one.pop("joules") == pytest.approx(other.pop("joules"), rel=1)
            assert one == other
            assert one["flops"] > 0
        elif field.name == "models":
            assert set(one) == {"student", "teacher"}
            for entry in (*one.values(), *other.values()):
                del entry["cost"]["joules"]
            assert one == other
        else:
            assert one == other, field.name
    assert ours.labels == CLASSES


def test_inputs_that_are_ready_are_recorded_like_the_images_they_were_made_of(folder):
    batches = list(open_data("images").batches(64))
    images = [image for batch in batches for image in batch.inputs]
    targets = np.concatenate([batch.targets for batch in batches])
    ready = record(*pair(), Preprocess(size=SIZE)(images), targets, joules=False)
    with pytest.warns(RecordingNote):
        ours = record(*pair(), images, targets)
    np.testing.assert_array_equal(ours.student, ready.student)
    assert ours.student_cost.flops == ready.student_cost.flops > 0
    assert ours.student_cost.joules is None
    assert ready.models["student"]["path"] == str(folder / "student.onnx")
    assert "preprocess" not in ready.models["student"]
    assert ours.models["student"]["preprocess"] == {"size": SIZE}


def test_preprocessing_that_is_given_is_not_inferred(folder):
    how = {"student_preprocess": f"size={SIZE},mean=0.5/0.5/0.5,std=1/1/1"}
    whole = f"size = {SIZE}\nmean = [0, 0, 0]\nstd = [1, 1, 1]"
    (folder / "teacher.toml").write_text(whole)
    ours = record(*pair(), open_data("images"), teacher_preprocess="teacher.toml", **how)
    assert ours.models["student"]["preprocess"]["mean"] == [0.5, 0.5, 0.5]
    assert ours.models["teacher"]["preprocess"]["std"] == [1, 1, 1]
    own = [ebjr.Preprocessed(model, Preprocess(size=SIZE)) for model in pair()]
    assert record(*own, open_data("images")).models["student"]["preprocess"] == {"size": SIZE}


class TrueFirst:
    """A classifier of statements whose first class is "true"."""

    labels = ("true", "false")

    def __call__(self, batch):
        return np.stack([batch[:, 0], -batch[:, 0]], axis=1)


def test_bools_are_the_classes_true_and_false(folder):
    rows, said = np.array([[1.0], [-1.0]]), np.array([True, False])
    Path("data.csv").write_text("x,label\n1.0,true\n-1.0,false\n")
    np.savez("data.npz", inputs=rows, targets=said)
    for data in (open_data("data.csv", input_columns="x"), open_data("data.npz")):
        found = record(TrueFirst(), TrueFirst(), data)
        assert (found.targets.tolist(), found.student_quality.mean()) == ([0, 1], 1)
    assert record(TrueFirst(), TrueFirst(), rows, said).targets.tolist() == [0, 1]
    numbered = record(lambda b: b[:, [0, 0]], lambda b: b[:, [0, 0]], rows, said)
    assert numbered.targets.tolist() == [1, 0]


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    ("way", "words"),
    [
        (
            f"size={SIZE}",
            "gives size; the rest is a guess: pixels in 0..1, no mean, no std (give mean=0/0/0,std",
        ),
        (f"size={SIZE},range=0..1", "gives size, range; the rest is a guess: no mean, no std ("),
        (
            f"size={SIZE},mean=0/0/0",
            "gives size, mean; the rest is a guess: pixels in 0..1, no std (",
        ),
        ("part.toml", "gives size, range; the rest is a guess: no mean, no std ("),
        (
            Preprocess(size=SIZE),
            "gives size; the rest is a guess: pixels in 0..1, no mean, no std (",
        ),
        ("", "gives nothing; the rest is a guess: pixels in 0..1, no mean, no std ("),
    ],
)
def test_what_part_of_the_preprocessing_leaves_open_is_said_to_be_a_guess(
    run, folder, role, way, words
):
    (folder / "part.toml").write_text(f"size = {SIZE}\n# mean = 0, std = 1\n range= [0,\n1]")
    whole = f"size={SIZE},mean=0/0/0,std=1/1/1"
    ways = {f"{each}_preprocess": whole for each in ("student", "teacher")}
    with pytest.warns(RecordingNote) as notes:
        record(*pair(), open_data("images"), **{**ways, f"{role}_preprocess": way})
    (said,) = (str(each.message) for each in notes)
    assert said.startswith(f"{role}_preprocess= {words}")
    if way and isinstance(way, str):
        ways = {**ways, f"{role}_preprocess": way}
        flags = [
            word for key, text in ways.items() for word in (f"--{key}".replace("_", "-"), text)
        ]
        words_of_pair = "record --student student.onnx --teacher teacher.onnx --data images"
        code, _, error = run(*words_of_pair.split(), "-o", "outcomes.npz", *flags)
        assert code == 0
        assert f"NOTE: --{role}-preprocess {words}" in " ".join(error.split())


def test_pixels_as_they_are_leave_nothing_to_guess():
    assert given_preprocess("size=8,dtype=uint8", "preprocess").dtype == "uint8"
    with pytest.warns(RecordingNote, match=r"\(give mean=0,std=1 if it has none\)"):
        given_preprocess("color=gray", "preprocess")


def test_counting_flops_can_be_left_out_and_given_ones_are_kept(folder):
    data = np.zeros((8, 3, SIZE, SIZE), np.float32), np.zeros(8, int)
    assert record(*pair(), *data, flops=False).student_cost.flops is None
    found = record(*pair(), *data, student_cost=Cost(flops=7.0))
    assert found.student_cost.flops == 7
    assert found.teacher_cost.flops > 7


def test_data_without_labels_say_so_and_targets_beside_data_are_refused(folder):
    np.savez("bare.npz", inputs=np.zeros((8, 3, SIZE, SIZE), np.float32))
    with pytest.warns(RecordingNote, match="bare.npz has no labels: the teacher's own answers"):
        assert not record(*pair(), open_data("bare.npz")).labeled
    with pytest.raises(ValueError, match="the data have their own targets"):
        record(*pair(), open_data("images"), np.zeros(120, int))


def test_a_table_of_label_sets_is_recorded_and_a_folder_of_classes_is_refused(folder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    files = sorted((folder / "images").rglob("*.png"))[:4]
    sets = [[1, 0], [0, 0], [1, 1], [0, 1]]
    columns = {"image": [file.read_bytes() for file in files], "labels": sets}
    parquet.write_table(pyarrow.Table.from_pydict(columns), "table.parquet")
    data = open_data("table.parquet", targets_are="label sets", classes=["cat", "dog"])

    def model(images):
        return np.ones((len(images), 2))

    found = record(model, model, data, task="multilabel")
    assert (found.targets.tolist(), found.labels) == (np.array(sets, bool).tolist(), data.classes)
    with pytest.raises(ValueError, match="multilabel reads label sets from the targets of"):
        record(model, model, open_data("images"), task="multilabel")


def test_a_callable_gets_images_as_they_are_and_has_no_provenance():
    seen = []
    images = np.zeros((4, 6, 5, 3), np.uint8)
    found = record(
        lambda batch: seen.append(batch.shape) or np.eye(4), lambda batch: np.eye(4), images
    )
    assert seen == [images.shape]
    assert (found.models, found.student_cost.flops) == ({}, None)


def test_a_torch_modules_flops_are_counted_and_a_models_own_price_is_kept():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Priced:
        facts = ebjr.model.ModelFacts("priced", cost=Cost(joules=3.0, joules_are="measured"))

        def __call__(self, batch):
            return batch

    student = ebjr.load_model(torch.nn.Linear(4, 4))
    found = record(student, Priced(), INPUTS.astype(np.float32), TARGETS)
    assert found.student_cost.flops == 2 * 4 * 4
    assert found.teacher_cost.joules == 3
