"""Tune: which threads, overlap and batch size answer the most inputs here, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ebjr.evaluation.inputs import (
    OpenShape,
    batch_of_one,
    input_dtype_of,
    random_batch,
    timed_calls,
)
from ebjr.model import Model, facts
from ebjr.threads import available_cores


@dataclass(frozen=True)
class Setting:
    """How a model may be run, and what that gives.

    `overlap` calls are in work at once, each on a batch. `examples_per_second` is of all calls
    together, `batch_seconds` of one; both are medians over the rounds.
    """

    threads: int
    overlap: int
    batch_size: int
    examples_per_second: float
    batch_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for JSON."""
        return asdict(self)


def tune(
    load: Callable[[int], Model],
    input_shape: OpenShape | None = None,
    *,
    batch_sizes: Iterable[int] = (1, 8, 64),
    cores: int | None = None,
    seconds: float = 0.3,
    rounds: int = 5,
) -> list[Setting]:
    """Measure every split of the processor's cores between threads of a call and calls at once.

    The settings take turns of `seconds`, round by round, so that what else the machine does meets
    all alike. `load` makes the model with that many threads. A graph with a fixed batch is measured
    at that batch alone. Returns the settings, the most inputs per second first.
    """
    available = available_cores() if cores is None else cores
    sizes = tuple(batch_sizes)
    if available < 1 or rounds < 1 or not sizes or min(sizes) < 1:
        raise ValueError(
            f"cores, rounds and batch_sizes must be positive, but are {available}, {rounds} and "
            f"{sizes}"
        )
    models = {threads: load(threads) for threads in _powers(available)}
    model = next(iter(models.values()))
    known = facts(model)
    fixed = known.fixed_batch
    shape = batch_of_one(input_shape, known.input_shape, known.name)
    dtype = input_dtype_of(model, None)
    batches = {n: random_batch(n, shape, dtype) for n in ((fixed,) if fixed else sizes)}
    found: dict[tuple[int, int, int], list[tuple[float, float]]] = {
        (threads, overlap, size): []
        for threads in models
        for overlap in _powers(available // threads)
        for size in batches
    }
    for each in models.values():
        each(batches[max(batches)])  # the first call makes its room
    for _ in range(rounds):
        for (threads, overlap, size), measured in found.items():
            measured.append(_run(models[threads], batches[size], overlap, seconds))
    settings = [
        Setting(*key, *(float(value) for value in np.median(measured, axis=0)))
        for key, measured in found.items()
    ]
    return sorted(settings, key=lambda setting: -setting.examples_per_second)


def _run(model: Model, batch: Any, overlap: int, seconds: float) -> tuple[float, float]:
    """Inputs per second, and seconds of a call, where so many calls are always in work."""
    began = time.perf_counter()
    with ThreadPoolExecutor(overlap) as pool:
        work = [pool.submit(timed_calls, model, batch, began + seconds) for _ in range(overlap)]
        times = [each for future in work for each in future.result()]
    spent = time.perf_counter() - began
    return len(times) * len(batch) / spent, float(np.median(times))


def _powers(most: int) -> list[int]:
    """1, 2, 4 and so on, and the most."""
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
