"""Tables: rows of images, texts or numbers in ``.parquet``, ``.arrow``, ``.csv`` and ``.jsonl``."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ebjr.data.columns import check_names
from ebjr.data.examples import (
    ArrayData,
    Data,
    Example,
    ImageData,
    OnUnreadable,
    checked_classes,
    image_suffixes,
    label_place,
    number_place,
    reason_of,
)
from ebjr.errors import needs, note
from ebjr.files import read_text
from ebjr.labels import some, spelled_places

_TEXT = {".csv", ".jsonl", ".tsv"}
TABLE_SUFFIXES = frozenset({".arrow", ".feather", ".parquet", *_TEXT})
IMAGE_COLUMNS = ("image", "img", "picture", "photo", "image_bytes", "jpg", "jpeg", "png", "webp")
PATH_COLUMNS = ("image", "img", "image_path", "file_name", "filepath", "path")
LABEL_COLUMNS = (
    *("label", "labels", "fine_label", "target", "targets", "class", "class_id", "cls", "y"),
)
_NUMBERING = re.compile(r"|unnamed: ?\d+|index|idx|row|__index_level_\d+__|(.*[_ -])?id", re.I)
"""Names of columns that number the rows, which are inputs only if the user names them."""

_ROWS_AT_ONCE = 128


def open_table(
    path: Path,
    inputs: str | Sequence[str] | None,
    label: str | None,
    classes: tuple[str, ...] | None,
    targets_are: str,
    on_unreadable: OnUnreadable,
    read: Sequence[str] | None = None,
    texts: bool = False,
) -> Data:
    """Open a table: images are decoded while they are read, texts and numbers are kept in memory.

    `read` are the columns that the models read, as texts if `texts`.
    """
    table = Table.of(path)
    names = table.schema.names
    if isinstance(inputs, str):
        inputs = [inputs] if inputs in names else inputs.split(",")
    if inputs is None and read is not None and (len(read) > 1 or read[0] in names):
        inputs = read
    _check_columns(table, [*(inputs or ()), *([label] if label else [])])
    called = {name.strip().lower(): name for name in names if name not in (inputs or ())}
    label = label or next((called[name] for name in LABEL_COLUMNS if name in called), None)
    columns, holds = _inputs(table, inputs, label, texts)
    check_names(columns, read, texts=holds == "texts")
    images, targets = holds == "images", None
    numbers = targets_are == "numbers" and not images
    labels = Labels(classes)
    if label is not None:
        labels = _labels(table, label, classes, targets_are == "label sets", numbers)
    with _damage_named(path):
        found = table.columns([*([label] if label else []), *(() if images else columns)])
        if not images:
            _check_whole(found)
        if label is not None:
            said = found[label].to_pylist()
            targets = said if numbers else [*map(labels.of, said)]
    about = path, labels.classes, targets is not None
    if images:
        apart = _holds(table.schema.field(columns[0]).type, "path")
        examples = partial(table.examples, columns[0], targets)
        return ImageData(*about, examples, table.rows, on_unreadable, apart)
    held: Any
    if holds == "texts":
        held = table.texts(found, columns)
    else:
        held = np.stack([found[name] for name in columns], axis=1).astype(np.float64)
    data = ArrayData(*about, held, None if targets is None else np.array(targets))
    data.columns = tuple(columns)
    return data


@dataclass(frozen=True)
class Table:
    """A table read by Arrow; the rows of a ``.csv`` or ``.jsonl`` are kept in `text`."""

    path: Path
    text: Any
    schema: Any
    rows: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the schema and count the rows."""
        with needs("parquet", f"reading {path.name}"):
            import pyarrow.parquet as parquet
        with _damage_named(path):
            text = _text(path) if path.suffix.lower() in _TEXT else None
            if path.suffix.lower() == ".parquet":
                with parquet.ParquetFile(path) as file:
                    table = cls(path, None, file.schema_arrow, file.metadata.num_rows)
            else:
                with _opened(path, text) as (schema, batches):
                    table = cls(path, text, schema, sum(batch.num_rows for batch in batches))
        if table.rows == 0:
            raise ValueError(f"{path} has no rows")
        return table

    def columns(self, names: list[str]) -> Any:
        """Return some columns with all rows."""
        import pyarrow

        lots = [lot for _, lot in self.batches(names)] if names else []
        return pyarrow.Table.from_batches(lots) if names else pyarrow.table({})

    def texts(self, found: Any, names: Sequence[str]) -> list[str] | NDArray[np.object_]:
        """Return columns as texts: one as a list, k as an array (n, k) of str.

        A column that Arrow took for numbers or dates is read again as text, if the file is text.
        """
        import pyarrow

        kinds = {name: _sort(found.schema.field(name).type) for name in names}
        guessed = [name for name in names if self.text is not None and kinds[name] != "text"]
        if self.path.suffix.lower() == ".jsonl":  # JSON quotes its texts: Arrow guesses only dates
            guessed = [name for name in guessed if kinds[name] == "date"]
        again = _text(self.path, guessed) if guessed else found
        held = np.empty((self.rows, len(names)), object)
        for place, name in enumerate(names):
            column = again[name] if name in guessed else found[name]
            held[:, place] = column.cast(pyarrow.large_string()).to_pylist()
        return held[:, 0].tolist() if len(names) == 1 else held

    def examples(
        self, column: str, targets: list[Any] | None, rows: Sequence[int] | None
    ) -> Iterator[Example]:
        """Yield the images of all rows, or of some ascending rows."""
        wanted = None if rows is None else frozenset(rows)
        batches = self.batches([column], wanted)
        while True:
            with _damage_named(self.path):
                start, batch = next(batches, (0, None))
            if batch is None:
                return
            for place, image in enumerate(batch.column(column), start):
                if wanted is None or place in wanted:
                    read, file = _reader(image.as_py(), self.path.parent)
                    target = None if targets is None else targets[place]
                    yield Example(f"{self.path.name}:{place}", read, target, file)

    def batches(
        self, columns: list[str], rows: frozenset[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield rows, a few at a time, with the first's number; skip groups without `rows`."""
        if self.path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(self.path) as file:
                start = 0
                for group in range(file.num_row_groups):
                    end = start + file.metadata.row_group(group).num_rows
                    if rows is None or any(start <= row < end for row in rows):
                        for batch in file.iter_batches(_ROWS_AT_ONCE, [group], columns):
                            yield start, batch
                            start += batch.num_rows
                    start = end
            return
        with _opened(self.path, self.text) as (_, batches):
            start = 0
            for batch in batches:
                for offset in range(0, batch.num_rows, _ROWS_AT_ONCE):
                    yield start + offset, batch.slice(offset, _ROWS_AT_ONCE).select(columns)
                start += batch.num_rows


def _check_whole(table: Any) -> None:
    """Refuse a missing value, on which an estimator would fail or guess."""
    import pyarrow.compute as compute

    for name in table.column_names:
        row = compute.is_null(table[name], nan_is_null=True).index(True).as_py()
        if row >= 0:
            raise ValueError(
                f"row {row} (from 0) has no value for {name}: fill it in, or leave the row out"
            )


@dataclass(frozen=True)
class Labels:
    """How to read the labels in a column."""

    classes: tuple[str, ...] | None
    count: int | None = None  # for label sets: the number of labels
    listed: bool = False  # lists hold the right labels, instead of 0 and 1 for each
    places: Mapping[int, int] | None = None  # the class of each number, if that is not its place
    by_table: bool = False  # the table says what its numbers mean

    def of(self, label: Any) -> Any:
        """Return the target of a label; None for a missing one."""
        place = self._place if self.count is None else self._set
        return None if label is None else place(label)

    def _set(self, labels: list[Any]) -> NDArray[np.bool_]:
        """Return which labels are right, (labels,)."""
        assert self.count is not None
        if not self.listed:
            return np.array(labels, bool)
        places = [-1 if label is None else self._place(label) for label in labels]
        wrong = [place for place in places if not 0 <= place < self.count]
        if wrong or len({*places}) < len(places):
            said = ", ".join(map(str, labels))
            raise ValueError(
                f"a list of labels must hold distinct ones of the {self.count} classes, but one is "
                f"[{said}]"
            )
        chosen = np.zeros(self.count, bool)
        chosen[places] = True
        return chosen

    def _place(self, label: Any) -> Any:
        """Return a label's number; text stays text without known classes."""
        if isinstance(label, str):
            return label if self.classes is None else label_place(label, self.classes)
        if self.places is None:
            return label if self.classes is None else int(label)
        if not self.by_table:
            return number_place(label, self.places, self.classes or ())
        if label not in self.places:
            raise ValueError(
                f"the label {label} is not one of the {len(self.places)} that the table names"
            )
        return self.places[label]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as a table: {reason_of(error)}") from error


@contextmanager
def _opened(path: Path, text: Any) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a text in memory, or an Arrow file or stream, which share a suffix."""
    import pyarrow as pa

    if text is not None:
        yield text.schema, iter(text.to_batches())
        return
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            yield stream.schema, iter(stream)


def _text(path: Path, texts: Sequence[str] = ()) -> Any:
    """Read a whole ``.csv`` or ``.jsonl``, since the last row may decide a column's type.

    With `texts` only these columns are read, as unchanged text.
    """
    import pyarrow
    from pyarrow import csv, json

    header = read_text(path).partition("\n")[0]
    size = min(path.stat().st_size + 1, 2**31 - 1)
    types = {name: pyarrow.large_string() for name in texts}
    if path.suffix.lower() == ".jsonl":
        known = json.ParseOptions(explicit_schema=pyarrow.schema(types))
        return json.read_json(path, json.ReadOptions(block_size=size), known)
    separator = max(",;\t", key=header.count)
    if separator == ";" and not texts:
        note(f"{path.name} is read with ; as the separator of columns")
    form = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    read = csv.ReadOptions(block_size=min(size, 1 << 24))
    wanted = csv.ConvertOptions(column_types=types, include_columns=list(texts))
    return csv.read_csv(path, read, form, wanted)


def _reader(image: Any, folder: Path) -> tuple[Callable[[], bytes], Path | None]:
    """Return a reader of an image, from its bytes or its file, and that file."""
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
    "date": ("date", "timestamp", "time", "decimal"),
}
"""Groups of Arrow's types, by the names of Arrow's tests for them."""


def _sort(kind: Any) -> str:
    """Return the group of a type, or of a dictionary's values; empty for others."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    for sort, names in _SORTS.items():
        if any(getattr(types, f"is_{name}")(kind) for name in names):
            return sort
    return ""


def _holds(kind: Any, part: str) -> bool:
    """Tell whether a type holds an image's bytes or path, by itself or in a struct."""
    import pyarrow.types as types

    place = kind.get_field_index(part) if types.is_struct(kind) else -1
    return _sort(kind if place < 0 else kind.field(place).type) == _PARTS[part]


_PARTS = {"bytes": "bytes", "path": "text"}


def _check_columns(table: Table, asked: Sequence[str]) -> None:
    """Refuse missing columns, and names of two columns."""
    path, names = table.path, table.schema.names
    for name in (*names, *asked):
        if names.count(name) != 1:
            raise ValueError(
                f"{path} must have one column named {name!r}, but has {names.count(name) or 'none'}"
                f" among {', '.join(names)} (see --input-columns and --label-column)"
            )


def _inputs(
    table: Table, asked: Sequence[str] | None, label: str | None, texts: bool
) -> tuple[list[str], str]:
    """Return the input columns and what they hold; a note tells it if the user named none.

    All are texts if one of several named columns holds texts, or if the models read `texts`.
    """
    path, schema = table.path, table.schema
    others = [name for name in schema.names if name != label and not _NUMBERING.fullmatch(name)]
    images = [] if texts else _images(schema)
    held = {name: _held(table, name, texts) for name in asked or images or others}
    left = [name or "one without a name" for name in schema.names if name not in (*held, label)]
    kinds = {*held.values()}
    if asked and "texts" in kinds and "images" not in kinds:
        kinds = {_held(table, name, True) for name in asked}
    named = kinds == {"numbers"} or (asked and kinds == {"texts"})
    if not (named or (len(held) == 1 and kinds <= {"images", "texts"})):
        raise ValueError(
            f"the inputs in {path} must be columns of numbers, several named columns of texts, or "
            "one column of texts or images, but are "
            f"{', '.join(f'{name} ({kind})' for name, kind in held.items()) or 'none'}: name them "
            "with --input-columns (input_columns=); the label is "
            f"{label or 'none'} (--label-column)"
        )
    if kinds != {"images"} and not asked:
        note(
            f"{path.name}: inputs are the {min(kinds)} in {some([*held])} ({len(held)} columns), "
            f"the label is {label or 'none'}, left out is {some(left) or 'nothing'}; "
            "choose others with --input-columns and --label-column"
        )
    return [*held], kinds.pop()


def _images(schema: Any) -> list[str]:
    """Return the columns of images by type and name; only one if a name decides."""
    fitting = [name for name in schema.names if _holds(schema.field(name).type, "bytes")]
    if not fitting:
        paths = (name for name in PATH_COLUMNS if name in schema.names)
        fitting = [name for name in paths if _holds(schema.field(name).type, "path")][:1]
    return [name for name in IMAGE_COLUMNS if name in fitting][:1] or fitting


def _held(table: Table, name: str, texts: bool) -> str:
    """Return what a column holds: numbers, texts, images, or the name of another Arrow type.

    With `texts`, every type that can be read as text counts as texts.
    """
    kind = table.schema.field(name).type
    if texts and _sort(kind) in ("text", "whole", "boolean", "floating", "date"):
        return "texts"
    if _sort(kind) in ("whole", "boolean", "floating"):
        return "numbers"
    if _sort(kind) != "text":
        return "images" if any(_holds(kind, part) for part in _PARTS) else str(kind)
    _, batch = next(table.batches([name]))
    ends = {Path(text).suffix.lower() for text in batch[0].drop_null().to_pylist()}
    paths = name in PATH_COLUMNS or (ends and ends <= image_suffixes())
    return "images" if paths else "texts"


def _labels(
    table: Table, column: str, classes: tuple[str, ...] | None, sets: bool, numbers: bool
) -> Labels:
    path, kind = table.path, table.schema.field(column).type
    known, places = _names_in_schema(table.schema, column), None
    classes = classes or known
    if known and classes and known != classes:
        with _damage_named(path):
            places = {number: label_place(name, classes) for number, name in enumerate(known)}
    elif classes and not known:
        places = spelled_places(classes, "b" if _sort(kind) == "boolean" else "i")
    how: dict[str, Any] = {"places": places, "by_table": known is not None}
    if sets:
        return Labels(classes, *_sets_in(table, column, classes, known is not None), **how)
    fitting = ("whole", "floating") if numbers else ("text", "whole", "boolean")
    if (sort := _sort(kind)) not in fitting:
        way = "; lists of labels are for --task multilabel" if sort == "list" else ""
        wanted = "numbers" if numbers else "whole numbers or names"
        raise ValueError(
            f"{path}: the label column {column!r} must hold {wanted}, but holds {kind}{way}"
        )
    return Labels(classes, **how)


def _sets_in(
    table: Table, column: str, classes: tuple[str, ...] | None, numbers: bool
) -> tuple[int, bool]:
    """Return `count` and `listed` of a label column; `numbers`: its lists hold labels' numbers."""
    path, kind = table.path, table.schema.field(column).type
    held = _sort(kind.value_type) if _sort(kind) == "list" else ""
    if held not in ("text", "whole", "boolean", "floating"):
        raise ValueError(
            f"{path}: for label sets the column {column!r} must hold lists of 0 and 1, or of "
            f"labels, not {kind}"
        )
    length = None if held == "text" or numbers else _length_of_zeros_and_ones(table, column)
    if length is not None and len(classes or ()) in (0, length):
        return length, False
    if classes is None or (length or 0) > 1 or held not in ("text", "whole"):
        has = f"lists of {length}" if length else "other lists"
        raise ValueError(
            f"{path}: the label column {column!r} must hold 0 or 1 for each label, or the right "
            "labels' names or numbers with classes= (--classes) in the model's order; it has "
            f"{has} for {len(classes) if classes else 'unknown'} classes"
        )
    return len(classes), True


def _length_of_zeros_and_ones(table: Table, column: str) -> int | None:
    """Return the length of all lists of a column; None if it varies, or they hold other values."""
    import pyarrow.compute as compute

    lengths: set[int] = set()
    for _, batch in table.batches([column]):
        lists = batch.column(column).drop_null()
        lengths.update(compute.list_value_length(lists).to_pylist())
        if not {*lists.flatten().unique().to_pylist()} <= {0, 1}:
            return None
    return lengths.pop() if len(lengths) == 1 else None


def _names_in_schema(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the class names in the schema of a Hugging Face data set."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        feature = described["info"]["features"][column]
        # a list's names are in its items
        return checked_classes(feature.get("feature", feature)["names"])
    except (LookupError, TypeError, ValueError):
        return None
