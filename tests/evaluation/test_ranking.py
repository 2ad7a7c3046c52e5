"""Figures of scores against the sums that they stand for, and both models along a score."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noisy import pair_of_models
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from ebjr.curve import TradeOffCurve, oracle
from ebjr.evaluation.ranking import augrc, aurc, auroc, oracle_share, reliability, score_table
from ebjr.outcomes import Outcomes
from ebjr.scores import SCORES

rows_with_ties = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30).map(
    lambda rows: (np.array([r[0] for r in rows], float), np.array([r[1] for r in rows]))
)


@given(rows_with_ties)
@settings(max_examples=100, deadline=None)
def test_auroc_agrees_with_scikit_learn_ties_included(rows):
    score, correct = rows
    if correct.all() or not correct.any():
        assert math.isnan(auroc(score, correct))
    else:
        assert auroc(score, correct) == pytest.approx(roc_auc_score(correct, score))


@given(rows_with_ties)
@settings(max_examples=100, deadline=None)
def test_augrc_is_the_formula_of_its_paper(rows):
    score, correct = rows
    accuracy = correct.mean()
    ranked = 0.0 if accuracy in (0.0, 1.0) else 1 - auroc(score, correct)
    formula = ranked * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(score, correct) == pytest.approx(formula)


def test_ties_count_as_the_mean_over_all_their_orders():
    rng = np.random.default_rng(5)
    score, correct = rng.integers(0, 4, 40).astype(float), rng.random(40) < 0.7
    orders = [score + 1e-6 * rng.random(40) for _ in range(4_000)]
    for figure in (auroc, aurc, augrc):
        values = np.array([figure(order, correct) for order in orders])
        error = values.std() / math.sqrt(len(values))
        assert figure(score, correct) == pytest.approx(values.mean(), abs=4 * error)


def test_aurc_is_the_mean_error_of_the_best_scored_rows():
    rng = np.random.default_rng(6)
    score, correct = rng.normal(size=200), rng.random(200) < 0.8
    best = np.argsort(-score)
    slow = np.mean([(~correct[best[:k]]).mean() for k in range(1, 201)])
    assert aurc(score, correct) == pytest.approx(slow)


def test_a_nan_score_ranks_lowest_since_it_is_deferred():
    score, correct = np.array([np.nan, 1.0, 2.0]), np.array([0, 1, 1])
    assert auroc(score, correct) == 1.0
    assert augrc(score, correct) == augrc([0.0, 1.0, 2.0], correct)


def test_the_oracle_has_share_1_and_a_score_that_knows_nothing_about_0():
    outcomes = pair_of_models(20_000, seed=8)
    assert oracle_share(TradeOffCurve.of(outcomes, oracle(outcomes))) == pytest.approx(1.0)
    assert abs(oracle_share(TradeOffCurve.of(outcomes, "random"))) < 0.02
    assert oracle_share(TradeOffCurve.of(outcomes, -oracle(outcomes))) < -0.9


def test_the_oracle_share_of_a_blend_is_measured_against_the_same_blend():
    outcomes = pair_of_models(2_000, seed=9)
    curve = TradeOffCurve.of(outcomes, oracle(outcomes, 0.5), 0.5)
    assert oracle_share(curve) == pytest.approx(1.0)


def test_models_that_are_right_on_the_same_rows_leave_nothing_to_share():
    logits = softmax(np.random.default_rng(0).normal(size=(50, 3)), axis=1)
    outcomes = Outcomes(logits, logits, np.zeros(50, int))
    assert math.isnan(oracle_share(TradeOffCurve.of(outcomes, "energy")))
    assert math.isnan(score_table(outcomes, ["energy"])[0].oracle_share)


def test_the_table_has_every_named_score_with_the_figures_of_its_curve():
    outcomes = pair_of_models(1_000, seed=10)
    table = score_table(outcomes, blend=0.5)
    assert [row.score for row in table] == list(SCORES)
    for row in table:
        curve = TradeOffCurve.of(outcomes, row.score, 0.5)
        assert row.oracle_share == pytest.approx(oracle_share(curve))
        values = np.asarray(SCORES[row.score](outcomes.student))
        assert row.aurc == pytest.approx(aurc(values, outcomes.student_quality))
    best = max(table, key=lambda row: row.gain)
    assert best.oracle_share == max(row.oracle_share for row in table)
    assert best.auroc > 0.7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: auroc([1.0], [1, 0]), "score, correct must be"),
        (lambda: aurc([], []), "no rows"),
        (lambda: augrc([1.0, 2.0], [1, 2]), "correct must be"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_ten_bins_hold_the_examples_in_the_order_of_their_score():
    outcomes = pair_of_models(1_000)
    point = TradeOffCurve.of(outcomes, "margin").at(index=5)
    bins = reliability(outcomes, point)
    order = np.argsort(point.score_function(outcomes.student)).reshape(10, 100)
    for rows, found in zip(order, bins, strict=True):
        assert found.n == 100
        assert found.student.estimate == outcomes.student_quality[rows].mean()
        assert found.teacher.estimate == outcomes.teacher_quality[rows].mean()
    assert [found.start for found in bins] == pytest.approx(np.arange(10) / 10)
    assert [found.end for found in bins] == pytest.approx(np.arange(1, 11) / 10)
    assert bins[0].student.estimate < bins[0].teacher.estimate


def test_what_ties_stays_in_one_bin_and_nan_is_the_lowest():
    values = np.array([5.0, 5.0, 5.0, 5.0, 5.0, 5.0, np.nan, 1.0, 9.0, 9.0])
    outcomes = pair_of_models(10)
    from ebjr.scores import Score

    point = TradeOffCurve.of(outcomes, Score("given", lambda logits: values)).at(index=0)
    bins = reliability(outcomes, point)
    assert [found.n for found in bins] == [1, 1, 6, 2]
    assert [found.low for found in bins] == [-math.inf, 1.0, 5.0, 9.0]
    assert bins[2].student.estimate == outcomes.student_quality[:6].mean()
    assert (bins[2].start, bins[2].end) == (0.2, 0.8)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability(outcomes, point, bins=0)
