"""Answers that come later: rows that the teacher could not answer are kept on disk until it can.

The joint model answers such a row at once with the student's output, marked as degraded, and keeps
it here under an id. Whoever has the id gets the teacher's answer once it is there. The file is
SQLite's: what was kept is kept, even if the process is killed or the power fails. One thread writes
to it, and nobody waits long for it: where the disk does not follow, rows are not kept.
"""

import io
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ebjr.arrays import Batch, join_rows, plain, take_rows, to_numpy
from ebjr.data.preprocess import ImageFile, upright_pixels
from ebjr.errors import EbjrError, ModelError, OtherModel, TeacherUnavailable
from ebjr.joint import JointModel, LateRows
from ebjr.link.far import FarTeacher
from ebjr.model import TeacherFailed
from ebjr.task import Task
from ebjr.threads import background

FORMAT = 0xEB17  # SQLite's `application_id` of such a file

_TABLE = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY,          -- the oldest first
    id TEXT NOT NULL,
    row INTEGER NOT NULL,                -- of the request
    form TEXT NOT NULL,                  -- what rows of one batch have in common
    input BLOB,                          -- NULL once there is an answer
    student BLOB,
    answer BLOB,
    error TEXT,
    told INTEGER NOT NULL DEFAULT 0,     -- by the callback
    changed REAL NOT NULL,               -- in the file's own time, see `_now`
    UNIQUE (id, row)
);
CREATE INDEX waiting ON rows (number) WHERE input IS NOT NULL;
CREATE INDEX untold ON rows (number) WHERE input IS NULL AND told = 0;
CREATE INDEX answered ON rows (changed) WHERE input IS NULL;
"""

MOST_TOLD = 64  # so many answers that the callback has not heard of are read at once

PATIENCE_SECONDS, BYTES_A_SECOND = 0.5, 2**25  # that `keep` waits for the disk
READ_SECONDS, WRITE_SECONDS = 0.5, 5.0  # that somebody waits where another process locks the file
TRIES = 10  # so often the teacher may fail with a row alone before it is given up

log = logging.getLogger("ebjr.link.late")


@dataclass(frozen=True, eq=False)
class LateAnswer:
    """What is known of the rows that were kept under an id.

    Attributes
    ----------
    id
        Of the answer whose degraded rows these are.
    rows, prediction, output
        (k,) rows of that answer which the teacher has answered since, and what the joint model
        says of them now.
    waiting, errors
        The rows that still wait; by row, why it will never be answered.
    """

    id: str
    rows: np.ndarray
    prediction: Batch
    output: Batch
    waiting: tuple[int, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)


class LateAnswers:
    """A durable queue of rows for the teacher, and its answers to them.

    Parameters
    ----------
    path
        The file; it is made if there is none.
    callback
        Told each `LateAnswer` once it is there; after a crash perhaps twice, never not at all: an
        answer with which it fails is kept, however long, and told again.
    most_bytes
        The most bytes of the file.
    keep_seconds
        How long an answer is kept, once the callback, if there is one, has heard of it. The clock
        does not count but the time that the file is open, from its newest row on.

    Raises
    ------
    ValueError
        The file is something else.

    Examples
    --------
    >>> import tempfile
    >>> from ebjr import JointClassifier, Router
    >>> cloud = {"is there": False}
    >>> def teacher(x):
    ...     if not cloud["is there"]:
    ...         raise TeacherUnavailable("no cloud in the sky")
    ...     return np.stack([-x, x], axis=1)
    >>> late = LateAnswers(tempfile.mkdtemp() + "/late.sqlite")
    >>> joint = JointClassifier(lambda x: np.stack([x, -x], axis=1), teacher,
    ...                         Router("max_logit", 2.0), when_unavailable="queue", late=late)
    >>> answer = joint(np.array([3.0, 1.0]))
    >>> answer.prediction, answer.degraded
    (array([0, 0]), array([False,  True]))
    >>> cloud["is there"] = True
    >>> late.deliver(joint)
    1
    >>> found = late.find(answer.late, joint)
    >>> found.rows, found.prediction, found.waiting
    (array([1]), array([1]), ())
    >>> late.close()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        callback: Callable[[LateAnswer], None] | None = None,
        most_bytes: int = 2**30,
        keep_seconds: float = 86_400.0,
    ) -> None:
        self.path, self.callback, self.keep_seconds = os.fspath(path), callback, keep_seconds
        self._lock, self._reading, self._delivering = (threading.Lock() for _ in range(3))
        self._writer = ThreadPoolExecutor(1, "ebjr-late-rows")
        self._missed: Future[None] | None = None  # what it was too slow with
        self._failures: Counter[int] = Counter()  # of the teacher, by row
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._untold_from = 0  # whose turn it is to be told
        self._troubles: dict[str, str] = {}
        self._file = _opened(self.path, most_bytes)
        self._reader = sqlite3.connect(self.path, timeout=READ_SECONDS, check_same_thread=False)
        self._finalizers = [
            weakref.finalize(self, file.close) for file in (self._file, self._reader)
        ]
        found = self._read("SELECT count(input), coalesce(max(changed), 0.0) FROM rows")
        self._waiting, self._ahead = int(found[0][0]), float(found[0][1]) - time.monotonic()

    def close(self) -> None:
        """Stop delivering, and close the file."""
        self.stop()
        self._writer.shutdown(wait=False)
        with self._lock, self._reading:
            for finalize in self._finalizers:
                finalize()

    def __len__(self) -> int:
        """How many rows wait; this asks no disk."""
        return self._waiting

    @staticmethod
    def new_id() -> str:
        """An id that nobody can guess."""
        return uuid.uuid4().hex

    def keep(self, entries: Sequence[LateRows], kind: Task) -> bool:
        """Keep rows until the teacher has answered them, all or none, whatever happens then.

        False says that they are not kept: the file is full, or does not follow in half a second,
        or has not finished yet with rows for which somebody waited so long.
        """
        if self._missed is not None and not self._missed.done():
            return False
        now, values = self._now(), list[tuple[Any, ...]]()
        with (
            suppress(sqlite3.Error, TypeError, ValueError, TimeoutError, RuntimeError),
            self._trying("rows could not be kept for later"),
        ):
            for entry in entries:
                rows = zip(entry.rows, _singles(entry.output), strict=True)
                for place, (row, own) in enumerate(rows):
                    form, raw = _packed_input(entry.inputs, place)
                    values.append((entry.id, int(row), form, raw, _pack(kind, own), now))
            self._write_behind(values)
            return True
        return False

    def _write_behind(self, values: list[tuple[Any, ...]]) -> None:
        """Hand rows to the thread that writes, and wait a little for it; else a TimeoutError."""
        statement = (
            "INSERT OR IGNORE INTO rows (id, row, form, input, student, changed) "
            "VALUES (?, ?, ?, ?, ?, ?)"
        )
        written = self._writer.submit(self._change, statement, values, 1)
        size = sum(len(value[3]) for value in values)
        try:
            written.result(PATIENCE_SECONDS + size / BYTES_A_SECOND)
        except TimeoutError:
            values.clear()  # so that they never show, unless the disk has them already
            if not written.cancel():
                self._missed = written
            raise TimeoutError(f"{self.path} does not follow") from None

    def find(self, id: str, joint: JointModel) -> LateAnswer | None:
        """What is known of the rows under an id; None where there are none.

        EbjrError: the file cannot be read just now.
        """
        query = "SELECT row, input IS NOT NULL, answer, error FROM rows WHERE id = ? ORDER BY row"
        try:
            found = self._read(query, id)
        except sqlite3.Error as error:
            raise EbjrError(f"{self.path} cannot be read just now: {error}") from error
        return _late_answer(id, found, joint) if found else None

    def deliver(self, joint: JointModel, batch_size: int = 64) -> int:
        """Ask the teacher for what waits, the oldest first, until it is away or nothing waits.

        Returns how many rows got an answer.
        """
        done = 0
        with self._delivering:
            told = "" if self.callback is None else "AND told = 1"
            old = f"DELETE FROM rows WHERE input IS NULL AND changed < ? {told}"
            self._change(old, [(self._now() - self.keep_seconds,)])
            self._tell(joint)
            while not self._stopping.is_set():
                if isinstance(joint.teacher, FarTeacher) and joint.teacher.state == "open":
                    break
                taken = self._oldest(batch_size)
                try:
                    answered = self._ask(joint, taken) if taken else 0
                except TeacherUnavailable:
                    break
                if not answered:
                    break
                done += answered
                self._tell(joint)
        return done

    def start(self, joint: JointModel, every_seconds: float = 1.0) -> None:
        """Deliver in a thread of its own, whenever something waits."""
        self._stopping.clear()
        self._thread = background("late", self._run, joint, every_seconds)
        self._thread.start()

    def stop(self) -> None:
        """End that thread; what it has begun is finished."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stopping.clear()

    def _run(self, joint: JointModel, every_seconds: float) -> None:
        while not self._stopping.wait(every_seconds):
            with suppress(Exception), self._trying("late answers could not be delivered"):
                self.deliver(joint)

    def _now(self) -> float:
        """The file's own time: it goes on from the newest row's, whatever the clock says."""
        return self._ahead + time.monotonic()

    def _oldest(self, most: int) -> list[tuple[int, str, bytes, bytes]]:
        return self._read(
            "SELECT number, form, input, student FROM rows WHERE input IS NOT NULL AND "
            "form = (SELECT form FROM rows WHERE input IS NOT NULL ORDER BY number LIMIT 1) "
            "ORDER BY number LIMIT ?",
            most,
        )

    def _ask(self, joint: JointModel, taken: Sequence[tuple[int, str, bytes, bytes]]) -> int:
        """Ask the teacher for some rows, and write down what it says; how many it answered."""
        try:
            inputs = [_unpacked_input(form, raw) for _, form, raw, _ in taken]
            batch: Batch = inputs if taken[0][1] in ("file", "list", "text") else np.stack(inputs)
            own = join_rows([_unpack(joint.kind, raw) for *_, raw in taken])
            found = joint.ask_teacher(batch, own)
        except Exception as error:  # these inputs are refused or broken, or one of them is
            reason = error.__cause__ if isinstance(error, TeacherFailed) else error
            if isinstance(reason, TeacherUnavailable | OtherModel):  # it says nothing of them
                raise
            if len(taken) > 1:
                return sum(self._ask(joint, [one]) for one in taken)
            return self._given_up(taken[0][0], error)
        numbers = np.array([number for number, *_ in taken])
        if found.answered is not None:
            numbers = numbers[to_numpy(found.answered)]
        good = np.ones(len(numbers), bool)
        if found.degraded is not None:  # by a teacher further away: they go on waiting
            good = ~to_numpy(found.degraded)
        rows = _singles(take_rows(found.output, np.flatnonzero(good)))
        whose = zip(rows, numbers[good].tolist(), strict=True)
        self._write([(_pack(joint.kind, row), None, number) for row, number in whose])
        return len(rows)

    def _given_up(self, number: int, error: Exception) -> int:
        """Give a row up that is refused, or with which the teacher fails again and again."""
        self._failures[number] += 1
        refused = isinstance(error.__cause__, ModelError) or not isinstance(error, TeacherFailed)
        if not refused and self._failures[number] < TRIES:
            return 0
        self._write([(None, _sentence(error), number)])
        return 1

    def _write(self, answers: Sequence[tuple[bytes | None, str | None, int]]) -> None:
        self._change(
            "UPDATE rows SET input = NULL, student = NULL, answer = ?, error = ?, changed = ? "
            "WHERE number = ? AND input IS NOT NULL",
            [(raw, error, self._now(), number) for raw, error, number in answers],
            -1,
        )
        for _, _, number in answers:
            self._failures.pop(number, None)

    def _tell(self, joint: JointModel) -> None:
        """Tell the callback of answers that it has not heard of, even in an earlier life.

        Where it fails, the next time begins with the next answer, so that none holds up the others.
        """
        query = (
            "SELECT number, id, row, 0, answer, error FROM rows "
            "WHERE input IS NULL AND told = 0 AND number >= ? ORDER BY number LIMIT ?"
        )
        while self.callback and (found := self._read(query, self._untold_from, MOST_TOLD)):
            for number, id, *rest in found:
                if self._stopping.is_set():
                    return
                self._untold_from = number + 1
                try:
                    with self._trying("the callback failed with a late answer"):
                        self.callback(_late_answer(id, [tuple(rest)], joint))
                except Exception:
                    return
                self._change("UPDATE rows SET told = 1 WHERE number = ?", [(number,)])
        self._untold_from = 0

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Log that something fails, once and not for as long as a disk is full."""
        try:
            yield
        except Exception as error:
            said = _sentence(error)
            if self._troubles.get(what) != said:
                log.error("%s; trying again: %s", what, said)
            self._troubles[what] = said
            raise
        self._troubles.pop(what, None)

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]], waiting: int = 0) -> None:
        """Run a statement for each row of values, or none; one adds `waiting` to those waiting."""
        with self._lock:
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")  # nothing is changed while another writes
                changed = self._file.executemany(statement, rows).rowcount
            self._waiting += waiting * max(0, changed)


def _opened(path: str, most_bytes: int) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        known = file.execute("PRAGMA application_id").fetchone()[0]
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if known != FORMAT and tables:
            raise sqlite3.DatabaseError("file is of another program")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")
        if not tables:
            file.executescript(f"BEGIN; PRAGMA application_id = {FORMAT}; {_TABLE} COMMIT;")
        file.execute(f"PRAGMA busy_timeout = {round(1000 * WRITE_SECONDS)}")
        (page,) = file.execute("PRAGMA page_size").fetchone()
        file.execute(f"PRAGMA max_page_count = {max(16, most_bytes // page)}")
    except sqlite3.Error as error:
        file.close()
        raise ValueError(f"{path} cannot keep rows for later: {error}") from error
    return file


def _pack(kind: Task, row: Batch) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **kind.pack("output", plain(row), half=False))  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpack(kind: Task, raw: bytes) -> Batch:
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        return kind.unpack("output", dict(archive))


def _singles(rows: Batch) -> list[Batch]:
    return [rows[place : place + 1] for place in range(len(rows))]


def _packed_input(inputs: Batch, place: int) -> tuple[str, bytes]:
    """An input's form and its bytes: an image that came as a file stays that file, a text one."""
    one = inputs[place]
    file = one.file if isinstance(one, ImageFile) else None
    if file is not None:
        return "file", bytes(file)
    if isinstance(one, str):
        return "text", json.dumps(one).encode()
    array = to_numpy(one)
    if array.dtype.hasobject and all(isinstance(each, str) for each in array.flat):
        return "texts", json.dumps(array.tolist()).encode()
    if array.dtype.hasobject:
        raise TypeError(f"inputs of {type(one).__name__} cannot be kept on disk, arrays can")
    head = json.dumps([array.dtype.str, array.shape])
    form = "list" if isinstance(inputs, list | tuple) else head
    raw = np.ascontiguousarray(array).tobytes()
    return form, head.encode() + b"\n" + zlib.compress(raw, 1)


def _unpacked_input(form: str, raw: bytes) -> Any:
    if form == "file":
        from PIL import Image

        with Image.open(io.BytesIO(raw)) as image:
            return ImageFile.of(upright_pixels(image), raw)
    if form in ("text", "texts"):
        said = json.loads(raw)
        return said if form == "text" else np.array(said, object)
    head, _, body = raw.partition(b"\n")
    dtype, shape = json.loads(head)
    return np.frombuffer(zlib.decompress(body), np.dtype(dtype)).reshape(shape)


def _late_answer(id: str, found: Sequence[tuple[Any, ...]], joint: JointModel) -> LateAnswer:
    done = [(row, _unpack(joint.kind, raw)) for row, _, raw, _ in found if raw is not None]
    output = join_rows([one for _, one in done]) if done else np.zeros((0, 0))
    return LateAnswer(
        id,
        np.array([row for row, _ in done], np.int64),
        joint.predict(output) if done else np.zeros(0, np.int64),
        output,
        tuple(row for row, waits, *_ in found if waits),
        {row: error for row, _, _, error in found if error is not None},
    )


def _sentence(error: Exception) -> str:
    known = isinstance(error, EbjrError | ValueError | TypeError)
    words = str(error) if known else f"{type(error).__name__}: {error}"
    return " ".join(words.split())[:500]
