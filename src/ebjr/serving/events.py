"""What happens in an engine, as events, and the observers that receive them."""

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
    """A model answered a batch of `rows` rows of k tickets."""

    stage: str
    rows: int
    tickets: Sequence[Any]
    waited: Sequence[float]  # seconds in the queue, for each ticket
    began: float  # in `time.perf_counter`
    seconds: float


class Asked(NamedTuple):
    """A model, or an audit, reported spending, or left `unanswered` rows without a usable answer.

    `spent` is per row, as in `ebjr.model.Answer`. `silent` (n,) marks the rows without a usable
    answer from this model, or from the one before a later model; any threshold defers them.
    """

    stage: str
    unanswered: int
    spent: Any
    silent: np.ndarray | None = None


class Scored(NamedTuple):
    """n rows were scored, and routed by the threshold of their requests; all (n,)."""

    score: np.ndarray
    deferred: np.ndarray
    threshold: np.ndarray


class Answered(NamedTuple):
    """k requests were answered; they arrived at `since` (k,), and took `seconds` (k,).

    `since` is in `time.perf_counter`; `stage` is the model that answered, for each of their rows.
    """

    since: np.ndarray
    seconds: np.ndarray
    stage: np.ndarray = np.zeros(0, np.int64)

    def rows_by(self, stages: Sequence[str]) -> np.ndarray:
        """Return the rows answered by each model; stages of a remote teacher count as the last."""
        return np.bincount(self.stage.clip(0, len(stages) - 1), minlength=len(stages))


class Expired(NamedTuple):
    """A request's timeout, `seconds`, passed before it had an answer."""

    ticket: "Ticket"
    seconds: float


class Degraded(NamedTuple):
    """The student answered rows that should have been deferred."""

    rows: int


class Audited(NamedTuple):
    """The audit of a batch of n rows, even if no row was drawn; all (n,)."""

    threshold: np.ndarray
    deferred: np.ndarray
    drawn: np.ndarray
    contradicted: np.ndarray  # drawn, and the teacher's answer differs from the student's


class Failed(NamedTuple):
    """A model failed on a batch; `stage` ``"audit"`` is the teacher in an audit."""

    stage: str
    error: Exception


Event = Batched | Asked | Scored | Answered | Expired | Degraded | Audited | Failed


class Observer:
    """Receives events; a subclass overrides the handlers of those it wants."""

    handlers: Mapping[type, Callable[[Any], None]] = {}
    """A handler for each class of event."""

    def observe(self, event: Event) -> None:
        """Handle an event."""
        if (handle := self.handlers.get(type(event))) is not None:
            handle(event)


class Observers(Observer):
    """Several observers as one, in order; they may be added and removed at any time."""

    def __init__(self, *observers: Observer) -> None:
        self._set(observers)

    def observe(self, event: Event) -> None:
        """Pass an event to each handler for it."""
        for handle in self._told.get(type(event), ()):
            try:
                handle(event)
            except Exception:  # the other observers and all answers go on
                log.exception("an observer failed on an event")

    def add(self, observer: Observer) -> None:
        """Add an observer."""
        self._set((*self._all, observer))

    def remove(self, observer: Observer) -> None:
        """Remove an observer."""
        self._set(tuple(one for one in self._all if one is not observer))

    def _set(self, observers: tuple[Observer, ...]) -> None:
        told: dict[type, list[Callable[[Any], None]]] = {}
        for observer in observers:
            for kind, handle in observer.handlers.items():
                told.setdefault(kind, []).append(handle)
        self._all, self._told = observers, told


class Bulk:
    """Keeps events until `tell`, so that no answer waits for an observer."""

    MANY = 128  # kept events at which a worker calls `tell`

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._kept: deque[Event] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def observe(self, event: Event) -> None:
        """Keep an event."""
        self._kept.append(event)

    def tell(self) -> None:
        """Pass on all kept events; scores and answers become one event each."""
        with self._lock:
            kept = [self._kept.popleft() for _ in range(len(self._kept))]
            for event in _joined(kept):
                try:
                    self._observer.observe(event)
                except Exception:  # the other events and all answers go on
                    log.exception("an observer failed on an event")


def _joined(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events, with those made of columns joined into one."""
    columns: dict[type, list[Any]] = {Scored: [], Answered: []}
    for event in events:
        if (found := columns.get(type(event))) is not None:
            found.append(event)
        else:
            yield event
    for kind, found in columns.items():
        if found:
            yield kind(*map(np.concatenate, zip(*found, strict=True)))
