"""Journal: the finished part of a long run, on disk beside its output, so that it can resume.

``OUTPUT.part`` begins with a line of JSON that identifies the run. A record for each batch follows:
a line of JSON with facts and the number of bytes after it, then these bytes. An incomplete last
record is cut off when the run resumes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from ebjr.files import full_disk_named

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

CONTENTS = "contents"
"""The key of the data's fingerprint in `whose`, by which changed data are noticed."""


class Journal:
    """The records beside one output, locked by one process; a context manager.

    `restart` discards the records of an earlier run.

    Raises
    ------
    BlockingIOError
        Another run is writing the same output.
    OSError
        The journal cannot be opened.
    """

    def __init__(self, output: str | os.PathLike[str], *, restart: bool = False) -> None:
        output = Path(output)
        self.path = output.with_name(f"{output.name}.part")
        self._file = self._locked(output)
        self._restart = restart
        self._count: int | None = None  # complete records; None before `resume`

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if self._file.closed:
            return
        if self._count == 0 or not os.fstat(self._file.fileno()).st_size:
            self.remove()  # nothing to resume from
        elif error is not None and self._count:
            error.add_note(f"the finished part is in {self.path}; the same command resumes from it")
        self._file.close()

    def resume(self, whose: Mapping[str, Any]) -> None:
        """Resume an earlier run, or begin; a ValueError if that run had another `whose`."""
        own = _line({"whose": whose})
        with self.path.open("rb") as file:
            header = file.readline()
            anew = self._restart and header.startswith(own[:10])  # never cut another program's file
            if not own.startswith(header) and not anew:
                raise ValueError(f"{self.path} {_difference(header, own)}")
            self._count, end = 0, file.tell() if header == own and not anew else 0
            while end and _next(file):
                self._count, end = self._count + 1, file.tell()
        self._file.truncate(end)
        if not end:  # a new file, or one whose header is incomplete
            self._write(own)

    def records(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the facts and the content of each record, in order."""
        with self.path.open("rb") as file:
            file.readline()
            while (record := _next(file)) is not None:
                yield record

    def add(self, facts: Mapping[str, Any], content: bytes) -> None:
        """Add a record, complete when this returns; an OSError if the disk is full."""
        self._write(_line({**facts, "bytes": len(content)}) + content)
        self._count = (self._count or 0) + 1

    def remove(self) -> None:
        """Remove the journal after its output is written, and then release the lock."""
        if fcntl is None:  # Windows cannot remove an open file
            self._file.close()
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        with full_disk_named(self.path):
            while left:
                left = left[self._file.write(left) :]

    def _locked(self, output: Path) -> IO[bytes]:
        """Open and lock the journal; open it again if another run removed it meanwhile."""
        while True:
            file = self.path.open("ab", buffering=0)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise BlockingIOError(
                    f"another run is writing {output}; wait for its end, or give another output "
                    "(--output)"
                ) from None
            except OSError:  # a file system without locks: two runs at once are not noticed
                pass
            # the lock is on the open file, which may not be the one at this path any more
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()


def _next(file: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read the next record; None at the end, and for an incomplete one."""
    line = file.readline()
    with suppress(ValueError, KeyError):
        facts = json.loads(line)
        content = file.read(size := facts.pop("bytes"))
        if len(content) == size and line.endswith(b"\n"):
            return facts, content
    return None


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, default=str).encode() + b"\n"


def _difference(before: bytes, now: bytes) -> str:
    old, new = {}, json.loads(now)["whose"]
    with suppress(ValueError, KeyError, TypeError):
        old = dict(json.loads(before)["whose"])
    if not old:
        return "was not written by an interrupted run: move it away"
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if changed == [CONTENTS]:
        how = "over data that have changed since: restore these to finish it"
    else:
        told = (f"{key} {old.get(key)!r:.80}, now {new.get(key)!r:.80}" for key in changed)
        named = [text for text in told if not text.startswith(CONTENTS)]
        how = f"with other settings ({', '.join(named)}): repeat these to finish it"
    return f"is of an interrupted run {how}, or start over with restart (--restart)"
