"""The live curve of the first page, from the recorded answers of the shipped pair."""

from __future__ import annotations

from pathlib import Path

from ebjr import Outcomes, run_study
from ebjr.demo import shipped
from ebjr.evaluation.report import write_live_curve


def write(path: Path) -> None:
    """Calibrate on one half and draw the other."""
    with shipped("outcomes.npz") as recorded:
        study = run_study(Outcomes.load(recorded))
    title = "The shipped pair on CIFAR-10, held-out half"
    write_live_curve(
        path,
        study.held_out,
        study.point,
        others=list(study.others.values()),
        found=study.headroom,
        title=title,
    )
