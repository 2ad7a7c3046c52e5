"""Is a certified threshold's promise kept, and at what price? 10,000 redrawn calibration sets.

The examples of an outcomes file stand for all the inputs there are, so that the true harm, excess,
risk and deferral rate at every threshold are known. Calibration sets are drawn from them with
replacement; on each one a threshold is picked, naively and with a guarantee, and looked up.

    python -m benchmarks.guarantee [outcomes.npz | --synthetic] [--score softmax] [--redraws 10000]
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

from benchmarks.machine import RESULTS, about, save
from ebjr import Outcomes, TradeOffCurve
from ebjr.calibration.guarantee import (
    PROMISES,
    _bets,
    _constant,
    _critical_losses,
    _log_capital,
    _losses,
    certified_row,
    certify,
)
from ebjr.files import write_whole

DEMO = Path(__file__).parent.parent / "src" / "ebjr" / "demo" / "outcomes.npz"
SIZES = (500, 2000)
DELTAS = (0.05, 0.1)


def synthetic(n: int, seed: int, classes: int = 10) -> Outcomes:
    """A student and a teacher of made-up data, whose noise is partly the same."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    clear = 6 * np.eye(classes, dtype=np.float32)[targets]
    shared = rng.normal(0, 1.8, clear.shape).astype(np.float32)
    own = [rng.normal(0, scale, clear.shape).astype(np.float32) for scale in (1.3, 0.6)]
    return Outcomes(clear + shared + own[0], clear + shared + own[1], targets)


@dataclass
class Population:
    """All the inputs there are: their scores, and the true risk at every threshold."""

    curve: TradeOffCurve
    score: np.ndarray
    risk: dict[str, np.ndarray]

    @classmethod
    def of(cls, outcomes: Outcomes, score: str) -> Population:
        """The population that a table of outcomes is taken for."""
        curve = TradeOffCurve.of(outcomes, score)
        values = np.asarray(curve.score(outcomes.student), dtype=np.float64)
        return cls(curve, values, {promise: mean_loss(curve, promise) for promise in PROMISES})

    def draw(self, n: int, rng: np.random.Generator) -> TradeOffCurve:
        """The curve of n inputs, drawn with replacement."""
        rows = rng.integers(0, len(self.score), n)
        return TradeOffCurve.of(self.curve.outcomes.take(rows), self.score[rows])

    def at(self, threshold: float, promise: str) -> tuple[float, float]:
        """True risk and deferral rate of a threshold."""
        row = int(np.searchsorted(self.curve.threshold, threshold))
        return float(self.risk[promise][row]), float(self.curve.deferral_rate[row])


def mean_loss(curve: TradeOffCurve, promise: str) -> np.ndarray:
    """(k,): what is promised to be small, as observed at every row."""
    return _losses(curve, promise).mean


def tolerances(population: Population) -> dict[str, float]:
    """For each promise one that binds: about half way between all-teacher and all-student."""
    half = {name: (risk[0] + risk[-1]) / 2 for name, risk in population.risk.items()}
    chosen = {name: float(f"{half[name]:.1g}") for name in ("harm", "excess")}
    chosen["risk"] = float(f"{half['risk']:.2g}")
    chosen["rate"] = 0.2
    return chosen


def study(population: Population, n: int, redraws: int, seed: int) -> dict[str, Any]:
    """Count how often each pick breaks its promise, and how much it defers."""
    rng = np.random.default_rng(seed)
    asked = tolerances(population)
    picks: dict[tuple[str, str], list[tuple[bool, float, float]]] = {}
    for _ in range(redraws):
        curve = population.draw(n, rng)
        for promise, tolerance in asked.items():
            within = np.flatnonzero(mean_loss(curve, promise) <= tolerance + 1e-12)
            last = -1 if promise == "rate" else 0
            naive = int(within[last]) if len(within) else len(curve) - 1
            rows: dict[str, int | None] = {"naive": naive}
            for delta in DELTAS:
                rows[f"delta {delta}"] = certified_row(
                    curve, promise, tolerance=tolerance, delta=delta
                )
            for name, row in rows.items():
                if row is None:
                    continue
                risk, rate = population.at(curve.threshold[row], promise)
                extra = float(curve.deferral_rate[row] - curve.deferral_rate[naive])
                picks.setdefault((promise, name), []).append((risk > tolerance, rate, extra))
    return {
        promise: {
            "tolerance": asked[promise],
            **{
                name: summary(picks.get((promise, name), []), redraws)
                for name in ("naive", *(f"delta {delta}" for delta in DELTAS))
            },
        }
        for promise in asked
    }


def summary(picks: list[tuple[bool, float, float]], redraws: int) -> dict[str, float]:
    """Result of one way of picking: shares of all redraws, means of those not refused."""
    if not picks:
        return {"broken": 0.0, "refused": 1.0}
    broken, rate, extra = np.array(picks, dtype=float).T
    return {
        "broken": round(float(broken.sum()) / redraws, 4),
        "refused": round(1 - len(picks) / redraws, 4),
        "mean_deferral_rate": round(float(rate.mean()), 4),
        "mean_extra_deferral": round(float(extra.mean()), 4),
    }


def largest_excess(n: int, gain: float, tolerance: float, delta: float) -> dict[str, float | None]:
    """The largest observed excess that each test of it would pass, with this share of gains.

    ``binomial`` tests the harm alone: gains do not count for it. None: it never passes.
    """
    gains = round(n * gain)
    losses = np.arange(n - gains + 1)
    exact = _critical_losses(
        np.array([gains]), n, tolerance, _constant(n, float(tolerance), float(delta))
    )
    bets = _bets(n, tolerance, delta)[:, None]
    logs = (
        losses * np.log1p(bets * (tolerance - 1))
        + gains * np.log1p(bets * (tolerance + 1))
        + (n - gains - losses) * np.log1p(bets * tolerance)
    )
    passing = {
        "exact_trinomial": losses <= exact,
        "betting": _log_capital(logs) >= -np.log(delta),
        "hoeffding_bentkus": hoeffding_bentkus((losses - gains) / n, n, tolerance) <= delta,
        "binomial": binom.cdf(losses, n, tolerance) <= delta,
    }
    return {
        name: round(float(losses[mask].max() - gains) / n, 5) if mask.any() else None
        for name, mask in passing.items()
    }


def hoeffding_bentkus(mean: np.ndarray, n: int, tolerance: float) -> np.ndarray:
    """The p-value of a mean of losses in [-1, 1], of Learn then Test on (loss + 1) / 2."""
    share, null = (mean + 1) / 2, (tolerance + 1) / 2
    low = np.clip(share, 1e-12, null)
    divergence = low * np.log(low / null) + (1 - low) * np.log((1 - low) / (1 - null))
    bentkus = np.e * binom.cdf(np.ceil(n * share - 1e-9), n, null)
    return np.minimum(np.exp(-n * divergence), bentkus)


def million(seed: int) -> dict[str, float]:
    """Seconds for 1,000,000 examples: the curve, and what each certificate adds."""
    outcomes = synthetic(1_000_000, seed)
    began = time.perf_counter()
    curve = TradeOffCurve.of(outcomes, "energy")
    seconds = {"curve": round(time.perf_counter() - began, 3)}
    for promise, tolerance in (("harm", 0.01), ("excess", 0.01), ("risk", 0.2), ("rate", 0.3)):
        began = time.perf_counter()
        certify(curve, promise, tolerance=tolerance)
        seconds[promise] = round(time.perf_counter() - began, 3)
    return seconds


def picture(figures: dict[str, Any]) -> str:
    """Both halves of the study as SVG: promises broken, and deferral."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "ebjr", "font.family": "sans-serif"}
    )
    names = {
        "naive": ("picked on the data", "#b9bec7"),
        "delta 0.1": ("certified, delta 0.1", "#5b8def"),
        "delta 0.05": ("certified, delta 0.05", "#1d3f8f"),
    }
    rows = (
        ("broken", "promise broken\n(share of calibration sets)"),
        ("mean_deferral_rate", "mean deferral rate"),
    )
    canvas, axes = plt.subplots(2, len(SIZES), figsize=(9, 6), sharey="row", layout="constrained")
    places = np.arange(len(PROMISES))
    for (line, (key, label)), (column, n) in product(enumerate(rows), enumerate(SIZES)):
        found = figures["studies"][str(n)]
        axis = axes[line, column]
        for offset, (name, (legend, color)) in enumerate(names.items()):
            heights = [found[promise][name].get(key, 0) for promise in PROMISES]
            axis.bar(places + 0.27 * (offset - 1), heights, 0.25, color=color, label=legend)
        ticks = [f"{promise}\n≤ {found[promise]['tolerance']:g}" for promise in PROMISES]
        axis.set_xticks(places, ticks)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
        if column == 0:
            axis.set_ylabel(label)
        if line == 0:
            axis.set_title(f"{n:,} calibration examples", fontsize=11)
            for delta in DELTAS:
                color = names[f"delta {delta}"][1]
                axis.axhline(delta, color=color, linestyle=":", linewidth=1.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    canvas.suptitle(
        f"{figures['redraws']:,} redrawn calibration sets: is the promise kept? "
        "(dotted: the allowed share)",
        fontsize=12,
    )
    text = io.StringIO()
    canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(canvas)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outcomes", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--synthetic", action="store_true", help="made-up outcomes, no file")
    parser.add_argument("--score", default="softmax")
    parser.add_argument("--redraws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def main() -> None:
    """Run the study and write its figures and its picture."""
    options = arguments()
    outcomes = (
        synthetic(20_000, options.seed) if options.synthetic else Outcomes.load(options.outcomes)
    )
    population = Population.of(outcomes, options.score)
    began = time.perf_counter()
    studies = {str(n): study(population, n, options.redraws, options.seed) for n in SIZES}
    figures = {
        **about(options.seed),
        "population": "synthetic" if options.synthetic else options.outcomes.name,
        "inputs": len(outcomes),
        "score": options.score,
        "redraws": options.redraws,
        "studies": studies,
        "study_seconds": round(time.perf_counter() - began, 1),
        "tests": {
            f"n {n:,}, gains {gain}": largest_excess(n, gain, tolerance=0.01, delta=0.1)
            for n, gain in product((500, 2000, 10_000, 100_000), (0.0, 0.02))
        },
        "seconds_for_1,000,000": million(options.seed),
    }
    save("guarantee", figures, options.folder)
    with write_whole(options.folder / "guarantee.svg") as file:
        file.write(picture(figures))


if __name__ == "__main__":
    main()
