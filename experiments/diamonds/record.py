"""Record the shipped pair on the test split: `python -m experiments.diamonds.record`.

Leaves `outcomes.npz` beside both models in the demo's folder. It needs the package alone, neither
PyTorch nor scikit-learn.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ebjr.demo import run_demo

DEMO = Path(__file__).parents[2] / "src" / "ebjr" / "demo" / "shipped" / "regression"


def main() -> None:
    """Run the demo for real and keep what both models said."""
    with TemporaryDirectory() as folder:
        result = run_demo(folder, task="regression", threads=1)
    if result.recorded:
        raise SystemExit(f"the data are needed: {result.reason}")
    replace(result.study.outcomes, models={}).save(DEMO / "outcomes.npz", half=True)


if __name__ == "__main__":
    main()
