from __future__ import annotations

import numpy as np
import pytest

from ebjr import Outcomes, TradeOffCurve
from ebjr.evaluation.samples import (
    CHANGED,
    as_picture,
    make_samples,
    same_labels,
    sample_groups,
    sample_rows,
)

# the student is right, wrong, wrong, right; the teacher right, right, wrong, wrong
STUDENT = [[5.0, 0.0], [0.0, 3.0], [0.0, 2.0], [1.0, 0.0]]
TEACHER = [[9.0, 0.0], [9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]
TABLE = Outcomes(STUDENT, TEACHER, [0, 0, 0, 0], labels=("cat", "dog"))
ALL_KEPT = TradeOffCurve.of(TABLE, "max_logit").at(index=0)


def test_what_is_lost_and_won_is_what_one_of_both_gets_right():
    groups = sample_groups(TABLE, ALL_KEPT)
    assert [groups[name].tolist() for name in CHANGED] == [[1], [3]]


def test_without_images_the_lost_and_the_won_are_told_with_their_names_and_numbers():
    lost, won = make_samples(TABLE, ALL_KEPT, numbers=np.array([10, 11, 12, 13]))
    assert (lost["row"], won["row"]) == (11, 13)
    labels = [lost[key]["label"] for key in ("there", "student", "teacher", "joint")]
    assert labels == ["cat", "dog", "cat", "dog"]
    assert (lost["who"], lost["score"]) == ("student", "3")
    assert "image" not in lost


def test_every_image_is_shown_with_what_was_said_of_it():
    images = [np.full((4, 6, 3), row, np.uint8) for row in sample_rows(TABLE, ALL_KEPT)]
    found = make_samples(TABLE, ALL_KEPT, images)
    assert {sample["row"] for sample in found} == {0, 1, 2, 3}
    assert all(sample["image"].startswith("data:image/jpeg;base64,") for sample in found)
    assert {(sample["width"], sample["height"]) for sample in found} == {(6, 4)}


def test_a_pair_that_never_differs_has_nothing_to_show_without_images():
    same = Outcomes(STUDENT, STUDENT, [0, 0, 0, 0])
    assert make_samples(same, TradeOffCurve.of(same, "max_logit").at(index=0)) == []


def test_a_regressors_worst_rows_come_first():
    guess = np.array([[1.0, 0.1], [5.0, 0.1], [2.5, 0.1]])
    table = Outcomes(guess, [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "regression")
    found = make_samples(table, TradeOffCurve.of(table, "predicted_std").at(index=0))
    assert [sample["row"] for sample in found] == [1, 2]
    assert found[0]["there"] == {"prediction": 2.0}


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (3, 5, 7)])
def test_bytes_of_every_layout_become_a_picture(shape):
    assert as_picture(np.zeros(shape, np.uint8)).shape == (5, 7, 3)


@pytest.mark.parametrize("image", [np.zeros((3, 8, 8)), np.zeros(10, np.uint8), "text"])
def test_what_is_no_image_is_refused_with_the_way_out(image):
    with pytest.raises(ValueError, match="remove --data"):
        as_picture(image)


def test_labels_are_the_same_under_other_names_and_not_in_another_order():
    assert same_labels(["b", "a", "b"], np.array([0, 1, 0]))
    assert not same_labels(["b", "a", "b"], np.array([0, 0, 1]))
    assert not same_labels(["b", "a", "c"], np.array([0, 1, 0]))
