"""Labelled (or unlabelled) data on disk, made into batches while it is read.

A folder of images, ``.npz`` arrays, tables with an image column and COCO's json give the same
`Batch`. Images are decoded ahead of the reader on a few threads, in order; one that cannot be read
is named, counted and left out.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ebjr.data.coco import CocoLabels, read_coco
from ebjr.data.preprocess import upright_pixels
from ebjr.errors import MissingExtra
from ebjr.tasks.detection.boxes import GroundTruth
from ebjr.threads import in_order

OnUnreadable = Literal["skip", "error"]

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})
TABLE_SUFFIXES = frozenset({".arrow", ".feather", ".parquet"})
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "image_bytes", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "targets", "class", "class_id", "cls")

_FORMS = (
    "a folder of images, an image, an .npz with `inputs`, a .parquet, .arrow or .feather table, or "
    "COCO's .json"
)
_ROWS_AT_ONCE = 128


@dataclass(frozen=True)
class Batch:
    """Some consecutive examples.

    Attributes
    ----------
    inputs
        One array (n, ...) when the data are arrays; for images a list of n uint8 RGB arrays
        (height, width, 3), each of its own size.
    targets
        int64 (n,), or None when the data have no labels; for COCO's json a list of n `GroundTruth`.
    names
        What to call each example in a message or an answer.
    """

    inputs: NDArray[Any] | list[NDArray[np.uint8]]
    targets: NDArray[Any] | list[GroundTruth] | None
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


class Data(ABC):
    """Examples that can be read in batches, as often as needed.

    Attributes
    ----------
    classes
        The names of the labels, or None where they are not known.
    has_targets
        Whether the batches have labels.
    unreadable
        (name, reason) of each example that was left out of the latest pass, filled as it is read.
    """

    classes: tuple[str, ...] | None
    has_targets: bool
    unreadable: list[tuple[str, str]]

    @abstractmethod
    def __len__(self) -> int:
        """The number of examples, those that cannot be read included."""

    @abstractmethod
    def _read(self, batch_size: int, start: int) -> Iterator[Batch]: ...

    @abstractmethod
    def take(self, rows: Sequence[int]) -> tuple[Batch, NDArray[np.int64]]:
        """The examples of some rows, rising, and which rows they are.

        Examples that cannot be read are added to `unreadable`, and left out.

        Raises
        ------
        ValueError
            One cannot be read, and `on_unreadable` is ``"error"``.
        """

    def batches(self, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """All examples in order, `batch_size` at a time (the last batch may be smaller).

        Parameters
        ----------
        batch_size
            How many at a time.
        start
            How many to leave out first, those that cannot be read included.

        Raises
        ------
        ValueError
            `batch_size` is not positive; an example cannot be read and `on_unreadable` is
            ``"error"``; or not one example of all can be read.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}")
        self.unreadable.clear()
        return self._read(batch_size, start)


def open_data(
    path: str | os.PathLike[str],
    *,
    on_unreadable: OnUnreadable = "skip",
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    numbers: bool = False,
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
    numbers
        The targets of an ``.npz`` may be numbers of any kind, for regression.
    images
        For COCO's json: the folder or ``.zip`` of its images; if left out they are looked for
        beside it, in ``images`` and where COCO has them.

    Raises
    ------
    FileNotFoundError
        There is nothing at `path`.
    ValueError
        What is there is empty, damaged, or of no known form.
    MissingExtra
        Tables need the extra ``parquet``.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "data.npz"
    >>> np.savez(file, inputs=np.zeros((5, 4)), targets=[0, 1, 1, 0, 2])
    >>> data = open_data(file)
    >>> len(data), [batch.targets.tolist() for batch in data.batches(3)]
    (5, [[0, 1, 1], [0, 2]])
    """
    place = Path(path)
    if on_unreadable not in ("skip", "error"):
        raise ValueError(f"on_unreadable must be 'skip' or 'error', but is {on_unreadable!r}")
    if not place.exists():
        raise FileNotFoundError(f"there is no data at {place}; give {_FORMS}")
    names = None if classes is None else _checked_classes(classes)
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
        return ArrayData(place, names, numbers)
    if suffix in TABLE_SUFFIXES:
        table = _Table.open(place, image_column, label_column, names)
        return ImageData(
            place, table.examples, table.rows, table.label, on_unreadable, table.classes
        )
    if suffix == ".json":
        return _open_coco(place, images, on_unreadable, names)
    raise ValueError(f"{place} has no known form (suffix {suffix!r}); give {_FORMS}")


class ArrayData(Data):
    """The arrays `inputs` and, optionally, `targets` of an ``.npz`` file, held in memory."""

    def __init__(self, path: Path, classes: tuple[str, ...] | None, numbers: bool = False) -> None:
        self._name = path.name
        self._inputs, self._targets = _load_arrays(path, numbers)
        self.classes = classes
        self.has_targets = self._targets is not None
        self.unreadable = []

    def __len__(self) -> int:
        return len(self._inputs)

    def _read(self, batch_size: int, start: int) -> Iterator[Batch]:
        for first in range(start, len(self), batch_size):
            rows = slice(first, first + batch_size)
            inputs = self._inputs[rows]
            targets = None if self._targets is None else self._targets[rows]
            yield Batch(inputs, targets, [f"{self._name}:{first + i}" for i in range(len(inputs))])

    def take(self, rows: Sequence[int]) -> tuple[Batch, NDArray[np.int64]]:
        """The examples of some rows, and which rows they are: all that were asked for."""
        where = np.asarray(rows, np.int64)
        targets = None if self._targets is None else self._targets[where]
        return Batch(self._inputs[where], targets, [f"{self._name}:{i}" for i in where]), where


@dataclass(frozen=True)
class Example:
    """One encoded image: its name, how to read its bytes, and its label."""

    name: str
    read: Callable[[], bytes]
    target: int | GroundTruth | None


class ImageData(Data):
    """Encoded images, decoded while they are read.

    Parameters
    ----------
    path
        Where they come from, for messages.
    examples
        Gives the examples from the start each time it is called, or those of some rows, rising.
    count
        How many there are.
    has_targets
        Whether they have labels; one without is then left out.
    on_unreadable, classes
        As `open_data` takes them.
    """

    def __init__(
        self,
        path: Path,
        examples: Callable[[Sequence[int] | None], Iterable[Example]],
        count: int,
        has_targets: bool,
        on_unreadable: OnUnreadable,
        classes: tuple[str, ...] | None,
    ) -> None:
        self._path = path
        self._examples = examples
        self._count = count
        self._on_unreadable = on_unreadable
        self.classes = classes
        self.has_targets = has_targets
        self.unreadable = []

    def __len__(self) -> int:
        return self._count

    def _read(self, batch_size: int, start: int) -> Iterator[Batch]:
        images: list[NDArray[np.uint8]] = []
        kept: list[Example] = []
        empty = start == 0
        decoded = in_order(
            self._decode,
            islice(self._examples(None), start, None),
            workers=min(4, max(2, os.cpu_count() or 2)),
            ahead=min(max(batch_size, 8), 64),
            name="ebjr-decode",
        )
        for example, image in decoded:
            if isinstance(image, str):
                self._leave_out(example.name, image)
                continue
            images.append(image)
            kept.append(example)
            if len(kept) == batch_size:
                yield self._batch(images, kept)
                images, kept, empty = [], [], False
        if kept:
            yield self._batch(images, kept)
        elif empty:
            raise ValueError(self._nothing_readable())

    def take(self, rows: Sequence[int]) -> tuple[Batch, NDArray[np.int64]]:
        """The examples of some rows that can be read, and which rows they are."""
        images: list[NDArray[np.uint8]] = []
        kept: list[Example] = []
        where: list[int] = []
        for row, (example, image) in zip(
            rows, map(self._decode, self._examples(rows)), strict=True
        ):
            if isinstance(image, str):
                self._leave_out(example.name, image)
                continue
            images.append(image)
            kept.append(example)
            where.append(row)
        return self._batch(images, kept), np.array(where, np.int64)

    def _decode(self, example: Example) -> tuple[Example, NDArray[np.uint8] | str]:
        if self.has_targets and example.target is None:
            return example, "it has no label"
        try:
            return example, decode_image(example.read())
        # A file from anywhere can fail in any way; each of them means the same to the reader.
        except Exception as error:
            return example, _reason(error)

    def _leave_out(self, name: str, reason: str) -> None:
        self.unreadable.append((name, reason))
        if self._on_unreadable == "error":
            raise ValueError(
                f"{name} in {self._path} cannot be read: {reason}; "
                "mend it, or go on without it: on_unreadable='skip', or no --strict"
            )

    def _batch(self, images: list[NDArray[np.uint8]], kept: list[Example]) -> Batch:
        targets: Any = [example.target for example in kept] if self.has_targets else None
        if targets and not isinstance(targets[0], GroundTruth):
            targets = np.array(targets, np.int64)
        return Batch(images, targets, [example.name for example in kept])

    def _nothing_readable(self) -> str:
        name, reason = self.unreadable[0] if self.unreadable else ("nothing", "it is empty")
        return f"no image in {self._path} can be read; the first is {name}: {reason}"


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """An encoded image as upright RGB pixels.

    The orientation in its EXIF data is applied; of several frames the first is taken;
    transparency is laid over white; 16-bit gray is scaled to 8 bits.

    Parameters
    ----------
    data
        The bytes of a file that Pillow can read.

    Returns
    -------
    uint8 array (height, width, 3)

    Raises
    ------
    ValueError
        There are no bytes, or more pixels than Pillow's limit, or floating-point pixels.
    OSError
        The bytes are not an image, or the image is truncated.

    Examples
    --------
    >>> from PIL import Image
    >>> file = BytesIO()
    >>> Image.new("L", (4, 2), 7).save(file, "PNG")
    >>> decode_image(file.getvalue()).shape
    (2, 4, 3)
    """
    from PIL import Image

    if not data:
        raise ValueError("it is empty")
    with Image.open(BytesIO(data)) as image:
        pixels = image.width * image.height
        # Up to twice the limit Pillow only warns.
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"it has {pixels} pixels; the limit is {Image.MAX_IMAGE_PIXELS}")
        image.load()
        return upright_pixels(image)


def _reason(error: Exception) -> str:
    """Why an image cannot be read, as one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split()).rstrip(".")


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names, but is {classes!r}")
    if len(set(classes)) != len(classes):
        raise ValueError("classes must differ, but one name is there twice")
    return tuple(classes)


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
            f"{place} has boxes of {_some(unknown)}, which is none of the {len(classes)} classes "
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
    loose, folders = _loose_images(root), _subfolders(root)
    files: list[tuple[Path, int | None]] = [(file, None) for file in loose]
    if folders:
        labels = classes or tuple(folder.name for folder in folders)
        files = list(_labelled(root, folders, labels))
        if files and loose:
            raise ValueError(
                f"{root} has class folders, and {len(loose)} images beside them (the first is "
                f"{loose[0].name}); move these into a class folder, or away"
            )
        if files:
            return _images(root, files, on_unreadable, labels)
        files = [(file, None) for file in loose]
    if not files:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{root} has no images ({kinds}), in itself or in class folders")
    return _images(root, files, on_unreadable, classes)


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


def _loose_images(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_file() and _is_image(entry.name))


def _subfolders(root: Path) -> list[Path]:
    entries = (entry for entry in root.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.is_dir())


def _labelled(
    root: Path, folders: Sequence[Path], classes: tuple[str, ...]
) -> Iterator[tuple[Path, int]]:
    places = {name: place for place, name in enumerate(classes)}
    for folder in folders:
        images = sorted(_walk(folder))
        if images and folder.name not in places:
            raise ValueError(
                f"the folder {folder.name} in {root} is none of the {len(classes)} classes "
                f"({_some(classes)})"
            )
        for image in images:
            yield image, places[folder.name]


def _walk(folder: Path) -> Iterator[Path]:
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if _is_image(name):
                yield Path(place) / name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# Arrays


def _load_arrays(
    path: Path, numbers: bool = False
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read as .npz data: it is no such file, or truncated")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if "inputs" not in arrays:
                raise ValueError(
                    f"it needs an array called inputs, but has {_some(arrays.files) or 'none'}"
                )
            inputs = arrays["inputs"]
            targets = arrays.get("targets")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz data: {_reason(error)}") from error
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(f"{path}: inputs must have rows, but has shape {inputs.shape}")
    return inputs, None if targets is None else _checked_targets(
        path, targets, len(inputs), numbers
    )


def _checked_targets(path: Path, targets: NDArray[Any], rows: int, numbers: bool) -> NDArray[Any]:
    if targets.shape != (rows,):
        raise ValueError(
            f"{path}: targets must have one label for each of the {rows} inputs, shape ({rows},), "
            f"but has shape {targets.shape}"
        )
    if numbers and targets.dtype.kind in "iuf":
        return targets.astype(np.float64)
    if targets.dtype.kind not in "biu":
        raise ValueError(f"{path}: targets must be whole numbers, but are {targets.dtype}")
    return targets.astype(np.int64)


# Tables


@dataclass(frozen=True)
class _Table:
    """A file of rows with an image column, as Arrow reads it."""

    path: Path
    rows: int
    image_column: str
    label_column: str | None
    classes: tuple[str, ...] | None

    @classmethod
    def open(
        cls, path: Path, image: str | None, label: str | None, classes: tuple[str, ...] | None
    ) -> _Table:
        """Read the schema and count the rows."""
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingExtra("parquet", f"reading {path.name}") from error
        with _damage_named(path):
            schema, rows = _describe(path)
        if rows == 0:
            raise ValueError(f"{path} has no rows")
        image_column = _image_column(path, schema, image)
        label_column = _label_column(path, schema, label)
        if label_column is not None:
            classes = classes or _names_in_schema(schema, label_column)
            _check_label(path, schema, label_column, classes)
        return cls(path, rows, image_column, label_column, classes)

    @property
    def label(self) -> bool:
        """Whether there is a label column."""
        return self.label_column is not None

    def examples(self, rows: Sequence[int] | None) -> Iterator[Example]:
        """All rows in order, or some of them, rising."""
        columns = [self.image_column, *([self.label_column] if self.label_column else [])]
        wanted = None if rows is None else np.asarray(rows, np.int64)
        batches = _record_batches(self.path, columns, wanted)
        while True:
            with _damage_named(self.path):
                start, batch = next(batches, (0, None))
                if batch is None:
                    return
                places = range(batch.num_rows)
                if wanted is not None:
                    inside = (wanted >= start) & (wanted < start + batch.num_rows)
                    places = (wanted[inside] - start).tolist()
                    batch = batch.take(places)
                images = batch.column(self.image_column).to_pylist()
                labels = self._labels(batch)
            for place, image, target in zip(places, images, labels, strict=True):
                yield Example(f"{self.path.name}:{start + place}", _reader(image), target)

    def _labels(self, batch: Any) -> list[int | None]:
        if self.label_column is None:
            return [None] * batch.num_rows
        labels = batch.column(self.label_column).to_pylist()
        return [self._place(label) for label in labels]

    def _place(self, label: Any) -> int | None:
        if isinstance(label, str):
            classes = self.classes or ()
            if label not in classes:
                raise ValueError(f"the label {label!r} is none of the {len(classes)} classes")
            return classes.index(label)
        return None if label is None else int(label)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Say which table a reader's complaint is about."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a table: {_reason(error)}") from error


def _describe(path: Path) -> tuple[Any, int]:
    """A table's schema and its number of rows."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows
    with _ipc(path) as (schema, batches):
        return schema, sum(batch.num_rows for batch in batches)


def _record_batches(
    path: Path, columns: list[str], rows: NDArray[np.int64] | None
) -> Iterator[tuple[int, Any]]:
    """A table's rows, a few at a time, and where each lot starts.

    So memory holds few encoded images. Groups without any of `rows` are not read.
    """
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if rows is None or bool(((rows >= start) & (rows < end)).any()):
                    for batch in file.iter_batches(_ROWS_AT_ONCE, [group], columns):
                        yield start, batch
                        start += batch.num_rows
                start = end
        return
    with _ipc(path) as (_, batches):
        start = 0
        for batch in batches:
            for offset in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield start + offset, batch.slice(offset, _ROWS_AT_ONCE).select(columns)
            start += batch.num_rows


@contextmanager
def _ipc(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """An Arrow file or an Arrow stream: both go by the same suffix."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)


def _reader(image: Any) -> Callable[[], bytes]:
    data = image.get("bytes") if isinstance(image, Mapping) else image
    return lambda: data or b""


def _holds_images(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _image_column(path: Path, schema: Any, asked: str | None) -> str:
    if asked is not None:
        _check_column(path, schema, asked, "image_column")
        if not _holds_images(schema.field(asked).type):
            raise ValueError(
                f"{path}: the image column {asked!r} must hold encoded images (binary, or a "
                f"struct with bytes), but holds {schema.field(asked).type}"
            )
        return asked
    fitting = [name for name in schema.names if _holds_images(schema.field(name).type)]
    known = [name for name in IMAGE_COLUMNS if name in fitting]
    if known or len(fitting) == 1:
        return (known or fitting)[0]
    raise ValueError(
        f"{path} has {'no' if not fitting else 'more than one possible'} column of encoded images "
        f"(its columns: {_some(schema.names)}); name one with image_column"
    )


def _label_column(path: Path, schema: Any, asked: str | None) -> str | None:
    if asked is not None:
        _check_column(path, schema, asked, "label_column")
        return asked
    return next((name for name in LABEL_COLUMNS if name in schema.names), None)


def _check_column(path: Path, schema: Any, asked: str, what: str) -> None:
    if asked not in schema.names:
        raise ValueError(
            f"{path} has no column {asked!r}; {what} must be one of {', '.join(schema.names)}"
        )


def _check_label(path: Path, schema: Any, column: str, classes: tuple[str, ...] | None) -> None:
    import pyarrow.types as types

    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_boolean(kind):
        return
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise ValueError(
            f"{path}: the label column {column!r} must hold whole numbers, but holds {kind}"
        )
    if classes is None:
        raise ValueError(
            f"{path}: the label column {column!r} holds text; give classes in the model's order"
        )


def _names_in_schema(schema: Any, column: str) -> tuple[str, ...] | None:
    """The class names that data sets of the hub keep in their schema."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        return _checked_classes(described["info"]["features"][column]["names"])
    except (LookupError, TypeError, ValueError):
        return None
