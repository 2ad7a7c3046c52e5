"""The error tree.

::

    Exception
    ├── ValueError, TypeError        a bad argument, which the caller can fix
    └── EbjrError                    every other error that EBJR raises on purpose
        ├── CalibrationError         no threshold reaches the goal
        ├── ModelError               a model could not be loaded, or returned an invalid output
        │   ├── OtherModel           a remote model is not the one that was recorded
        │   └── TeacherUnavailable   the teacher cannot be reached now
        ├── ProtocolError            a message breaks the protocol
        │   └── UnknownModel         a request for a model or a version that is not served
        ├── NothingKept              no late answers under an id
        ├── TooLarge                 a request is over the size limit
        ├── Overloaded               the queue is full
        ├── DeadlineExceeded         a request ran out of time without an answer
        └── MissingExtra             an optional package is not installed
    Warning
    ├── PromiseWarning               the setup differs from what was calibrated
    ├── OutputWarning                a model's answers do not look like raw output
    ├── RecordingNote                something that `record` did by default, or could not do
    └── GridWarning                  a y grid or a proposal does not cover the data

A message says what was expected, what came, and the way out.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Self

MOST_SECONDS = 3600
"""The longest timeout, of a request, a remote model or a server."""


class EbjrError(Exception):
    """Base of every error that EBJR raises on purpose, except for bad arguments."""


class CalibrationError(EbjrError):
    """No threshold reaches the goal; the message says what is feasible.

    Examples
    --------
    >>> from ebjr import Outcomes, calibrate
    >>> outcomes = Outcomes([[2.0, 0.0], [1.0, 0.0]], [[9.0, 0.0], [9.0, 0.0]], [0, 1])
    >>> try:
    ...     calibrate(outcomes, "accuracy", target=0.9)
    ... except CalibrationError as error:
    ...     print(error)
    no threshold reaches accuracy 0.9; the best is 0.5, at deferral rate 0
    """


class ModelError(EbjrError):
    """A model could not be loaded, or its output is not what its task needs.

    `status` is the HTTP status of a server's refusal, else None.
    """

    status: int | None = None


class OtherModel(ModelError):
    """A remote model is not the one that was recorded, so the calibration does not hold for it."""


class TeacherUnavailable(ModelError):
    """The teacher cannot be reached now; the student's answer is still available.

    `retry_after_seconds` is the server's request for a retry, if any. `spent` is the cost of the
    failed call, as in `ebjr.model.Answer`; None for a model without a price.
    """

    spent: Any = None

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProtocolError(EbjrError):
    """A message breaks its protocol."""


class UnknownModel(ProtocolError):
    """A request names a model or a version that is not served."""


class NothingKept(EbjrError):
    """No rows are kept for late answers under an id."""


class TooLarge(EbjrError):
    """A request is over the size limit: send less, or in parts."""


class Overloaded(EbjrError):
    """The queue is full: retry after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type[Self], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_seconds)


class DeadlineExceeded(EbjrError):
    """A request ran out of time without an answer."""


class MissingExtra(EbjrError, ImportError):
    """An optional package is missing; the message has the line that installs it.

    Examples
    --------
    >>> str(MissingExtra("onnx", "reading model.onnx"))
    "reading model.onnx needs an extra: pip install 'ebjr[onnx]'"
    """

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an extra: pip install 'ebjr[{extra}]'")
        self.extra = extra
        self.purpose = purpose

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.extra, self.purpose)


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Turn an ImportError in this context into a `MissingExtra` for an extra."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(extra, purpose) from error


class PromiseWarning(UserWarning):
    """The setup differs from what was calibrated, so that its figures or its promise are void."""


class RecordingNote(UserWarning):
    """Something that `record` did by default, like inferring preprocessing, or could not do."""


def note(text: str) -> None:
    """Issue a `RecordingNote`."""
    warnings.warn(text, RecordingNote, stacklevel=5)


class OutputWarning(UserWarning):
    """A model's answers do not look like raw output of its task, but like probabilities, say."""


class GridWarning(UserWarning):
    """A y grid or a proposal does not cover the data: every free energy lacks a part."""


SHOWN = (PromiseWarning, GridWarning, OutputWarning, RecordingNote)
"""The warnings that the command line shows each time."""


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check that an argument is one of `choices`; else a ValueError lists them."""
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def check_at_least(least: float, **values: float | None) -> None:
    """Check that no named argument is below `least`; None is skipped."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def check_whole(least: int, **values: Any) -> None:
    """Check that each named argument is a whole number, at least `least`; None is skipped."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, Integral) and int(value) >= least):
            raise ValueError(f"{name} must be a whole number, at least {least}, not {value!r:.60}")


def check_seconds(**values: Any) -> None:
    """Check that each named timeout is a number above 0 and up to `MOST_SECONDS`."""
    for name, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= MOST_SECONDS:
            raise ValueError(f"{name} must be above 0 and up to {MOST_SECONDS}, not {value!r:.60}")


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, like "1 example" and "1,200 examples"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def one_line(error: Exception) -> str:
    """Return another library's error as the end of a sentence."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
