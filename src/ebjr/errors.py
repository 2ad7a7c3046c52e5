"""The error tree.

::

    Exception
    ├── ValueError, TypeError        a bad argument: the caller can mend it
    └── EbjrError                    everything else that EBJR raises on purpose
        ├── CalibrationError         no threshold does what was asked
        ├── ModelError               a model could not be loaded, or answered nonsense
        │   ├── OtherModel           a remote model is another one than it was
        │   └── TeacherUnavailable   the teacher could not be reached just now
        ├── ProtocolError            a message that is not what the protocol says
        │   └── UnknownModel         a request for a model, or a version, that is not served
        ├── NothingKept              nothing is kept for later under an id
        ├── TooLarge                 a request is larger than any that is taken
        ├── Overloaded               more is asked than can be held just now
        ├── DeadlineExceeded         a request's time is over, and there is no answer
        └── MissingExtra             an optional package is not installed
    Warning
    ├── PromiseWarning               what was calibrated is not what is in use
    ├── OutputWarning                a model's answers do not look like raw output
    ├── RecordingNote                what `record` did that nobody asked for, or could not do
    └── GridWarning                  a y grid or a proposal does not cover the data

Every message is one sentence that says what was expected, what came, and the way out.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self


class EbjrError(Exception):
    """Base of every error that EBJR raises on purpose, bad arguments apart."""


class CalibrationError(EbjrError):
    """No threshold does what was asked; the message says what is feasible.

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

    `status` is the HTTP status of a server that has refused; else None.

    Examples
    --------
    >>> from ebjr import record
    >>> try:
    ...     record(lambda x: x[:1], lambda x: x, [[1.0, 0.0], [0.0, 1.0]], [0, 1])
    ... except ModelError as error:
    ...     print(error)
    the student was given 2 inputs and must return 2 rows, but returned shape (1, 2)
    """

    status: int | None = None


class OtherModel(ModelError):
    """A remote model is another one than it was: what was calibrated is not known of it."""


class TeacherUnavailable(ModelError):
    """The teacher could not be reached just now; the student's answer is still there.

    `retry_after_seconds` is when it wants to be asked again, where it says so. `spent` is what the
    call has cost all the same, as of `ebjr.model.Answer`; None where nobody charges.

    Examples
    --------
    >>> try:
    ...     raise TeacherUnavailable("the teacher is full", retry_after_seconds=2.0)
    ... except TeacherUnavailable as error:
    ...     print(f"{error}: again in {error.retry_after_seconds:g} s")
    the teacher is full: again in 2 s
    """

    spent: Any = None

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProtocolError(EbjrError):
    """A message breaks the protocol it claims to speak.

    Examples
    --------
    >>> from ebjr.protocol import read_metadata
    >>> try:
    ...     read_metadata({})
    ... except ProtocolError as error:
    ...     print(error)
    a model's metadata must have a 'name', but has none
    """


class UnknownModel(ProtocolError):
    """A request names a model, or a version of it, that is not served here."""


class NothingKept(EbjrError):
    """Nothing is kept for later under an id."""


class TooLarge(EbjrError):
    """A request is larger than any that is taken: send it in parts."""


class Overloaded(EbjrError):
    """The queue is full: ask again after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[type[Self], tuple[str, float]]:
        return type(self), (str(self), self.retry_after_seconds)


class DeadlineExceeded(EbjrError):
    """The time that a request had is over, and there is no answer to give."""


class MissingExtra(EbjrError, ImportError):
    """An optional package is needed and absent; the message is the line that installs it.

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
    """Import an extra's packages in this context: where one is absent, it raises `MissingExtra`."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(extra, purpose) from error


class PromiseWarning(UserWarning):
    """What was calibrated is not what is in use, so that its figures or its promise are void."""


class RecordingNote(UserWarning):
    """What `record` did unasked: it inferred preprocessing, say, or left FLOPs uncounted."""


def note(text: str) -> None:
    """Tell of something as a `RecordingNote`."""
    warnings.warn(text, RecordingNote, stacklevel=5)


class OutputWarning(UserWarning):
    """A model's answers do not look like the raw output of its task, as probabilities do not."""


class GridWarning(UserWarning):
    """A y grid or a proposal does not cover the data: a part of every free energy is missing."""


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check that an argument is one of a few words; else a ValueError lists them."""
    known = tuple(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def check_at_least(least: float, **values: float | None) -> None:
    """Check that none of the named arguments is below the least; None is not given."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, not {value}")


def one_line(error: Exception) -> str:
    """What another library's error says, as the end of a sentence of ours."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
