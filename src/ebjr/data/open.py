"""Labelled (or unlabelled) data on disk, made into batches while it is read.

A folder of images, ``.npz`` arrays, tables with an image column and COCO's json give the same
`Batch`. Images are decoded ahead of the reader on a few threads, in order; one that cannot be read
is named, counted and left out.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.data.coco import CocoLabels, read_coco
from ebjr.data.examples import (
    ArrayData,
    Data,
    Example,
    ImageData,
    OnUnreadable,
    checked_classes,
    reason_of,
    some,
)
from ebjr.data.tables import TABLE_SUFFIXES, Table
from ebjr.tasks.detection.boxes import GroundTruth

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})

_FORMS = (
    "a folder of images, an image, an .npz with `inputs`, a .parquet, .arrow or .feather table, or "
    "COCO's .json"
)


def open_data(
    path: str | os.PathLike[str],
    *,
    on_unreadable: OnUnreadable = "skip",
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    targets_are: str = "labels",
    images: str | os.PathLike[str] | None = None,
) -> Data:
    """Open data on disk, whatever its form.

    Parameters
    ----------
    path
        One of: a folder with a sub-folder of images for each class (labels follow the sorted
        names); a folder of images alone, or one image (no labels); ``.npz`` with `inputs`
        (n, ...) and, optionally, `targets` (n,); ``.parquet``, ``.arrow`` or ``.feather`` with a
        column of encoded images and, optionally, one of labels; ``.json`` in COCO's instances
        format, or a folder with one in ``annotations``: boxes are the labels.
    on_unreadable
        ``"skip"`` leaves out images that cannot be read and names them in `Data.unreadable`;
        ``"error"`` raises ValueError at the first one.
    classes
        The names of the labels in the model's order. A folder's sub-folders, a table's text labels
        and the categories of a ``.json`` are looked up here.
    image_column, label_column
        A table's columns, when they cannot be told by their names and types.
    targets_are
        As `Task.targets_are`. An ``.npz`` holds ``"label sets"`` as (n, labels) of 0 and 1; a table
        as lists of 0 and 1, or of the labels' names or numbers where names are known.
    images
        For COCO's json: the folder or ``.zip`` of its images; if left out they are looked for
        beside it, in ``images`` and where COCO has them.
    """
    place = Path(path)
    if on_unreadable not in ("skip", "error"):
        raise ValueError(f"on_unreadable must be 'skip' or 'error', but is {on_unreadable!r}")
    if not place.exists():
        raise FileNotFoundError(f"there is no data at {place}; give {_FORMS}")
    names = None if classes is None else checked_classes(classes)
    suffix = place.suffix.lower()
    if suffix not in TABLE_SUFFIXES and (image_column or label_column):
        raise ValueError(f"image_column and label_column are for tables, but {place} is none")
    if images is not None and suffix != ".json" and not _annotations(place):
        raise ValueError(f"images go with COCO's json, but {place} is none")
    if place.is_dir():
        return _open_folder(place, on_unreadable, names, images)
    if suffix in IMAGE_SUFFIXES:
        return _images(place, [(place, None)], on_unreadable, names)
    if suffix == ".npz":
        return ArrayData(place, *_load_arrays(place, targets_are), names)
    if suffix in TABLE_SUFFIXES:
        table = Table.open(place, image_column, label_column, names, targets_are)
        return ImageData(
            place, table.examples, table.rows, table.label, on_unreadable, table.classes
        )
    if suffix == ".json":
        return _open_coco(place, images, on_unreadable, names)
    raise ValueError(f"{place} has no known form (suffix {suffix!r}); give {_FORMS}")


# COCO's json


def _annotations(root: Path) -> list[Path]:
    """The labels in a folder that is laid out as COCO is."""
    return sorted((root / "annotations").glob("instances_*.json"))


def _open_coco(
    place: Path,
    images: str | os.PathLike[str] | None,
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
) -> Data:
    labels = read_coco(place)
    if not len(labels):
        raise ValueError(f"{place} lists no images")
    names = labels.classes if classes is None else classes
    truth = labels.truth if classes is None else _mapped(place, labels, classes)
    read = _image_reader(place, labels.files, None if images is None else Path(images))

    def examples(rows: Sequence[int] | None) -> Iterator[Example]:
        for row in range(len(labels)) if rows is None else rows:
            yield Example(labels.files[row], partial(read, labels.files[row]), truth[row])

    return ImageData(place, examples, len(labels), True, on_unreadable, names)


def _mapped(place: Path, labels: CocoLabels, classes: tuple[str, ...]) -> list[GroundTruth]:
    """The labels by the names of the model's classes."""
    used = sorted({label for real in labels.truth for label in real.labels.tolist()})
    unknown = [labels.classes[label] for label in used if labels.classes[label] not in classes]
    if unknown:
        raise ValueError(
            f"{place} has boxes of {some(unknown)}, which is none of the {len(classes)} classes "
            "that were given; give the names of the model's classes, in its order"
        )
    where = {name: number for number, name in enumerate(classes)}
    new = np.array([where.get(name, 0) for name in labels.classes], np.int64)
    return [GroundTruth(real.boxes, new[real.labels], real.crowd) for real in labels.truth]


def _image_reader(place: Path, files: Sequence[str], images: Path | None) -> Callable[[str], bytes]:
    """How an image that the json names is read, from a folder or a zip file."""
    if images is not None and images.suffix.lower() == ".zip" and images.is_file():
        inside = {Path(name).name: name for name in _archive(images).namelist()}
        if not any(Path(file).name in inside for file in files):
            raise ValueError(f"{images} has none of the {len(files)} images that {place} names")
        return lambda file: _archive(images).read(inside[Path(file).name])
    split = place.stem.removeprefix("instances_")
    beside = [place.parent, place.parent / "images", place.parent.parent / split]
    places = [*beside, place.parent.parent / "images"] if images is None else [images]
    for folder in places:
        if any((folder / file).is_file() for file in files):
            return lambda file: (folder / file).read_bytes()
    looked = ", ".join(str(folder) for folder in places)
    raise ValueError(
        f"none of the {len(files)} images that {place} names is in {looked}; say where they are "
        "with images (--images), a folder or a .zip"
    )


@lru_cache(maxsize=4)
def _archive(path: Path) -> zipfile.ZipFile:
    """An open .zip; each process opens its own."""
    return zipfile.ZipFile(path)


# Folders of images


def _open_folder(
    root: Path,
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
    images: str | os.PathLike[str] | None,
) -> Data:
    annotations = _annotations(root)
    if len(annotations) > 1:
        raise ValueError(
            f"{root} has labels for {len(annotations)} sets of images: give one of them, such as "
            f"{annotations[0]}"
        )
    if annotations:
        return _open_coco(annotations[0], images, on_unreadable, classes)
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    loose = [entry for entry in entries if entry.is_file() and _is_image(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    labels = classes or tuple(folder.name for folder in folders)
    inside = list(_labelled(root, folders, labels))
    if inside and loose:
        raise ValueError(
            f"{root} has class folders, and {len(loose)} images beside them (the first is "
            f"{loose[0].name}); move these into a class folder, or away"
        )
    if inside:
        return _images(root, inside, on_unreadable, labels)
    if not loose:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{root} has no images ({kinds}), in itself or in class folders")
    return _images(root, [(file, None) for file in loose], on_unreadable, classes)


def _images(
    root: Path,
    files: Sequence[tuple[Path, int | None]],
    on_unreadable: OnUnreadable,
    classes: tuple[str, ...] | None,
) -> ImageData:
    base = root if root.is_dir() else root.parent

    def examples(rows: Sequence[int] | None) -> Iterator[Example]:
        for file, target in files if rows is None else (files[row] for row in rows):
            yield Example(file.relative_to(base).as_posix(), file.read_bytes, target)

    has_targets = files[0][1] is not None
    return ImageData(root, examples, len(files), has_targets, on_unreadable, classes)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def _labelled(
    root: Path, folders: Sequence[Path], classes: tuple[str, ...]
) -> Iterator[tuple[Path, int]]:
    places = {name: place for place, name in enumerate(classes)}
    for folder in folders:
        images = sorted(_walk(folder))
        if images and folder.name not in places:
            raise ValueError(
                f"the folder {folder.name} in {root} is none of the {len(classes)} classes "
                f"({some(classes)})"
            )
        for image in images:
            yield image, places[folder.name]


def _walk(folder: Path) -> Iterator[Path]:
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if _is_image(name):
                yield Path(place) / name


# Arrays


def _load_arrays(path: Path, targets_are: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read as .npz data: it is no such file, or truncated")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "inputs" not in arrays:
                raise ValueError(
                    f"it needs an array called inputs, but has {some(arrays.files) or 'none'}"
                )
            inputs = arrays["inputs"]
            targets = arrays.get("targets")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz data: {reason_of(error)}") from error
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"{path}: inputs must have rows, but has shape {inputs.shape}")
    return inputs, None if targets is None else _checked_targets(
        path, targets, len(inputs), targets_are
    )


def _checked_targets(
    path: Path, targets: NDArray[Any], rows: int, targets_are: str
) -> NDArray[Any]:
    sets = targets_are == "label sets"
    if targets.shape[:1] != (rows,) or targets.ndim != 1 + sets:
        wanted = f"a row of 0 and 1 for each of the {rows} inputs, shape ({rows}, labels)"
        single = f"one label for each of the {rows} inputs, shape ({rows},)"
        way = "; rows of labels are for --task multilabel" if targets.ndim == 2 else ""
        raise ValueError(
            f"{path}: targets must have {wanted if sets else single}, but has shape "
            f"{targets.shape}{way}"
        )
    if sets and targets.dtype.kind in "biuf":
        return targets  # the task checks that they are 0 and 1
    if targets_are == "numbers" and targets.dtype.kind in "iuf":
        return targets.astype(np.float64)
    if targets.dtype.kind not in "biu":
        raise ValueError(f"{path}: targets must be whole numbers, but are {targets.dtype}")
    return targets.astype(np.int64)
