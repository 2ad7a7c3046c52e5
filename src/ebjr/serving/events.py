"""What happens in an engine, as events, and who is told of them."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ebjr.serving.engine import Ticket

log = logging.getLogger("ebjr.serving")


class Batched(NamedTuple):
    """A model has answered a batch of `rows` rows of k tickets."""

    stage: str
    rows: int
    tickets: Sequence[Any]
    waited: Sequence[float]  # of each, in seconds, in the queue
    began: float  # of `time.perf_counter`
    seconds: float


class Asked(NamedTuple):
    """A model, or an audit, spent something, or gave `unanswered` rows nothing that can be used.

    `spent` is of each row, as of `ebjr.model.Answer`; `silent` (n,) marks the rows that this model,
    or the one before a later model, has said nothing of: they are deferred, whatever the threshold.
    """

    stage: str
    unanswered: int
    spent: Any
    silent: np.ndarray | None = None


class Scored(NamedTuple):
    """n rows were scored, and some deferred, each by the threshold of its request; all (n,)."""

    score: np.ndarray
    deferred: np.ndarray
    threshold: np.ndarray


class Answered(NamedTuple):
    """k requests have their answers; `since` (k,) is when they came, `seconds` (k,) how long ago.

    `since` is of `time.perf_counter`; `stage` says of each of their rows which model answered it.
    """

    since: np.ndarray
    seconds: np.ndarray
    stage: np.ndarray = np.zeros(0, np.int64)

    def rows_by(self, stages: Sequence[str]) -> np.ndarray:
        """How many rows each model has answered; a far one that is several counts as the last."""
        return np.bincount(self.stage.clip(0, len(stages) - 1), minlength=len(stages))


class Expired(NamedTuple):
    """A request's time, `seconds`, was over before it had an answer."""

    ticket: "Ticket"
    seconds: float


class Degraded(NamedTuple):
    """Rows that should have been deferred were answered by the student."""

    rows: int


class Audited(NamedTuple):
    """What an audit of a batch of n rows has found, even where no row was drawn; all (n,)."""

    threshold: np.ndarray
    deferred: np.ndarray
    drawn: np.ndarray
    contradicted: np.ndarray  # it was drawn, and the teacher's answer is not the student's


class Failed(NamedTuple):
    """A model has failed on a batch; `stage` ``"audit"`` is the teacher, and nobody waits."""

    stage: str
    error: Exception


Event = Batched | Asked | Scored | Answered | Expired | Degraded | Audited | Failed


class Observer:
    """Told of the events that it has a handler for."""

    handlers: Mapping[type, Callable[[Any], None]] = {}
    """What is called with an event, by its class."""

    def observe(self, event: Event) -> None:
        """Take an event."""
        if (handle := self.handlers.get(type(event))) is not None:
            handle(event)


class Observers(Observer):
    """Several observers as one, in their order; they may be added and taken away at any time."""

    def __init__(self, *observers: Observer) -> None:
        self._set(observers)

    def observe(self, event: Event) -> None:
        """Tell an event to all who have a handler for it, and cost the others nothing."""
        for handle in self._told.get(type(event), ()):
            try:
                handle(event)
            except Exception:  # the others are told, and answers do not depend on it
                log.exception("an observer failed on what has happened")

    def add(self, observer: Observer) -> None:
        """Tell one more."""
        self._set((*self._all, observer))

    def remove(self, observer: Observer) -> None:
        """Tell one no more."""
        self._set(tuple(one for one in self._all if one is not observer))

    def _set(self, observers: tuple[Observer, ...]) -> None:
        told: dict[type, list[Callable[[Any], None]]] = {}
        for observer in observers:
            for kind, handle in observer.handlers.items():
                told.setdefault(kind, []).append(handle)
        self._all, self._told = observers, told


class Bulk:
    """Keeps events until `tell`: nobody who waits for an answer waits for an observer."""

    MANY = 128  # events that wait are worth telling of

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._kept: deque[Event] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def observe(self, event: Event) -> None:
        """Take an event."""
        self._kept.append(event)

    def tell(self) -> None:
        """Tell the observer all that is kept, rows and answers each as one event."""
        with self._lock:
            kept = [self._kept.popleft() for _ in range(len(self._kept))]
            for event in _joined(kept):
                try:
                    self._observer.observe(event)
                except Exception:  # the others are told, and answers do not depend on it
                    log.exception("an observer failed on what has happened")


def _joined(events: Iterable[Event]) -> Iterator[Event]:
    """Events with those that are columns made one."""
    columns: dict[type, list[Any]] = {Scored: [], Answered: []}
    for event in events:
        if (found := columns.get(type(event))) is not None:
            found.append(event)
        else:
            yield event
    for kind, found in columns.items():
        if found:
            yield kind(*map(np.concatenate, zip(*found, strict=True)))
