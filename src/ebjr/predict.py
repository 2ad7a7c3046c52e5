"""Predict: the joint model's answers to data of any size, in one file, through any number of kills.

The answers are written as they come to a journal beside the file, ``answers.jsonl.part``, after
whose last whole record a run that was killed goes on when the same is asked again.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, starmap
from pathlib import Path
from typing import Any

from ebjr.arrays import to_numpy
from ebjr.backends.exported import ExportedJoint
from ebjr.blend import Blend
from ebjr.data.columns import check_columns
from ebjr.data.examples import Data, Examples, Part
from ebjr.errors import needs
from ebjr.files import write_whole
from ebjr.joint import JointAnswer, JointModel, router_table
from ebjr.journal import CONTENTS, Journal
from ebjr.router import Router
from ebjr.threads import in_order
from ebjr.within import BatchCertificate, PromisedRun

Tell = Callable[[str, int, int | None], None]

_ROWS_AT_ONCE = 4096
HOW = ("score", "deferred", "degraded", "stage")  # of a `JointAnswer`, told beside the answer
_COUNTED = ("read", "examples", "deferred", "degraded")


@dataclass
class Progress:
    """How far the answers are.

    `read` counts the examples that were read, the `unreadable` (name, reason) among them, and
    `resumed` the answers that an earlier run had left.
    """

    read: int = 0
    examples: int = 0
    deferred: int = 0
    degraded: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count what is in a record of the journal."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + facts[name])
        self.unreadable += [(name, reason) for name, reason in facts["unreadable"]]


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

    `output` is what its suffix says: ``.jsonl``, ``.csv`` (with boxes as JSON in a cell) or
    ``.parquet``; a ValueError refuses others. It appears whole at the end; until then there is
    ``output.part``, from which the same call goes on after a kill or an OSError such as a full
    disk; with `restart` it begins anew. ValueError where what an earlier run left is of another
    score, threshold or blend, of other data or data that have changed since, or of another `about`.
    BlockingIOError where another run is writing the same output. `overlap` batches are in work at
    once, as in `JointModel.stream`.
    """
    check_columns(data, joint)

    def answer(part: Part) -> Answered:
        batch, unreadable = part
        rows = [] if batch is None else _rows(joint, batch, joint(batch.inputs), labels)
        return list(rows), unreadable

    def answers(start: int) -> Iterator[Answered]:
        parts = data.parts(batch_size, start)
        return in_order(answer, parts, workers=overlap, ahead=overlap + 1)

    whose = whose_answers(joint.router, joint.blend, data, about)
    return write_answers(answers, output, len(data), whose, restart=restart, tell=tell)


def predict_within(
    run: PromisedRun,
    data: Data,
    output: str | os.PathLike[str],
    *,
    window: int | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> tuple[Progress, list[BatchCertificate]]:
    """Answer all of some data within a promise, each `window` rows with their own, and write it.

    What the teacher has said is kept in ``output.teacher.part`` until the output is there, so that
    the same call goes on, and one with another promise asks nothing twice. `output`, `restart` and
    the errors are those of `predict`, and of `ebjr.answer_within`.
    """
    output, kind = Path(output), run.joint.kind
    _writer_of(output)
    rows: list[dict[str, Any]] = []
    promised: list[BatchCertificate] = []
    unreadable: dict[tuple[str, str], None] = {}
    with Journal(output.with_name(f"{output.name}.teacher"), restart=restart) as paid:
        size = window or max(len(data), 1)
        for found in run.windows(data, size, keep=paid, progress=tell):
            unreadable |= dict.fromkeys(data.unreadable)
            said = kind.plain(found.prediction, run.labels)
            columns = [getattr(found, name).tolist() for name in (*HOW, "sampled", "turned")]
            for name, one, *how, sampled, turned in zip(found.names, said, *columns, strict=True):
                more = {"sampled": sampled, **({"turned": turned} if run.wanted.turns else {})}
                rows.append(answer_row(name, one, *how) | more)
            promised += found.certificates

        def answers(start: int) -> Iterator[Answered]:
            yield rows[start:], [*unreadable]

        asked = {"promise": run.wanted.as_dict(), "window": window, "seed": run.seed}
        whose = {**run.about, **asked, CONTENTS: data.fingerprint()}
        total = len(rows) + len(unreadable)
        done = write_answers(answers, output, total, whose, restart=restart)
        paid.remove()
    return done, promised


def whose_answers(
    router: Router, blend: float | Blend, data: Data, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What must be the same for a run to go on where another stopped, and what else is given."""
    return {**router_table(router, blend), CONTENTS: data.fingerprint(), **(about or {})}


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
    write = _writer_of(output)
    progress, tell = Progress(), tell or (lambda what, done, total: None)
    with Journal(output, restart=restart) as journal:
        journal.resume({**whose, "examples": total})
        for facts, _ in journal.records():
            progress.add(facts)
        progress.resumed = progress.examples
        tell("answering", progress.read, total)
        for rows, unreadable in answer(progress.read) if progress.read < total else ():
            counts = {name: sum(row[name] for row in rows) for name in ("deferred", "degraded")}
            read = {"read": len(rows) + len(unreadable), "examples": len(rows)}
            facts = {**read, **counts, "unreadable": unreadable}
            journal.add(facts, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            progress.add(facts)
            tell("answering", progress.read, total)
        write(journal, output)
        journal.remove()
    return progress


def _writer_of(output: Path) -> Callable[[Journal, Path], None]:
    """What writes answers as the output's suffix says."""
    if (write := _WRITERS.get(output.suffix.lower())) is None:
        raise ValueError(
            f"answers are written as their suffix says, {', '.join(_WRITERS)}, but the output is "
            f"{output}: give one such as {output.with_suffix('.jsonl').name} (--output)"
        )
    if write is _write_table:
        _import_pyarrow(output)
    return write


def _rows(
    joint: JointModel | ExportedJoint,
    batch: Examples,
    answer: JointAnswer,
    labels: Sequence[str] | None,
) -> Iterator[dict[str, Any]]:
    said = joint.kind.plain(answer.prediction, labels)
    columns = [to_numpy(getattr(answer, name)).tolist() for name in HOW]
    for row in starmap(answer_row, zip(batch.names, said, *columns, strict=True)):
        late = row["degraded"] and answer.late is not None
        yield row | ({"late": answer.late} if late else {})


def answer_row(name: str, said: Mapping[str, Any], *how: Any) -> dict[str, Any]:
    """What is written of one example, `HOW` last; JSON has no infinity: such a score is None."""
    row = {"name": name, **said, **dict(zip(HOW, how, strict=True))}
    return row if math.isfinite(row["score"]) else {**row, "score": None}


def _write_lines(journal: Journal, output: Path) -> None:
    with write_whole(output, "wb") as file:
        file.writelines(content for _, content in journal.records())


def _write_csv(journal: Journal, output: Path) -> None:
    """The answers as CSV, in two passes: a column may show only in a late row."""
    names = dict.fromkeys(name for rows in _chunks(journal) for row in rows for name in row)
    with write_whole(output) as file:
        writer = csv.DictWriter(file, [*names], lineterminator="\n")
        writer.writeheader()
        for rows in _chunks(journal):
            writer.writerows({name: _cell(row[name]) for name in row} for row in rows)


def _cell(value: Any) -> str:
    """A value in CSV: text as it is, nothing for None, and the rest as in JSON."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _write_table(journal: Journal, output: Path) -> None:
    """The answers as Parquet, in two passes: the columns' types may show only in a late row."""
    pyarrow = _import_pyarrow(output)
    schema = pyarrow.schema([])
    for rows in _chunks(journal):
        found = pyarrow.schema(pyarrow.array(rows).type.fields)
        schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
    with write_whole(output, "wb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for rows in _chunks(journal):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


_WRITERS: Mapping[str, Callable[[Journal, Path], None]] = {
    ".jsonl": _write_lines,
    ".csv": _write_csv,
    ".parquet": _write_table,
}


def _chunks(journal: Journal) -> Iterator[list[dict[str, Any]]]:
    lines = (line for _, content in journal.records() for line in content.splitlines())
    while rows := [json.loads(line) for line in islice(lines, _ROWS_AT_ONCE)]:
        yield rows


def _import_pyarrow(output: Path) -> Any:
    with needs("parquet", f"writing {output.name}"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
