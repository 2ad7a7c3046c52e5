"""Samples: some images with the joint detector's boxes, and who answered, as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from ebjr.curve import OperatingPoint
from ebjr.evaluation import joint_prediction
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key
from ebjr.tasks.detection.boxes import Detections, GroundTruth
from ebjr.tasks.detection.precision import SHOWN

_LONGEST_SIDE = 420
_QUALITY = 70


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, uint8 (height, width, 3), the boxes found, the boxes there, and who answered."""

    image: np.ndarray
    found: Detections
    truth: GroundTruth
    deferred: bool
    score: float


def sample_rows(outcomes: Outcomes, point: OperatingPoint) -> np.ndarray:
    """Rows to show: of those deferred, then of those kept, four at even ranks of the score."""
    score, deferred = (np.asarray(part) for part in point.router(outcomes.student))
    order = np.argsort(deferral_key(score), kind="stable")
    chosen = []
    for group in (order[deferred[order]], order[~deferred[order]]):
        places = np.linspace(0, len(group) - 1, min(4, len(group)))
        chosen.append(group[np.unique(places.round().astype(int))])
    return np.concatenate(chosen)


def make_samples(
    outcomes: Outcomes, point: OperatingPoint, images: Sequence[np.ndarray]
) -> list[Sample]:
    """The samples of outcomes of detectors, given the images of `sample_rows`; none without."""
    if not len(images):
        return []
    rows = sample_rows(outcomes, point)
    score, deferred = point.router(outcomes.student)
    answers = joint_prediction(outcomes, point)
    return [
        Sample(image, answers[row], outcomes.targets[row], bool(deferred[row]), float(score[row]))
        for row, image in zip(rows.tolist(), images, strict=True)
    ]


def samples_html(samples: Sequence[Sample], labels: Sequence[str] | None) -> str:
    """The samples side by side: images, boxes over them, and who answered."""
    return '<div class="samples">' + "".join(_figure(one, labels) for one in samples) + "</div>"


def _figure(sample: Sample, labels: Sequence[str] | None) -> str:
    height, width = sample.image.shape[:2]
    shown = sample.found.above(SHOWN)
    who = "teacher" if sample.deferred else "student"
    names = [f"class {label}" if labels is None else labels[label] for label in shown.labels]
    line = max(width, height) / 180
    there = "".join(
        f'<rect class="there" {_place(box)} stroke-width="{line:.2f}"/>'
        for box in sample.truth.boxes
    )
    boxes = "".join(
        f'<rect class="{who}" {_place(box)} stroke-width="{1.5 * line:.2f}"/>'
        f'<text x="{box[0] + 2 * line:.1f}" y="{box[1] + 9 * line:.1f}" '
        f'font-size="{8 * line:.1f}">{html.escape(name)} {score:.2f}</text>'
        for box, name, score in zip(shown.boxes, names, shown.scores, strict=True)
    )
    words = f"the {who} answered, score {sample.score:.4g}; {len(shown)} boxes found, "
    words += f"{len(sample.truth)} there"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        f'<image href="{_data(sample.image)}" width="{width}" height="{height}"/>{there}{boxes}'
        f"</svg><figcaption>{words}</figcaption></figure>"
    )


def _place(box: Any) -> str:
    x1, y1, x2, y2 = (float(side) for side in box)
    return f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'


def _data(image: np.ndarray) -> str:
    """A small JPEG of the image, as a URI."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    file = BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
