"""Checks of a detector on the first batch: are its boxes plausible, and which its classes?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.errors import ModelError, note
from ebjr.tasks.detection.boxes import Detections, GroundTruth, box_iou
from ebjr.tasks.detection.precision import SHOWN

FEW = 32  # images of the first batch on which two numberings are compared
MOST = 10_000  # more classes than any detector has


def check_boxes(role: str, output: Sequence[Detections]) -> None:
    """Raise ModelError if most images have their confident boxes outside or in a corner."""
    shown = [found for found in (found.above(SHOWN) for found in output) if len(found)]
    lost = [found for found in shown if _is_lost(found)]
    if len(lost) >= 3 and len(lost) > len(shown) / 2:
        height, width = lost[0].size
        box = ", ".join(f"{side:.3g}" for side in lost[0].boxes[0])
        raise ModelError(
            f"the {role}'s confident boxes lie outside of the image or in a corner on {len(lost)} "
            f"of {len(shown)} images; on the first, of {width} x {height} pixels, the best is {box}"
            ": boxes must be x1, y1, x2, y2 in pixels of the image; check the layout "
            f"(--{role}-layout), the input size (--{role}-preprocess), and whether boxes range "
            "from 0 to 1"
        )


def _is_lost(found: Detections) -> bool:
    """Whether most boxes have no area on the image, or all lie in its first or last pixels."""
    boxes, sides = found.boxes, np.array(found.size[::-1])
    seen = np.minimum(boxes[:, 2:], sides) > np.maximum(boxes[:, :2], 0)
    corner = np.clip(2, 0.01 * sides, 0.05 * sides)
    ends = (boxes[:, 2:] <= corner).all(), (boxes[:, :2] >= sides - corner).all()
    return bool((~seen.all(axis=1)).mean() > 0.5 or any(ends))


def numbered(role: str, model: Any, inputs: Any, targets: Any, data: Any) -> Any:
    """Return a detector that numbers classes like the data, and note what was chosen.

    Names in its file decide, or the numbering (rank or id) that is right for more boxes.
    """
    if not hasattr(model, "with_label_ids") or data.classes is None:
        return model
    given = model.label_ids
    if given is None:
        few = None if targets is None else targets[:FEW]
        model = _renumbered(role, model, inputs[:FEW], few, data)
    by_id = model.label_ids == data.class_ids
    if model.label_ids is not None and (by_id or given is None):
        what = "the json's category ids" if by_id else "matched with the data's classes by name"
        note(f"the {role}'s labels are {what} ({model.label_ids[-1]} is {data.classes[-1]})")
    return model


def _renumbered(role: str, model: Any, images: Any, targets: Any, data: Any) -> Any:
    """Return a detector without its own numbers with the data's numbers, if they fit."""
    by_name, ids = model.numbers_of(data.classes), data.class_ids
    if by_name is not None:
        return model if by_name == model.numbers else model.with_label_ids(by_name)
    if model.names:
        _check_names(role, model.names, data)
    if targets is None or ids in (None, model.numbers) or not may_be_numbers(ids):
        return model
    try:
        other = model.with_label_ids(ids, exact=True)
    except ValueError:  # an id of 0, but the model's numbers begin with 1
        return model
    by_id = _right(other, images, targets)
    by_rank = _right(model, images, targets) if model.classes == len(ids) else None
    if by_id is not None and (by_rank is None or by_id > by_rank):
        return other
    if by_id == by_rank == 0 and max(ids) - min(ids) >= len(ids):
        note(
            f"no box of the first batch shows whether the {role}'s labels are the ranks or the ids "
            "of the json's categories: they are taken as ranks; set label_ids to change that"
        )
    return model


def may_be_numbers(ids: Sequence[Any]) -> bool:
    """Whether a detector may use these numbers for its classes: it does not have millions."""
    return all(isinstance(number, int) and 0 <= number < MOST for number in ids)


def _check_names(role: str, own: Sequence[str], data: Any) -> None:
    """Raise ModelError if names differ from the data's; note it if the user gave the data's."""
    pairs = list(zip(own, data.classes, strict=False))
    spelled = [{"".join(filter(str.isalnum, name.casefold())) for name in pair} for pair in pairs]
    differ = [pair for pair, alike in zip(pairs, spelled, strict=True) if len(alike) > 1]
    if len(own) == len(data.classes) and not differ:
        return
    missing = next((name for name in data.classes if name not in own), data.classes[-1])
    if len(own) != len(data.classes) or data.named_by != "given":
        raise ModelError(
            f"the {role}'s file names {len(own)} classes but not {missing}, one of the data's "
            f"{len(data.classes)}: name the detector's classes in its order with --classes"
        )
    note(
        f"the {role}'s file names {len(differ)} of {len(own)} classes differently from --classes, "
        f"first {differ[0][0]} and {differ[0][1]}: they are taken as the same, in this order"
    )


def _right(model: Any, images: Any, targets: Sequence[GroundTruth]) -> int | None:
    """Count the labeled boxes whose class is that of the best box over them; None if it fails."""
    try:
        output = model(images)
    except (ModelError, ValueError):
        return None
    right = 0
    for found, real in zip(output, targets, strict=True):
        over = np.where(box_iou(found.boxes, real.boxes) >= 0.5, found.scores[:, None], 0)
        best = over.argmax(axis=0) if len(found) else np.zeros(0, int)
        if len(best):
            right += int(((found.labels[best] == real.labels) & (over.max(axis=0) > 0)).sum())
    return right
