"""The benchmark of promises: its pairs are what it says, and how it compares is by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.promises.measure import asked_for, compared, corrected, kept, quality
from benchmarks.promises.pairs import PAIRS, load
from benchmarks.promises.table import table


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_whole_and_its_table_says_what_it_holds(name):
    from benchmarks.promises import pairs

    pair = load(name)
    row = next(line for line in pairs.__doc__.splitlines() if line.startswith(f"| `{name}`"))
    rows, share = row.split("|")[2].strip(), float(row.rsplit(",", 1)[1].split("%")[0])
    assert f"{len(pair):,}" == rows
    assert 100 * pair.wanted.mean() == pytest.approx(share, abs=1.2)
    assert (pair.score <= 1 + 1e-6).all()
    assert (pair.prediction == pair.teacher).mean() > 0.6


def test_a_batch_repeats_rows_only_where_the_pair_is_smaller():
    pair = load("imagenet")
    whole = pair.draw(1000, seed=3)
    assert sorted(whole.score) == sorted(pair.score)
    assert len(pair.draw(3000, seed=3)) == 3000


def test_what_was_asked_counts_as_answered_and_promises_are_exact():
    pair = load("cifar10").draw(1000, 0)
    wrong = np.flatnonzero(pair.prediction != pair.teacher)
    asked = np.zeros(1000, bool)
    asked[wrong[5:]] = True
    way = corrected(lambda pair, *_: (asked, pair.prediction))
    found = quality(pair, "agreement", way(pair, "agreement", 0.9, 0.1, 0, None)[1])
    assert found["agreement"] == 0.995
    assert kept(found, "agreement", 0.995)
    assert not kept(found, "agreement", 0.9951)


def test_rows_asked_are_compared_at_the_same_utility():
    setting = {"pair": "rare", "n": 1000, "promise": "precision", "at_least": 0.9}
    rival = {**setting, "calls": 400, "way": "bargain", "asked": 400.0, "recall": 0.6}
    ours = [
        {**setting, "calls": calls, "way": "ebjr", "asked": calls, "recall": recall}
        for calls, recall in ((100, 0.5), (200, 0.7))
    ]
    assert compared([rival, *ours], "ebjr", "bargain")[0]["ratio"] == 150 / 400
    assert asked_for(ours, "recall", 0.71) is None


def test_the_table_has_the_ratio_and_what_was_broken():
    setting = {"pair": "rare", "n": 1000, "promise": "agreement", "at_least": 0.97, "calls": None}
    rows = [
        {**setting, "way": "bargain", "asked": 400.0, "broken": 0.0},
        {**setting, "way": "ebjr", "asked": 100.0, "broken": 0.052},
    ]
    assert table(rows, "agreement").splitlines()[-1] == "| rare | 1,000 |  |  | 0.25 (5.2 %) |  |"
