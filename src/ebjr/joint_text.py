"""joint.toml as text: comments, then what a person may edit, and the long lists in a second file.

Quantiles and curves have hundreds of numbers, which would hide the threshold. They stand in a file
beside it, which the entry ``lists`` names with its hash, so that a wrong or missing one is noticed.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import tomli_w

from ebjr.backends.entry import check_table
from ebjr.files import read_text, sha256_of, write_beside

LONG = 20
"""The most entries of a list that stands in the file itself."""


def write_table(
    path: str | os.PathLike[str], table: Mapping[str, Any], comments: Iterable[str | None]
) -> None:
    """Write a table without its None values, and its long lists: both files, or neither."""
    target = Path(path)
    own, lists = _parted(table)
    with write_beside(path) as draft:
        if lists:  # named by its hash, so that two joint.toml in a folder do not share one
            text = tomli_w.dumps(lists).encode()
            found = hashlib.sha256(text).hexdigest()
            name = f"{target.stem}.lists-{found[:8]}.toml"
            own["lists"] = {"path": name, "sha256": found}
            comments = [*comments, f"Long lists are in {name}: keep both files together."]
            (draft / name).write_bytes(text)
        lines = (fill(f"# {words}", 100, subsequent_indent="# ") for words in comments if words)
        # bytes, because a text would get other line ends on some systems, and another hash
        (draft / target.name).write_bytes(("\n".join(lines) + "\n\n" + _toml(own)).encode())


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file and its long lists as one table.

    Raises
    ------
    ValueError
        `path` is not TOML, or its long lists are missing, have changed or are elsewhere.
    """
    try:
        table = _parsed(Path(path))
    except ValueError as error:
        if Path(path).suffix.lower() == ".toml":
            raise
        raise ValueError(
            f"{path} must be a joint.toml, as `ebjr calibrate -o` writes it, but it is not TOML"
        ) from error
    if (beside := table.pop("lists", None)) is None:
        return table
    try:
        return _joined(table, _read_lists(beside, Path(path).resolve().parent))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parsed(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file} is not a TOML file: {error}") from error


def _read_lists(beside: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Read the long lists that the entry ``lists`` names, after checking their hash."""
    check_table(beside, ("path", "sha256"), "lists", ("path", "sha256"))
    file = folder / (name := str(beside["path"]))
    if file.name != name:  # a downloaded file must not make us read files elsewhere
        raise ValueError(f"the file of its long lists must be beside it, not {name!r:.80}")
    if not file.is_file() or sha256_of(file) != beside["sha256"]:
        state = "has changed" if file.is_file() else "is missing"
        raise ValueError(
            f"the file of its long lists, {file}, {state}: copy both files together, or calibrate "
            "again"
        )
    return _parsed(file)


def _toml(table: Mapping[str, Any]) -> str:
    """Write a table as TOML, with each list of numbers or names on one line."""
    lists = re.compile(r"\[\n    ([^\s\[{].*(?:,\n    .*)*),\n\]")
    return lists.sub(lambda one: "[" + one[1].replace(",\n    ", ", ") + "]", tomli_w.dumps(table))


def _parted(table: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a table without its None values into short entries and long lists."""
    own, lists = {}, {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            own[key], lists[key] = _parted(value)
        elif value is not None:
            (lists if isinstance(value, list) and len(value) > LONG else own)[key] = value
    # sorted, so that the same lists are the same file and have the same hash
    return own, {key: value for key, value in sorted(lists.items()) if value}


def _joined(table: dict[str, Any], lists: Mapping[str, Any]) -> dict[str, Any]:
    """Merge lists into a table; a ValueError refuses a key that is there already."""
    for key, value in lists.items():
        if isinstance(value, Mapping) and isinstance(table.setdefault(key, {}), dict):
            _joined(table[key], value)
        elif table.setdefault(key, value) is not value:
            raise ValueError(f"{key} is both in the file and in its long lists: remove one")
    return table
