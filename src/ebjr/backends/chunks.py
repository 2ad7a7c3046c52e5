"""Batches in chunks, of a largest size or of a graph's fixed batch size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ebjr.arrays import to_numpy


def run_in_chunks(
    run: Callable[[Any], Any],
    batch: Any,
    size: int | None,
    fixed: int | None,
    join: Callable[[Sequence[Any]], Any],
) -> list[Any]:
    """Run a batch (n, ...) in chunks of at most `size` rows; return the list of outputs.

    `run` returns such a list for a chunk. For a graph with a `fixed` batch size the last chunk is
    padded with copies of its last row. `join` concatenates arrays.
    """
    rows = len(batch)
    if not rows:  # many graphs fail on an empty batch: run one of zeros, and keep no row
        zeros = getattr(batch, "new_zeros", None) or partial(np.zeros, dtype=batch.dtype)
        return [part[:0] for part in run(zeros((fixed or 1, *batch.shape[1:])))]
    if rows == (fixed or rows) and rows <= (size or rows):
        return list(run(batch))
    answers, step = [], fixed or size or rows
    for start in range(0, rows, step):
        chunk = batch[start : start + step]
        missing = (fixed or len(chunk)) - len(chunk)
        filled = join([chunk, *[chunk[-1:]] * missing]) if missing else chunk
        answers.append([part[: len(chunk)] for part in run(filled)])
    return [join(parts) for parts in zip(*answers, strict=True)]


def as_array(batch: Any) -> np.ndarray:
    """Return a batch as NumPy; a TypeError if it is not an array, but a list, say."""
    if not hasattr(batch, "__array__"):
        raise TypeError(
            f"a batch must be an array (n, ...), but is a {type(batch).__name__}; "
            "stack its inputs first, with numpy.stack"
        )
    return to_numpy(batch)


def checked_batch_size(size: int | None, fixed: int | None, name: str) -> int | None:
    """Return the largest chunk; a ValueError if it conflicts with the model's fixed batch."""
    if size is None:
        return None
    if fixed is not None and size != fixed:
        raise ValueError(
            f"{name} has a fixed batch of {fixed}, but batch_size is {size}; "
            f"load it with batch_size={fixed}"
        )
    return at_least_one("batch_size", size)


def at_least_one(what: str, number: Any) -> int:
    """Check a whole number of at least 1; a ValueError names it `what`."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise ValueError(f"{what} must be a whole number of at least 1, but is {number!r}")
    return int(number)
