"""What an object of Python has learned, as one hash: that of the numbers it holds."""

import hashlib
import pickle
from collections.abc import Iterator
from io import BytesIO
from types import CodeType, FunctionType, ModuleType
from typing import Any

from ebjr.arrays import fingerprint, is_array

_PASSING = {"training", "_stop_words_id", "refit_time_", "cv_results_"}
"""Attributes that differ from process to process, or with use, and are nothing learned."""


def weights_of(thing: Any) -> str | None:
    """The SHA-256 of all numbers that an object holds or refers to; None without an array.

    Text does not count: it may be a path, which differs between machines.
    """
    walk = _Walk(BytesIO())
    walk.dump(thing)
    return walk.found.hexdigest() if walk.arrays else None


class _Walk(pickle.Pickler):
    """Goes where pickle goes, and keeps no more than the hash of the numbers on the way."""

    def __init__(self, nowhere: BytesIO) -> None:
        super().__init__(nowhere)
        self.found, self.arrays = hashlib.sha256(), 0

    def persistent_id(self, thing: Any) -> str | None:
        """Take numbers; what this names is not gone into."""
        if is_array(thing) and not getattr(thing.dtype, "hasobject", False):
            self.found.update(fingerprint(thing).encode())
            self.arrays += 1
            return "array"
        if isinstance(thing, int | float | complex | bytes):
            self.found.update(repr(thing).encode())
        draws = type(thing).__module__.startswith(("numpy.random", "random"))
        return "end" if isinstance(thing, type | ModuleType) or draws else None

    def reducer_override(self, thing: Any) -> Any:
        """The parts of an object, in a list."""
        parts = _referred_to(thing) if isinstance(thing, FunctionType) else _state(thing)
        return list, (), None, iter(list(parts))


def _referred_to(function: FunctionType) -> Iterator[Any]:
    """What a function refers to: defaults, closure, and globals, functions only of its module."""
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
    """What pickle would write of an object; of one that it refuses, its `state_dict`."""
    try:
        made = thing.__reduce_ex__(2)
    except Exception:  # a lock, a file, a session: nothing learned; or a program of PyTorch
        made = "", getattr(thing, "state_dict", dict)()
    yield getattr(thing, "__wrapped__", None)
    for part in () if isinstance(made, str) else made[1:]:
        if isinstance(part, dict):
            part = {key: part[key] for key in part if key not in _PASSING}
        yield list(part) if isinstance(part, Iterator) else part
