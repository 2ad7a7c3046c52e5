"""Outputs: a command never overwrites a file that it reads, under any name or link."""

import json
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.backends.onnx import external_files
from ebjr.backends.python import absolute, source_file
from ebjr.files import check_writable, read_text

Written = dict[tuple[int, int], str]
"""By device and inode of an existing file: the flag and the name of the output to write."""


def check_outputs(outputs: Mapping[str, Path], given: Iterable[Any]) -> Written:
    """Check that outputs can be written, and are not read: not given, or named in a given file.

    `outputs` are by flag, and `given` are the values of all other options. Returns the outputs that
    exist, for `check_unread`.

    Raises
    ------
    ValueError
        An output is read, or two outputs are one file.
    """
    places: dict[Path, str] = {}
    written: Written = {}
    for flag, output in outputs.items():
        place = check_writable(output).resolve()
        if place in places:
            raise ValueError(f"{places[place]} and {flag} are both {output}; give two files")
        places[place] = flag
        for end in ("", ".part", ".data"):  # itself, its journal, and a graph's weights
            with suppress(OSError):
                file = output.with_name(output.name + end).stat()
                written[file.st_dev, file.st_ino] = f"{flag} {output}"
    if written:
        check_unread(written, (file for value in given for file in _files_in(value)))
    return written


def check_unread(written: Written, read: Iterable[Path]) -> None:
    """Check that no file in `read` will be written, see `check_outputs`."""
    for file in read if written else ():
        with suppress(OSError):
            about = file.stat()
            if said := written.get((about.st_dev, about.st_ino)):
                raise ValueError(f"{said} would overwrite {file}, which is read; give another file")


def _files_in(value: Any) -> Iterator[Path]:
    """Yield the files among the values of an option, and those that they name."""
    for each in value if isinstance(value, list) else [value]:
        with suppress(OSError, ValueError):  # a text need not be a valid path
            if isinstance(each, str | Path) and (file := source_file(each)).is_file():
                yield from _files_of(file)


def _files_of(file: Path) -> Iterator[Path]:
    """Yield a file, and what it names: models and lists of a joint.toml, or a graph's weights."""
    yield file
    with suppress(Exception):  # a damaged file is reported when it is read
        if file.suffix.lower() == ".onnx":
            yield from external_files(file)
            return
        if zipfile.is_zipfile(file):
            with np.load(file) as arrays:
                about = json.loads(str(arrays["about"]))["models"]
        else:
            about = tomllib.loads(read_text(file))
        for path in _named_in(about):
            yield from _files_of(source_file(absolute(path, file.resolve().parent)))


def _named_in(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths in a table and in the tables inside it."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _named_in(value)
        elif key in ("path", "queue"):
            yield value
