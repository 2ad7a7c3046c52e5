"""COCO's json: which images there are, and what is on them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.tasks.detection.boxes import GroundTruth


@dataclass(frozen=True, eq=False)
class CocoLabels:
    """Labeled images in the order of their ids, and what is on them (`truth`).

    Labels are 0..classes - 1: places in `classes`, the names in the order of their ids in the file,
    `class_ids`. `sizes` are (height, width), and `images` is all that the file says of each image.
    """

    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    truth: tuple[GroundTruth, ...]
    classes: tuple[str, ...]
    class_ids: tuple[int, ...]
    images: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.files)


def read_coco(path: str | os.PathLike[str]) -> CocoLabels:
    """Labels from a file in COCO's "instances" format.

    A ValueError names the annotation that has a negative or infinite size, or a category or an
    image that the file does not list.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file of labels {path}; check the path") from None
    try:
        return _labels(json.loads(text))
    except KeyError as error:
        raise ValueError(
            f"{path} must be in COCO's instances format, but {error.args[0]} is missing"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _labels(content: Mapping[str, Any]) -> CocoLabels:
    images = sorted(content["images"], key=lambda image: image["id"])
    categories = sorted(content["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: number for number, category in enumerate(categories)}
    by_image: dict[int, list[tuple[list[float], int, bool]]] = {image["id"]: [] for image in images}
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id', '?')}"
        if annotation["image_id"] not in by_image:
            raise ValueError(
                f"{name} belongs to image {annotation['image_id']}, which is not listed"
            )
        if annotation["category_id"] not in class_of:
            raise ValueError(
                f"{name} has the category {annotation['category_id']}, which is not listed; the "
                f"categories are {min(class_of, default='none')}..{max(class_of, default='')}"
            )
        row = _box(annotation["bbox"], name), class_of[annotation["category_id"]]
        crowd = bool(annotation.get("iscrowd", 0))
        by_image[annotation["image_id"]].append((*row, crowd))
    truth = [
        GroundTruth(*(np.array([row[part] for row in rows]) for part in range(3)))
        for rows in by_image.values()
    ]
    return CocoLabels(
        files=tuple(image["file_name"] for image in images),
        sizes=tuple((int(image["height"]), int(image["width"])) for image in images),
        truth=tuple(truth),
        classes=tuple(category["name"] for category in categories),
        class_ids=tuple(category["id"] for category in categories),
        images=tuple(images),
    )


def _box(box: Any, name: str) -> list[float]:
    values = np.asarray(box, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or (values[2:] < 0).any():
        raise ValueError(
            f"{name} must have a box of x, y, width and height, not negative and finite, "
            f"but has {box}"
        )
    x, y, width, height = values.tolist()
    return [x, y, x + width, y + height]
