"""Files: written whole or not at all, hashed, and with every number as JSON."""

import errno
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import IO, Any


@contextmanager
def write_whole(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing so that it appears complete or stays unchanged.

    The data goes to a temporary folder beside it, see `write_beside`. Text (``"w"``) is UTF-8.
    """
    name, encoding = Path(path).name, None if "b" in mode else "utf-8"
    with write_beside(path) as folder, (folder / name).open(mode, encoding=encoding) as file:
        yield file


@contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a draft folder whose files move beside `path` if the block succeeds.

    It is for several files or folders, or a file to test first. The file with the name of `path`
    moves last, so that it never names another file that is still missing.
    """
    target = check_writable(path)
    with full_disk_named(target), _draft_of(target) as name:
        yield Path(name)
        for file in filter(Path.is_file, Path(name).rglob("*")):
            with file.open("rb") as written:
                os.fsync(written.fileno())  # or a power failure leaves an empty file
        for entry in sorted(Path(name).iterdir(), key=lambda entry: entry.name == target.name):
            entry.replace(target.parent / entry.name)


def _draft_of(target: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        error.filename = str(target)  # the draft's name would tell a user nothing
        raise


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Check that a path can be that of a file to write, before the work; else an OSError."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is a device or a pipe; give the name of a file")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {target}: you may not write to {target.parent}")
    return target


def check_file(path: str | os.PathLike[str], missing: str | None = None) -> Path:
    """Check that a path is that of a file to read; else FileNotFoundError with the text `missing`.

    Without `missing` it is a model's.
    """
    file = Path(path)
    if not file.is_file():
        missing = missing or f"model file {file} does not exist; check the path"
        raise FileNotFoundError(missing + (f" ({file} is a folder)" if file.is_dir() else ""))
    return file


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the file's name to the error of a full disk, which a failed write does not have."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(path)
        raise


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 text without its byte-order mark; a ValueError for another encoding."""
    with suppress(UnicodeDecodeError):
        text = Path(path).read_text(encoding="utf-8-sig")
        if "\0" not in text:  # UTF-16 may be valid UTF-8, but has a zero in every ASCII letter
            return text
    raise ValueError(f"{path} is not UTF-8 text: save it in that encoding")


def packaged_text(package: str, name: str) -> str:
    """Read a text file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def sha256_of(path: str | os.PathLike[str], *others: Path) -> str:
    """Hash a file; with others, hash the list of all their hashes."""
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not others:
        return found
    lines = [found, *(f"{sha256_of(other)}  {other.name}" for other in others)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def json_number(value: Any) -> Any:
    """Make a number, or a container of numbers, valid JSON: infinity and NaN become words."""
    if isinstance(value, dict):
        return {key: json_number(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_number(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
