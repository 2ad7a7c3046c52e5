"""Files are written whole or not at all, named by what is in them, with every number as JSON."""

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
    """Open `path` for writing so that it appears complete or stays as it was.

    The data goes to a temporary folder beside it, see `write_beside`. Text (``"w"``) is UTF-8.
    """
    name, encoding = Path(path).name, None if "b" in mode else "utf-8"
    with write_beside(path) as folder, (folder / name).open(mode, encoding=encoding) as file:
        yield file


@contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder whose files take their place beside `path` when the block ends well.

    For what is several files or folders, or is tried before it counts. The file called like `path`
    moves last, so that it never names another that is not there yet.
    """
    target = check_writable(path)
    beside = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    with full_disk_named(target), beside as name:
        yield Path(name)
        for file in filter(Path.is_file, Path(name).rglob("*")):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for entry in sorted(Path(name).iterdir(), key=lambda entry: entry.name == target.name):
            entry.replace(target.parent / entry.name)


def check_writable(path: str | os.PathLike[str]) -> Path:
    """The path of a file that can be written as far as its name and its folder go, or `OSError`."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is a device or a pipe; give the name of a file")
    return target


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in the error of a full disk which file it was: a write's own error names none."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(path)
        raise


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, without a byte-order mark; ValueError: in another encoding."""
    with suppress(UnicodeDecodeError):
        text = Path(path).read_text(encoding="utf-8-sig")
        if "\0" not in text:  # every second byte of plain words in UTF-16
            return text
    raise ValueError(f"{path} is no text in UTF-8: save it in that encoding")


def packaged_text(package: str, name: str) -> str:
    """The text of a file that a package brings along."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def sha256_of(path: str | os.PathLike[str], *others: Path) -> str:
    """The SHA-256 of a file; with others that of a text, its own and a line of each one's."""
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not others:
        return found
    lines = [found, *(f"{sha256_of(other)}  {other.name}" for other in others)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def json_number(value: Any) -> Any:
    """A number, or a container of some, as JSON carries it: infinity and NaN become words."""
    if isinstance(value, dict):
        return {key: json_number(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_number(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
