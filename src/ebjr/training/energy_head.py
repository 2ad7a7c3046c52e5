"""An energy head ``S(x, y)`` on the frozen features of a trained regressor (eq. 8).

The regressor stays unchanged. A small network of its features and of y, relative to the point
prediction, learns ``p(y|x) = exp S(x, y) / integral exp S(x, y') dy'``.

Adding a function of x alone to S changes neither the likelihood nor the noise-contrastive loss. So
the free energy ``-F(x)`` of such a head is not learned, like the level of a classifier's logits;
the *sharpness* of the density, `density_entropy` or `density_std`, is. ``score="auto"`` tries both.

Source: Gustafsson et al., "Energy-based models for deep probabilistic regression", ECCV 2020;
"How to train your energy-based model for regression", BMVC 2020.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebjr.arrays import Array, convert_like, log_softmax, logsumexp, to_numpy
from ebjr.errors import check_choice, needs
from ebjr.tasks.regression.models import GaussianMixture
from ebjr.tasks.regression.scores import Grid, grid_log_weights, grid_points
from ebjr.training.descent import descend

with needs("torch", "training"):
    import torch

LOSSES = ("nce", "importance")


@dataclass(frozen=True, eq=False)
class EnergyHead:
    """A trained ``S(x, y)``; `train_energy_head` makes it."""

    network: torch.nn.Module  # standardized features (n, d) and offsets (n, m) to energies (n, m)
    center: np.ndarray  # (d,), the features' means
    spread: np.ndarray  # (d,), their standard deviations
    scale: float  # of the residuals, in the unit of y
    proposal: GaussianMixture  # fitted to the residuals, for `sample_energy`

    def __call__(self, features: Array, prediction: Array, y: Array) -> Array:
        """Return ``S(x, y)``, (n, m), in nats, for features (n, d), predictions (n,), y (n, m)."""
        rows = (to_numpy(features) - self.center) / self.spread
        offset = (to_numpy(y) - to_numpy(prediction)[:, None]) / self.scale
        with torch.no_grad():
            found = self.network(
                torch.as_tensor(rows, dtype=torch.float32),
                torch.as_tensor(offset, dtype=torch.float32),
            )
        if type(y) is np.ndarray:
            return to_numpy(found).astype(y.dtype)
        return convert_like(found, y)

    def regressor(
        self, trunk: Callable[[Any], tuple[Array, Array]], offsets: Grid, points: int = 64
    ) -> Callable[[Any], Array]:
        """Return the regressor and its head as one model with raw output (n, 1 + points).

        The prediction comes first, then the energies on the grid with their log-weights, for
        ``regression_energy``, ``density_entropy`` and ``density_std``. `trunk` maps a batch to
        features (n, d) and predictions (n,). `offsets` is the grid relative to the prediction: its
        y, or ``(low, high)`` for `points` of them.
        """
        steps = grid_points(offsets, points if len(offsets) == 2 else None)
        weights = grid_log_weights(steps)

        def model(batch: Any) -> Array:
            features, prediction = trunk(batch)
            place = to_numpy(prediction)[:, None] + steps
            output = np.hstack(
                [to_numpy(prediction)[:, None], self(features, prediction, place) + weights]
            )
            return convert_like(output, prediction)

        return model


def train_energy_head(
    features: Any,
    prediction: Any,
    targets: Any,
    *,
    loss: str = "nce",
    hidden: int = 32,
    epochs: int = 20,
    batch_size: int = 256,
    samples: int = 32,
    learning_rate: float = 3e-3,
    proposal: GaussianMixture | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> EnergyHead:
    """Fit ``S(x, y)`` to targets, given a regressor's features and predictions: minutes on a CPU.

    - `features`: (n, d), of examples that the regressor was not fitted to, or barely.
    - `prediction`, `targets`: (n,).
    - `loss`: ``"nce"``: find the target among `samples` draws of the proposal (ranking
      noise-contrastive estimation). ``"importance"``: the likelihood, with its integral by
      importance sampling.
    - `hidden`: Units in each of the two layers.
    - `epochs`, `batch_size`, `learning_rate`: For Adam, with a cosine learning rate.
    - `samples`: Draws for each example.
    - `proposal`: The distribution of the draws; fitted to the residuals if left out.
    - `seed`: The same seed gives the same head.
    - `progress`: Called with the epoch and its mean loss.

    Raises
    ------
    ValueError
        `features`, `prediction` and `targets` do not match or are not finite, or `loss` is unknown.
    ModelError
        The loss is not finite.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(-1, 1, 400)
    >>> head = train_energy_head(x[:, None], 0 * x, rng.normal(0, 1, 400), epochs=1)
    >>> head(x[:3, None], 0 * x[:3], np.zeros((3, 5))).shape
    (3, 5)
    """
    rows, center, targets = (
        np.asarray(to_numpy(v), np.float64) for v in (features, prediction, targets)
    )
    _check(rows, center, targets, loss)
    residual = targets - center
    proposal = proposal or GaussianMixture.fit(residual)
    scale = float(np.std(residual)) or 1.0
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = _network(rows.shape[1], hidden, generator)
    table = torch.as_tensor((rows - mean) / spread, dtype=torch.float32)
    parts = math.ceil(len(rows) / batch_size)

    def batches() -> list[np.ndarray]:
        return np.array_split(rng.permutation(len(rows)), parts)

    def loss_of(part: np.ndarray) -> torch.Tensor:
        y = np.column_stack([residual[part], _draws(proposal, len(part), samples, rng)])
        density = proposal.log_density(y, np.zeros(len(part)))
        offset = torch.as_tensor(y / scale, dtype=torch.float32)
        ratio = network(table[part], offset) - torch.as_tensor(density, dtype=torch.float32)
        if loss == "nce":
            return -log_softmax(ratio)[:, 0].mean()
        integral = logsumexp(ratio[:, 1:]) - math.log(samples)
        return (integral - ratio[:, 0] - torch.as_tensor(density[:, 0])).mean()

    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    descend(optimizer, epochs, batches, parts, loss_of, progress)
    network.eval()
    return EnergyHead(network, mean, spread, scale, proposal)


def _draws(
    proposal: GaussianMixture, rows: int, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw from the proposal, (rows, samples)."""
    scale = rng.choice(proposal.scales, (rows, samples), p=proposal.weights)
    return scale * rng.standard_normal((rows, samples))


def _network(width: int, hidden: int, generator: torch.Generator) -> torch.nn.Module:
    """Make a network from features (n, d) and offsets (n, m) to energies (n, m)."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.of_features = torch.nn.Linear(width, hidden)
            self.of_offset = torch.nn.Linear(3, hidden)
            self.middle = torch.nn.Linear(hidden, hidden)
            self.last = torch.nn.Linear(hidden, 1)

        def forward(self, features: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
            size = torch.abs(offset)
            seen = torch.stack([offset, size, torch.log1p(10 * size)], dim=-1)
            mixed = self.of_features(features)[:, None] + self.of_offset(seen)
            found: torch.Tensor = self.last(torch.relu(self.middle(torch.relu(mixed))))[..., 0]
            # the density must fall far from the prediction, or its integral diverges
            return found - 0.01 * offset**2

    network = Network()
    with torch.no_grad():
        for layer in network.children():
            for values in layer.parameters():
                bound = 1 / math.sqrt(values.shape[-1])
                values.uniform_(-bound, bound, generator=generator)
    return network


def _check(features: np.ndarray, prediction: np.ndarray, targets: np.ndarray, loss: str) -> None:
    check_choice("loss", loss, LOSSES)
    n = len(targets)
    shapes = features.shape, prediction.shape, targets.shape
    if features.ndim != 2 or shapes[1:] != ((n,), (n,)) or len(features) != n:
        raise ValueError(
            "features must be (n, d), prediction and targets (n,), not "
            + ", ".join(map(str, shapes))
        )
    if not all(np.isfinite(values).all() for values in (features, prediction, targets)):
        raise ValueError("features, prediction and targets must be finite")
