"""Data on disk, labeled or not, read in batches.

A folder of images, ``.npz`` and ``.npy`` arrays, tables of images, texts or numbers and COCO's json
all give the same `Examples`.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.arrays import open_npz
from ebjr.data.coco import open_coco
from ebjr.data.columns import check_columns, read_by
from ebjr.data.examples import (
    ArrayData,
    Data,
    OnUnreadable,
    checked_classes,
    image_suffixes,
    label_place,
    number_place,
    reason_of,
)
from ebjr.data.folders import image_data, open_folder
from ebjr.data.tables import TABLE_SUFFIXES, open_table
from ebjr.errors import check_choice
from ebjr.labels import some, spelled_places
from ebjr.model import Model

_FORMS = (
    "a folder of images, an image, an .npz with `inputs`, an .npy, a table (.csv, .tsv, .jsonl, "
    ".parquet, .arrow or .feather), or COCO's .json"
)


def open_data(
    path: str | os.PathLike[str],
    *,
    on_unreadable: OnUnreadable = "skip",
    classes: Sequence[str] | None = None,
    input_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    targets_are: str = "labels",
    images: str | os.PathLike[str] | None = None,
    models: Sequence[Model] = (),
    columns: Sequence[str] | None = None,
    texts: bool = False,
) -> Data:
    """Open data on disk.

    - `path`: One of:

      - a folder with a sub-folder of images for each class (labels follow the sorted names)
      - a folder of images alone, or one image (no labels)
      - ``.npz`` with `inputs` (n, ...) and, optionally, `targets` (n,)
      - a folder with ``inputs.npy`` and ``targets.npy``, or one ``.npy`` of inputs
      - ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``, ``.arrow`` or ``.feather`` with columns of
        numbers or of texts, or one of encoded images or their paths from the table's folder, and,
        optionally, one of labels
      - ``.json`` in COCO's instances format, or a folder with one in ``annotations``: the labels
        are boxes

    - `on_unreadable`: ``"skip"`` leaves out unreadable images and names them in `Data.unreadable`;
      ``"error"`` raises a ValueError at the first one.
    - `classes`: The names of the labels, in the model's order: sub-folders, text labels, names in a
      table's schema and COCO's categories are looked up here, and so are numbers if all classes are
      named by numbers. Without it text labels stay text.
    - `input_columns`, `label_column`: A table's columns, if names and types do not determine them:
      a name, or several in a sequence or separated by commas. If one of several holds texts, all
      are read as texts, unchanged.
    - `targets_are`: As `Task.targets_are`. An ``.npz`` holds ``"label sets"`` as (n, labels) of 0
      and 1; a table as lists of 0 and 1, or of the labels' names or numbers if names are known.
    - `images`: For COCO's json, the folder or ``.zip`` of its images; by default they are looked
      for beside it, in ``images`` and in COCO's own folders.
    - `models`: The models that will read the data. They choose a table's columns
      (`ModelFacts.columns`), read as texts if they read texts.
    - `columns`: The table's columns as ``joint.toml`` names them, instead of the models' names.
    - `texts`: Read a table's columns as texts even if no model asks for texts.

    Raises
    ------
    FileNotFoundError
        `path` does not exist.
    ValueError
        `path` cannot be read, or the models read other columns.
    """
    place = Path(path)
    place = place.resolve().parent if place.name == "inputs.npy" else place
    check_choice("on_unreadable", on_unreadable, ("skip", "error"))
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; give {_FORMS}")
    if not (place.is_dir() or place.is_file()):
        raise ValueError(f"{place} is a pipe, a socket or a device; give {_FORMS}")
    names = None if classes is None else checked_classes(classes)
    said, read_texts = read_by(*models)
    suffix = place.suffix.lower()
    if suffix not in TABLE_SUFFIXES and (input_columns or label_column):
        raise ValueError(f"input_columns and label_column are for tables, which {place} is not")
    labels = place if suffix == ".json" else _annotations(place)
    if images is not None and labels is None:
        raise ValueError(f"images= is for COCO's json, which {place} is not")
    data: Data
    if labels is not None:
        data = open_coco(labels, images, on_unreadable, names)
    elif suffix in (".npz", ".npy") or (place / "inputs.npy").is_file():
        data = _open_arrays(place, targets_are, names)
    elif place.is_dir():
        data = open_folder(place, on_unreadable, names)
    elif suffix in TABLE_SUFFIXES:
        how = targets_are, on_unreadable, columns or said, texts or read_texts
        data = open_table(place, input_columns, label_column, names, *how)
    elif suffix in image_suffixes():
        data = image_data(place, [(place, None)], on_unreadable, names)
    else:
        raise ValueError(f"{place} has the unknown suffix {suffix!r}; give {_FORMS}")
    own = "categories" if labels is not None else "folders" if place.is_dir() else "table"
    data.named_by = "given" if names else own if data.classes else None
    check_columns(data, *models)
    return data


def _annotations(root: Path) -> Path | None:
    found = sorted((root / "annotations").glob("instances_*.json"))
    if len(found) > 1:
        raise ValueError(
            f"{root} has labels for {len(found)} sets of images: give one of them, like {found[0]}"
        )
    return found[0] if found else None


def _open_arrays(path: Path, targets_are: str, classes: tuple[str, ...] | None) -> ArrayData:
    inputs, targets = _load_arrays(path)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"{path}: inputs must have rows, but has shape {inputs.shape}")
    if targets is not None:
        targets = _checked_targets(path, targets, len(inputs), targets_are)
    if targets is not None and targets.dtype.kind == "U" and classes is not None:
        names, rows = np.unique(targets, return_inverse=True)
        targets = np.array([label_place(name, classes) for name in names.tolist()])[rows]
    elif targets is not None and targets.ndim == 1 and targets_are == "labels" and classes:
        targets = _numbered(targets, classes)
    return ArrayData(path, classes, targets is not None, inputs, targets)


def _numbered(targets: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return labels that are numbers or bools as classes."""
    places = spelled_places(classes, targets.dtype.kind)
    if places is None:
        return targets.astype(np.int64)
    known, rows = np.unique(targets, return_inverse=True)
    found = [number_place(number, places, classes) for number in known.tolist()]
    return np.array(found, np.int64)[rows]


def _load_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Load inputs and targets, memory-mapped if large."""
    try:
        if path.is_dir() or path.suffix.lower() == ".npy":
            file = path / "inputs.npy" if path.is_dir() else path
            inputs = np.load(file, mmap_mode="r", allow_pickle=False)
            file = path / "targets.npy"
            return inputs, np.load(file, allow_pickle=False) if file.is_file() else None
        if not zipfile.is_zipfile(path):
            raise ValueError("it is something else, or truncated")
        with open_npz(path) as arrays:
            if "inputs" not in arrays:
                raise ValueError(
                    f"it needs an array named inputs, but has {some(arrays.files) or 'none'}"
                )
            mapped = _mapped(path, arrays.zip.getinfo("inputs.npy"))
            return arrays["inputs"] if mapped is None else mapped, arrays.get("targets")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        form = path.suffix.lower() or ".npy"
        raise ValueError(f"{path} cannot be read as {form} data: {reason_of(error)}") from error


def _mapped(path: Path, member: zipfile.ZipInfo) -> NDArray[Any] | None:
    """Map a large array of an ``.npz``; None if it is compressed, or small."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < _LARGE:
        return None
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # a zip's lengths of name and extra field
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        old = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        start = file.tell()
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


_LARGE = 1 << 26  # bytes from which an array is mapped


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
    if targets_are == "labels" and targets.dtype.kind in "US":
        return targets if targets.dtype.kind == "U" else np.char.decode(targets, "utf-8")
    if targets.dtype.kind not in "biu":
        raise ValueError(f"{path}: targets must be whole numbers, but are {targets.dtype}")
    return targets if targets.dtype.kind == "b" else targets.astype(np.int64)
