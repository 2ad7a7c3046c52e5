"""A batch grows while its rows cost no more than its call, and no further."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ebjr.serving.pace import TURN_SECONDS, Pace


def settled(call: float, row: float, first: int, noise: float = 0.0, limit: int = 64) -> list[int]:
    """The sizes of batches of a queue that is never empty, after some time."""
    pace, rng, sizes = Pace(), np.random.default_rng(0), list[int]()
    for number in range(300):
        rows = first if number < 20 else int(min(limit, pace.most))
        pace.add(rows, (call + row * rows) * float(rng.lognormal(0, noise)))
        sizes.append(rows)
    return sizes[100:]


def test_nothing_is_known_before_the_first_batch() -> None:
    assert Pace().most == math.inf
    assert Pace().row == 0


@pytest.mark.parametrize("first", [1, 64])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_rows_that_cost_the_same_in_any_batch_go_in_short_ones(first, noise) -> None:
    row = TURN_SECONDS / 2.5
    sizes = settled(0.0, row, first, noise)
    assert 1 <= np.median(sizes) <= 4
    assert np.quantile(sizes, 0.9) <= 8


@pytest.mark.parametrize("first", [1, 64])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_rows_that_are_nearly_free_go_all_in_one(first, noise) -> None:
    sizes = settled(0.02, 0.02 / 1000, first, noise)
    assert np.median(sizes) == 64


@pytest.mark.parametrize("first", [1, 64])
def test_rows_as_dear_as_a_call_together_are_the_limit(first) -> None:
    sizes = settled(0.040, 0.002, first)
    assert np.median(sizes) == pytest.approx(20, abs=4)


def test_a_model_that_changes_its_pace_is_followed() -> None:
    pace = Pace()
    for rows in (1, 2, 3, 4) * 20:
        pace.add(rows, 0.001 * rows)
    assert pace.most == pytest.approx(TURN_SECONDS / 0.001)
    assert pace.row == pytest.approx(0.001)
    for rows in (1, 2, 3, 4) * 20:
        pace.add(rows, 0.004 * rows)
    assert pace.most == pytest.approx(TURN_SECONDS / 0.004, rel=0.05)
