"""Scores of regressors, against SciPy's quadrature and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

from ebjr import Router, as_score
from ebjr.arrays import to_numpy
from ebjr.tasks.regression.scores import (
    PREDICTIONS,
    as_regression,
    check_grid,
    density_entropy,
    density_std,
    edge_mass,
    ensemble_spread,
    grid_log_weights,
    interval_width,
    predicted_std,
    regression_energy,
)

GRID = np.linspace(-6.0, 8.0, 281)
CENTERS, SPREADS, HEIGHTS = (np.random.default_rng(3).uniform(*ends, 7) for ends in
                             ((-1, 3), (0.4, 1.2), (-5, 5)))  # fmt: skip


def energy(y, row=slice(None)):
    """S(x, y) of two bumps, for some rows."""
    centers, spreads, heights = (v[row, None] for v in (CENTERS, SPREADS, HEIGHTS))
    off = (np.asarray(y)[None] - centers) / spreads
    return heights + np.logaddexp(-(off**2) / 2, -((off - 1.5) ** 2))


def by_quad(row):
    """log integral exp S(x, y) dy, by SciPy's adaptive quadrature."""

    def density(y):
        return float(np.exp(energy(np.array([y]), np.array([row]))[0, 0]))

    return np.log(scipy.integrate.quad(density, -12, 14, limit=200, points=[0.0, 2.0])[0])


def columns(*parts):
    rows = len(parts[-1])
    return np.column_stack([np.zeros(rows), *parts])


@pytest.mark.parametrize("rule", ["trapezoid", "simpson"])
@pytest.mark.parametrize("ends", [False, True])
def test_quadrature_on_a_grid_is_what_scipy_integrates(rule, ends, asarray):
    grid = (float(GRID[0]), float(GRID[-1])) if ends else GRID.tolist()
    found = to_numpy(regression_energy(asarray(columns(energy(GRID))), grid=grid, rule=rule))
    np.testing.assert_allclose(found, [by_quad(row) for row in range(7)], atol=1e-6)


def test_a_head_over_bins_is_log_sum_exp_plus_log_width(asarray):
    logits = np.random.default_rng(0).normal(0, 3, (9, 5))
    widths = [0.5, 1.0, 2.0, 0.25, 4.0]
    found = to_numpy(regression_energy(asarray(columns(logits)), widths=widths))
    np.testing.assert_allclose(found, np.log(np.exp(logits) @ widths))
    same = to_numpy(regression_energy(asarray(columns(logits)), widths=0.5))
    np.testing.assert_allclose(same, np.log(np.exp(logits).sum(axis=1) * 0.5))


def test_a_normalized_density_has_no_free_energy():
    y = np.linspace(-40, 40, 4001)
    log_density = np.stack([scipy.stats.norm.logpdf(y, 3, spread) for spread in (0.2, 1, 5)])
    np.testing.assert_allclose(
        regression_energy(columns(log_density), grid=(-40, 40)), 0, atol=1e-9
    )


@given(shift=st.floats(-300, 300), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_shift_of_the_energies_shifts_the_energy_and_not_the_entropy(shift, seed):
    rows = columns(np.random.default_rng(seed).normal(0, 4, (6, 9)))
    shifted = rows + shift * (np.arange(10) > 0)
    kind = {"grid": (0.0, 4.0)}
    np.testing.assert_allclose(
        regression_energy(shifted, **kind), regression_energy(rows, **kind) + shift, atol=1e-9
    )
    np.testing.assert_allclose(
        density_entropy(shifted, **kind), density_entropy(rows, **kind), atol=1e-9
    )


def test_entropy_is_that_of_a_gaussian():
    y = np.linspace(-30, 30, 6001)
    rows = columns(np.stack([7 - y**2 / (2 * s**2) for s in (0.5, 1.0, 3.0)]))
    expected = [-scipy.stats.norm(0, s).entropy() for s in (0.5, 1.0, 3.0)]
    np.testing.assert_allclose(density_entropy(rows, grid=(-30, 30)), expected, atol=1e-6)


@pytest.mark.parametrize("rule", ["trapezoid", "simpson"])
def test_the_deviation_of_a_density_is_that_of_a_gaussian_wherever_it_is(rule, asarray):
    y = np.linspace(-30, 40, 7001)
    rows = columns(np.stack([7 - (y - at) ** 2 / (2 * s**2) for s, at in ((0.5, 0), (3.0, 5))]))
    found = to_numpy(density_std(asarray(rows), grid=(-30, 40), rule=rule))
    np.testing.assert_allclose(found, [-0.5, -3.0], atol=1e-6)


def test_the_deviation_over_uneven_bins_is_that_of_their_centers():
    logits, widths = np.random.default_rng(0).normal(0, 2, (5, 4)), [0.5, 1.0, 2.0, 0.5]
    centers = np.array([0.25, 1.0, 2.5, 3.75])
    mass = np.exp(logits) * widths / (np.exp(logits) @ widths)[:, None]
    variance = mass @ centers**2 - (mass @ centers) ** 2
    np.testing.assert_allclose(density_std(columns(logits), widths=widths), -np.sqrt(variance))
    np.testing.assert_allclose(
        density_std(columns(logits), widths=0.5), 0.5 * density_std(columns(logits))
    )


def test_widths_of_heads_are_what_numpy_says(asarray):
    rows = np.random.default_rng(1).uniform(0.1, 3, (8, 5))
    np.testing.assert_allclose(
        to_numpy(ensemble_spread(asarray(rows))), -rows[:, 1:].std(axis=1, ddof=1)
    )
    sorted_rows = np.sort(rows, axis=1)
    np.testing.assert_allclose(
        to_numpy(interval_width(asarray(sorted_rows))), sorted_rows[:, 1] - sorted_rows[:, -1]
    )
    for of, std in (("std", rows[:, 1]), ("variance", rows[:, 1] ** 0.5),
                    ("log_variance", np.exp(rows[:, 1] / 2))):  # fmt: skip
        found = to_numpy(predicted_std(asarray(rows[:, :2].copy()), of=of))
        np.testing.assert_allclose(found, -std)


def test_a_negative_deviation_and_crossed_quantiles_are_deferred(asarray):
    for name, rows in (("predicted_std", [[0, 1.0], [0, -1.0]]),
                       ("interval_width", [[0, 1.0, 2.0], [0, 2.0, 1.0]])):  # fmt: skip
        score, deferred = Router(name, -1e9)(asarray(np.array(rows)))
        assert np.isnan(to_numpy(score)).tolist() == [False, True]
        assert to_numpy(deferred).tolist() == [False, True]


@pytest.mark.parametrize("name", PREDICTIONS.scores)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shape_dtype_and_library_are_kept(name, dtype, asarray):
    width = 2 if name == "predicted_std" else 4
    rows = asarray(np.random.default_rng(0).uniform(1, 2, (5, width)).astype(dtype))
    score = as_score(name)(rows)
    assert type(score) is type(rows)
    assert score.dtype == rows.dtype
    assert tuple(score.shape) == (5,)


@pytest.mark.parametrize("name", PREDICTIONS.scores)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(name, data):
    n = data.draw(st.integers(1, 30))
    width = 2 if name == "predicted_std" else 7
    rows = np.random.default_rng(n).normal(0, 3, (n, width)).astype(np.float32)
    whole = as_score(name)(rows)
    parts = data.draw(cuts(n))
    split = np.concatenate([as_score(name)(rows[part]) for part in parts])
    np.testing.assert_array_equal(split, whole)


@pytest.mark.parametrize("name", PREDICTIONS.scores)
def test_a_row_with_nan_is_deferred(name, asarray):
    width = 2 if name == "predicted_std" else 3
    rows = np.ones((3, width))
    rows[1, -1] = np.nan
    score = to_numpy(as_score(name)(asarray(rows)))
    assert np.isnan(score).tolist() == [False, True, False]


@pytest.mark.parametrize("name", PREDICTIONS.scores)
@pytest.mark.parametrize("prediction", [np.nan, np.inf, -np.inf])
def test_a_row_whose_prediction_is_not_finite_is_deferred(name, prediction, asarray):
    rows = np.ones((3, 2 if name == "predicted_std" else 3))
    rows[1, 0] = prediction
    score = to_numpy(as_score(name)(asarray(rows)))
    assert np.isnan(score).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "regression_energy",
        "regression_energy(grid=(0.0, 9.0))",
        "regression_energy(grid=(0.0, 9.0), rule='simpson')",
        "regression_energy(grid=[0.0, 1.0, 4.0], rule='trapezoid')",
        "regression_energy(widths=[1.0, 2.0, 0.5])",
        "density_entropy(widths=0.5)",
        "density_std(grid=(0.0, 9.0))",
        "predicted_std(of='log_variance')",
        "interval_width",
        "ensemble_spread",
    ],
)
def test_a_score_is_read_from_text_and_written_back(text):
    assert as_score(str(as_score(text))) == as_score(text)
    assert as_score(text).named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("regression_energy(widths=[1.0, -1.0])", "bin widths must be positive"),
        ("regression_energy(grid=[0.0, 0.0, 1.0])", "a grid must ascend"),
        ("regression_energy(widths=1.0, grid=(0, 1))", "not both"),
        ("regression_energy(grid=(0, 1), rule='midpoint')", "rule must be one of trapezoid"),
        ("regression_energy(grid=[0, 1, 2, 3], rule='simpson')", "odd number of points"),
        ("predicted_std(of='precision')", "of must be one of std"),
        ("predicted_std(off='std')", "does not take the parameters"),
    ],
)
def test_bad_parameters_are_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_score(text)
    assert "\n" not in str(caught.value)


def test_raw_output_that_does_not_fit_a_score_is_refused(asarray):
    for name in PREDICTIONS.scores:
        with pytest.raises(ValueError, match="only predictions"):
            as_score(name)(asarray(np.ones(3)))
        with pytest.raises(ValueError, match="must have shape"):
            as_score(name)(asarray(np.ones((3, 2, 2))))
    with pytest.raises(ValueError, match="one column after the prediction"):
        predicted_std(asarray(np.ones((2, 3))))
    with pytest.raises(ValueError, match="there are 3 bins but 2 widths"):
        regression_energy(asarray(np.ones((2, 4))), widths=[1.0, 2.0])
    with pytest.raises(ValueError, match="there are 3 energies but 4 grid points"):
        regression_energy(asarray(np.ones((2, 4))), grid=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(TypeError, match="not list"):
        as_regression([1.0])


@pytest.mark.parametrize("rule", ["trapezoid", "simpson"])
def test_quadrature_weights_are_scipys_on_an_uneven_grid(rule):
    grid = [0.0, 1.0, 2.2, 3.0, 4.5]
    scipys = {"trapezoid": scipy.integrate.trapezoid, "simpson": scipy.integrate.simpson}[rule]
    values = np.exp(np.sin(grid))
    np.testing.assert_allclose(np.exp(grid_log_weights(grid, rule=rule)) @ values,
                               scipys(values, x=grid))  # fmt: skip


def test_mass_at_the_edges_is_that_of_the_outermost_cells():
    y = np.linspace(0, 5, 501)
    first, last = edge_mass(columns(-((y[None] - 0.0) ** 2) / 2), grid=(0, 5))
    assert first[0] == pytest.approx(0.005 / (np.sqrt(np.pi / 2)), rel=1e-3)
    assert last[0] < 1e-5


def test_a_grid_that_does_not_cover_the_data_says_how_much_is_outside():
    with pytest.raises(ValueError, match=r"3 of 10 targets \(30.0 %\) lie outside, from 0 to 9"):
        check_grid((0.0, 6.5), np.arange(10.0))
    flat = columns(np.zeros((4, 11)))
    with pytest.raises(ValueError, match=r"5.0 % of it lies in the first cell and 5.0 %"):
        check_grid((0.0, 10.0), np.arange(10.0), flat)
    check_grid(GRID, np.arange(5.0), columns(energy(GRID)))
