"""One hash of the numbers that a Python object has learned."""

import hashlib
import pickle
from collections.abc import Iterator
from io import BytesIO
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ebjr.arrays import fingerprint, is_array

_PASSING = {"training", "_stop_words_id", "refit_time_", "cv_results_"}
"""Attributes that change with use or from process to process, and are not learned."""


def weights_of(thing: Any) -> str | None:
    """Hash all numbers that an object holds or refers to; None if there is no array.

    Text does not count: it may be a path, which differs between machines.
    """
    walk = _Walk(BytesIO())
    walk.dump(thing)
    return walk.found.hexdigest() if walk.arrays else None


class _Walk(pickle.Pickler):
    """A pickler that hashes the numbers on its way, and keeps nothing else."""

    def __init__(self, nowhere: BytesIO) -> None:
        super().__init__(nowhere)
        self.found, self.arrays = hashlib.sha256(), 0

    def persistent_id(self, thing: Any) -> str | None:
        """Hash numbers; pickle does not descend into objects that get a name here."""
        if is_array(thing) and not getattr(thing.dtype, "hasobject", False):
            self.found.update(fingerprint(thing).encode())
            self.arrays += 1
            return "array"
        if isinstance(thing, int | float | complex | bytes):
            self.found.update(repr(thing).encode())
        draws = type(thing).__module__.startswith(("numpy.random", "random"))
        return "end" if isinstance(thing, type | ModuleType) or draws else None

    def reducer_override(self, thing: Any) -> Any:
        """Reduce an object to a list of its parts."""
        parts = _referred_to(thing) if isinstance(thing, FunctionType) else _state(thing)
        return list, (), None, iter(list(parts))


def _referred_to(function: FunctionType) -> Iterator[Any]:
    """Yield a function's defaults, closure and globals, but no functions of other modules."""
    yield from (function.__defaults__, function.__kwdefaults__)
    yield from (getattr(cell, "cell_contents", None) for cell in function.__closure__ or ())
    for name in _names(function.__code__):
        each = function.__globals__.get(name)
        if not isinstance(each, FunctionType) or each.__module__ == function.__module__:
            yield each


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        yield from _names(inner) if isinstance(inner, CodeType) else ()


def _state(thing: Any) -> Iterator[Any]:
    """Yield what pickle would write of an object, or the `state_dict` of one that it refuses."""
    try:
        made = thing.__reduce_ex__(2)
    except Exception:  # a lock, a file or a session, which learn nothing, or a torch program
        made = "", getattr(thing, "state_dict", dict)()
    yield getattr(thing, "__wrapped__", None)
    for part in () if isinstance(made, str) else made[1:]:
        if isinstance(part, dict):
            part = {key: part[key] for key in part if key not in _PASSING}
        yield list(part) if isinstance(part, Iterator) else part
