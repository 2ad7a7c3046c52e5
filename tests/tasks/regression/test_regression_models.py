"""Conditional energies as models, and importance sampling against quadrature."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts
from test_regression_scores import CENTERS, GRID, energy

from ebjr.arrays import namespace, to_numpy
from ebjr.errors import GridWarning
from ebjr.tasks.regression.models import (
    BinnedRegressor,
    EnergyRegressor,
    GaussianMixture,
    sample_energy,
)
from ebjr.tasks.regression.scores import regression_energy

ROWS = np.arange(7)
MIXTURE = GaussianMixture((0.7, 1.4, 2.8))
TRUE = regression_energy(np.column_stack([ROWS, energy(GRID)]), grid=GRID, rule="simpson")


def by_row(x, y):
    """S(x, y) for y (n, m), x being row numbers."""
    return np.stack(
        [energy(values, np.array([int(row)]))[0] for row, values in zip(x, y, strict=True)]
    )


@pytest.mark.parametrize("seed", range(5))
def test_importance_sampling_agrees_with_quadrature_within_its_standard_error(seed):
    found = sample_energy(by_row, ROWS, CENTERS, MIXTURE, samples=1000, seed=seed)
    assert (np.abs(found.energy - TRUE) < 4 * found.standard_error).all()
    assert (found.standard_error < 0.1).all()


def test_a_proposal_that_is_the_density_is_exact():
    def gaussian(x, y):
        return 3.0 + scipy.stats.norm.logpdf(y, np.asarray(x)[:, None], 0.5)

    found = sample_energy(gaussian, ROWS, ROWS * 1.0, GaussianMixture((0.5,)), samples=10)
    np.testing.assert_allclose(found.energy, 3.0)
    np.testing.assert_allclose(found.standard_error, 0.0, atol=1e-9)


def test_a_thousand_samples_of_a_fitted_proposal_are_within_one_percent_of_quadrature():
    rng = np.random.default_rng(0)
    mean, std = rng.uniform(-3, 3, 200), rng.uniform(0.5, 1.0, 200)
    height = rng.uniform(3, 9, 200)

    def conditional(rows, y):
        off = (y - mean[rows, None]) / std[rows, None]
        return height[rows, None] - off**2 / 2

    residuals = std * rng.standard_normal(200)
    proposal = GaussianMixture.fit(residuals)
    grid = np.linspace(-12, 12, 2401)
    rows = np.arange(200)
    exact = regression_energy(
        np.column_stack([mean, conditional(rows, np.broadcast_to(grid, (200, len(grid))))]),
        grid=grid,
    )
    for seed in range(5):
        found = sample_energy(conditional, rows, mean, proposal, samples=1000, seed=seed)
        assert np.max(np.abs(found.energy / exact - 1)) < 0.01


class Independent(GaussianMixture):
    """The same proposal without strata."""

    def sample(self, prediction, samples, seed):
        rng = np.random.default_rng(seed)
        scales = rng.choice(self.scales, samples, p=self.weights)
        return prediction[:, None] + scales * rng.standard_normal(samples)


INDEPENDENT = Independent(MIXTURE.scales)


def test_strata_leave_a_tenth_of_the_error_of_independent_draws():
    off = {
        proposal: np.sqrt(
            np.mean(
                [
                    (sample_energy(by_row, ROWS, CENTERS, proposal, 1000, seed).energy - TRUE) ** 2
                    for seed in range(20)
                ]
            )
        )
        for proposal in (MIXTURE, INDEPENDENT)
    }
    assert off[MIXTURE] < 0.1 * off[INDEPENDENT]
    assert off[MIXTURE] < 0.002  # the integral is e to this power: 0.2 %


@pytest.mark.parametrize("seed", range(3))
def test_the_draws_are_those_of_the_mixture(seed):
    mixture = GaussianMixture((0.5, 3.0), (3.0, 1.0))
    drawn = mixture.sample(np.array([2.0]), 2000, seed)[0] - 2
    assert (np.diff(drawn) >= 0).all()

    def share_below(y):
        return 0.75 * scipy.stats.norm.cdf(y / 0.5) + 0.25 * scipy.stats.norm.cdf(y / 3)

    assert np.abs(share_below(drawn) - (np.arange(2000) + 0.5) / 2000).max() <= 0.5 / 2000 + 1e-9


@pytest.mark.parametrize("proposal", [MIXTURE, INDEPENDENT])
def test_the_standard_error_is_the_spread_over_seeds(proposal):
    found = [sample_energy(by_row, ROWS, CENTERS, proposal, 400, seed) for seed in range(200)]
    spread = np.std([each.energy for each in found], axis=0)
    said = np.mean([each.standard_error for each in found], axis=0)
    np.testing.assert_allclose(said, spread, rtol=0.2)


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_same_seed_same_answers_in_any_split(data):
    whole = sample_energy(by_row, ROWS, CENTERS, MIXTURE, 50, seed=7).energy
    parts = data.draw(cuts(7))
    split = [sample_energy(by_row, ROWS[p], CENTERS[p], MIXTURE, 50, seed=7).energy for p in parts]
    np.testing.assert_allclose(np.concatenate(split), whole, rtol=1e-12)
    assert (sample_energy(by_row, ROWS, CENTERS, MIXTURE, 50, seed=8).energy != whole).any()


class Uniform:
    """A proposal on an interval of its own, wherever the prediction is."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def sample(self, prediction, samples, seed):
        rng = np.random.default_rng(seed)
        return np.broadcast_to(
            rng.uniform(self.low, self.high, samples), (len(prediction), samples)
        )

    def log_density(self, y, prediction):
        inside = (y >= self.low) & (y <= self.high)
        with np.errstate(divide="ignore"):
            return np.log(inside / (self.high - self.low))


def test_a_proposal_of_the_user_is_taken():
    found = sample_energy(by_row, ROWS, CENTERS, Uniform(-6, 8), samples=4000)
    assert (np.abs(found.energy - TRUE) < 4 * found.standard_error).all()


def test_a_proposal_with_zero_density_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="the proposal has zero or invalid density") as caught:
        sample_energy(by_row, ROWS, CENTERS, Uniform(100, 101), samples=10)
    assert "at 7 of 77 points" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x, y: y[:, :1], r"the energy must return \(7, 10\)"),
        (lambda x, y: y * np.nan, "the energy returned NaN or"),
    ],
)
def test_an_energy_that_is_none_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        sample_energy(bad, ROWS, CENTERS, MIXTURE, samples=10)
    with pytest.raises(ValueError, match="at least 3 samples"):
        sample_energy(by_row, ROWS, CENTERS, MIXTURE, samples=2)


@pytest.mark.parametrize(
    ("scales", "weights", "message"),
    [((), None, "scales"), ((0.0,), None, "scales"), ((1.0,), (-1.0,), "weights"),
     ((1.0, 2.0), (1.0,), "2 scales but 1 weights")],
)  # fmt: skip
def test_a_mixture_that_is_none_is_refused(scales, weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(scales, weights)


@pytest.mark.parametrize("residuals", [[], [1.0], [0.0, 0.0], [np.nan, 1.0]])
def test_residuals_that_say_nothing_are_refused(residuals):
    with pytest.raises(ValueError, match="residuals must be two or more finite"):
        GaussianMixture.fit(residuals)


def _draws(n):
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 0.5, n // 2), rng.normal(0, 3.0, n // 2)])


def test_a_fitted_mixture_finds_both_scales():
    mixture = GaussianMixture.fit(_draws(40_000), components=2)
    np.testing.assert_allclose(sorted(mixture.scales), [0.5, 3.0], rtol=0.05)
    grid = np.linspace(-30, 30, 20_001)
    density = np.exp(mixture.log_density(grid[None], np.zeros(1)))[0]
    assert np.trapezoid(density, grid) == pytest.approx(1)


@pytest.mark.parametrize("how", [{"grid": np.linspace(-9, 9, 181)}, {"proposal": MIXTURE}])
def test_an_energy_regressor_is_prediction_and_free_energy(how, asarray):
    model = EnergyRegressor(lambda x: x, lambda x, y: 2 - (y - x[:, None]) ** 2 / 2, **how)
    output = model(asarray(np.array([0.0, 0.5, 1.0])))
    assert to_numpy(output)[:, 0].tolist() == [0.0, 0.5, 1.0]
    exact = 2 + np.log(2 * np.pi) / 2
    np.testing.assert_allclose(to_numpy(regression_energy(output)), exact, rtol=0.03)
    assert namespace(output) is namespace(asarray(np.ones(1)))


def test_an_energy_regressor_needs_one_way_to_integrate():
    for how in ({}, {"grid": (0, 1), "proposal": MIXTURE}):
        with pytest.raises(ValueError, match="give either grid"):
            EnergyRegressor(lambda x: x, lambda x, y: y, **how)


def test_a_binned_head_predicts_its_mean_and_its_score_needs_no_parameters(asarray):
    logits = np.random.default_rng(0).normal(0, 2, (6, 3))
    edges = [0.0, 1.0, 3.0, 7.0]
    output = to_numpy(BinnedRegressor(lambda x: x, edges)(asarray(logits)))
    mass = np.exp(logits) * np.diff(edges)
    np.testing.assert_allclose(
        output[:, 0], (mass / mass.sum(axis=1, keepdims=True)) @ [0.5, 2.0, 5.0]
    )
    np.testing.assert_allclose(
        regression_energy(output),
        regression_energy(np.column_stack([output[:, 0], logits]), widths=np.diff(edges)),
    )
    with pytest.raises(ValueError, match="make 3 bins but the model returned 2"):
        BinnedRegressor(lambda x: x, edges)(np.ones((1, 2)))


@pytest.mark.parametrize("samples", [100, 1000])
@pytest.mark.parametrize(
    ("scale", "warned"), [(0.1, True), (0.5, True), (1.0, False), (2.0, False)]
)
def test_a_proposal_that_is_too_narrow_warns(scale, warned, samples):
    proposal, found = GaussianMixture((scale,)), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sample_energy(lambda x, y: -(y**2) / 2, None, np.zeros(50), proposal, samples)
    assert bool(caught) == warned
    off = np.abs(found.energy - np.log(2 * np.pi) / 2)
    if warned:
        assert caught[0].category is GridWarning
        assert "too narrow for" in str(caught[0].message)
    else:
        assert (off < 5 * found.standard_error + 1e-9).all()


def test_a_proposal_that_is_much_too_wide_warns():
    with pytest.warns(GridWarning, match="effective draws"):
        sample_energy(lambda x, y: -(y**2) / 2, None, np.zeros(9), GaussianMixture((500.0,)), 300)
