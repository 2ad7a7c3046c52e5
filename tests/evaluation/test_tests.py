"""McNemar's test against statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import Outcomes
from ebjr.evaluation.tests import FEW, compare, compare_answers, mcnemar


def pairs(b: int, c: int, both: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Two models of which only the first is right b times, and only the second c times."""
    first = np.repeat([True, False, True], [b, c, both])
    return first, np.repeat([False, True, True], [b, c, both])


@pytest.mark.parametrize(("b", "c"), [(0, 1), (1, 0), (3, 9), (12, 12), (30, 10), (400, 470)])
def test_mcnemar_agrees_with_statsmodels(b, c):
    tables = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    test = mcnemar(*pairs(b, c))
    table = [[30, b], [c, 0]]
    assert test.p_exact == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    if b != c:  # there the correction would overshoot, and statsmodels lets it
        theirs = tables.mcnemar(table, exact=False, correction=True)
        assert test.statistic == pytest.approx(theirs.statistic)
        assert test.p_chi_square == pytest.approx(theirs.pvalue)


def test_mcnemar_is_exact_below_25_discordant_pairs_and_says_which():
    few, many = mcnemar(*pairs(FEW - 1, 0)), mcnemar(*pairs(FEW, 0))
    assert few.exact
    assert few.p_value == few.p_exact
    assert few.verdict.endswith("exact).")
    assert not many.exact
    assert many.p_value == many.p_chi_square
    assert many.verdict.endswith("chi-square).")
    assert mcnemar(*pairs(FEW, 0), exact=True).p_value == many.p_exact


def test_two_models_that_never_differ_are_not_told_apart():
    test = mcnemar(*pairs(0, 0))
    assert (test.p_exact, test.p_chi_square, test.statistic) == (1.0, 1.0, 0.0)
    assert math.isnan(test.odds.estimate)
    assert (test.odds.low, test.odds.high) == (0.0, math.inf)
    assert "chance alone" in test.verdict


def test_the_odds_interval_covers_the_odds_in_95_of_100_samples():
    rng = np.random.default_rng(0)
    counts = rng.binomial(40, 2 / 3, 2_000)
    found = {count: mcnemar(*pairs(count, 40 - count)).odds for count in set(counts)}
    covered = np.mean([found[count].low <= 2.0 <= found[count].high for count in counts])
    assert covered > 0.94


@given(b=st.integers(0, 60), c=st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_swapping_the_models_inverts_the_odds_and_keeps_the_p_value(b, c):
    one, other = mcnemar(*pairs(b, c)), mcnemar(*pairs(c, b))
    assert one.p_value == pytest.approx(other.p_value)
    _, low, high = one.odds
    assert other.odds.low == pytest.approx(0.0 if math.isinf(high) else 1 / high)
    assert other.odds.high == pytest.approx(1 / low if low else math.inf)


def test_equally_good_models_differ_significantly_in_at_most_5_of_100_samples():
    rng = np.random.default_rng(1)
    p = [mcnemar(*pairs(b, 20 - b)).p_value for b in rng.binomial(20, 0.5, 1_000)]
    assert np.mean(np.array(p) < 0.05) <= 0.05


def test_compare_names_the_winner_in_one_sentence():
    targets = np.zeros(200, int)
    joint, other = np.repeat([0, 1], [190, 10]), np.repeat([0, 1], [150, 50])
    test = compare(joint, other, targets, names=("the joint model", "model B"))
    assert test.first_only == 40
    assert "the joint model is better, by more than chance explains" in test.verdict


def test_labels_of_any_type_are_compared():
    assert compare([0, 1], [0.0, 0.0], np.array([0, 1], np.uint8)).first_only == 1
    assert compare(["a", "b"], np.array(["a", "c"], object), ["a", "c"]).second_only == 1


SETS = Outcomes([[1.0, -1.0]], [[1.0, -1.0]], [[1, 0]], "multilabel")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mcnemar([1, 0], [1]), "of the same length, not"),
        (lambda: mcnemar([], []), "no examples"),
        (lambda: mcnemar([0.5], [1]), "0"),
        (lambda: mcnemar([np.nan], [1]), "first_correct must be"),
        (lambda: compare([0, 1], [0], [0, 1]), "of the same length"),
        (lambda: compare([0, 1], ["a", "b"], [0, 1]), "other_prediction names, targets numbers"),
        (lambda: compare([0, 1], np.array(["a", "b"], object), [0, 1]), "other_prediction names"),
        (lambda: compare([0, 1], [0.2, 0.9], [0, 1]), "other_prediction fractions"),
        (lambda: compare_answers(SETS, [[1, 0]], [[0.2, 0.9]]), "predictions must be 0 or 1"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_better_one_is_named_only_beyond_chance():
    assert mcnemar(*pairs(30, 10), names=("a", "b")).better == "a"
    assert mcnemar(*pairs(10, 30), names=("a", "b")).better == "b"
    assert mcnemar(*pairs(12, 10), names=("a", "b")).better is None


def test_a_comparison_as_a_dictionary_has_its_p_value_and_verdict():
    test = mcnemar(*pairs(30, 10))
    figures = test.as_dict()
    assert figures["p_value"] == test.p_chi_square
    assert figures["odds_ratio"] == 3.0
    assert figures["verdict"] == test.verdict
    assert figures["odds_interval"] == (test.odds.low, test.odds.high)
