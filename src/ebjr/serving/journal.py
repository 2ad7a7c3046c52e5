"""Journal: an append-only file of JSON lines that stays whole when the process dies."""

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
    """A log of who did what and when; an entry is on the disk before `write` returns.

    Opening the file cuts off an unfinished last line, and an entry says so. Whole lines are never
    changed. If the file is deleted, moved or cut later, as in log rotation, an entry in the new
    file says so. OSError if `path` cannot be opened or written to.
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
                cut = f"an unfinished line of {self.repaired} bytes was cut off"
                self.write({"who": "journal", "why": cut})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry with its time, and wait for the disk; an OSError leaves no trace."""
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
        """Follow the file's name to a new file, and record there what happened to the old one."""
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
        """Flush the folder, too: the file's name may be new."""
        if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
            return
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _repair(self) -> int:
        """Make the file end with a whole line; return how many bytes were cut off."""
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
        os.write(self._file, b"\n")  # the entry is whole, and only lacks its newline
        os.fsync(self._file)
        return 0
