"""Late answers: rows that the teacher could not answer wait on disk until it can.

The joint model answers such a row at once with the student's output, marked as degraded, and keeps
the row here under an id. A client with the id fetches the teacher's answer later. The file is a
SQLite database, so rows survive a killed process and a power failure. One thread writes to it;
if the disk is too slow, rows are not kept, so that no request waits for it.
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
from ebjr.link.far import MANY, FarTeacher
from ebjr.model import TeacherFailed
from ebjr.task import Task
from ebjr.threads import background

FORMAT = 0xEB17  # SQLite's `application_id`: tells our file from another program's

_TABLE = """
CREATE TABLE rows (
    number INTEGER PRIMARY KEY,          -- in order of arrival
    id TEXT NOT NULL,
    row INTEGER NOT NULL,                -- of the request
    form TEXT NOT NULL,                  -- rows of one form make a batch
    input BLOB,                          -- NULL once there is an answer
    student BLOB,
    answer BLOB,
    error TEXT,
    told INTEGER NOT NULL DEFAULT 0,     -- by the callback
    changed REAL NOT NULL,               -- in the file's own clock, see `_now`
    UNIQUE (id, row)
);
CREATE INDEX waiting ON rows (number) WHERE input IS NOT NULL;
CREATE INDEX untold ON rows (number) WHERE input IS NULL AND told = 0;
CREATE INDEX answered ON rows (changed) WHERE input IS NULL;
"""

MOST_TOLD = 64  # answers read at once for the callback

PATIENCE_SECONDS, BYTES_A_SECOND = 0.5, 2**25  # how long `keep` waits for the disk
READ_SECONDS, WRITE_SECONDS = 0.5, 5.0  # how long to wait for another process's lock
TRIES = MANY  # failures on a row before it is given up; in a row, they are the server's fault

log = logging.getLogger("ebjr.link.late")


@dataclass(frozen=True, eq=False)
class LateAnswer:
    """The state of the rows kept under an id.

    Attributes
    ----------
    id
        The id of the answer whose degraded rows these are.
    rows, prediction, output
        (k,) rows that the teacher has answered since, and the joint model's answer to them now.
    waiting, errors
        The rows that still wait, and by row the reason why it will never be answered.
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
        The file; created if missing.
    callback
        Called with each `LateAnswer`, at least once: twice after a crash at the wrong moment. An
        answer on which the callback fails is kept and delivered again.
    most_bytes
        The largest size of the file.
    keep_seconds
        How long an answer is kept, counted from the callback if there is one. Only time during
        which the file is open counts.

    Raises
    ------
    ValueError
        `path` is a file of another program, or cannot be opened.

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
        self._missed: Future[None] | None = None  # a write that took too long
        self._failures: Counter[int] = Counter()  # of the teacher, by row
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._untold_from = 0  # the next row for the callback
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
        """Return how many rows wait, without reading the disk."""
        return self._waiting

    @staticmethod
    def new_id() -> str:
        """Return an unguessable id."""
        return uuid.uuid4().hex

    def keep(self, entries: Sequence[LateRows], kind: Task) -> bool:
        """Keep all rows until the teacher has answered them, or none.

        Return False if they are not kept: the file is full, or the disk is too slow for these rows
        or for earlier ones.
        """
        if self._missed is not None and not self._missed.done():  # do not wait behind it again
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
        """Hand rows to the writing thread; a TimeoutError if the disk is too slow."""
        statement = (
            "INSERT OR IGNORE INTO rows (id, row, form, input, student, changed) "
            "VALUES (?, ?, ?, ?, ?, ?)"
        )
        written = self._writer.submit(self._change, statement, values, 1)
        size = sum(len(value[3]) for value in values)
        try:
            written.result(PATIENCE_SECONDS + size / BYTES_A_SECOND)
        except TimeoutError:
            values.clear()  # the writer must not store rows that the client was told are lost
            if not written.cancel():
                self._missed = written
            raise TimeoutError(f"writing to {self.path} takes too long") from None

    def find(self, id: str, joint: JointModel) -> LateAnswer | None:
        """Return the state of the rows under an id; None for an unknown id.

        Raises
        ------
        EbjrError
            The file cannot be read now, for example because another process locks it.
        """
        query = "SELECT row, input IS NOT NULL, answer, error FROM rows WHERE id = ? ORDER BY row"
        try:
            found = self._read(query, id)
        except sqlite3.Error as error:
            raise EbjrError(f"{self.path} cannot be read now: {error}") from error
        return _late_answer(id, found, joint) if found else None

    def deliver(self, joint: JointModel, batch_size: int = 64) -> int:
        """Send waiting rows to the teacher, oldest first, until it is away or no row waits.

        Return how many rows were answered.
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
        """Start a thread that delivers waiting rows every `every_seconds`."""
        self._stopping.clear()
        self._thread = background("late", self._run, joint, every_seconds)
        self._thread.start()

    def stop(self) -> None:
        """Stop the delivering thread after the batch in flight."""
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
        """Return the file's own time, which goes on from its newest row and ignores the clock."""
        return self._ahead + time.monotonic()

    def _oldest(self, most: int) -> list[tuple[int, str, bytes, bytes]]:
        return self._read(
            "SELECT number, form, input, student FROM rows WHERE input IS NOT NULL AND "
            "form = (SELECT form FROM rows WHERE input IS NOT NULL ORDER BY number LIMIT 1) "
            "ORDER BY number LIMIT ?",
            most,
        )

    def _ask(self, joint: JointModel, taken: Sequence[tuple[int, str, bytes, bytes]]) -> int:
        """Call the teacher on some rows, and store its answers; return how many it answered."""
        try:
            inputs = [_unpacked_input(form, raw) for _, form, raw, _ in taken]
            batch: Batch = inputs if taken[0][1] in ("file", "list", "text") else np.stack(inputs)
            own = join_rows([_unpack(joint.kind, raw) for *_, raw in taken])
            found = joint.ask_teacher(batch, own)
        except Exception as error:
            failed = isinstance(error, TeacherFailed)
            reason = error.__cause__ if failed else error
            if isinstance(reason, OtherModel) or (
                isinstance(error, TeacherUnavailable) and not failed
            ):  # not about these inputs
                raise
            if len(taken) > 1:  # one bad row must not hold up the others
                return sum(self._ask(joint, [one]) for one in taken)
            return self._given_up(taken[0][0], error)
        numbers = np.array([number for number, *_ in taken])
        if found.answered is not None:
            numbers = numbers[to_numpy(found.answered)]
        good = np.ones(len(numbers), bool)
        if found.degraded is not None:  # by a teacher further away: these rows go on waiting
            good = ~to_numpy(found.degraded)
        rows = _singles(take_rows(found.output, np.flatnonzero(good)))
        whose = zip(rows, numbers[good].tolist(), strict=True)
        self._write([(_pack(joint.kind, row), None, number) for row, number in whose])
        return len(rows)

    def _given_up(self, number: int, error: Exception) -> int:
        """Give up a row that the teacher refuses, or on which it failed `TRIES` times."""
        self._failures[number] += 1
        cause = error.__cause__
        refused = isinstance(cause, ModelError) and not isinstance(cause, TeacherUnavailable)
        refused |= not isinstance(error, TeacherFailed)
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
        """Pass new answers to the callback, also those that an earlier process left.

        After a failure the next call begins with the next answer, so that one bad answer does not
        hold up the others.
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
                    with self._trying("the callback failed on a late answer"):
                        self.callback(_late_answer(id, [tuple(rest)], joint))
                except Exception:
                    return
                self._change("UPDATE rows SET told = 1 WHERE number = ?", [(number,)])
        self._untold_from = 0

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        """Log a failure once, not again while it stays the same."""
        try:
            yield
        except Exception as error:
            said = _sentence(error)
            if self._troubles.get(what) != said:
                log.error("%s; will retry: %s", what, said)
            self._troubles[what] = said
            raise
        self._troubles.pop(what, None)

    def _read(self, query: str, *values: Any) -> list[Any]:
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def _change(self, statement: str, rows: Sequence[tuple[Any, ...]], waiting: int = 0) -> None:
        """Run a statement for all rows of values in one transaction; each adds `waiting` to len."""
        with self._lock:
            with self._file:
                self._file.execute("BEGIN IMMEDIATE")  # take the lock before the first statement
                changed = self._file.executemany(statement, rows).rowcount
            self._waiting += waiting * max(0, changed)


def _opened(path: str, most_bytes: int) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=10.0, check_same_thread=False)
    try:
        known = file.execute("PRAGMA application_id").fetchone()[0]
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if known != FORMAT and tables:
            raise sqlite3.DatabaseError("it belongs to another program")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")  # NORMAL may lose rows when the power fails
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
    """Return an input's form and bytes; an image that came as a file stays that file."""
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
        raise TypeError(f"only arrays, images and texts can be kept, not {type(one).__name__}")
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
