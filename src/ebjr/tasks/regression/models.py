"""Regressors whose raw output a score can read, from conditional energies ``S(x, y)`` (eq. 8-11).

`sample_energy` estimates their free energy by importance sampling. Heads over bins return no
prediction, and an energy that takes y as an input returns no columns. Both become (n, 1 + k) here.
Other heads need no wrapper.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol, Self

import numpy as np
from scipy.special import ndtr, ndtri

from ebjr.arrays import Array, Batch, as_float, convert_like, logsumexp, namespace, to_numpy
from ebjr.errors import GridWarning
from ebjr.tasks.regression.scores import (
    Grid,
    as_regression,
    bin_log_weights,
    grid_log_weights,
    grid_points,
)

Energy = Callable[[Batch, Array], Array]
"""A conditional energy: takes a batch of n inputs and y (n, m), and returns ``S(x, y)`` (n, m)."""


class Proposal(Protocol):
    """A proposal distribution of y around the point prediction."""

    def sample(self, prediction: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """Return draws, (n, samples), for n predictions, each row's from the row and seed alone.

        They are independent, or one per equally likely stratum of y, ascending.
        """
        ...

    def log_density(self, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Return the log density, (n, m), of y (n, m) given the n predictions."""
        ...


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians, all centered at the point prediction.

    Source: Gustafsson et al., "Energy-based models for deep probabilistic regression", ECCV 2020.

    Parameters
    ----------
    scales
        The standard deviations, in the unit of y.
    weights
        The shares; equal by default.

    Raises
    ------
    ValueError
        `scales` or `weights` are not positive, or differ in length.

    Examples
    --------
    >>> mixture = GaussianMixture((0.1, 1.0))
    >>> mixture.sample(np.zeros(1), samples=3, seed=0).shape
    (1, 3)
    """

    scales: tuple[float, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weights = self.weights or (1.0,) * len(self.scales)
        for name, values in (("scales", self.scales), ("weights", weights)):
            if not (values and all(math.isfinite(v) and v > 0 for v in values)):
                raise ValueError(f"{name} of a mixture must be positive numbers, not {values}")
        if len(weights) != len(self.scales):
            raise ValueError(f"there are {len(self.scales)} scales but {len(weights)} weights")
        total = sum(weights)
        object.__setattr__(self, "scales", tuple(float(v) for v in self.scales))
        object.__setattr__(self, "weights", tuple(v / total for v in weights))

    def sample(self, prediction: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """Return one draw per equally likely stratum, (n, samples), ascending.

        The offsets are the same in every row, so that any split into batches gives the same draws.
        """
        drawn = np.random.default_rng(seed).random(samples)
        return prediction[:, None] + self._quantiles((np.arange(samples) + drawn) / samples)

    def _quantiles(self, shares: np.ndarray) -> np.ndarray:
        """Return the offsets below which these shares of the mixture lie, by bisection."""
        scales, weights = np.array(self.scales), np.array(self.weights)
        each = ndtri(np.clip(shares, 1e-12, 1 - 1e-12))[:, None] * scales
        low, high = each.min(axis=1), each.max(axis=1)
        for _ in range(45):
            middle = (low + high) / 2
            below = ndtr(middle[:, None] / scales) @ weights < shares
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return (low + high) / 2

    def log_density(self, y: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        """Return the log density, (n, m)."""
        off = (y - prediction[:, None])[..., None]
        scales, weights = np.array(self.scales), np.array(self.weights)
        each = np.log(weights / scales) - (off / scales) ** 2 / 2 - math.log(2 * math.pi) / 2
        return logsumexp(each)

    @classmethod
    def fit(cls, residuals: Any, components: int = 3) -> Self:
        """Fit the likeliest mixture to residuals, by expectation maximization.

        Parameters
        ----------
        residuals
            (n,): targets minus point predictions, on examples unseen by the regressor.
        components
            The number of Gaussians; fewer are returned if fewer are enough.

        Raises
        ------
        ValueError
            `residuals` are fewer than two, all 0, or not finite.

        Examples
        --------
        >>> residuals = np.random.default_rng(0).normal(0, 2, 10_000)
        >>> [round(scale) for scale in GaussianMixture.fit(residuals, components=1).scales]
        [2]
        """
        off = np.asarray(residuals, dtype=np.float64)
        if off.ndim != 1 or len(off) < 2 or not np.isfinite(off).all() or not off.any():
            raise ValueError(
                "residuals must be two or more finite numbers, (n,), that are not all 0"
            )
        square, whole = off**2, math.sqrt(float((off**2).mean()))
        scales = whole * 2.0 ** (np.arange(components) - (components - 1) / 2)
        shares = np.full(components, 1 / components)
        for _ in range(200):
            log = np.log(shares / scales) - square[:, None] / (2 * scales**2)
            mine = np.exp(log - logsumexp(log)[:, None])
            shares = mine.mean(axis=0)
            scales = np.sqrt(square @ mine / np.maximum(mine.sum(axis=0), 1e-300))
            # a component with almost no share sits at a spike of the likelihood
            used = (shares > 1e-3) & (scales > 1e-3 * whole)
            shares, scales = shares[used] / shares[used].sum(), scales[used]
        return cls(tuple(scales.tolist()), tuple(shares.tolist()))


@dataclass(frozen=True, eq=False)
class EnergyEstimate:
    """A free energy by importance sampling, with its standard error."""

    energy: Array  # -F(x), (n,), in nats
    standard_error: Array  # (n,): from the variation of the weights (delta method)


def sample_energy(
    energy: Energy,
    inputs: Batch,
    prediction: Array,
    proposal: Proposal,
    samples: int = 1000,
    seed: int = 0,
) -> EnergyEstimate:
    """``-F(x) = log E_q[exp S(x, y) / q(y|x)]`` by importance sampling (eq. 9).

    y is drawn from `proposal`, centered at the point predictions (n,), which should be at least as
    wide as ``p(y|x)``. The same seed gives the same answers, in any split into batches.

    Raises
    ------
    ValueError
        `proposal` has zero density at its own draws or at a prediction, or draws that are not
        finite; `energy` has another shape, NaN or ``+inf``; or `samples` is under 3.

    Warns
    -----
    GridWarning
        `proposal` is too narrow, or much too wide, for more than a tenth of the inputs.
    """
    if samples < 3:
        raise ValueError(f"importance sampling needs at least 3 samples, not {samples}")
    center = to_numpy(prediction).astype(np.float64)
    drawn = np.asarray(proposal.sample(center, samples, seed), dtype=np.float64)
    if drawn.shape != (len(center), samples) or not np.isfinite(drawn).all():
        raise ValueError(
            f"the proposal must draw ({len(center)}, {samples}) finite y, but drew "
            f"{drawn.shape}{'' if np.isfinite(drawn).all() else ' with some that are not finite'}"
        )
    density = np.asarray(
        proposal.log_density(np.column_stack([center, drawn]), center), dtype=np.float64
    )
    zero = ~np.isfinite(density)
    if zero.any():
        raise ValueError(
            f"the proposal has zero or invalid density at {int(zero.sum())} of {zero.size} points "
            "(the predictions and its own draws): it must be positive wherever the model's density "
            "is"
        )
    reference = as_float(prediction)
    xp = namespace(reference)
    y = xp.astype(convert_like(drawn, reference), reference.dtype)
    found = energy(inputs, y)
    if tuple(found.shape) != (len(center), samples):
        raise ValueError(
            f"the energy must return ({len(center)}, {samples}) for y of that shape, but returned "
            f"{tuple(found.shape)}"
        )
    if bool(xp.any(xp.isnan(found) | (found == math.inf))):
        raise ValueError("the energy returned NaN or +inf: it must be finite or -inf")
    offset = convert_like(density[:, 1:], found)
    weights = found - xp.astype(offset, found.dtype) - math.log(samples)
    total = logsumexp(weights)
    share = xp.exp(weights - total[:, None])
    _warn_if_narrow(to_numpy(share), np.abs(drawn - center[:, None]))
    return EnergyEstimate(total, _spread(share))


FAR = 0.02  # share of the draws that count as far from the prediction

MOST_FAR = 8.0
"""The most weight of far draws, as a multiple of their share.

A proposal with half the right deviation gives 9 to 12 (with 100 and 1,000 draws), and a bias beyond
the standard error; a proposal of the right width gives 1.
"""

FEWEST_EFFECTIVE = 5.0  # below this effective sample size, the standard error is unreliable


def _warn_if_narrow(share: np.ndarray, distance: np.ndarray) -> None:
    """Warn if draws, (n, samples), do not reach the energy's mass, or rarely hit it."""
    n, samples = share.shape
    count = math.ceil(FAR * samples)
    far = np.argpartition(distance, samples - count, axis=1)[:, samples - count :]
    held = np.take_along_axis(share, far, axis=1).sum(axis=1) * samples / count
    outside, few = held > MOST_FAR, (share**2).sum(axis=1) > 1 / FEWEST_EFFECTIVE
    if outside.sum() > n / 10:
        words = (
            f"is too narrow for {outside.sum()} of {n} inputs: its farthest draws weigh "
            f"{np.median(held[outside]):.0f} times their share, so part of the free energy is "
            "missing beyond the standard error; use a wider proposal"
        )
    elif few.sum() > n / 10:
        words = (
            f"hits the energy of {few.sum()} of {n} inputs with fewer than {FEWEST_EFFECTIVE:g} "
            "effective draws: use a narrower proposal, or more samples"
        )
    else:
        return
    warnings.warn(f"the proposal {words}", GridWarning, stacklevel=3)


def _spread(share: Array) -> Array:
    """Return the standard error, (n,), of sums of draws (n, samples), independent or stratified."""
    xp = namespace(share)
    # second differences have the draws' variance without the strata's trend; at both ends first
    # differences replace them
    step = share[:, 1:] - share[:, :-1]
    bend = step[:, 1:] - step[:, :-1]
    ends = step[:, 0] ** 2 + step[:, -1] ** 2
    return xp.sqrt(xp.sum(bend**2, axis=-1) / 6 + ends / 2)


@dataclass(eq=False, repr=False)
class EnergyRegressor:
    """A point regressor and a conditional energy as one model, (n, 2): prediction and ``-F(x)``.

    Its score is ``regression_energy``, which returns the second column.

    Parameters
    ----------
    regressor
        A model whose raw output is (n,) predictions, or has them in its first column.
    energy
        ``S(x, y)``: a batch and y (n, m) to (n, m), in nats.
    grid
        Ascending y for quadrature; check it with `check_grid`. Give this or `proposal`.
    rule
        The quadrature on the grid: ``"trapezoid"`` or ``"simpson"``.
    proposal
        The proposal for importance sampling around the prediction.
    samples, seed
        The number and the seed of the draws.

    Raises
    ------
    ValueError
        Not exactly one of `grid` and `proposal` is given, or `grid` does not ascend.

    Examples
    --------
    >>> model = EnergyRegressor(
    ...     lambda x: x, lambda x, y: -((y - x[:, None]) ** 2) / 2, grid=np.linspace(-9, 9, 99)
    ... )
    >>> model(np.array([0.0, 1.0])).round(3)
    array([[0.   , 0.919],
           [1.   , 0.919]])
    """

    regressor: Callable[[Batch], Array]
    energy: Energy
    _: KW_ONLY
    grid: Grid | None = None
    rule: str = "trapezoid"
    proposal: Proposal | None = None
    samples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.grid is None) == (self.proposal is None):
            raise ValueError("give either grid (quadrature) or proposal (importance sampling)")
        if self.grid is not None:
            self.points = grid_points(self.grid)
            self.log_weights = grid_log_weights(self.grid, rule=self.rule)

    def __call__(self, batch: Batch) -> Array:
        """Return prediction and negative free energy, (n, 2)."""
        output = as_regression(self.regressor(batch))
        xp, prediction = namespace(output), output[:, 0]
        if self.proposal is not None:
            found = sample_energy(
                self.energy, batch, prediction, self.proposal, self.samples, self.seed
            ).energy
        else:
            rows = np.broadcast_to(self.points, (output.shape[0], len(self.points)))
            energies = self.energy(batch, xp.astype(convert_like(rows, output), output.dtype))
            weights = convert_like(self.log_weights, energies)
            found = logsumexp(energies + namespace(energies).astype(weights, energies.dtype))
        return xp.stack([prediction, xp.astype(found, output.dtype)], axis=1)


class BinnedRegressor:
    """Turns a model of logits over bins of y into a regressor, (n, 1 + bins).

    The prediction is the mean of ``p(y|x)``, whose density in a bin is ``exp`` of its logit over
    the sum of ``exp(logit) width``. The other columns are the logits plus the log widths, so that
    the score ``regression_energy`` needs no parameters.

    Parameters
    ----------
    model
        A model whose raw output is (n, bins) energies.
    edges
        (bins + 1,): ascending, in the unit of y. `check_grid(edges, targets)` checks whether they
        cover some data.

    Raises
    ------
    ValueError
        `edges` do not ascend or, on a call, are not one more than the model's bins.

    Examples
    --------
    >>> model = BinnedRegressor(lambda batch: np.zeros((len(batch), 2)), edges=[0.0, 1.0, 3.0])
    >>> model([7]).round(3)
    array([[1.5  , 0.   , 0.693]])
    """

    def __init__(self, model: Callable[[Batch], Array], edges: Sequence[float]) -> None:
        self.model = model
        points = grid_points(edges)
        self.centers = (points[1:] + points[:-1]) / 2
        self.log_widths = bin_log_weights(np.diff(points).tolist(), len(self.centers))

    def __call__(self, batch: Batch) -> Array:
        """Return predictions and weighted logits, (n, 1 + bins)."""
        logits = as_regression(self.model(batch))
        if logits.shape[1] != len(self.centers):
            raise ValueError(
                f"the edges make {len(self.centers)} bins but the model returned {logits.shape[1]}"
            )
        xp = namespace(logits)
        widths, centers = (
            xp.astype(convert_like(values, logits), logits.dtype)
            for values in (self.log_widths, self.centers)
        )
        weighted = logits + widths
        mass = xp.exp(weighted - logsumexp(weighted)[:, None])
        return xp.concat([(mass @ centers)[:, None], weighted], axis=1)
