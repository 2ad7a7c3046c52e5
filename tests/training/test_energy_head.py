"""An energy head learns how sharp the density is, on data whose spread is known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

pytest.importorskip("torch", reason="PyTorch is not installed")

from ebjr import JointRegressor, Outcomes, Router, TradeOffCurve, record
from ebjr.arrays import to_numpy
from ebjr.tasks.regression.models import sample_energy
from ebjr.tasks.regression.scores import density_entropy, regression_energy
from ebjr.training.energy_head import train_energy_head


def noisy(n, seed):
    """x (n, 2), a prediction, and targets whose spread is exp(x1)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, 2))
    return x, x[:, 0], x[:, 0] + np.exp(x[:, 1]) * rng.normal(0, 1, n)


@pytest.fixture(scope="module", params=["nce", "importance"])
def head(request):
    x, prediction, targets = noisy(4000, 0)
    return train_energy_head(x, prediction, targets, loss=request.param, epochs=15)


def trunk(x):
    return x, x[:, 0]


def test_the_density_is_as_sharp_as_the_data(head):
    x, prediction, _ = noisy(300, 1)
    output = head.regressor(trunk, (-12.0, 12.0), 97)(x)
    np.testing.assert_array_equal(output[:, 0], prediction)
    # the columns carry their log-weights: taken off again for a density
    steps = np.linspace(-12, 12, 97)
    mass = np.exp(output[:, 1:] - regression_energy(output)[:, None])
    spread = np.sqrt(mass @ steps**2 - (mass @ steps) ** 2)
    assert scipy.stats.spearmanr(spread, np.exp(x[:, 1])).statistic > 0.95
    assert np.median(spread / np.exp(x[:, 1])) == pytest.approx(1, abs=0.15)
    assert scipy.stats.spearmanr(density_entropy(output), -x[:, 1]).statistic > 0.95


def test_its_entropy_defers_what_the_student_gets_wrong(head):
    x, _, targets = noisy(2000, 2)
    model = head.regressor(trunk, (-12.0, 12.0), 49)
    outcomes = record(model, lambda b: targets[: len(b)], x, targets, task="regression",
                      batch_size=2000)  # fmt: skip
    curve = TradeOffCurve.of(outcomes, "density_entropy")
    assert curve.at(deferral_rate=0.5).quality > 0.55 * outcomes.quality("student")
    joint = JointRegressor(model, lambda b: b[:, 0], Router("density_entropy", -1.5))
    assert 0 < joint(x).deferred.mean() < 1
    assert isinstance(outcomes, Outcomes)


def test_importance_sampling_with_its_own_proposal_agrees_with_the_grid(head):
    x, prediction, _ = noisy(50, 3)
    exact = regression_energy(head.regressor(trunk, (-30.0, 30.0), 1201)(x))
    found = sample_energy(
        lambda b, y: head(b, b[:, 0], y), x, prediction, head.proposal, samples=1000
    )
    assert (np.abs(found.energy - exact) < 4 * found.standard_error + 0.01).all()


def test_arrays_of_pytorch_come_back_as_such(head):
    import torch

    x, _, _ = noisy(5, 4)
    output = head.regressor(trunk, (-3.0, 3.0), 7)(torch.as_tensor(x))
    assert isinstance(output, torch.Tensor)
    np.testing.assert_allclose(
        to_numpy(output), head.regressor(trunk, (-3.0, 3.0), 7)(x), rtol=1e-6
    )


def test_the_same_seed_gives_the_same_head():
    x, prediction, targets = noisy(300, 0)
    y = np.tile(np.linspace(-2, 2, 5), (300, 1))
    one, same, other = (
        train_energy_head(x, prediction, targets, epochs=2, seed=seed)(x, prediction, y)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "adversarial"}, "loss must be one of nce, importance"),
        ({"features": np.ones(5)}, r"features must be \(n, d\)"),
        ({"targets": np.ones(4)}, r"not \(5, 2\), \(5,\), \(4,\)"),
        ({"prediction": np.full(5, np.nan)}, "must be finite"),
    ],
)
def test_bad_input_is_one_sentence(changed, message):
    good = {"features": np.ones((5, 2)), "prediction": np.zeros(5), "targets": np.arange(5.0)}
    with pytest.raises(ValueError, match=message):
        train_energy_head(**{**good, **changed})
