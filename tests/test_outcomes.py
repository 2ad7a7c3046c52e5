from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import ABOUT, INPUTS, TARGETS
from strategies import tables

from ebjr import Cost, Outcomes, TradeOffCurve


def table(n=23, **about):
    return Outcomes(INPUTS[:n], 2 * INPUTS[:n, ::-1], TARGETS[:n], **about)


def same(one, other):
    for name in ("student", "teacher", "targets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("task", "student_cost", "teacher_cost", "labels", "models"):
        assert getattr(one, name) == getattr(other, name)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "outcomes.npz"
    table(**ABOUT).save(path)
    return path


def archive(**members):
    """The bytes of an .npz file with these members."""
    file = io.BytesIO()
    np.savez(file, **members)
    return file.getvalue()


def refusal(path):
    with pytest.raises(ValueError, match="cannot read outcomes from") as caught:
        Outcomes.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "ndarray" not in message
    return message


# what a table is


def test_quality_is_right_or_wrong_row_by_row():
    outcomes = Outcomes([[1, 0], [1, 0], [0, 1]], [[0, 1], [1, 0], [0, 1]], [0, 0, 0])
    assert outcomes.student_quality.tolist() == [1, 1, 0]
    assert outcomes.teacher_quality.tolist() == [0, 1, 0]
    assert outcomes.deferred_quality().tolist() == [0, 1, 0]


def test_a_blend_can_make_a_deferred_row_right():
    outcomes = Outcomes([[5.0, 0.0]], [[0.0, 0.5]], [0])
    assert outcomes.deferred_quality(0.0) == [0]
    assert outcomes.deferred_quality(1.0) == [1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_arrays_lists_and_tensors_make_the_same_table(dtype, asarray):
    student = (10 * INPUTS).astype(dtype)
    plain = Outcomes(student, student, TARGETS)
    assert plain.student.dtype == (dtype if dtype.startswith("float") else "float64")
    assert plain.targets.dtype == np.int64
    same(plain, Outcomes(asarray(student), asarray(student), asarray(TARGETS)))
    if dtype != "float16":
        same(plain, Outcomes(student.tolist(), student.tolist(), TARGETS.tolist()))


def test_bfloat16_is_kept_as_single_precision():
    torch = pytest.importorskip("torch")
    tensor = torch.as_tensor(INPUTS).bfloat16()
    assert Outcomes(tensor, tensor, TARGETS).student.dtype == np.float32


GOOD = {"student": np.eye(3), "teacher": np.eye(3), "targets": np.arange(3)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"student": np.eye(3)[:2]}, r"must have the same length, not 2, 3 and 3"),
        ({"teacher": np.eye(4, 3)}, r"must have the same length, not 3, 4 and 3"),
        ({"targets": [0, 1]}, r"must have the same length, not 3, 3 and 2"),
        ({"student": np.ones(3)}, r"student logits must have shape \(n, classes\).*, not \(3,\)"),
        ({"student": np.ones((3, 3, 3))}, r"student logits must .*, not \(3, 3, 3\)"),
        ({"teacher": np.float64(1)}, r"teacher logits must .*, not \(\)"),
        ({"teacher": []}, r"teacher logits must .*, not \(0,\)"),
        ({"student": np.ones((3, 1))}, r"with at least 2 classes, not \(3, 1\)"),
        ({"student": [["a", "b"]] * 3}, "student logits must be real numbers, not <U1"),
        ({"teacher": np.ones((3, 3), complex)}, "teacher logits must be real numbers, not complex"),
        ({"student": np.ones((3, 3), object)}, "student logits must be real numbers, not object"),
        ({"teacher": np.eye(3, 4)}, "the student has 3 and the teacher 4"),
        ({"targets": np.eye(3, dtype=int)}, r"targets must have shape \(n,\), not \(3, 3\)"),
        ({"targets": [0.0, 1.0, 2.0]}, "targets must be integer labels, not float64"),
        ({"targets": [0, None, None]}, "2 of 3 targets are None: remove examples without a label"),
        ({"targets": [True, False, True]}, "targets must be integer labels, not bool"),
        ({"targets": ["a", "b", "c"]}, "targets must be integer labels since neither model"),
        ({"targets": [0, 3, 7]}, r"must lie in 0..2, but 2 of 3 do not, the first is 3"),
        ({"targets": [0, -1, 2]}, r"must lie in 0..2, but 1 of 3 do not, the first is -1"),
        ({"student": np.full((3, 3), np.nan)}, "3 of 3 rows hold NaN or infinity, the first in"),
        ({"teacher": np.diag([1, 1, np.inf])}, "teacher .* 1 of 3 rows .*, the first in row 2"),
        ({"student": np.diag([1, -np.inf, 1])}, "student .* 1 of 3 rows .*, the first in row 1"),
        ({"task": "juggling"}, "task must be one of classification, .* not 'juggling'"),
        ({"labels": ("a", "b")}, "labels must name 3 classes, not 2"),
        (
            {"student": np.ones((0, 3)), "teacher": np.ones((0, 3)), "targets": []},
            "there are no examples",
        ),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_sentence(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        Outcomes(**{**GOOD, **changed})
    assert "\n" not in str(caught.value)


def test_a_fingerprint_changes_with_any_number():
    outcomes = table()
    prints = {table().fingerprint, outcomes.take(np.arange(22)).fingerprint}
    for name in ("student", "teacher", "targets"):
        changed = getattr(outcomes, name).copy()
        changed.flat[7] = (changed.flat[7] + 1) % 4
        prints.add(replace(outcomes, **{name: changed}).fingerprint)
    assert table(**ABOUT).fingerprint == outcomes.fingerprint
    assert len(prints) == 5


# split


@given(outcomes=tables(rows=st.integers(2, 30)), data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_split_is_disjoint_complete_and_of_the_asked_size(outcomes, data, seed):
    n = len(outcomes)
    first = data.draw(st.integers(1, n - 1))
    parts = outcomes.split_rows(first / n, seed)
    assert sorted(np.concatenate(parts)) == list(range(n))
    assert len(parts[0]) == first
    for rows, part in zip(parts, outcomes.split(first / n, seed), strict=True):
        same(part, outcomes.take(rows))
        np.testing.assert_array_equal(part.student, outcomes.student[rows])


def test_a_split_depends_on_its_seed_alone():
    ours = [table().split(0.5, seed)[0].fingerprint for seed in (0, 0, 1)]
    assert ours[0] == ours[1] != ours[2]


def test_the_parts_keep_costs_labels_and_models():
    for part in table(**ABOUT).split():
        assert {name: getattr(part, name) for name in ABOUT} == ABOUT


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, 0.01, 0.99, np.nan])
def test_a_split_without_two_parts_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction {fraction} leaves a part of 23 examples empty"):
        table().split(fraction)


def test_one_example_cannot_be_split():
    with pytest.raises(ValueError, match="leaves a part of 1 example empty"):
        table(1).split()


# save and load


@given(
    outcomes=st.sampled_from(["float16", "float32", "float64"]).flatmap(
        lambda dtype: tables(dtype=dtype, student_cost=Cost(flops=2.0))
    )
)
@settings(max_examples=50, deadline=None)
def test_a_table_comes_back_from_its_file_as_it_was(outcomes, tmp_path_factory):
    path = tmp_path_factory.mktemp("trip") / "outcomes.npz"
    outcomes.save(path)
    back = Outcomes.load(path)
    same(back, outcomes)
    assert back.student.dtype == outcomes.student.dtype
    assert back.fingerprint == outcomes.fingerprint


def test_costs_labels_and_models_come_back(saved):
    same(Outcomes.load(saved), table(**ABOUT))
    same(Outcomes.load(str(saved)), table(**ABOUT))


def test_half_precision_is_close_and_smaller(saved, tmp_path):
    table(**ABOUT).save(tmp_path / "half.npz", half=True)
    back = Outcomes.load(tmp_path / "half.npz")
    assert back.student.dtype == back.teacher.dtype == np.float16
    np.testing.assert_allclose(back.student, INPUTS, rtol=1e-3)
    np.testing.assert_array_equal(back.targets, TARGETS)
    assert (tmp_path / "half.npz").stat().st_size < saved.stat().st_size
    assert np.isfinite(TradeOffCurve.of(back, "energy").quality).all()


@pytest.mark.parametrize("largest", [255, 256, 70_000])
def test_targets_of_any_size_survive(tmp_path, largest):
    wide = np.zeros((2, largest + 1), np.float16)
    Outcomes(wide, wide, [0, largest]).save(tmp_path / "wide.npz")
    assert Outcomes.load(tmp_path / "wide.npz").targets.tolist() == [0, largest]


def test_half_precision_changes_no_prediction(tmp_path):
    rng = np.random.default_rng(0)
    student = np.round(rng.normal(size=(2000, 10)), 4).astype(np.float32)
    student[0, :2] = 1000.0, 1000.1  # one number in half precision
    saved = Outcomes(student, student[::-1], np.zeros(2000, int))
    saved.save(tmp_path / "half.npz", half=True)
    back = Outcomes.load(tmp_path / "half.npz")
    assert (student.astype(np.float16).argmax(axis=1) != student.argmax(axis=1)).any()
    np.testing.assert_array_equal(back.student.argmax(axis=1), student.argmax(axis=1))
    np.testing.assert_array_equal(back.teacher.argmax(axis=1), saved.teacher.argmax(axis=1))
    np.testing.assert_allclose(back.student, student, rtol=2e-3, atol=1e-6)


def test_label_sets_that_half_precision_would_change_are_refused(tmp_path):
    near, clear, targets = [[1e-9, 1.0], [1.0, 2.0]], [[-1.0, 1.0], [1.0, 2.0]], [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="1 of 2 answers of the student would be others"):
        Outcomes(near, clear, targets, "multilabel").save(tmp_path / "half.npz", half=True)
    Outcomes(clear, clear, targets, "multilabel").save(tmp_path / "half.npz", half=True)


def test_logits_too_large_for_half_precision_are_refused_in_a_sentence(tmp_path):
    outcomes = Outcomes(1e6 * np.eye(2), np.eye(2), [0, 1])
    with pytest.raises(ValueError, match="half"):
        outcomes.save(tmp_path / "outcomes.npz", half=True)
    assert not list(tmp_path.iterdir())


def test_a_failing_save_leaves_the_old_file_whole(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        table(3, models={"student": {1, 2}}).save(saved)
    assert saved.read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["outcomes.npz"]


def test_saving_into_no_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        table().save(tmp_path / "absent" / "outcomes.npz")


def test_a_missing_file_is_named_with_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.npz: make it with `ebjr record`"):
        Outcomes.load(tmp_path / "absent.npz")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "outcomes.npz"
    table(**ABOUT).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(path)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_byte_is_refused_or_harmless(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "outcomes.npz"
    table(**ABOUT).save(path)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = Outcomes.load(path)
    except ValueError:
        refusal(path)
    else:
        same(loaded, table(**ABOUT))


ARRAYS = {"student": np.eye(2), "teacher": np.eye(2), "targets": np.arange(2)}
HEADER = {
    "format": "ebjr-outcomes-1",
    "task": "classification",
    "student_cost": {},
    "teacher_cost": {},
    "labels": None,
    "models": {},
}


def about(**changed):
    return np.array(json.dumps({**HEADER, **changed}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b"hello", "it is not an outcomes file"),
        (b"PK\x03\x04 but no archive", "truncated"),
        (archive(inputs=np.eye(2)), "`ebjr record` did not write it"),
        (archive(about=about(format="other"), **ARRAYS), "its format is 'other'"),
        (archive(about=about(), student=np.eye(2), targets=np.arange(2)), "teacher"),
        (archive(about=about(task="juggling"), **ARRAYS), "task must be one of"),
        (archive(about=about(student_cost={"flops": -1}), **ARRAYS), "flops must be a finite"),
        (archive(about=about(labels=["a"]), **ARRAYS), "labels must name 2 classes"),
        (archive(about=about(), **{**ARRAYS, "targets": np.array([0, 9])}), "targets must lie"),
        (
            archive(about=about(), **{**ARRAYS, "student": np.full((2, 2), np.inf)}),
            "must be finite",
        ),
        (archive(about=np.array("{not json"), **ARRAYS), ""),
        (archive(about=np.array("[1, 2]"), **ARRAYS), ""),
        (archive(about=about(student_cost={"euros": 1}), **ARRAYS), ""),
    ],
)
def test_a_foreign_file_is_refused_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "outcomes.npz"
    path.write_bytes(content)
    assert reason in refusal(path)


RAW = {
    "student": np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]),
    "teacher": np.array([[5.0, 1.0, 0.0], [0.0, 9.0, 3.0]]),
    "targets": np.array([0, 1]),
}


def test_raw_outputs_of_anybody_are_outcomes(tmp_path):
    path = tmp_path / "raw.npz"
    np.savez(path, **RAW)
    found = Outcomes.load(path)
    assert (found.task, found.labels, found.models, len(found)) == ("classification", None, {}, 2)
    assert found.teacher_quality.tolist() == [1, 1]
    assert Outcomes.load(path, task="regression").task == "regression"
    np.savez(path, **RAW, task="regression")
    assert Outcomes.load(path).metric == "rmse"
    with pytest.raises(ValueError, match="its task is regression, not multilabel: remove --task"):
        Outcomes.load(path, task="multilabel")
    known = {"task": "specialized", "known_classes": [2, 0]}
    np.savez(path, **RAW, **known)
    assert Outcomes.load(path).known_classes == (2, 0)


@pytest.mark.parametrize("kind", [str, object])
def test_targets_by_name_are_looked_up_in_the_labels(kind, tmp_path):
    names = {"labels": np.array(["cat", "dog", "emu"]), "targets": np.array(["cat", "dog"])}
    np.savez(tmp_path / "raw.npz", **{**RAW, **names})
    found = Outcomes.load(tmp_path / "raw.npz")
    assert (found.targets.tolist(), found.labels) == ([0, 1], ("cat", "dog", "emu"))
    named = {**RAW, "targets": np.array(["emu", "cat"], kind), "labels": ("cat", "dog", "emu")}
    assert Outcomes(**named).targets.tolist() == [2, 0]
    assert Outcomes(**named).take(np.array([1])).targets.tolist() == [0]
    with pytest.raises(
        ValueError, match="the class 'cow', which is not one of the models' 3 classes"
    ):
        Outcomes(**{**named, "targets": ["cow", "cat"]})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"targets": None}, "student, teacher and targets .* but targets is missing; it has stud"),
        ({"targets": np.arange(3)}, "must have the same length, not 2, 2 and 3"),
        ({"student": np.eye(2)}, "the same classes, but the student has 2 and the teacher 3"),
        (
            {"targets": np.array(["a", "b"])},
            "one is 'a': name the classes .* with `labels` in an .npz",
        ),
        ({"targets": np.array(["a", "b"], object)}, r"Python objects, .* with \.astype\(str\)"),
        ({"labels": np.array(["a", "b"])}, "labels must name 3 classes, not 2"),
        ({"task": "juggling"}, "task must be one of"),
    ],
)
def test_raw_outputs_that_do_not_fit_are_refused_with_the_way_out(changed, reason, tmp_path):
    members = {name: each for name, each in {**RAW, **changed}.items() if each is not None}
    np.savez(tmp_path / "raw.npz", **members)
    assert re.search(reason, refusal(tmp_path / "raw.npz"))


def test_a_table_that_was_packed_is_still_read(saved):
    with np.load(saved) as arrays:
        members = dict(arrays)
    np.savez_compressed(saved, **members)
    same(Outcomes.load(saved), table(**ABOUT))


def test_a_plain_npy_file_and_a_folder_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.eye(3))
    assert "it is not" in refusal(tmp_path / "array.npy")
    assert "it is a folder" in refusal(tmp_path)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_a_pickle_is_refused_and_never_executed(tmp_path):
    trap = np.empty(1, object)
    trap[0] = Trap()
    member = io.BytesIO()
    np.lib.format.write_array(member, trap, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "member.npz", "w") as file:
        file.writestr("about.npy", member.getvalue())
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as file:
        file.writestr("about", pickle.dumps(Trap()))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "array.npy").write_bytes(member.getvalue())
    for path in tmp_path.iterdir():
        refusal(path)
    assert not Trap.sprung
    np.load(tmp_path / "array.npy", allow_pickle=True)
    assert Trap.sprung  # the trap works
