"""Inputs: batches for counting, timing and measuring a model; and timed calls."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.model import facts

Shape = tuple[int, ...]
OpenShape = Sequence[int | None]


def batch_of_one(given: OpenShape | None, known: OpenShape | None, name: str) -> Shape:
    """Return the shape of a batch of one, from `given` and what the model says."""
    if known is None:
        if not given or not all(given[1:]):
            raise ValueError(
                f"{name} needs input_shape (--input-shape), like (1, 3, 32, 32), not {given}"
            )
        known = given
    elif given is None:
        given = known
    fits = len(given) == len(known) and all(
        want in (None, got) for got, want in zip(given[1:], known[1:], strict=True)
    )
    if not fits or not all(given[1:]):
        raise ValueError(
            f"{name} takes a batch of shape {_shown(known)}, but input_shape is "
            f"{_shown(given)}: give a number for each dimension after the first"
        )
    return (1, *(int(size) for size in given[1:] if size))


def _shown(shape: OpenShape) -> str:
    return "(" + ", ".join(["n", *("?" if not size else str(size) for size in shape[1:])]) + ")"


def input_dtype_of(model: Any, given: str | None = None) -> np.dtype[Any]:
    """Return the type of a model's inputs: as given, else its own, else float32."""
    return np.dtype(given or facts(model).input_dtype or np.float32)


def random_batch(rows: int, shape: Shape, dtype: np.dtype[Any]) -> Any:
    """Return a batch that the model accepts: normal numbers, or zeros for integer ids."""
    if dtype.kind != "f":
        return np.zeros((rows, *shape[1:]), dtype=dtype)
    return np.random.default_rng(0).standard_normal((rows, *shape[1:])).astype(dtype)


def timed_calls(model: Any, batch: Any, deadline: float, most: int = sys.maxsize) -> list[float]:
    """Return the seconds of each call of a model until `deadline`, of one call at least."""
    times: list[float] = []
    while not times or (len(times) < most and time.perf_counter() < deadline):
        start = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - start)
    return times


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Read a shape like ``1,3,32,32``."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"--input-shape must be whole numbers like 1,3,32,32, of at least 1, not {text!r}"
        )
    return tuple(map(int, parts))
