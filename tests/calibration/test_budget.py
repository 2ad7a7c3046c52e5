"""Promises about one batch: their proof, checked on every sample that there is."""

from __future__ import annotations

from itertools import combinations, product
from math import comb, floor

import numpy as np
import pytest
from scipy.stats import hypergeom

from ebjr.calibration import budget
from ebjr.calibration.budget import (
    Plan,
    Sample,
    critical_bad,
    promising_cut,
    shows_precision,
    usual_pairs,
)
from ebjr.stats import hypergeometric_cdf

DELTA = 0.2
N, DRAWN = 9, 5
DRAWS = list(combinations(range(N), DRAWN))

# What a row is, from the highest score down: the student's answer and the teacher's.
RIGHT, MISSED, FALSE, NEITHER = "yes, yes", "no, yes", "yes, no", "no, no"


def lines(kinds, rng, count=150):
    """Batches of rows of some kinds: many, where there are too many to take them all."""
    every = list(product(kinds, repeat=N))
    return [every[place] for place in rng.permutation(len(every))[:count]]


def sample_of(promise, line, drawn):
    rows = [line[row] for row in drawn]
    bad = {"precision": (FALSE,), "recall": (MISSED,)}.get(promise, (FALSE, MISSED))
    counted = {"precision": (RIGHT,), "recall": (RIGHT, MISSED)}.get(
        promise, (RIGHT, MISSED, FALSE, NEITHER)
    )
    return Sample(
        promise,
        np.array([row in bad for row in rows]),
        np.array([row in counted for row in rows]),
        population=N,
    )


def share_kept(promise, line, drawn, kept):
    """The share that is promised, the teacher answering the sample and what is below."""
    last = N if kept == len(drawn) else drawn[kept] if kept >= 0 else 0
    alone = [row for row in range(last) if row not in drawn]  # what the student answers
    wrong = [line[row] for row in alone if line[row] in (FALSE, MISSED)]
    true = sum(row in (RIGHT, MISSED) for row in line)
    if promise == "agreement":
        return 1 - len(wrong) / N
    if promise == "recall":
        return 1 - wrong.count(MISSED) / true if true else 1.0
    return true / (true + wrong.count(FALSE)) if true + wrong.count(FALSE) else 1.0


KINDS = {
    "agreement": (RIGHT, FALSE),
    "recall": (RIGHT, MISSED, NEITHER),
    "precision": (RIGHT, FALSE),
}


@pytest.mark.parametrize("promise", KINDS)
@pytest.mark.parametrize("at_least", [0.6, 0.75, 0.85])
def test_a_promise_is_broken_in_at_most_delta_of_all_the_samples(promise, at_least):
    broken_most = 0.0
    for line in lines(KINDS[promise], np.random.default_rng(0), 100):
        broken = 0
        for drawn in DRAWS:
            kept = sample_of(promise, line, drawn).kept(at_least, DELTA)
            broken += share_kept(promise, line, drawn, kept) < at_least - 1e-9
        broken_most = max(broken_most, broken / len(DRAWS))
    assert broken_most <= DELTA
    if promise == "agreement":
        assert broken_most > 0  # or the test says nothing


@pytest.mark.parametrize("promise", KINDS)
def test_the_best_promise_of_a_threshold_is_too_much_in_at_most_delta_of_the_samples(promise):
    for line in lines(KINDS[promise], np.random.default_rng(1), 20):
        broken = 0
        for drawn in DRAWS[::2]:
            best = sample_of(promise, line, drawn).best(DELTA)
            broken += share_kept(promise, line, drawn, DRAWN) < best - 1e-3
        assert broken / len(DRAWS[::2]) <= DELTA + 0.06  # every other sample is near enough all


@pytest.mark.parametrize("at_least", [0.6, 0.75])
def test_precision_of_rows_that_are_all_answered_positive_is_shown_wrongly_in_at_most_delta(
    at_least,
):
    most = 0.0
    for bad, known in product(range(N + 1), range(4)):
        wrong = 0
        for drawn in DRAWS:
            found = sum(row < bad for row in drawn)
            of = N - found + known  # sampled bad rows are mended
            how = {"bad": found, "drawn": DRAWN, "population": N, "known": known}
            good = of - (bad - found)
            wrong += shows_precision(at_least, DELTA, **how) and good < at_least * of - 1e-9
        most = max(most, wrong / len(DRAWS))
    assert 0 < most <= DELTA


def test_a_critical_count_that_nothing_can_exceed_is_not_leaped_to():
    # 2 of 3 rows are drawn, and one is counted: another may be, and would be bad and allowed none
    how = {"drawn": 2, "counted": 1, "population": 3}
    assert critical_bad("recall", 0.7, 0.6, **how) < 1
    assert critical_bad("recall", 0.7, 0.7, **how) < 1


def test_a_cut_is_promising_where_a_pilot_finds_few_bad_rows_above_it():
    keys = np.arange(1000.0)
    tried = keys[::20]
    cut = promising_cut(keys, tried, tried < 300, 0.9, 0.1, 200)
    assert 250 < cut < 450
    assert promising_cut(keys, tried, tried < 0, 0.9, 0.1, 200) == -np.inf
    assert promising_cut(keys[:0], tried, tried < 0, 0.9, 0.1, 200) == np.inf


def test_the_critical_count_of_agreement_is_the_largest_that_is_evidence():
    size, drawn, at_least, delta = 400, 90, 0.9, 0.1
    allowed = floor((1 - at_least) * size + 1e-9)
    found = critical_bad("agreement", at_least, delta, drawn=drawn, counted=drawn, population=size)
    assert hypergeom.cdf(found, size, allowed + 1 + found, drawn) <= delta
    assert hypergeom.cdf(found + 1, size, allowed + 2 + found, drawn) > delta


def test_known_rows_count_as_right():
    how = {"drawn": 60, "counted": 60, "population": 300}
    alone = critical_bad("agreement", 0.9, 0.1, **how)
    assert critical_bad("agreement", 0.9, 0.1, **how, known=200) > alone


def test_the_hypergeometric_tail_is_scipys():
    for total, bad, drawn in [(50, 8, 20), (1000, 31, 400), (7, 7, 3), (7, 0, 3)]:
        for count in range(drawn + 1):
            ours = hypergeometric_cdf(count, np.array([total]), np.array([bad]), drawn)[0]
            assert ours == pytest.approx(hypergeom.cdf(count, total, bad, drawn), abs=1e-9)


def test_all_rows_sampled_are_all_known():
    bad = np.array([False, True, True, False])
    assert Sample("agreement", bad, np.ones(4, bool), 4).kept(0.99, 0.01) == 4


def images(rng, n, rate):
    """Boxes that a student shows on images, how many the teacher does, and how many match."""
    shown = rng.integers(0, 4, n)
    hits = rng.binomial(shown, 1 - rate * (np.arange(n) / n))  # worse as the score falls
    return shown, hits, hits + rng.integers(0, 2, n)


def boxes_of(promise, table, drawn, most):
    shown, hits, real = (column[drawn] for column in table)
    by_score = np.argsort(drawn, kind="stable")
    about = shown if promise == "precision" else real
    return Sample(
        promise,
        (about - hits)[by_score],
        about[by_score],
        population=len(table[0]),
        deferred_counted=real[by_score],
        boxes=most,
        order=np.argsort(by_score),
    ), drawn[by_score]


@pytest.mark.parametrize("promise", ["precision", "recall"])
def test_a_promise_of_boxes_is_kept(promise):
    rng = np.random.default_rng(3)
    table = images(rng, 500, 0.5)
    shown, hits, real = table
    broken, kept_any, at_least, runs = 0, 0, 0.85, 150
    for _ in range(runs):
        drawn = rng.choice(500, 200, replace=False)
        sample, rows = boxes_of(promise, table, drawn, 4.0)
        kept = sample.kept(at_least, 0.1)
        last = 500 if kept == len(rows) else rows[kept] if kept >= 0 else 0
        own = np.arange(500) < last
        own[drawn] = False
        found = np.where(own, hits, real).sum()
        said = np.where(own, shown, real).sum() if promise == "precision" else real.sum()
        broken += found / said < at_least - 1e-9
        kept_any += bool(own.any())
    assert broken <= 0.1 * runs
    assert kept_any > 0.9 * runs


def test_a_plan_asks_little_and_finds_no_sample_where_there_is_none():
    plan = Plan("agreement", 0.1, 10_000, 10_000)
    assert 80 <= plan.sample_size(0.97) <= 1000
    assert plan.least_sample(0.97) == pytest.approx(77, abs=10)
    assert plan.sample_size(0.97, 50) is None
    assert plan.most(50) == pytest.approx(0.955, abs=0.01)
    assert 0 < plan.split(500) < 500
    assert Plan("agreement", 0.1, 5, 5).sample_size(0.999) in (None, 5)


def test_what_is_known_of_a_pair_makes_its_samples_better():
    seen = np.random.default_rng(0).random(400)
    bad = np.random.default_rng(1).random(400) < np.exp(-30 * seen)
    usual = Plan("agreement", 0.1, 50_000, 50_000)
    known = Plan("agreement", 0.1, 50_000, 50_000, belief=usual_pairs().seen(seen, bad))
    assert known._asked(known.sample_size(0.95), 0.95) < usual._asked(usual.sample_size(0.95), 0.95)


def test_samples_are_counted_as_combinations():
    assert len(DRAWS) == comb(N, DRAWN)


def test_a_long_run_of_windows_keeps_a_bounded_number_of_critical_counts():
    for kept in (budget._critical_cached, budget._binomial):
        assert kept.cache_info().maxsize
