"""The recorded answers that the demo of detection ships: `python -m experiments.detection.ship`.

DEIMv2 atto and femto on the 669 labeled images: numbers alone, and few of them. What is left out:
detections with a score up to 0.08, all class logits but those of the student's boxes above 0.3, the
bin logits (eq. 13 needs them), fractions of a pixel and of an eighth of a logit. Prints what that
changes. Labels: COCO (CC BY 4.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ebjr
from ebjr import Cost, Detections, Outcomes
from ebjr.tasks.detection.precision import SHOWN
from experiments.detection.pairs import PAIRS, SOURCES, detections, labels

LEAST = 0.08
PLACE = Path(ebjr.__file__).parent / "demo" / "shipped" / "detection" / "outcomes.npz"


def thinned(found: Detections, logits: bool) -> Detections:
    """Few numbers of what was found on one image; with `logits` those of the boxes shown."""
    kept = found.above(LEAST)
    scores = kept.scores.astype(np.float16).astype(np.float32)
    few = Detections.of_scores(
        kept.boxes.round(), scores, kept.size, labels=kept.labels, classes=kept.classes
    )
    shown = few.scores > SHOWN
    if logits:
        few.logits[shown] = kept.logits[shown]
    few.logits[:] = (8 * few.logits).round() / 8
    return few


def main() -> None:
    """Write the file and say what it holds."""
    known = labels()
    student, teacher = (detections(name) for name in PAIRS[0])
    whole = Outcomes(student, teacher, list(known.truth), "detection", labels=known.classes)
    costs = [Cost(flops=SOURCES[name].flops()) for name in PAIRS[0]]
    few = Outcomes(
        [thinned(found, logits=True) for found in student],
        [thinned(found, logits=False) for found in teacher],
        list(known.truth),
        "detection",
        student_cost=costs[0],
        teacher_cost=costs[1],
        labels=known.classes,
    )
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    few.save(PLACE, half=True)
    print(f"{PLACE.stat().st_size / 2**20:.2f} MiB")
    for role in ("student", "teacher"):
        print(
            role, f"{100 * whole.quality(role):.2f} AP,", f"{100 * few.quality(role):.2f} shipped"
        )


if __name__ == "__main__":
    main()
