"""Scores of regressors: how well an input fits what the student knows (eq. 8-11).

A regressor's raw output is (n,) predictions, or (n, 1 + k): the prediction first, then what its
score reads: energies ``S(x, y)`` on a grid or for bins, a standard deviation, quantiles, or the
predictions of an ensemble's members.

The paper's score is the free energy of a conditional energy, ``-F(x) = log integral exp S(x, y)
dy`` (`regression_energy`), by a rule over the grid here, and by importance sampling in
`ebjr.tasks.regression.models.sample_energy`. A head that is normalized by construction, such as a
Gaussian or quantiles, has ``F(x) = 0`` for every input, which is no signal. Such heads show how
sure they are by their width, which the other scores read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ebjr.arrays import Array, as_float, convert_like, is_array, logsumexp, namespace
from ebjr.errors import check_choice
from ebjr.scores import declare_raw_output

Grid = Sequence[float] | np.ndarray
"""Ascending y, or the lowest and highest of evenly spaced y."""

RULES = ("trapezoid", "simpson")  # the second is more exact for smooth energies


def as_regression(output: Array) -> Array:
    """Return raw output as (n, 1 + k) floats; (n,) predictions become one column."""
    if not is_array(output):
        raise TypeError(
            f"raw output must be a NumPy array or a PyTorch tensor, not {type(output).__name__}"
        )
    if output.ndim == 1:
        output = output[:, None]
    if output.ndim != 2 or output.shape[1] < 1:
        raise ValueError(
            "a regressor's raw output must have shape (n,) or (n, 1 + k), the prediction first, "
            f"not {tuple(output.shape)}"
        )
    return as_float(output)


def regression_energy(
    output: Array,
    widths: float | Sequence[float] | None = None,
    grid: Grid | None = None,
    rule: str = "trapezoid",
) -> Array:
    """Negative free energy of a conditional energy, ``-F(x) = log integral exp S(x, y) dy``.

    Eq. 8-11, as a log-sum-exp of the energies, each plus the log of its share of the y axis. Exact
    for a head over bins; quadrature for energies on a grid.

    - `output`: (n, 1 + k): the prediction, then k energies ``S(x, y)``, in nats.
    - `widths`: For a head over bins: one width for all, or (k,), in the unit of y.
    - `grid`: For energies on a grid: its y, (k,), ascending; or ``(low, high)`` of k evenly spaced
      ones. With neither, columns count as they are: bins of width 1, one column that is ``-F``
      already, or energies with their log-weights (`BinnedRegressor`).
    - `rule`: On a grid: ``"trapezoid"`` or ``"simpson"``.

    Returns (n,), in nats; it grows by c when every energy of a row grows by c.

    Raises
    ------
    ValueError
        `output` has no column after the prediction, `widths` and `grid` are both given, `widths`
        are not positive, `grid` does not ascend, or either has another length than the columns.

    Examples
    --------
    >>> y = np.linspace(-8.0, 8.0, 65)
    >>> gaussian = np.hstack([0.0, -(y**2) / 2])[None]
    >>> regression_energy(gaussian, grid=(-8.0, 8.0)).round(4), round(math.log(2 * math.pi) / 2, 4)
    (array([0.9189]), 0.9189)
    """
    return logsumexp(_weighted(output, widths, grid, rule))


def density_entropy(output: Array, **which: Any) -> Array:
    """Negative differential entropy of ``p(y|x) = exp S(x, y) / integral exp S(x, y') dy'``.

    It is the sharpness of the density, what remains of a conditional energy without its free
    energy. Parameters, shapes and errors are those of `regression_energy`; it needs two energies.
    For columns with log-weights it is the discrete entropy, which is the same up to a constant if
    the weights are equal.

    Examples
    --------
    >>> density_entropy(np.array([[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]])).round(3)
    array([-0.693, -0.001])
    """
    energies = _at_least_two(output, "density_entropy", "energies")
    weighted = _weighted(output, **which)
    xp, mass = namespace(weighted), _shares(weighted)
    with np.errstate(invalid="ignore"):
        log_density = energies - logsumexp(weighted)[:, None]
    return xp.sum(mass * xp.where(mass == 0, xp.zeros_like(mass), log_density), axis=-1)


def density_std(
    output: Array,
    widths: float | Sequence[float] | None = None,
    grid: Grid | None = None,
    rule: str = "trapezoid",
) -> Array:
    """Minus the standard deviation of ``p(y|x) = exp S(x, y) / integral exp S(x, y') dy'``.

    Unlike `density_entropy` it counts how far apart two likely y are, as squared errors do.
    Parameters, shapes and errors are those of `regression_energy`; it needs two energies. The unit
    is that of y; for columns with log-weights it is the step between columns.

    Examples
    --------
    >>> y = np.linspace(-8.0, 8.0, 65)
    >>> density_std(np.hstack([0.0, -(y**2) / 8])[None], grid=(-8.0, 8.0)).round(2)
    array([-2.])
    >>> density_std(np.array([[0.0, 0.0, -9e9, 0.0], [0.0, 0.0, 0.0, -9e9]]))
    array([-1. , -0.5])
    """
    energies = _at_least_two(output, "density_std", "energies")
    weighted = _weighted(output, widths, grid, rule)
    xp, count = namespace(weighted), int(energies.shape[1])
    if grid is not None:
        places = grid_points(grid, count)
    else:
        sizes = np.broadcast_to(1.0 if widths is None else np.asarray(widths, np.float64), (count,))
        places = np.cumsum(sizes) - sizes / 2
    mass = _shares(weighted)
    at = xp.astype(convert_like(places, weighted), weighted.dtype)
    mean = xp.sum(mass * at, axis=-1, keepdims=True)
    return -xp.sqrt(xp.sum(mass * (at - mean) ** 2, axis=-1))


def predicted_std(output: Array, of: str = "std") -> Array:
    """Minus the standard deviation that the student predicts.

    For Gaussian heads, whose free energy is 0 everywhere. Negative deviations score NaN: deferred.

    Source: Nix & Weigend, "Estimating the mean and variance of the target probability
    distribution", ICNN 1994.

    - `output`: (n, 2): the prediction, and ``"std"``, ``"variance"`` or ``"log_variance"``, as in
      `of`.

    Raises
    ------
    ValueError
        `output` does not have exactly one column after the prediction, or `of` is unknown.

    Examples
    --------
    >>> predicted_std(np.array([[5.0, 0.5], [7.0, 2.0]]))
    array([-0.5, -2. ])
    """
    check_choice("of", of, ("std", "variance", "log_variance"))
    column = _score_columns(output, "a standard deviation")
    if column.shape[1] != 1:
        raise ValueError(
            "predicted_std reads one column after the prediction, the standard deviation, not "
            f"{column.shape[1]}"
        )
    xp, value = namespace(column), column[:, 0]
    if of == "log_variance":
        return -xp.exp(value / 2)
    value = _nan_if_negative(value)
    return -(xp.sqrt(value) if of == "variance" else value)


def interval_width(output: Array) -> Array:
    """Minus the width between the lowest and the highest quantile that the student predicts.

    For quantile heads, whose free energy is 0 everywhere. Crossing quantiles score NaN: deferred.

    Source: Koenker & Bassett, "Regression quantiles", Econometrica 1978.

    - `output`: (n, 1 + k): the prediction, then k >= 2 quantiles, the lowest first.

    Raises
    ------
    ValueError
        `output` has fewer than two columns after the prediction.

    Examples
    --------
    >>> interval_width(np.array([[5.0, 4.0, 5.0, 6.5]]))
    array([-2.5])
    """
    quantiles = _at_least_two(output, "interval_width", "quantiles")
    return -_nan_if_negative(quantiles[:, -1] - quantiles[:, 0])


def ensemble_spread(output: Array) -> Array:
    """Minus the standard deviation of the predictions of an ensemble's members.

    Source: Lakshminarayanan, Pritzel & Blundell, "Simple and scalable predictive uncertainty
    estimation using deep ensembles", NeurIPS 2017.

    - `output`: (n, 1 + k): the prediction, then those of k >= 2 members.

    Raises
    ------
    ValueError
        `output` has fewer than two columns after the prediction.

    Examples
    --------
    >>> ensemble_spread(np.array([[5.0, 4.0, 6.0]])).round(3)
    array([-1.414])
    """
    members = _at_least_two(output, "ensemble_spread", "members")
    xp = namespace(members)
    off = members - xp.mean(members, axis=-1, keepdims=True)
    return -xp.sqrt(xp.sum(off * off, axis=-1) / (members.shape[1] - 1))


def edge_mass(output: Array, grid: Grid) -> tuple[Array, Array]:
    """Return the share of the density in a grid's first and last cell, (n,) each."""
    shares = _shares(_weighted(output, grid=grid))
    return shares[:, 0], shares[:, -1]


def check_grid(grid: Grid, targets: Any, output: Array | None = None) -> None:
    """Check that a y grid covers the targets (n,) and, with raw output, the model's density.

    Raises
    ------
    ValueError
        `targets` lie outside, or over 1 % of the model's density lies in the outermost cells.
    """
    values = np.asarray(targets, dtype=np.float64)
    low, high = float(grid[0]), float(grid[-1])
    outside = int(np.count_nonzero(~((values >= low) & (values <= high))))
    if outside:
        raise ValueError(
            f"the grid from {low:g} to {high:g} does not cover the data: {outside} of "
            f"{len(values)} targets ({100 * outside / len(values):.1f} %) lie outside, from "
            f"{values.min():g} to {values.max():g}: widen the grid"
        )
    if output is not None:
        shares = [float(namespace(side).mean(side)) for side in edge_mass(output, grid)]
        if not sum(shares) <= 0.01:
            raise ValueError(
                f"the grid from {low:g} to {high:g} does not cover the model's density: "
                f"{100 * shares[0]:.1f} % of it lies in the first cell and "
                f"{100 * shares[1]:.1f} % in the last: widen the grid"
            )


def bin_log_weights(widths: float | Sequence[float], count: int) -> np.ndarray:
    """Return the logarithms of the bins' widths, (count,)."""
    array = np.asarray(widths, dtype=np.float64)
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError("bin widths must be positive numbers")
    if array.ndim and array.shape != (count,):
        raise ValueError(f"there are {count} bins but {array.size} widths")
    return np.broadcast_to(np.log(array), (count,))


def grid_log_weights(grid: Grid, count: int | None = None, rule: str = "trapezoid") -> np.ndarray:
    """Return the log quadrature weights of a grid, (count,), by one of `RULES`."""
    check_choice("rule", rule, RULES)
    points = grid_points(grid, count)
    if rule == "trapezoid":
        step = np.diff(points) / 2
        return np.log(np.append(step, 0.0) + np.append(0.0, step))
    from scipy.integrate import simpson  # slow to import

    weights = simpson(np.eye(len(points)), x=points)
    if not (len(points) % 2 and (weights > 0).all()):
        raise ValueError(
            "Simpson's rule needs an odd number of points, about evenly spaced: use the rule "
            "'trapezoid' on this grid"
        )
    return np.log(weights)


def grid_points(grid: Grid, count: int | None = None) -> np.ndarray:
    """Return the y of a grid, (count,), from its points or its ends."""
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or len(points) < 2 or not np.isfinite(points).all():
        raise ValueError("a grid must be two or more finite numbers, ascending")
    if not (np.diff(points) > 0).all():
        raise ValueError("a grid must ascend: every y above the one before it")
    if count is None or len(points) == count:
        return points
    if len(points) != 2 or count < 2:
        raise ValueError(f"there are {count} energies but {len(points)} grid points")
    return np.linspace(points[0], points[1], count)


def _weighted(
    output: Array,
    widths: float | Sequence[float] | None = None,
    grid: Grid | None = None,
    rule: str = "trapezoid",
) -> Array:
    """Return the energies, (n, k), plus the logs of their shares of the y axis."""
    energies = _score_columns(output, "energies")
    if widths is not None and grid is not None:
        raise ValueError("give widths, for a head over bins, or a grid, not both")
    count = int(energies.shape[1])
    if widths is not None:
        weights = bin_log_weights(widths, count)
    elif grid is not None:
        weights = grid_log_weights(grid, count, rule)
    else:
        return energies
    return energies + namespace(energies).astype(convert_like(weights, energies), energies.dtype)


def _shares(weighted: Array) -> Array:
    """Return the share of a row's density of each of its energies, (n, k)."""
    with np.errstate(invalid="ignore"):
        return namespace(weighted).exp(weighted - logsumexp(weighted)[:, None])


def _score_columns(output: Array, what: str) -> Array:
    whole = as_regression(output)
    if whole.shape[1] < 2:
        raise ValueError(
            f"the student's raw output has only predictions: its score needs {what} in columns "
            "after the first"
        )
    with np.errstate(invalid="ignore"):
        columns = whole[:, 1:] + 0 * whole[:, :1]  # NaN if the prediction is not finite
    # contiguous, so that sums round alike in a batch and row by row
    return np.ascontiguousarray(columns) if type(columns) is np.ndarray else columns


def _nan_if_negative(values: Array) -> Array:
    xp = namespace(values)
    return xp.where(values >= 0, values, xp.full_like(values, math.nan))


def _at_least_two(output: Array, score: str, what: str) -> Array:
    columns = _score_columns(output, what)
    if columns.shape[1] < 2:
        raise ValueError(f"{score} reads two or more {what} after the prediction, but there is one")
    return columns


def _sample(name: str, parameters: Mapping[str, Any]) -> np.ndarray:
    """Return raw output for a score with these parameters, some of which are one per column."""
    lists = {key: len(v) for key, v in parameters.items() if isinstance(v, list | tuple)}
    if lists.get("grid") == 2:  # its ends, for any number of points; Simpson's rule needs three
        lists["grid"] = 3
    columns = max(lists.values(), default=1 if name == predicted_std.__name__ else 2)
    return np.zeros((1, 1 + columns))


PREDICTIONS = declare_raw_output(
    "predictions",
    _sample,
    # the energy comes last: training fixes it only up to a constant per input, and `auto` takes the
    # first of scores that differ only by noise
    (
        *(density_std, density_entropy, predicted_std),
        *(interval_width, ensemble_spread, regression_energy),
    ),
)
