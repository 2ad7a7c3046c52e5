"""Importance sampling against quadrature: `python -m experiments.diamonds.sampling`.

Trains the student and an energy head of the prices, and writes `results_sampling.json`: how far the
free energy by 1,000 samples of the proposal that was fitted with the head is from quadrature on
2,001 points, on 500 rows of the test split; with one draw of each stratum, as `GaussianMixture`
draws, and with independent draws.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ebjr.arrays import to_numpy
from ebjr.demo.diamonds import load
from ebjr.tasks.regression.models import GaussianMixture, sample_energy
from ebjr.tasks.regression.scores import regression_energy
from ebjr.training.energy_head import train_energy_head
from experiments.diamonds.pair import HEAD_HIDDEN, REACH, SEED, fit_student
from runs import about, save

ROWS, SAMPLES, POINTS = 500, 1000, 2001


class Independent(GaussianMixture):
    """The same proposal without strata."""

    def sample(self, prediction: np.ndarray, samples: int, seed: int) -> np.ndarray:
        """(n, samples): independent draws."""
        rng = np.random.default_rng(seed)
        scale = rng.choice(self.scales, samples, p=self.weights)
        return prediction[:, None] + scale * rng.standard_normal(samples)


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    x, y = load("train")
    order = np.random.default_rng(SEED).permutation(len(x))
    fit, rest = np.split(order, [round(len(x) * 6 / 7)])  # as `train_pair`
    student = fit_student(x[fit], y[fit])
    with torch.no_grad():
        features, said = student(x[rest])
    head = train_energy_head(features, said, y[rest], epochs=30, hidden=HEAD_HIDDEN, seed=SEED)
    with torch.no_grad():
        features, prediction = student(load("test")[0][:ROWS])
    center = to_numpy(prediction).astype(np.float64)
    reach = 4 * REACH * float(np.std(y[rest] - to_numpy(said)))
    grid = np.linspace(-reach, reach, POINTS)
    energies = to_numpy(head(features, prediction, center[:, None] + grid)).astype(np.float64)
    exact = regression_energy(np.column_stack([center, energies]), grid=grid)
    proposal = head.proposal
    kinds = {
        "strata": proposal,
        "independent": Independent(proposal.scales, proposal.weights),
    }
    figures = {}
    for name, chosen in kinds.items():
        found = sample_energy(
            lambda batch, y: head(features, prediction, y), None, center, chosen, SAMPLES, SEED
        )
        off = np.abs(np.asarray(found.energy, np.float64) - exact)
        figures[name] = {
            "mean_relative_error_of_the_integral": round(float(np.mean(np.expm1(off))), 6),
            "largest_relative_error_of_the_integral": round(float(np.max(np.expm1(off))), 6),
            "mean_relative_error_of_the_free_energy": round(float(np.mean(off / np.abs(exact))), 6),
            "free_energies_within_one_percent": round(float(np.mean(off < np.abs(exact) / 100)), 4),
            "mean_standard_error_nats": round(float(np.mean(found.standard_error)), 6),
        }
    made = about(SEED) | {"rows": ROWS, "samples": SAMPLES, "points_of_quadrature": POINTS}
    made["smallest_free_energy_nats"] = round(float(np.abs(exact).min()), 5)
    save("results_sampling", made | figures, folder=Path(__file__).parent)


if __name__ == "__main__":
    main()
