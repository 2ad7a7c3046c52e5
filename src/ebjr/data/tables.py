"""Tables: rows with an image column in ``.parquet``, ``.arrow`` and ``.feather`` files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebjr.data.examples import Example, checked_classes, label_place, reason_of
from ebjr.errors import needs
from ebjr.labels import some

TABLE_SUFFIXES = frozenset({".arrow", ".feather", ".parquet"})
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "image_bytes", "jpg", "jpeg", "png", "webp")
PATH_COLUMNS = ("image", "img", "image_path", "file_name", "filepath", "path")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "targets", "class", "class_id", "cls")

_ROWS_AT_ONCE = 128


class Sets(NamedTuple):
    """How many labels there are, and whether lists name those that are right, or have 0 and 1."""

    labels: int
    listed: bool


@dataclass(frozen=True)
class Table:
    """A file of rows with an image column, as Arrow reads it."""

    path: Path
    rows: int
    image_column: str
    label_column: str | None
    classes: tuple[str, ...] | None
    sets: Sets | None = None
    places: tuple[int, ...] | None = None
    apart: bool = False  # whether an image may lie in a file of its own

    @classmethod
    def open(
        cls,
        path: Path,
        image: str | None,
        label: str | None,
        classes: tuple[str, ...] | None,
        targets_are: str = "labels",
    ) -> Table:
        """Read the schema and count the rows."""
        with needs("parquet", f"reading {path.name}"):
            import pyarrow
        with _damage_named(path):
            schema, rows = _describe(path)
        if rows == 0:
            raise ValueError(f"{path} has no rows")
        for what, asked in {"image_column": image, "label_column": label}.items():
            if asked is not None and asked not in schema.names:
                raise ValueError(
                    f"{path} has no column {asked!r}; {what} must be one of "
                    f"{', '.join(schema.names)}"
                )
        image_column = _image_column(path, schema, image)
        label_column = label or next((name for name in LABEL_COLUMNS if name in schema.names), None)
        sets = places = None
        if label_column is not None:
            known = _names_in_schema(schema, label_column)
            classes = classes or known
            if known and classes and known != classes:
                with _damage_named(path):
                    places = tuple(label_place(name, classes) for name in known)
            if targets_are == "label sets":
                sets = _sets_in(path, schema, label_column, classes, numbers=known is not None)
            else:
                _check_label(path, schema, label_column)
        apart = _holds_paths(schema.field(image_column).type)
        table = cls(path, rows, image_column, label_column, classes, sets, places, apart)
        if label_column is not None and classes is not None:  # before an image is read
            with _damage_named(path):
                for _, batch in _record_batches(path, [label_column], None):
                    distinct = [column if sets else column.unique() for column in batch.columns]
                    table._labels(pyarrow.record_batch(distinct, [label_column]))
        return table

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
                read, file = _reader(image, self.path.parent)
                yield Example(f"{self.path.name}:{start + place}", read, target, file)

    def _labels(self, batch: Any) -> list[Any]:
        if self.label_column is None:
            return [None] * batch.num_rows
        labels = batch.column(self.label_column).to_pylist()
        place = self._place if self.sets is None else self._set
        return [None if label is None else place(label) for label in labels]

    def _set(self, labels: list[Any]) -> NDArray[np.bool_]:
        """(labels,): which labels a list says are right."""
        assert self.sets is not None
        if not self.sets.listed:
            return np.array(labels, bool)
        places = [-1 if label is None else self._place(label) for label in labels]
        wrong = [place for place in places if not 0 <= place < self.sets.labels]
        if wrong or len({*places}) < len(places):
            said = ", ".join(map(str, labels))
            raise ValueError(
                f"a list of labels must hold different ones of the {self.sets.labels} classes, "
                f"but one is [{said}]"
            )
        chosen = np.zeros(self.sets.labels, bool)
        chosen[places] = True
        return chosen

    def _place(self, label: Any) -> Any:
        """A label's number; text stays text where no classes are known."""
        if isinstance(label, str):
            return label if self.classes is None else label_place(label, self.classes)
        if self.places and not 0 <= label < len(self.places):
            raise ValueError(
                f"the label {label} is none of the {len(self.places)} that the table names"
            )
        return self.places[label] if self.places else int(label)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Say which table a reader's complaint is about."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a table: {reason_of(error)}") from error


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


def _reader(image: Any, folder: Path) -> tuple[Callable[[], bytes], Path | None]:
    """How an image is read whose bytes are here, or in a file, which is named then."""
    if not isinstance(image, Mapping):
        image = {"path" if isinstance(image, str) else "bytes": image}
    data, path = image.get("bytes"), image.get("path")
    if path and not data:
        return (folder / path).read_bytes, folder / path
    return lambda: data or b"", None


_SORTS: Mapping[str, Sequence[str]] = {
    "text": ("string", "large_string"),
    "bytes": ("binary", "large_binary", "binary_view"),
    "list": ("list", "large_list", "fixed_size_list"),
    "whole": ("integer",),
    "boolean": ("boolean",),
    "floating": ("floating",),
}
"""Arrow's types as far as this file tells them apart, by what Arrow's tests of them are called."""


def _sort(kind: Any) -> str:
    """Which of `_SORTS` a type is, or the values of a dictionary are; or none."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = {
        sort: [getattr(types, f"is_{name}") for name in names] for sort, names in _SORTS.items()
    }
    return next((sort for sort in tests if any(test(kind) for test in tests[sort])), "")


def _part(kind: Any, name: str) -> Any:
    """The type of a struct's part; of what has no such part, its own."""
    import pyarrow.types as types

    place = kind.get_field_index(name) if types.is_struct(kind) else -1
    return kind if place < 0 else kind.field(place).type


def _holds_images(kind: Any) -> bool:
    return _sort(_part(kind, "bytes")) == "bytes"


def _holds_paths(kind: Any) -> bool:
    return _sort(_part(kind, "path")) == "text"


def _image_column(path: Path, schema: Any, asked: str | None) -> str:
    if asked is not None:
        kind = schema.field(asked).type
        if not (_holds_images(kind) or _holds_paths(kind)):
            raise ValueError(
                f"{path}: the image column {asked!r} must hold encoded images (binary, or a "
                f"struct with bytes) or their paths, but holds {kind}"
            )
        return asked
    fitting = [name for name in schema.names if _holds_images(schema.field(name).type)]
    if not fitting:
        paths = (name for name in PATH_COLUMNS if name in schema.names)
        fitting = [name for name in paths if _holds_paths(schema.field(name).type)][:1]
    known = [name for name in IMAGE_COLUMNS if name in fitting]
    if known or len(fitting) == 1:
        return (known or fitting)[0]
    raise ValueError(
        f"{path} has {'no' if not fitting else 'more than one possible'} column of images or their "
        f"paths (its columns: {some(schema.names)}); name one with image_column"
    )


def _check_label(path: Path, schema: Any, column: str) -> None:
    kind = schema.field(column).type
    if (sort := _sort(kind)) not in ("text", "whole", "boolean"):
        way = "; lists of labels are for --task multilabel" if sort == "list" else ""
        raise ValueError(
            f"{path}: the label column {column!r} must hold whole numbers or names, but holds "
            f"{kind}{way}"
        )


def _sets_in(
    path: Path, schema: Any, column: str, classes: tuple[str, ...] | None, numbers: bool
) -> Sets:
    """What the lists of a label column mean; `numbers` says that they hold the labels' numbers."""
    kind = schema.field(column).type
    held = _sort(kind.value_type) if _sort(kind) == "list" else ""
    if held not in ("text", "whole", "boolean", "floating"):
        raise ValueError(
            f"{path}: for label sets the label column {column!r} must hold lists of 0 and 1, or of "
            f"labels, but holds {kind}"
        )
    length = None if held == "text" or numbers else _length_of_zeros_and_ones(path, column)
    if length is not None and len(classes or ()) in (0, length):
        return Sets(length, listed=False)
    if classes is None or (length or 0) > 1 or held not in ("text", "whole"):
        has = f"lists of {length}" if length else "other lists"
        raise ValueError(
            f"{path}: the label column {column!r} must hold 0 or 1 for each label, or the names or "
            f"numbers of those that are right with classes given in the model's order; it has {has}"
            f" for {len(classes) if classes else 'unknown'} classes"
        )
    return Sets(len(classes), listed=True)


def _length_of_zeros_and_ones(path: Path, column: str) -> int | None:
    """How long every list of a column is; None where they differ, or hold more than 0 and 1."""
    import pyarrow.compute as compute

    lengths: set[int] = set()
    for _, batch in _record_batches(path, [column], None):
        lists = batch.column(column).drop_null()
        lengths.update(compute.list_value_length(lists).to_pylist())
        if not {*lists.flatten().unique().to_pylist()} <= {0, 1}:
            return None
    return lengths.pop() if len(lengths) == 1 else None


def _names_in_schema(schema: Any, column: str) -> tuple[str, ...] | None:
    """The class names that data sets of the hub keep in their schema."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        feature = described["info"]["features"][column]
        return checked_classes(feature.get("feature", feature)["names"])  # of lists: of each item
    except (LookupError, TypeError, ValueError):
        return None
