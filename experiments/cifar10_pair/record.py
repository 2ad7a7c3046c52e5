"""Record the shipped pair on the CIFAR-10 test set: `python -m experiments.cifar10_pair.record`.

Leaves `outcomes.npz`, in half precision, beside both networks in the demo's folder. It needs the
package alone, no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ebjr import Outcomes
from ebjr.demo import run_demo

DEMO = Path(__file__).parents[2] / "src" / "ebjr" / "demo" / "shipped" / "classification"


def main() -> None:
    """Run the demo for real and keep what both models said."""
    with TemporaryDirectory() as folder:
        result = run_demo(folder)
    if result.recorded:
        raise SystemExit(f"the images are needed: {result.reason}")
    said = result.study.outcomes
    Outcomes(
        said.student,
        said.teacher,
        said.targets,
        student_cost=said.student_cost,
        teacher_cost=said.teacher_cost,
        labels=said.labels,
    ).save(DEMO / "outcomes.npz", half=True)


if __name__ == "__main__":
    main()
