"""The rows of a batch, and the teacher's answers to them, which are paid for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np

from ebjr.arrays import Batch, fingerprint, plain, row_count, take_rows, to_numpy
from ebjr.data.examples import Data
from ebjr.errors import TeacherUnavailable
from ebjr.joint import JointModel
from ebjr.journal import CONTENTS, Journal
from ebjr.model import facts

Told = Callable[[str, int, int | None], None]


class Rows:
    """The rows of a batch, in order or by number."""

    def __init__(self, inputs: Batch | Data, rows: range | None = None) -> None:
        n = len(inputs) if isinstance(inputs, Data) else row_count(inputs)
        self.inputs, self.rows = inputs, range(n) if rows is None else rows

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, Batch, Sequence[str]]]:
        """Yield numbers, inputs and names of the readable rows."""
        start = self.rows.start
        if not isinstance(self.inputs, Data):
            for first in range(start, self.rows.stop, size):
                rows = np.arange(first, min(first + size, self.rows.stop))
                yield rows, take_rows(self.inputs, rows), [str(row) for row in rows]
            return
        for batch, unreadable in self.inputs.parts(size, start):
            end = start + (0 if batch is None else len(batch)) + len(unreadable)
            rows = np.arange(start, end)
            if batch is not None:
                if unreadable:
                    told = len(self.inputs.unreadable)
                    rows = self.inputs.take(rows.tolist())[1]
                    del self.inputs.unreadable[told:]  # they were reported before
                if len(here := np.flatnonzero(rows < self.rows.stop)):
                    names = [batch.names[row] for row in here]
                    yield rows[here], take_rows(batch.inputs, here), names
            if (start := end) >= self.rows.stop:
                return

    def take(self, rows: np.ndarray) -> Batch:
        """Return the inputs of some rows, in ascending order."""
        if not isinstance(self.inputs, Data):
            return take_rows(self.inputs, rows)
        found, where = self.inputs.take(rows.tolist())
        if len(where) < len(rows):
            raise ValueError(f"{self.inputs.path} has changed: a row can no longer be read")
        return found.inputs

    @cached_property
    def contents(self) -> str:
        """The fingerprint of the inputs, which reads all of them."""
        data = self.inputs
        return data.fingerprint() if isinstance(data, Data) else fingerprint(data, None)


class Paid:
    """The teacher's answers by row number: in memory, and in a journal if one is given."""

    def __init__(self, joint: JointModel, rows: Rows, form: Batch, size: int, tell: Told) -> None:
        self.joint, self.rows, self.size, self.tell = joint, rows, size, tell
        self.form = form  # the form of the student's answers, which the teacher's must have
        self.said: dict[int, Any] = {}
        self.bills: dict[int, Sequence[float]] = {}  # tokens in and out, and dollars, if known
        self.keep: Journal | None = None
        self.attempt, self.spent = 0, 0.0  # other promises tried, and the sum of their deltas
        self.earlier: list[int] = []  # the rows that these asked about
        self.promise: dict[str, Any] = {}

    def of(self, other: Paid) -> Paid:
        """Return the same answers and journal for the rows of another window."""
        own = copy(self)
        own.rows, own.form = other.rows, other.form
        return own

    def take_up(self, keep: Journal, promise: dict[str, Any], about: Mapping[str, Any]) -> None:
        """Resume from a journal."""
        keep.resume({**about, CONTENTS: self.rows.contents, "task": self.joint.kind.name})
        self.keep, self.promise, earlier, deltas = keep, promise, [], {}
        for told, content in keep.records():
            with np.load(BytesIO(content)) as file:
                self._add(told["rows"], self.joint.kind.unpack("teacher", {**file}))
            self.bills.update(zip(told["rows"], told.get("bills", ()), strict=False))
            earlier.append((told["attempt"], told["rows"]))
            deltas[told["attempt"]] = told["promise"]["delta"]
            self.attempt = told["attempt"] + (told["promise"] != promise)
        self.spent = sum(delta for attempt, delta in deltas.items() if attempt < self.attempt)
        self.earlier = [row for attempt, rows in earlier if attempt < self.attempt for row in rows]

    def ask(self, numbers: np.ndarray) -> None:
        """Get the teacher's answers to rows, each once; TeacherUnavailable if one is missing."""
        missing = np.array([row for row in numbers.tolist() if row not in self.said], np.int64)
        for start in range(0, len(missing), self.size):
            self._ask(missing[start : start + self.size])
            self.tell("asking the teacher", min(start + self.size, len(missing)), len(missing))

    def _ask(self, numbers: np.ndarray) -> None:
        inputs = self.rows.take(numbers)
        if facts(self.joint.teacher).continues:
            inputs = self.joint.for_teacher(inputs, self.joint.ask_student(inputs))
        found = self.joint.ask_teacher_alone(inputs, self.form)
        sound = np.ones(len(numbers), bool) if found.answered is None else to_numpy(found.answered)
        own = slice(None) if found.degraded is None else np.flatnonzero(~to_numpy(found.degraded))
        output, there = take_rows(found.output, own), numbers[sound][own]
        if found.spent is not None:
            self.bills.update(zip(numbers.tolist(), to_numpy(found.spent).tolist(), strict=True))
        if len(there):
            self._add(there.tolist(), output)
        if len(there) and self.keep is not None:
            file, arrays = BytesIO(), self.joint.kind.pack("teacher", plain(output), False)
            np.savez(file, allow_pickle=False, **arrays)
            told = {"attempt": self.attempt, "promise": self.promise, "rows": there.tolist()}
            told["bills"] = [self.bills[row] for row in told["rows"] if row in self.bills]
            self.keep.add(told, file.getvalue())
        if len(there) < len(numbers):
            first = np.setdiff1d(numbers, there)[0]
            raise TeacherUnavailable(
                f"the teacher answered {len(there)} of {len(numbers)} rows, not row {first}"
                f"{': ' + found.why if found.why else ''}; a promise needs its answer to every row "
                "that it is asked about: try again, or leave such rows out of the data"
            )

    def spent_on(self, numbers: np.ndarray) -> np.ndarray | None:
        """Return the cost of some rows, (k, 3), NaN if unknown; None if no cost is known."""
        found = [self.bills.get(row, [math.nan] * 3) for row in numbers.tolist()]
        return np.reshape(found, (-1, 3)) if self.bills else None

    def _add(self, rows: Sequence[int], output: Batch) -> None:
        self.said.update(zip(rows, list(self.joint.predict(output)), strict=True))
