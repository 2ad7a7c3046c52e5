"""Predict: the joint model's answers to data of any size, in one file, through any number of kills.

The answers are written as they come to a journal beside the file, ``answers.jsonl.part``: a line
that says whose they are, then batch by batch its answers and a line that closes it. Whoever is
killed and asked again goes on after the last batch that was closed. At the end the answers become
the file, whole, and the journal goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice, starmap
from pathlib import Path
from typing import IO, Any

import numpy as np

from ebjr.arrays import to_numpy
from ebjr.backends.exported import ExportedJoint
from ebjr.blend import Blend, blend_text
from ebjr.data.examples import Data, Examples
from ebjr.errors import needs
from ebjr.files import full_disk_named, write_whole
from ebjr.joint import JointAnswer, JointModel
from ebjr.router import Router
from ebjr.threads import in_order

Tell = Callable[[str, int, int | None], None]

_ROWS_AT_ONCE = 4096
_COUNTED = ("read", "examples", "deferred", "degraded")


@dataclass
class Progress:
    """How far the answers are.

    `read` counts the examples that were read, those that could not be among them; `resumed` the
    answers that an earlier run had left. `unreadable` holds the (name, reason) of each example that
    was left out.
    """

    read: int = 0
    examples: int = 0
    deferred: int = 0
    degraded: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0


def predict(
    joint: JointModel | ExportedJoint,
    data: Data,
    output: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    overlap: int = 1,
    labels: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> Progress:
    """Answer every example of some data, in constant memory, and write the answers.

    `output` is JSON lines, or with the suffix ``.parquet`` a table. It appears whole at the end;
    until then there is ``output.part``, from which the same call goes on after a kill or an OSError
    such as a full disk; with `restart` it begins anew. ValueError where what an earlier run left is
    of another score, threshold, blend or number of examples, or of another `about`, such as the
    data's path. `overlap` batches are in work at once, as in `JointModel.stream`.

    Examples
    --------
    >>> import tempfile
    >>> from ebjr import JointClassifier, Router
    >>> from ebjr.data.open import open_data
    >>> folder = Path(tempfile.mkdtemp())
    >>> np.savez(folder / "data.npz", inputs=np.eye(3))
    >>> joint = JointClassifier(np.asarray, lambda x: -x, Router("max_logit", 2.0))
    >>> done = predict(joint, open_data(folder / "data.npz"), folder / "answers.jsonl")
    >>> (folder / "answers.jsonl").read_text().splitlines()[0]
    '{"name": "data.npz:0", "prediction": 1, "score": 1.0, "deferred": true, "degraded": false}'
    """

    def answer(part: _Part) -> Answered:
        batch, unreadable = part
        rows = [] if batch is None else _rows(joint, batch, joint(batch.inputs), labels)
        return list(rows), unreadable

    def answers(start: int) -> Iterator[Answered]:
        parts = _with_unreadable(data, batch_size, start)
        return in_order(answer, parts, workers=overlap, ahead=overlap + 1)

    whose = whose_answers(joint.router, joint.blend, about)
    return write_answers(answers, output, len(data), whose, restart=restart, tell=tell)


def whose_answers(
    router: Router, blend: float | Blend, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What must be the same for a run to go on where another stopped, and what else is given."""
    own = {"score": str(router.score), "threshold": router.threshold, "blend": blend_text(blend)}
    return {**own, **(about or {})}


Answered = tuple[list[dict[str, Any]], list[tuple[str, str]]]
"""Answers to consecutive examples, and (name, reason) of those that could not be read."""


def write_answers(
    answer: Callable[[int], Iterator[Answered]],
    output: str | os.PathLike[str],
    total: int,
    whose: Mapping[str, Any],
    *,
    restart: bool = False,
    tell: Tell | None = None,
) -> Progress:
    """Write answers as they come, in the data's order, so that a killed run can go on.

    `answer` gives the answers from an example on, `whose` is of `whose_answers`; the rest, and the
    errors, are those of `predict`.
    """
    output = Path(output)
    if output.suffix.lower() == ".parquet":
        _import_pyarrow(output)
    journal = _Journal(output.with_name(f"{output.name}.part"))
    if restart:
        journal.path.unlink(missing_ok=True)
    progress = journal.resume({**whose, "examples": total})
    tell = tell or (lambda what, done, total: None)
    tell("answering", progress.read, total)
    with closing(journal):
        for rows, unreadable in answer(progress.read) if progress.read < total else ():
            journal.write(rows, unreadable, progress)
            tell("answering", progress.read, total)
    _finish(journal.answers, output)
    journal.path.unlink()
    return progress


_Part = tuple[Examples | None, list[tuple[str, str]]]


def _with_unreadable(data: Data, batch_size: int, start: int) -> Iterator[_Part]:
    """Each batch with what could not be read before it was full; the rest comes last, alone."""
    told = 0
    for batch in data.batches(batch_size, start):
        unreadable, told = data.unreadable[told:], len(data.unreadable)
        yield batch, unreadable
    if len(data.unreadable) > told:
        yield None, data.unreadable[told:]


def _rows(
    joint: JointModel | ExportedJoint,
    batch: Examples,
    answer: JointAnswer,
    labels: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    """What is written of each example of a batch."""
    said = joint.kind.plain(answer.prediction, labels)
    columns = [to_numpy(column) for column in (answer.score, answer.deferred, answer.degraded)]
    for row in starmap(answer_row, zip(batch.names, said, *columns, strict=True)):
        late = row["degraded"] and answer.late is not None
        yield row | ({"late": answer.late} if late else {})


def answer_row(
    name: str, said: Mapping[str, Any], score: float, deferred: bool, degraded: bool
) -> dict[str, Any]:
    """What is written of one example; JSON has no infinity: such a score is None."""
    return {
        "name": name,
        **said,
        "score": float(score) if np.isfinite(score) else None,
        "deferred": bool(deferred),
        "degraded": bool(degraded),
    }


class _Journal:
    """The answers so far, on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._header = b""

    def resume(self, whose: Mapping[str, Any]) -> Progress:
        """How far an earlier run came; what it left unclosed is cut off."""
        self._header = _line({"whose": whose})
        if not self.path.is_file():
            return Progress()
        with self.path.open("rb") as file:
            header = file.readline()
            if not header.endswith(b"\n"):
                header = b""  # it was killed before it had answered anything
            elif header != self._header:
                raise ValueError(
                    f"{self.path} holds the answers of an interrupted run with another joint "
                    f"model, threshold or data ({_difference(header, whose)}); repeat that run to "
                    "finish it, or begin anew with restart (--restart)"
                )
            whole, progress = len(header), Progress()
            for line in file:
                if line.startswith(b'{"read":') and line.endswith(b"\n"):
                    closed = json.loads(line)
                    unreadable = [*progress.unreadable, *map(tuple, closed.pop("unreadable"))]
                    progress = Progress(**closed, unreadable=unreadable)
                    whole = file.tell()
        self._open(whole if header else 0)
        progress.resumed = progress.examples
        return progress

    def write(
        self, rows: list[dict[str, Any]], unreadable: list[tuple[str, str]], progress: Progress
    ) -> None:
        """Add a batch, and close it."""
        progress.examples += len(rows)
        progress.deferred += sum(row["deferred"] for row in rows)
        progress.degraded += sum(row["degraded"] for row in rows)
        progress.read += len(rows) + len(unreadable)
        progress.unreadable.extend(unreadable)
        closed = {key: getattr(progress, key) for key in _COUNTED} | {"unreadable": unreadable}
        file = self._file or self._open(0)
        with full_disk_named(self.path):
            file.write(b"".join(map(_line, [*rows, closed])))
            file.flush()

    def _open(self, length: int) -> IO[bytes]:
        self._file = self.path.open("r+b" if length else "wb")
        self._file.truncate(length)
        self._file.seek(length)
        if not length:
            self._file.write(self._header)
        return self._file

    def answers(self) -> Iterator[bytes]:
        """The lines of the answers alone."""
        with self.path.open("rb") as file:
            yield from (line for line in file if line.startswith(b'{"name":'))

    def close(self) -> None:
        """Nothing more is written."""
        if self._file is not None:
            self._file.close()


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _difference(header: bytes, whose: Mapping[str, Any]) -> str:
    """What an earlier run was of, where this one is of something else."""
    before: dict[str, Any] = {}
    with suppress(ValueError, KeyError, TypeError):
        before = dict(json.loads(header)["whose"])
    changed = [key for key in whose if before.get(key) != whose[key]]
    return ", ".join(f"{key} {before.get(key)!r}, now {whose[key]!r}" for key in changed)


def _finish(answers: Callable[[], Iterator[bytes]], output: Path) -> None:
    if output.suffix.lower() == ".parquet":
        _write_table(answers, output)
        return
    with write_whole(output, "wb") as file:
        file.writelines(answers())


def _write_table(answers: Callable[[], Iterator[bytes]], output: Path) -> None:
    """The answers as Parquet, in two passes: the columns' types may show only in a late row."""
    pyarrow = _import_pyarrow(output)
    schema = pyarrow.schema([])
    for rows in _chunks(answers()):
        found = pyarrow.Table.from_pylist(rows).schema
        schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
    with (
        write_whole(output, "wb") as file,
        pyarrow.parquet.ParquetWriter(file, schema) as writer,
    ):
        for rows in _chunks(answers()):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _chunks(lines: Iterator[bytes]) -> Iterator[list[dict[str, Any]]]:
    while rows := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
        yield rows


def _import_pyarrow(output: Path) -> Any:
    with needs("parquet", f"writing {output.name}"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
