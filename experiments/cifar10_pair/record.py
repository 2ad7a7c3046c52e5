"""Record the shipped models on the CIFAR-10 test set: `python -m experiments.cifar10_pair.record`.

Leaves `outcomes.npz`, in half precision, beside the networks in the demo's folder. It needs the
package alone, no PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ebjr import Outcomes
from ebjr.demo import run_demo

DEMO = Path(__file__).parents[2] / "src" / "ebjr" / "demo" / "shipped" / "classification"


def main() -> None:
    """Run the demo for real and keep what all models said."""
    with TemporaryDirectory() as folder:
        result = run_demo(folder)
        if result.recorded:
            raise SystemExit(f"the images are needed: {result.reason}")
        said = Outcomes.load(result.files["outcomes.npz"])
    replace(said, models={}).save(DEMO / "outcomes.npz", half=True)


if __name__ == "__main__":
    main()
