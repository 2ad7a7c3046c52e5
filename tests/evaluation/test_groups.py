from __future__ import annotations

import numpy as np
import pytest

from ebjr import Outcomes, TradeOffCurve, evaluate
from ebjr.evaluation.bootstrap import point_rows
from ebjr.evaluation.groups import group_gains
from ebjr.evaluation.report import groups_extra


def pair(n: int = 600, classes: int = 4, seed: int = 0, labels=None, task="classification"):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    clear = 3 * np.eye(classes)[targets]
    student, teacher = (clear + rng.normal(0, size, clear.shape) for size in (2.5, 1.5))
    return Outcomes(student, teacher, targets, task, labels=labels)


def test_a_classs_gain_is_counted_from_its_wins_and_losses():
    table = pair()
    point = TradeOffCurve.of(table, "softmax").at(deferral_rate=0.3)
    _, joint, student, teacher = point_rows(table, point).T
    for label, group in enumerate(group_gains(table, point)):
        rows = table.targets == label
        assert (group.name, group.n) == (f"class {label}", rows.sum())
        for role, other in (("student", student), ("teacher", teacher)):
            won, lost = (joint > other)[rows].sum(), (joint < other)[rows].sum()
            gain = group.over[role]
            assert gain.estimate == pytest.approx((won - lost) / group.n)
            # Agresti & Min: half an example more in each of the four cells
            n, middle = group.n + 2, (won - lost) / (group.n + 2)
            error = np.sqrt((won + lost + 1) / n - middle**2) / np.sqrt(n)
            assert (gain.low, gain.high) == pytest.approx(
                (middle - 1.96 * error, middle + 1.96 * error)
            )


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_classes_gains_add_up_to_the_joint_models(task):
    table = pair()
    if task == "regression":
        rng = np.random.default_rng(1)
        guess = np.stack([table.targets + rng.normal(0, 1, 600), rng.random(600)], axis=1)
        targets = table.targets + rng.normal(0, 0.1, 600)
        table = Outcomes(guess, targets + 0.1, targets, task, metric="mae")
    score = "softmax" if task == "classification" else "predicted_std"
    point = TradeOffCurve.of(table, score).at(deferral_rate=0.3)
    here, groups = evaluate(table, point), group_gains(table, point)
    assert sum(group.n for group in groups) == len(table)
    gain = sum(group.n * group.over["teacher"].estimate for group in groups) / len(table)
    assert gain == pytest.approx(here.quality - here.teacher_quality)


def test_the_intervals_of_small_classes_hold_as_often_as_they_say():
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        targets = np.zeros(30, int)
        won, lost = rng.random(30) < 0.2, rng.random(30) < 0.1
        student = np.where((won | lost)[:, None], [[0.0, 1.0]], [[1.0, 0.0]])
        student[lost & ~won] = [1.0, 0.0]
        teacher = np.where((lost & ~won)[:, None], [[0.0, 1.0]], [[1.0, 0.0]])
        table = Outcomes(student, teacher, targets)
        point = TradeOffCurve.of(table, "max_logit").at(deferral_rate=1.0)
        (group,) = group_gains(table, point)
        held.append(group.over["student"].low <= 0.2 - 0.8 * 0.1 <= group.over["student"].high)
    assert np.mean(held) > 0.92


def test_two_models_that_answer_alike_differ_in_no_class():
    table = pair(classes=40)
    same = Outcomes(table.student, table.student, table.targets)
    groups = group_gains(same, TradeOffCurve.of(same, "softmax").at(deferral_rate=0.5))
    assert all(group.sure == {"student": 0, "teacher": 0} for group in groups)
    assert all(group.over["teacher"].low < 0 < group.over["teacher"].high for group in groups)


def test_label_sets_count_for_each_of_their_labels_and_names_that_are_twice_are_told_apart():
    rng = np.random.default_rng(0)
    sets = rng.random((200, 3)) < 0.5
    said = np.where(sets, 2.0, -2.0) + rng.normal(0, 2, sets.shape)
    names = ("crane", "dog", "crane")
    table = Outcomes(said, np.where(sets, 2.0, -2.0), sets.astype(int), "multilabel", labels=names)
    score = table.kind.scores(table.student)[0]
    groups = group_gains(table, TradeOffCurve.of(table, score).at(deferral_rate=0.5))
    assert [group.name for group in groups] == ["crane (0)", "dog (1)", "crane (2)"]
    assert [group.n for group in groups] == sets.sum(axis=0).tolist()


def test_of_many_classes_those_with_the_largest_gains_and_losses_are_shown():
    names = tuple(f"kind {k}" for k in range(200))
    table = pair(6000, 200, labels=names)
    point = TradeOffCurve.of(table, "softmax").at(deferral_rate=0.4)
    groups = group_gains(table, point)
    (section,) = groups_extra(table, point)
    assert 10 <= len(section.rows) <= 20
    losses = {group.name: group.n * group.over["teacher"].estimate for group in groups}
    assert min(losses, key=losses.get) in section.rows
    gains = {group.name: group.n * group.over["student"].estimate for group in groups}
    assert max(gains, key=gains.get) in section.rows
    lose = sum(group.sure["teacher"] < 0 for group in groups)
    assert f"Of 200 classes, {lose} lose and " in section.caption
    assert [*section.rows] == section.figure["layout"]["yaxis"]["ticktext"]


def test_examples_of_one_class_make_no_section():
    table = Outcomes([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [0, 0])
    assert groups_extra(table, TradeOffCurve.of(table, "softmax").at(deferral_rate=0.5)) == []
