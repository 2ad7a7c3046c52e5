"""A teacher behind an unreliable link: retries, a circuit breaker and a rate limit.

`FarTeacher` wraps the teacher's model. The joint model's policy (`when_unavailable`) decides what
happens to rows that the teacher does not answer; `ebjr.link.late` keeps them for later.
"""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from ebjr.arrays import Batch, row_count, to_numpy
from ebjr.data.preprocess import unprepared
from ebjr.errors import OtherModel, TeacherUnavailable, needs, one_line
from ebjr.joint import check_policy
from ebjr.model import Answer, Model, ModelFacts, TeacherFailed, as_answer, facts, model_name
from ebjr.outcomes import Outcomes
from ebjr.threads import JITTER, background

MANY = 30  # failures in a row are the server's fault, not that of the inputs
DOUBTFUL = (500, 503)  # said by a model that fails on these inputs, or by a server in trouble

log = logging.getLogger("ebjr.link.far")


@dataclass(frozen=True)
class Link:
    """How a remote teacher is called, and what happens while it is away.

    Parameters
    ----------
    retries
        Retries of a failed call, at growing intervals with jitter.
    retry_seconds
        Seconds after the first attempt within which the last one must begin.
    failures
        Failed calls in a row that open the circuit: the teacher is no longer called. After a 500 or
        503, and for a model with one request per row (`ModelFacts.calls`), whose rows count, a
        probe must fail as well.
    probe_seconds
        Average interval of the probes that then look for the teacher.
    rows_per_second
        Most rows sent a second, on average, with bursts of one second's worth. None is no limit.
        Rows over the limit count as unanswered.
    when_unavailable
        The joint model's policy: ``"student"``, ``"error"`` or ``"queue"``.
    queue, queue_bytes
        For the policy ``"queue"``: the file that keeps rows for later, and its largest size. Rows
        that arrive when it is full are not kept.
    keep_seconds
        How long late answers are kept for clients to fetch.

    Raises
    ------
    ValueError
        A field is out of range.

    Examples
    --------
    >>> Link.from_dict({"retries": 0, "rows_per_second": 20}).as_dict()
    {'retries': 0, 'rows_per_second': 20}
    """

    retries: int = 2
    retry_seconds: float = 2.0
    failures: int = 3
    probe_seconds: float = 1.0
    rows_per_second: float | None = None
    when_unavailable: str = "student"
    queue: str = "late.sqlite"
    queue_bytes: int = 2**30
    keep_seconds: float = 86_400.0

    def __post_init__(self) -> None:
        check_policy(self.when_unavailable)
        for name, (least, most) in _LIMITS.items():
            value = vars(self)[name]
            if name == "rows_per_second" and value is None:
                continue
            whole = isinstance(vars(Link)[name], int)
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not fits or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{name} must be {kind} from {least:g} to {most:g}, not {value!r}")
        if not isinstance(self.queue, str) or not self.queue:
            raise ValueError(f"queue must be the name of a file, not {self.queue!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {name: value for name, value in vars(self).items() if value != vars(Link)[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `as_dict` wrote; an unknown key raises a ValueError."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"a link has no {name!r}; it has {', '.join(known)}")
        return cls(**values)


_LIMITS: Mapping[str, tuple[float, float]] = {
    "retries": (0, 100),
    "retry_seconds": (0, 3600),
    "failures": (1, 10_000),
    "probe_seconds": (0.01, 3600),
    "rows_per_second": (0.001, 1e9),
    "queue_bytes": (2**16, 2**50),
    "keep_seconds": (0, 1e10),
}


class FarTeacher:
    """A remote teacher behind a circuit breaker, called as a `Link` says.

    After `failures` failed calls in a row the circuit opens: calls fail at once, and a thread
    probes the teacher. A probe that finds it half-opens the circuit, which lets one call through;
    if that call succeeds, the circuit closes.

    A teacher may fail on one client's inputs only. Its answers 500 and 503, and all failures of a
    model with one request per row, therefore lead to a probe, and only a failed probe opens the
    circuit. If the probe finds it but `MANY` calls in a row have failed, it gets one call at a
    time. Until then an answer 500 or 503 is raised as `TeacherFailed`: it is about these inputs.

    Parameters
    ----------
    teacher
        A model that raises `TeacherUnavailable` when it cannot be reached, as `RemoteModel` does.
        Its method `check`, if it has one, is the probe; without one the next batch is.
    link
        Retries, limits and policy.
    met
        True if the teacher has been reached before.

    Examples
    --------
    >>> def away(batch): raise TeacherUnavailable("the cable is cut")
    >>> teacher = FarTeacher(away, Link(retries=0, failures=1))
    >>> for _ in range(2):
    ...     try: teacher(np.ones((1, 2)))
    ...     except TeacherUnavailable as error: print(error)
    the cable is cut
    away is not called until it is back: the cable is cut
    >>> teacher.close()
    """

    def __init__(self, teacher: Model, link: Link | None = None, *, met: bool = False) -> None:
        with needs("remote", "retrying a remote teacher"):
            import stamina
        self._attempts = stamina.retry_context
        self.name, self.teacher = model_name(teacher), teacher
        self.link = Link() if link is None else link
        self._probed = self._check() is not None
        self._one_by_one = facts(teacher).calls is not None and self._probed
        self._breaker = Breaker(self.link.failures, MANY if self._probed else None)
        rate = self.link.rows_per_second
        self._bucket = None if rate is None else Bucket(rate)
        self._reason, self._met = "", met
        self._closed = threading.Event()

    def __call__(self, batch: Batch, /) -> Any:
        """Return the teacher's answer to n inputs, or to the first that the rate limit allows.

        If some rows are not answered, an `Answer` marks those that are.

        Raises
        ------
        TeacherUnavailable
            The teacher answered no row.
        """
        # before `enter`: a refusal by the rate limit must not use up the half-open circuit's call
        rows = granted = row_count(batch)
        if self._breaker.state != "open" and self._bucket is not None:
            granted = self._bucket.take(rows)
        if not granted and rows:
            raise TeacherUnavailable(
                f"{self.name} is limited to {self.link.rows_per_second:g} rows a second"
            )
        if not self._breaker.enter():
            raise TeacherUnavailable(self._resting)
        if granted == rows:
            return self._ask(batch)
        try:
            return _of_more(as_answer(self._ask(batch[:granted])), rows - granted)
        except TeacherUnavailable as error:
            error.spent = _billed(error.spent, rows - granted)
            raise

    @property
    def state(self) -> str:
        """The circuit: ``"closed"`` (calls pass), ``"open"`` (none) or ``"half-open"`` (one)."""
        return self._breaker.state

    @property
    def away(self) -> str | None:
        """Why the teacher may not be there; None once it was reached."""
        if self._breaker.state == "open":
            return self._resting
        return None if self._met else f"{self.name} has not been reached yet"

    @property
    def _resting(self) -> str:
        return f"{self.name} is not called until it is back: {self._reason}"

    def look(self) -> None:
        """Probe the teacher without a call; a failed probe opens the circuit."""
        if self._breaker.state == "open":  # a thread probes already
            return
        if self._look():
            self._met = True
        elif self._breaker.open():
            self._leave_alone()

    @property
    def facts(self) -> ModelFacts:
        """The teacher's facts."""
        return facts(self.teacher)

    def close(self) -> None:
        """Stop probing."""
        self._closed.set()

    def __repr__(self) -> str:
        return f"FarTeacher({self.teacher!r}, {self.link!r})"

    def _ask(self, batch: Batch) -> Any:
        try:
            answer = self._tried(batch)
        except TeacherUnavailable as error:
            told = error.status in DOUBTFUL and error.retry_after_seconds is None and self._probed
            rows = row_count(batch) if self._one_by_one else 1
            self._failed(error, rows, doubtful=told or self._one_by_one)
            if told and self.state == "closed":
                failed = TeacherFailed(str(error))
                failed.spent, failed.status = error.spent, error.status
                raise failed from error
            raise
        except OtherModel as error:
            self._reason = str(error)
            if self._breaker.open():
                self._leave_alone()
            raise
        except BaseException:
            self._breaker.succeed()  # an error about these inputs proves that it was reached
            raise
        self._met = True
        if self._breaker.succeed():
            log.warning("%s is back", self.name)
        return answer

    def _tried(self, batch: Batch) -> Any:
        lost: list[Any] = []  # what attempts have spent that failed
        if not self.link.retries:  # stamina's own overhead is more than a fast teacher takes
            return self._attempt(batch, 1, lost)
        for attempt in self._attempts(
            on=self._again,
            attempts=self.link.retries + 1,
            timeout=self.link.retry_seconds or None,
            wait_initial=0.05,
            wait_max=1.0,
            wait_jitter=0.1,
        ):
            with attempt:
                return self._attempt(batch, attempt.num, lost)
        raise AssertionError("the last attempt raises")

    def _attempt(self, batch: Batch, number: int, lost: list[Any]) -> Any:
        try:
            found = self.teacher(batch)
            if not lost:
                return found
            found = as_answer(found)
            return replace(found, spent=sum(lost, 0 if found.spent is None else found.spent))
        except TeacherUnavailable as error:
            if error.spent is not None:
                lost.append(error.spent)
                error.spent = sum(lost)
            told = (self.name, number, self.link.retries + 1, error)
            log.info("%s, attempt %d of %d: %s", *told, extra={"kind": ("attempt", self.name)})
            raise

    def _again(self, error: Exception) -> bool | float:
        """Say whether to retry, or after how many seconds."""
        if not isinstance(error, TeacherUnavailable):
            return False
        after = error.retry_after_seconds
        return True if after is None else after <= self.link.retry_seconds and after

    def _failed(self, error: TeacherUnavailable, failures: int, *, doubtful: bool) -> None:
        self._reason, before = str(error), self.state
        opened = self._breaker.fail(failures, away=not doubtful)
        if opened and doubtful:  # not yet: a probe decides
            opened = self._breaker.judge(self._look_in_time())
        if opened:
            self._leave_alone()
        elif self.state == "half-open" != before:
            self._warn()

    def _leave_alone(self) -> None:
        """Probe in a thread from now on."""
        self._warn()
        # a weak reference: the thread must not keep a dropped teacher alive
        told = weakref.ref(self), self._closed, self.link.probe_seconds
        background("probe", _look_for, *told).start()

    def _warn(self) -> None:
        how = (
            "is not called until it is back" if self.state == "open" else "gets one call at a time"
        )
        log.warning("%s %s: %s", self.name, how, self._reason)

    def _check(self) -> Callable[[], Any] | None:
        return getattr(unprepared(self.teacher)[0], "check", None)

    def _look(self) -> bool:
        try:
            if (check := self._check()) is not None:
                check()
        except Exception as error:  # any error: a thread that dies would never find it
            self._reason = one_line(error)
            return False
        return True

    def _is_there(self) -> bool:
        if there := self._look():
            self._met = True
            self._breaker.half_open()
        return there

    def _look_in_time(self) -> bool:
        """Probe once; a server that hangs counts as away."""
        found = list[bool]()
        look = background("look", lambda: found.append(self._look()))
        look.start()
        look.join(self.link.probe_seconds)
        return found == [True]


def _of_more(found: Answer, unasked: int) -> Answer:
    """Return an answer to some inputs as one to these and `unasked` more."""
    heard = np.ones(row_count(found.output), bool) if found.answered is None else found.answered
    answered = np.append(to_numpy(heard), np.zeros(unasked, bool))
    return replace(found, answered=answered, spent=_billed(found.spent, unasked))


def _billed(spent: Any, unasked: int) -> Any:
    """Return what was spent on some inputs as that on these and `unasked` more; None is unknown."""
    return None if spent is None else np.concatenate([to_numpy(spent), np.zeros((unasked, 3))])


def _look_for(far: Callable[[], FarTeacher | None], closed: threading.Event, every: float) -> None:
    while not closed.wait(every * JITTER.uniform(0.9, 1.1)):  # many clients must not probe at once
        teacher = far()
        if teacher is None or teacher._is_there():
            return
        del teacher  # a waiting thread must hold no reference, or the teacher is never collected


class Breaker:
    """A circuit breaker.

    Closed, it lets every call pass. `failures` in a row open it, and no call passes. A probe that
    finds the teacher half-opens it: one call passes, whose outcome closes or opens it.

    With `many`, failures open it themselves only if they prove the teacher `away`. For others
    `fail` asks its caller to probe, and `judge` opens it if the probe failed, or half-opens it if
    `many` calls in a row have failed.
    """

    def __init__(self, failures: int, many: int | None = None) -> None:
        self.state = "closed"
        self._most, self._count, self._trying = failures, 0, False
        self._many, self._doubted = many, False  # `_doubted`: a probe is under way
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Let a call pass, or not."""
        with self._lock:
            if self.state == "half-open" and not self._trying:
                self._trying = True
                return True
            return self.state == "closed"

    def succeed(self) -> bool:
        """Record a successful call; return whether it closed the circuit."""
        with self._lock:
            closed = self.state == "half-open"
            if self.state != "open":  # a call from before it opened proves nothing
                self.state, self._count, self._trying = "closed", 0, False
            return closed

    def fail(self, failures: int = 1, *, away: bool = False) -> bool:
        """Record failures; return whether the circuit opened or needs a `judge`."""
        with self._lock:
            self._count += failures
            if self.state == "open":
                return False
            self._trying = False
            enough = self.state == "half-open" or self._count >= self._most
            if not enough or (self._doubted and not away):
                return False
            if away or self._many is None:
                self.state = "open"
            else:
                self._doubted = True
            return True

    def open(self) -> bool:
        """Open the circuit; return whether it was not open before."""
        with self._lock:
            opened, self.state, self._trying = self.state != "open", "open", False
            return opened

    def judge(self, there: bool) -> bool:
        """Record what the probe found; return whether that opened the circuit."""
        with self._lock:
            self._doubted = False
            if self._count < self._most or self.state == "open":  # decided meanwhile
                return False
            if not there:
                self.state, self._trying = "open", False
            elif self._many is not None and self._count >= self._many:
                self.state = "half-open"
            return not there

    def half_open(self) -> None:
        """Let one call pass, if the circuit is open."""
        with self._lock:
            if self.state == "open":
                self.state = "half-open"


class Bucket:
    """A token bucket: `rate` rows a second on average, one second's worth at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._size, self._clock = rate, max(1.0, rate), clock
        self._tokens, self._since = self._size, clock()
        self._lock = threading.Lock()

    def take(self, rows: int) -> int:
        """Return how many of `rows` may go now."""
        with self._lock:
            now = self._clock()
            grown = self._tokens + (now - self._since) * self._rate
            self._tokens, self._since = min(self._size, grown), now
            granted = min(rows, int(self._tokens))
            self._tokens -= granted
            return granted


def over_link(outcomes: Outcomes, *, bytes: float = 0.0, seconds: float = 0.0) -> Outcomes:
    """Add the cost of a link to outcomes whose models were recorded side by side.

    Parameters
    ----------
    outcomes
        Outcomes with the cost of both models.
    bytes
        Bytes that an example moves over the link, both ways. The student moves none.
    seconds
        Seconds that the link adds to an example; rows of a batch share the round trip.

    Examples
    --------
    >>> from ebjr.costs import Cost
    >>> from ebjr import Outcomes
    >>> near = Outcomes(np.eye(2), np.eye(2), [0, 1], teacher_cost=Cost(seconds=0.01))
    >>> over_link(near, bytes=3000, seconds=0.04).teacher_cost.as_dict()
    {'seconds': 0.05, 'bytes': 3000}
    """
    teacher = outcomes.teacher_cost
    taken = None if teacher.seconds is None else teacher.seconds + seconds
    return replace(
        outcomes,
        student_cost=replace(outcomes.student_cost, bytes=0.0),
        teacher_cost=replace(teacher, seconds=taken, bytes=bytes),
    )
