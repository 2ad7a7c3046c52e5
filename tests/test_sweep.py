"""Candidates that know more or fewer classes: which is best depends on the traffic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ebjr import CalibrationError, Cost, Detections, GroundTruth, Outcomes, relabel
from ebjr.sweep import run_sweep
from ebjr.tasks.specialized.known_classes import Traffic

CLASSES = 12
POPULAR = (0, 1, 2)


@pytest.fixture(scope="module")
def tables():
    """Students of the first 1, 3 and 8 classes; the more they know, the less sure they are."""
    rng = np.random.default_rng(0)
    targets = np.where(rng.random(6000) < 0.6, rng.integers(0, 3, 6000), rng.integers(3, 12, 6000))
    teacher = 5 * np.eye(CLASSES)[targets] + rng.normal(0, 1.0, (6000, CLASSES))
    found = {}
    for known in (1, 3, 8):
        own = 4 * np.eye(known + 1)[relabel(targets, range(known))]
        found[f"top {known}"] = Outcomes(
            own + rng.normal(0, 0.9 + 0.12 * known, own.shape),
            teacher,
            targets,
            "specialized",
            known_classes=range(known),
            student_cost=Cost(flops=1.0),
            teacher_cost=Cost(flops=10.0),
        )
    return found


def test_the_best_number_of_classes_depends_on_the_traffic(tables):
    goal = {"tolerance": 0.01, "blend": 0.0, "score": "known_softmax"}
    mostly = run_sweep(tables, traffic=Traffic(0.95, POPULAR), **goal)
    seldom = run_sweep(tables, traffic=Traffic(0.1, POPULAR), **goal)
    assert mostly.best == "top 3"
    assert seldom.best == "top 8"
    assert mostly.study.result.saving > 2 * mostly.studies["top 1"].result.saving


def test_every_candidate_is_judged_on_the_same_examples_in_the_mix(tables):
    sweep = run_sweep(tables, tolerance=0.01, traffic=Traffic(0.75, POPULAR), blend=0.0)
    first, *others = sweep.studies.values()
    for study in others:
        np.testing.assert_array_equal(study.held_out.targets, first.held_out.targets)
    for half in (first.calibration, first.held_out):
        assert np.isin(half.targets, POPULAR).mean() == pytest.approx(0.75, abs=0.001)
    rows = first.held_out_rows
    np.testing.assert_array_equal(first.outcomes.take(rows).teacher, first.held_out.teacher)
    calibration_rows, _ = first.outcomes.split_rows(*first.split)
    assert not set(rows.tolist()) & set(calibration_rows.tolist())


def test_a_sweep_looks_at_other_shares(tables):
    goal = {"tolerance": 0.02, "blend": 0.0, "score": "known_softmax"}
    sweep = run_sweep(tables, traffic=Traffic(0.6, POPULAR), **goal)
    row = sweep.by_share["top 3"]
    assert list(row) == [0.25, 0.5, 0.6, 0.75, 0.9, 1.0]
    assert row[1.0].saving > row[0.5].saving > row[0.25].saving
    assert row[0.6].quality == sweep.studies["top 3"].result.quality
    figures = sweep.as_dict()
    assert figures["candidates"]["top 3"]["saving_by_popular_share"]["1"] == row[1.0].saving
    assert [extra.name for extra in sweep.extras] == ["candidates", "shares"]
    assert all("<table>" in extra.html for extra in sweep.extras)


def test_without_traffic_the_examples_are_as_recorded(tables):
    sweep = run_sweep(tables, tolerance=0.02, blend=0.0, score="known_softmax")
    assert len(sweep.study.calibration) == 3000
    assert sweep.by_share == {}
    assert [extra.name for extra in sweep.extras] == ["candidates"]


def test_of_a_budget_the_best_quality_wins(tables):
    sweep = run_sweep(tables, "budget", flops=6.0, score="known_softmax", blend=0.0)
    points = {name: study.point for name, study in sweep.studies.items()}
    assert sweep.best == max(points, key=lambda name: points[name].quality)


def test_savings_are_compared_in_a_unit_that_all_candidates_know(tables):
    costs = {
        "top 3": (Cost(flops=1.0, seconds=9.0), Cost(flops=100.0, seconds=10.0)),
        "top 8": (Cost(seconds=1.0), Cost(seconds=10.0)),
    }
    found = run_sweep(
        {
            name: replace(tables[name], student_cost=student, teacher_cost=teacher)
            for name, (student, teacher) in costs.items()
        },
        tolerance=0.01,
        traffic=Traffic(0.95, POPULAR),
        blend=0.0,
        score="known_softmax",
    )
    assert (found.unit, found.best) == ("seconds", "top 8")
    saved = found.as_dict()["candidates"]["top 3"]["saving_by_popular_share"]
    assert saved["0.95"] < 1.2
    one, other = (
        replace(tables[name], student_cost=Cost(**{unit: 1.0}), teacher_cost=Cost(**{unit: 9.0}))
        for name, unit in (("top 3", "flops"), ("top 8", "seconds"))
    )
    apart = run_sweep({"one": one, "other": other}, tolerance=0.01, blend=0.0)
    rates = {name: study.point.deferral_rate for name, study in apart.studies.items()}
    assert apart.unit is None
    assert apart.best == min(rates, key=rates.__getitem__)


def test_a_candidate_that_cannot_is_left_out_with_its_reason(tables):
    goal = {"target": 0.99, "score": "specialized_energy", "blend": 0.0}
    weak = replace(tables["top 1"], teacher=tables["top 1"].teacher)
    mixed = {"top 1": weak, "top 3": tables["top 3"]}
    with pytest.raises(
        CalibrationError, match="none of 2 candidates reaches the goal; top 1: no thr"
    ):
        run_sweep(mixed, "accuracy", **{**goal, "target": 0.9999})
    sweep = run_sweep(mixed, "budget", flops=6.5, score="specialized_energy", blend=0.0)
    assert sweep.best == "top 3"
    assert "no threshold keeps to a cost in flops of 6.5" in sweep.failed["top 1"]
    assert sweep.as_dict()["candidates"]["top 1"]["failed"] == sweep.failed["top 1"]


def test_a_guarantee_counts_every_candidate(tables):
    goal = {"tolerance": 0.05, "score": "known_softmax", "blend": 0.0}
    sweep = run_sweep(tables, delta=0.1, traffic=Traffic(0.8, POPULAR), **goal)
    certificate = sweep.study.point.certified
    assert certificate.delta == 0.1
    alone = run_sweep({sweep.best: tables[sweep.best]}, delta=0.1, traffic=sweep.traffic, **goal)
    third = run_sweep(
        {sweep.best: tables[sweep.best]}, delta=0.1 / 3, traffic=sweep.traffic, **goal
    )
    assert certificate.threshold == third.study.point.threshold
    assert certificate.threshold > alone.study.point.threshold  # choosing has its price


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "there are no candidates"),
        (
            lambda t: {"a": t["top 1"], "b": t["top 3"].take(np.arange(5999))},
            "the examples of a and b differ",
        ),
        (
            lambda t: {"a": t["top 1"], "b": replace(t["top 3"], teacher=2 * t["top 3"].teacher)},
            "the teachers of a and b differ",
        ),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(tables, change, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(change(tables))


def test_regressors_are_candidates_too_but_have_no_popular_classes():
    rng = np.random.default_rng(0)
    y = rng.normal(0, 3, 400)
    tables = {}
    for name, noise in (("rough", 2.0), ("fine", 0.5)):
        student = np.column_stack([y + noise * rng.normal(0, 1, 400), rng.gamma(2, 1, 400)])
        tables[name] = Outcomes(student, y + 0.0, y, "regression")
    assert run_sweep(tables, tolerance=0.4, blend=0.0).best == "fine"
    with pytest.raises(ValueError, match="labels must be"):
        run_sweep(tables, traffic=Traffic(0.5, (1,)))


def detector(scores):
    """Outcomes of a detector beside a perfect one, every object its own."""

    def found(score):
        return Detections.of_scores([[0, 0, 4, 4]], [score], (8, 8), labels=[0], classes=1)

    truth = [GroundTruth([[0, 0, 4, 4]], [0]) for _ in scores]
    own = [found(score) for score in scores]
    return Outcomes(own, [found(0.9) for _ in scores], truth, "detection")


def test_detectors_are_candidates_too_if_what_they_saw_is_equal(tables):
    pair = {"a": detector([0.5] * 40), "b": detector([0.4] * 40)}
    sweep = run_sweep(pair, score="max_confidence", blend=0.0)
    assert set(sweep.studies) == {"a", "b"}
    with pytest.raises(ValueError, match="labels must be"):
        run_sweep(pair, traffic=Traffic(0.5, (0,)))
    with pytest.raises(ValueError, match="the examples of a and b differ"):
        run_sweep({"a": pair["a"], "b": detector([0.5] * 39)})
    with pytest.raises(ValueError, match="the metrics of a and b differ"):
        run_sweep({"a": pair["a"], "b": tables["top 1"]})
