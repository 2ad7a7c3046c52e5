"""Journal: what a long run has done so far, on disk beside its output, through any number of kills.

``OUTPUT.part`` begins with a line of JSON that says whose it is. A record for each batch follows: a
line of JSON with facts and the number of bytes after it, then these bytes. What a kill left
unfinished is cut off when the same run goes on.
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
except ImportError:  # Windows, where two runs at once are not noticed
    fcntl = None  # type: ignore[assignment]

CONTENTS = "contents"
"""What `whose` calls the fingerprint of the data: another one means that the data have changed."""


class Journal:
    """The records beside one output, which is locked: one process writes them until it is done.

    To be used in a `with` block. `restart` forgets what an earlier run left. A BlockingIOError says
    that another run is writing the same output; an OSError, that the journal cannot be opened.
    """

    def __init__(self, output: str | os.PathLike[str], *, restart: bool = False) -> None:
        output = Path(output)
        self.path = output.with_name(f"{output.name}.part")
        self._file = self._locked(output)
        self._restart = restart
        self._count: int | None = None  # of whole records; None while it is not known whose

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if self._file.closed:
            return
        if self._count == 0 or not os.fstat(self._file.fileno()).st_size:
            self.remove()  # there is nothing to go on from
        elif error is not None and self._count:
            error.add_note(
                f"what was done until then is in {self.path}; the same command goes on from there"
            )
        self._file.close()

    def resume(self, whose: Mapping[str, Any]) -> None:
        """Take up what an earlier run left, or begin; ValueError: the facts of that are others."""
        own = _line({"whose": whose})
        with self.path.open("rb") as file:
            header = file.readline()
            anew = self._restart and header.startswith(own[:10])  # no other program's file is cut
            if not own.startswith(header) and not anew:
                raise ValueError(f"{self.path} {_difference(header, own)}")
            self._count, end = 0, file.tell() if header == own and not anew else 0
            while end and _next(file):
                self._count, end = self._count + 1, file.tell()
        self._file.truncate(end)
        if not end:  # a new file, or one whose run was killed at once
            self._write(own)

    def records(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The facts and the content of each record, in their order."""
        with self.path.open("rb") as file:
            file.readline()
            while (record := _next(file)) is not None:
                yield record

    def add(self, facts: Mapping[str, Any], content: bytes) -> None:
        """Add a record, which is whole once this returns; an OSError tells of a full disk."""
        self._write(_line({**facts, "bytes": len(content)}) + content)
        self._count = (self._count or 0) + 1

    def remove(self) -> None:
        """Remove the journal, whose output is there now; the lock goes last."""
        if fcntl is None:  # Windows removes no open file
            self._file.close()
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        with full_disk_named(self.path):
            while left:
                left = left[self._file.write(left) :]

    def _locked(self, output: Path) -> IO[bytes]:
        """The open journal, locked; one that another run removes meanwhile is opened again."""
        while True:
            file = self.path.open("ab", buffering=0)
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise BlockingIOError(
                    f"another run is writing {output}; wait until it ends, or give another output "
                    "(--output)"
                ) from None
            except OSError:  # a file system without locks: two runs at once are not noticed
                pass
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            file.close()


def _next(file: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The record that begins here; None at the end, and where a kill cut it short."""
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
        how = "over data that have changed since: bring these back to finish it"
    else:
        told = (f"{key} {old.get(key)!r:.80}, now {new.get(key)!r:.80}" for key in changed)
        named = [text for text in told if not text.startswith(CONTENTS)]
        how = f"of something else ({', '.join(named)}): repeat that run to finish it"
    return f"is of an interrupted run {how}, or begin anew with restart (--restart)"
