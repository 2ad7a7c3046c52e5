from __future__ import annotations

import numpy as np
import pytest

from ebjr import Outcomes
from ebjr.evaluation.predictions import read_predictions

TABLE = Outcomes(np.eye(6), np.eye(6)[::-1], np.arange(6))
ROWS = np.array([1, 4, 5])


def test_outcomes_give_both_their_models_on_the_rows(tmp_path):
    Outcomes(np.eye(6)[::-1], np.eye(6), np.arange(6)).save(tmp_path / "b.npz")
    found = read_predictions(tmp_path / "b.npz", TABLE, ROWS)
    assert list(found) == ["the teacher of b.npz", "the student of b.npz"]
    assert found["the teacher of b.npz"].tolist() == [1, 4, 5]
    assert found["the student of b.npz"].tolist() == [4, 1, 0]


def test_predictions_are_of_all_examples_or_of_the_rows(tmp_path):
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    np.savez(whole, predictions=[5, 4, 3, 2, 1, 0], targets=np.arange(6))
    np.savez(part, predictions=[4, 1, 0], targets=ROWS)
    assert read_predictions(whole, TABLE, ROWS)["whole.npz"].tolist() == [4, 1, 0]
    assert read_predictions(part, TABLE, ROWS)["part.npz"].tolist() == [4, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"predictions": [1, 2]}, "has 2 examples, not all 6 or the 3 held-out ones"),
        ({"predictions": np.arange(6), "targets": np.ones(6, int)}, "its targets differ"),
        ({"predictions": [1, 2, 3], "targets": [0, 1, 2]}, "its targets differ"),
        ({"predictions": np.ones(6)}, r"must be integer labels \(n,\), not float64 \(6,\)"),
        ({"predictions": np.ones((6, 2), int)}, r"not int64 \(6, 2\)"),
        ({"predictions": np.arange(6) + 1}, r"must lie in 0\.\.5, the classes .*, but one is 6"),
        ({"predictions": [1, 2, -1]}, r"must lie in 0\.\.5, the classes .*, but one is -1"),
        ({"labels": np.arange(6)}, "`ebjr record` did not write it, .* it has labels"),
        ({"predictions": np.array([1, "a"], dtype=object)}, "it holds objects"),
    ],
)
def test_a_file_about_something_else_is_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        read_predictions(tmp_path / "other.npz", TABLE, ROWS)


def outcomes(columns, labels=None, targets=TABLE.targets):
    return Outcomes(np.eye(columns)[:6], np.eye(columns)[:6][::-1], targets, labels=labels)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("badcef", r"class 0 is 'b' in other\.npz and 'a' in the outcomes: record it again with"),
        ("abcdeg", r"class 5 is 'g' in other\.npz and 'f' in the outcomes"),
        ("abcdefg", r"class 6 is 'g' in other\.npz and None in the outcomes"),
    ],
)
def test_outcomes_of_other_classes_are_refused(tmp_path, labels, sentence):
    other = outcomes(len(labels), tuple(labels))
    other.save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=sentence):
        read_predictions(tmp_path / "other.npz", outcomes(6, tuple("abcdef")), ROWS)
    assert len(read_predictions(tmp_path / "other.npz", outcomes(len(labels)), ROWS)) == 2


def test_outcomes_that_answer_more_classes_are_refused(tmp_path):
    answers = np.roll(np.eye(7), 1, axis=1)[:6]  # as classes that are counted from 1
    Outcomes(answers, answers, np.arange(6)).save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"must lie in 0\.\.5, .* but one is 6"):
        read_predictions(tmp_path / "other.npz", TABLE, ROWS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad):
    table = Outcomes(np.arange(6.0), np.arange(6.0), np.arange(6.0), task="regression")
    np.savez(tmp_path / "other.npz", predictions=[1.0, 2.0, bad])
    with pytest.raises(ValueError, match=r"predictions must be finite numbers \(n,\)"):
        read_predictions(tmp_path / "other.npz", table, ROWS)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "other.npz"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_predictions(path, TABLE, ROWS)
    np.savez_compressed(path, predictions=np.arange(6))
    whole = path.read_bytes()
    for start in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:start])
        with pytest.raises(ValueError, match="cannot compare with"):
            read_predictions(path, TABLE, ROWS)
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(ValueError, match="cannot compare with"):
        read_predictions(path, TABLE, ROWS)
