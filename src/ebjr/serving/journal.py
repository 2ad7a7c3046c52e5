"""Journal: an append-only file of JSON lines that is whole whenever the process dies."""

import json
import mmap
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self


class Journal:
    """Entries of who did what and when, each on the disk before `write` returns.

    When the file is opened, a last line that was never finished is cut off, and an entry says so.
    Whole lines are never touched. If the file is deleted, moved or cut later, as logs are rotated,
    an entry of the file that is there then says so. OSError: it cannot be opened or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {self.path}: the folder {self.path.parent} does not exist"
            )
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._settle_folder()
            self.repaired = self._repair()
            self._size = os.fstat(self._file).st_size
            if self.repaired:
                cut = f"{self.repaired} bytes of a line that was never finished were cut off"
                self.write({"who": "journal", "why": cut})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry with its time, and wait for the disk; an OSError leaves nothing there."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        line = json.dumps({"time": now, **entry}, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._follow()
            size = os.fstat(self._file).st_size
            try:
                left = memoryview(line)
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
                self._size = size + len(line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise

    def _follow(self) -> None:
        """Go on in the file that has the name now, and write there what became of the other."""
        mine = os.fstat(self._file)
        there = self.path.stat() if self.path.exists() else None
        if there is None or not os.path.samestat(mine, there):
            what = "moved" if mine.st_nlink else "deleted"
        elif mine.st_size < self._size:
            what = "cut"
        else:
            return
        with Journal(self.path) as now:
            now.write({"who": "journal", "why": f"the file was {what} while it was in use"})
            os.dup2(now._file, self._file, inheritable=False)
            self._size = now._size

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _settle_folder(self) -> None:
        """See the file's name, which may be new, onto the disk too."""
        if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
            return
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _repair(self) -> int:
        """End the file with a whole line; returns how many bytes had to go."""
        size = os.fstat(self._file).st_size
        if not size:  # an empty file cannot be mapped
            return 0
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as kept:
            torn = kept[kept.rfind(b"\n") + 1 :]
        if not torn:
            return 0
        try:
            json.loads(torn)
        except ValueError:
            os.ftruncate(self._file, size - len(torn))
            os.fsync(self._file)
            return len(torn)
        os.write(self._file, b"\n")  # only the end of the line was missing
        os.fsync(self._file)
        return 0
