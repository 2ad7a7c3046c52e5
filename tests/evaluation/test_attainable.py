"""The attainable ceiling: between the score and the oracle, and each part of the rest is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from noisy import pair_of_models

from ebjr.curve import TradeOffCurve
from ebjr.evaluation.attainable import headroom
from ebjr.evaluation.ranking import oracle_share
from ebjr.outcomes import Outcomes
from ebjr.scores import Score, as_score
from ebjr.study import run_study
from ebjr.tables import study_figures

CLASSES = 5


def normalized(logits):
    power = np.exp(logits - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def drawn(n: int, seed: int, lucky: float = 0.0) -> Outcomes:
    """Labels drawn from what both models know together, each of which sees one part of it.

    The gain to expect, given both answers, is then known exactly. A share of labels is `lucky`:
    drawn anew, so that no model knows them.
    """
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0, 1.5, (2, n, CLASSES))
    chance = normalized(one + other)
    targets = (chance.cumsum(1) > rng.random(n)[:, None]).argmax(1)
    anew = rng.random(n) < lucky
    targets[anew] = rng.integers(0, CLASSES, anew.sum())
    return Outcomes(one, 2 * other + one, targets)


def best_possible(outcomes: Outcomes) -> np.ndarray:
    """(n,): the score of a router that knows the law of the labels: minus the gain to expect."""
    one = outcomes.student
    chance = normalized(one + (outcomes.teacher - one) / 2)
    rows = np.arange(len(one))
    return chance[rows, one.argmax(1)] - chance[rows, outcomes.teacher.argmax(1)]


@pytest.mark.parametrize("lucky", [0.0, 0.5])
def test_the_ceiling_is_what_a_router_that_knows_the_law_has(lucky):
    outcomes = drawn(20_000, seed=1, lucky=lucky)
    calibration, held_out = outcomes.split()
    found = headroom(calibration, held_out, as_score("softmax"))
    best = oracle_share(TradeOffCurve.of(held_out, best_possible(held_out)))
    assert found.attainable == pytest.approx(best, abs=0.02)
    assert found.score == pytest.approx(
        oracle_share(TradeOffCurve.of(held_out, "softmax")), abs=1e-4
    )
    assert oracle_share(found.curve) == pytest.approx(found.attainable, abs=1e-4)


def test_luck_is_left_to_other_models_alone():
    shares = [headroom(*drawn(20_000, 2, lucky).split(), as_score("softmax")) for lucky in (0, 0.5)]
    assert shares[1].models > shares[0].models + 0.1


def test_the_parts_sum_to_one_and_none_is_negative():
    for seed in range(5):
        found = headroom(*drawn(1_500, seed).split(), as_score("margin"))
        parts = [found.other_score, found.examples, found.seeing_more, found.models]
        assert min(parts) >= 0
        assert found.score + sum(parts) == pytest.approx(1)
        assert found.reached.low <= found.reached.estimate <= found.reached.high <= 1


def test_a_score_that_knows_nothing_leaves_its_part_to_another_score():
    halves = drawn(10_000, 3).split()
    good, useless = (headroom(*halves, as_score(name)) for name in ("softmax", "random"))
    assert good.other_score < 0.03
    assert useless.other_score == pytest.approx(good.score - useless.score, abs=0.03)
    assert useless.models == pytest.approx(good.models)
    assert useless.reached.estimate < 0.1 < good.reached.low


def test_a_score_that_needs_the_teacher_reaches_all_of_it():
    calibration, held_out = drawn(10_000, 4).split()
    cheat = Score("cheat", lambda output: best_possible(held_out))
    found = headroom(calibration, held_out, cheat)
    assert found.reached.high > 0.99
    assert found.seeing_more < 0.02


def test_the_interval_of_what_is_reached_holds_the_truth_19_times_of_20():
    many = drawn(400_000, 5)
    known = [
        oracle_share(TradeOffCurve.of(many, score)) for score in ("softmax", best_possible(many))
    ]
    truth, held = known[0] / known[1], 0
    for seed in range(60):
        reached = headroom(*drawn(4_000, 100 + seed).split(), as_score("softmax")).reached
        held += reached.low <= truth <= reached.high
    assert held >= 52  # of 57 to expect; the ceiling itself is a little low on few examples


def test_more_examples_are_worth_something_where_the_fit_is_poor():
    few, many = (
        np.mean([headroom(*drawn(n, seed).split(), as_score("random")).examples for seed in seeds])
        for n, seeds in ((700, range(20)), (40_000, range(2)))
    )
    assert many < 0.005 < few


def test_where_it_makes_no_sense_nothing_is_said():
    table = drawn(4_000, 7)
    unlabeled = replace(table, targets=table.teacher.argmax(1), labeled=False)
    numbers = Outcomes(table.student[:, 0], table.teacher[:, 0], table.targets, "regression")
    rarely = Outcomes(table.student[:200], table.teacher[:200], table.targets[:200])
    for outcomes, score in ((unlabeled, "softmax"), (numbers, "random"), (rarely, "softmax")):
        assert headroom(*outcomes.split(), as_score(score)) is None


def test_half_precision_and_ruled_out_classes_are_finite():
    table = drawn(4_000, 8)
    table.student[:, 1][table.student[:, 1] < 0] = -1e30
    half = Outcomes(table.student.clip(-6e4), table.teacher.astype(np.float16), table.targets)
    found = headroom(*half.split(), as_score("softmax"))
    assert np.isfinite([found.score, found.attainable, *found.reached]).all()


def test_the_figures_of_a_study_are_those_of_its_chosen_score():
    study = run_study(pair_of_models(3_000))
    figures = study_figures(study)["headroom"]
    chosen = next(row for row in study.ranking if row.score == study.point.score)
    assert figures["score"] == pytest.approx(chosen.elsewhere.oracle_share, abs=1e-4)
    assert f"{figures['attainable']:.1%}" in study.headroom.text
