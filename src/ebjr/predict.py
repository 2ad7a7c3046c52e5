"""Predict: the joint model's answers to data of any size, in one file, in a run that can resume.

Answers go to a journal beside the file, ``answers.jsonl.part``. If the run is killed, the same call
resumes after the journal's last complete record.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebjr.arrays import Batch, to_numpy
from ebjr.backends.exported import ExportedJoint
from ebjr.blend import Blend
from ebjr.data.columns import check_columns
from ebjr.data.examples import Data, Part
from ebjr.errors import TeacherUnavailable, needs
from ebjr.files import write_whole
from ebjr.joint import JointModel, models_of, router_table
from ebjr.journal import CONTENTS, Journal
from ebjr.model import model_name
from ebjr.outcomes import roles_of
from ebjr.router import Router
from ebjr.threads import in_order
from ebjr.within import BatchCertificate, PromisedRun

Tell = Callable[[str, int, int | None], None]

_ROWS_AT_ONCE = 4096
HOW = ("score", "deferred", "degraded", "stage")  # attributes of a `JointAnswer` to write
PATIENCE = 64  # unanswered rows in a row, in batches without any answer, that end a run
SPENT = ("tokens_in", "tokens_out", "dollars")  # of each row, if a model returns it
_COUNTED = ("read", "examples", "deferred", "degraded")


@dataclass
class Progress:
    """The progress of a run.

    `read` counts the examples that were read, including the `unreadable` (name, reason); `resumed`
    counts the answers of an earlier run. `dollars` is the cost of all examples, unanswered ones
    included; None if one is unknown.
    """

    read: int = 0
    examples: int = 0
    deferred: int = 0
    degraded: int = 0
    dollars: float | None = 0.0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    resumed: int = 0

    def add(self, facts: Mapping[str, Any]) -> None:
        """Add the counts in a record of the journal."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + facts[name])
        self.dollars = _sum([self.dollars, facts.get("dollars")])
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

    The suffix of `output` decides the format: ``.jsonl``, ``.csv`` (boxes as JSON in a cell) or
    ``.parquet``. The file appears whole at the end. Until then there is ``output.part``, from which
    the same call resumes after a kill or an OSError like a full disk; `restart` discards it.
    `overlap` batches are in flight, as in `JointModel.stream`.

    Rows that no model answers are named like unreadable ones, and their cost counts. When the same
    call resumes, rows that a teacher missed because it was away are asked again.

    Raises
    ------
    ValueError
        `output` has another suffix, or its ``.part`` is of another score, threshold, blend or
        `about`, or of data that differ or have changed.
    BlockingIOError
        Another run is writing the same output.
    TeacherUnavailable
        `PATIENCE` rows in a row, in batches without any answer, were not answered, or the teacher
        is away at the end of the data.
    """
    check_columns(data, joint)
    known = joint.about.get("stages") if isinstance(joint, ExportedJoint) else models_of(joint)
    stages = roles_of(len(known or ("student", "teacher")))

    def answer(part: Part) -> tuple[Answered, bool | None]:
        """Answer a part; tell whether the teacher was away for all of it, None if it is empty."""
        batch, unreadable = part
        if batch is None:
            return Answered([], unreadable), None
        found, lost = _answered(joint, batch.inputs)
        said = joint.kind.plain(found.prediction, labels)
        rows = list(answer_rows(batch.names, said, found, stages))
        if lost is None:
            return Answered(rows, unreadable), False
        missed = [*compress(rows, lost)]
        named = [(row["name"], _unanswered(row.get("dollars"))) for row in missed]
        bill = [row.get("dollars") for row in missed]
        heard = Answered([*compress(rows, ~lost)], [*unreadable, *named], bill)
        return heard, found.away and bool(lost.all())

    def answers(start: int) -> Iterator[Answered]:
        parts, held, silent = data.parts(batch_size, start), list[Answered](), 0
        for heard, away in in_order(answer, parts, workers=overlap, ahead=overlap + 1):
            held.append(heard)
            silent = 0 if heard.rows else silent + len(heard.lost)
            if away is False or not silent:  # a model answers: the rows held back were refused
                yield from held
                held = []
            if silent >= PATIENCE:
                break
        if held or silent >= PATIENCE:
            raise TeacherUnavailable(
                f"{silent} rows in a row have no answer from "
                f"{' or '.join(map(model_name, models_of(joint)))}: run again when these answer"
            )

    whose = whose_answers(joint.router, joint.blend, data, about)
    return write_answers(answers, output, len(data), whose, restart=restart, tell=tell)


def _answered(joint: Any, inputs: Batch) -> tuple[Any, np.ndarray | None]:
    """Return the answer to a batch, and which rows no model answered, (n,), None if all are."""
    if not isinstance(joint, JointModel):
        return joint(inputs), None
    found = joint.unchecked(inputs)
    return found, joint.unanswered(found)


def _unanswered(dollars: float | None) -> str:
    """Return the reason for a row that no model has answered."""
    return "no model has answered it" + (f", for ${dollars:.4g}" if dollars else "")


def predict_within(
    run: PromisedRun,
    data: Data,
    output: str | os.PathLike[str],
    *,
    window: int | None = None,
    restart: bool = False,
    tell: Tell | None = None,
) -> tuple[Progress, list[BatchCertificate]]:
    """Answer all data within a promise, one for each `window` rows, and write the answers.

    The teacher's answers are kept in ``output.teacher.part`` until the output is written, so that
    the same call resumes, and a call with another promise pays for no answer twice. `output`,
    `restart` and the errors are those of `predict` and of `ebjr.answer_within`.
    """
    output, kind = Path(output), run.joint.kind
    _writer_of(output)
    rows: list[dict[str, Any]] = []
    stages = roles_of(len(models_of(run.joint)))
    promised: list[BatchCertificate] = []
    unreadable: dict[tuple[str, str], None] = {}
    with Journal(output.with_name(f"{output.name}.teacher"), restart=restart) as paid:
        size = window or max(len(data), 1)
        for found in run.windows(data, size, keep=paid, progress=tell):
            unreadable |= dict.fromkeys(data.unreadable)
            said = kind.plain(found.prediction, run.labels)
            more = ("sampled", "turned") if run.wanted.turns else ("sampled",)
            rows += answer_rows(found.names, said, found, stages, more)
            promised += found.certificates

        def answers(start: int) -> Iterator[Answered]:
            yield Answered(rows[start:], [*unreadable])

        asked = {"promise": run.wanted.as_dict(), "window": window, "seed": run.seed}
        contents = data.fingerprint() if run.paid is None else run.paid.rows.contents
        whose = {**run.about, **asked, CONTENTS: contents}
        total = len(rows) + len(unreadable)
        done = write_answers(answers, output, total, whose, restart=restart)
        paid.remove()
    return done, promised


def whose_answers(
    router: Router, blend: float | Blend, data: Data, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what must be equal for a run to resume another: router, data, and `about`."""
    return {**router_table(router, blend), CONTENTS: data.fingerprint(), **(about or {})}


class Answered(NamedTuple):
    """Answers to consecutive examples, and (name, reason) of those without.

    `lost` are the dollars spent on each unanswered example; None is unknown.
    """

    rows: list[dict[str, Any]]
    unreadable: list[tuple[str, str]]
    lost: Sequence[float | None] = ()


def write_answers(
    answer: Callable[[int], Iterator[Answered]],
    output: str | os.PathLike[str],
    total: int,
    whose: Mapping[str, Any],
    *,
    restart: bool = False,
    tell: Tell | None = None,
) -> Progress:
    """Write answers as they come, in the data's order, so that a killed run can resume.

    `answer` yields the answers from an example on, `whose` is from `whose_answers`; the rest, and
    the errors, are those of `predict`.
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
        for rows, unreadable, lost in answer(progress.read) if progress.read < total else ():
            counts = {name: sum(row[name] for row in rows) for name in ("deferred", "degraded")}
            read = {"read": len(rows) + len(unreadable), "examples": len(rows)}
            counts["dollars"] = _sum([*(row.get("dollars") for row in rows), *lost])
            facts = {**read, **counts, "unreadable": unreadable}
            journal.add(facts, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
            progress.add(facts)
            tell("answering", progress.read, total)
        write(journal, output)
        journal.remove()
    return progress


def _sum(dollars: Sequence[float | None]) -> float | None:
    """Return a sum; None if a number is unknown."""
    known = [each for each in dollars if each is not None]
    return math.fsum(known) if len(known) == len(dollars) else None


def _writer_of(output: Path) -> Callable[[Journal, Path], None]:
    """Return the writer of the output's suffix."""
    if (write := _WRITERS.get(output.suffix.lower())) is None:
        raise ValueError(
            f"the output must end in {', '.join(_WRITERS)}, but is {output}: give a name like "
            f"{output.with_suffix('.jsonl').name} (--output)"
        )
    if write is _write_table:
        _import_pyarrow(output)
    return write


def answer_rows(
    names: Iterable[str],
    said: Iterable[Mapping[str, Any]],
    answer: Any,
    stages: Sequence[str],
    more: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the row of each example: its name, what was `said`, and who answered.

    `answer` has the attributes `HOW` and `more`, and may have `spent` and `late`, like a
    `JointAnswer`. `stages` are the models' names. JSON has neither infinity nor NaN: these become
    None.
    """
    columns = {name: to_numpy(getattr(answer, name)).tolist() for name in (*HOW, *more)}
    columns["answered_by"] = [stages[stage] for stage in columns["stage"]]
    if (spent := getattr(answer, "spent", None)) is not None:
        *tokens, dollars = to_numpy(spent).T.tolist()
        whole = ([int(one) if math.isfinite(one) else None for one in each] for each in tokens)
        columns |= dict(zip(SPENT, (*whole, dollars), strict=True))
    late = getattr(answer, "late", None)
    for name, one, *values in zip(names, said, *columns.values(), strict=True):
        how = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in zip(columns, values, strict=True)
        }
        kept = {} if late is None or not how["degraded"] else {"late": late}
        yield {"name": name, **one, **how, **kept}


def _write_lines(journal: Journal, output: Path) -> None:
    with write_whole(output, "wb") as file:
        file.writelines(content for _, content in journal.records())


def _write_csv(journal: Journal, output: Path) -> None:
    """Write CSV in two passes, since a column may appear first in a late row."""
    names = dict.fromkeys(name for rows in _chunks(journal) for row in rows for name in row)
    with write_whole(output) as file:
        writer = csv.DictWriter(file, [*names], lineterminator="\n")
        writer.writeheader()
        for rows in _chunks(journal):
            writer.writerows({name: _cell(row[name]) for name in row} for row in rows)


def _cell(value: Any) -> str:
    """Return a CSV cell: text unchanged, empty for None, and JSON for the rest."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _write_table(journal: Journal, output: Path) -> None:
    """Write Parquet in two passes, since a late row may decide a column's type."""
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
