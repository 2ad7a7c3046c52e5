"""Profile: a model's FLOPs, memory, latency and joules, and its fastest settings."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.errors import ModelError, check_at_least
from ebjr.evaluation.flops import can_count, count_flops
from ebjr.evaluation.inputs import (
    OpenShape,
    Shape,
    batch_of_one,
    input_dtype_of,
    random_batch,
    timed_calls,
)
from ebjr.evaluation.power import Load, Meter, Power, find_joules
from ebjr.model import Model, facts, model_name
from ebjr.threads import available_cores

WARM_UP = 3  # untimed batches before the timed ones
MOST_REPEATS = 1000  # timed batches at most
MEMORY_SECONDS = 300.0  # timeout of the process that measures memory


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of a whole batch, over `repeats` batches."""

    batch_size: int
    repeats: int
    p50_seconds: float
    p95_seconds: float


@dataclass(frozen=True)
class Profile:
    """A model's costs; counts are as in `Flops`, and None or empty if it cannot be counted."""

    name: str
    input_shape: Shape
    flops: int | None
    parameters: int | None
    by_operator: dict[str, int]
    uncounted: dict[str, int]
    peak_memory_bytes: int | None  # see `measure_peak_memory`
    memory_batch_size: int
    latencies: tuple[Latency, ...]  # one per batch size, like the powers
    powers: tuple[Power, ...] = ()  # all measured, or all estimated, or empty

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return asdict(self)


def profile(
    model: Model,
    input_shape: OpenShape | None = None,
    *,
    batch_sizes: Iterable[int] = (1, 64),
    seconds: float = 2.0,
    meter: Meter | None = None,
) -> Profile:
    """Count and measure a loaded model's costs.

    - `input_shape`: The shape of a batch, (n, ...), for any n. None takes it from the model's file,
      in which only the batch may be open.
    - `seconds`: The most time for each batch size; at least one batch is timed. If joules are
      measured, each size runs for as long again.
    - `meter`: Energy counters; None looks for this machine's.

    Raises
    ------
    TypeError
        `model` is not callable.
    ValueError
        `input_shape` is needed or does not fit the model, or `batch_sizes` are not positive.
    ModelError
        The model failed on a batch.

    Examples
    --------
    >>> report = profile(lambda batch: batch.sum(axis=1), (1, 8), seconds=0.01)
    >>> report.flops is None, [latency.batch_size for latency in report.latencies]
    (True, [1, 64])
    """
    if not callable(model):
        raise TypeError(
            f"model must be a loaded model, not {model!r}: load it with ebjr.load_model"
        )
    sizes = _checked_sizes(batch_sizes)
    shape = batch_of_one(input_shape, facts(model).input_shape, model_name(model))
    dtype = input_dtype_of(model)
    counted = count_flops(model, shape) if can_count(model) else None
    timed = measure_latency(model, lambda n: random_batch(n, shape, dtype), sizes, seconds=seconds)
    known = (counted.known, counted.parameter_bytes) if counted else ()
    loads = [Load(model, random_batch(n, shape, dtype), *known) for n in sizes]
    return Profile(
        name=model_name(model),
        input_shape=shape,
        flops=counted.known if counted else None,
        parameters=counted.parameters if counted else None,
        by_operator=counted.by_operator if counted else {},
        uncounted=counted.uncounted if counted else {},
        peak_memory_bytes=measure_peak_memory(model, random_batch(max(sizes), shape, dtype)),
        memory_batch_size=max(sizes),
        latencies=tuple(timed),
        powers=find_joules(loads, meter=meter, seconds=seconds),
    )


def _checked_sizes(batch_sizes: Iterable[int]) -> tuple[int, ...]:
    sizes = tuple(batch_sizes)
    if not sizes or any(size < 1 for size in sizes):
        raise ValueError(f"batch_sizes must be whole numbers of at least 1, not {sizes}")
    return sizes


# Latency


def measure_latency(
    model: Model,
    make_batch: Callable[[int], Any],
    batch_sizes: Iterable[int] = (1, 64),
    *,
    seconds: float = 2.0,
) -> list[Latency]:
    """Time a model on one to `MOST_REPEATS` batches of each size, for at most `seconds` per size.

    A few warm-up batches run first, for at most a quarter of that time.
    """
    check_at_least(0, seconds=seconds)
    sizes = _checked_sizes(batch_sizes)
    return [_latency(model, make_batch(size), size, seconds) for size in sizes]


def _latency(model: Model, batch: Any, size: int, seconds: float) -> Latency:
    start = time.perf_counter()
    timed_calls(model, batch, start + seconds / 4, WARM_UP)
    times = timed_calls(model, batch, start + seconds, MOST_REPEATS)
    p50, p95 = np.percentile(times, [50, 95])
    return Latency(size, len(times), float(p50), float(p95))


# Memory


def measure_peak_memory(model: Model, batch: Any) -> int | None:
    """Return the peak bytes of memory that a model and a batch add to a fresh process.

    None for a model that does not come from a file, and on a system that does not report memory.
    """
    path = facts(model).path
    if path is None or _memory() is None:
        return None
    runtime = "onnxruntime" if path.suffix.lower() == ".onnx" else "torch"
    child = f"from {__name__} import _report_memory; _report_memory({runtime!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", child],
            input=pickle.dumps((model, batch)),  # our own objects: no foreign pickle is read
            capture_output=True,
            timeout=MEMORY_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise ModelError(
            f"{model_name(model)} failed in the fresh process that measures its memory: {said[-1]}"
        ) from error
    return int(done.stdout.split()[-1])


def _report_memory(runtime: str) -> None:
    """Print the bytes that the model and its batch add; runs in the fresh process."""
    __import__(runtime)
    message = sys.stdin.buffer.read()
    with suppress(OSError):  # reset the peak (Linux), so that imports do not count
        Path("/proc/self/clear_refs").write_text("5")
    before = _memory()
    model, batch = pickle.loads(message)
    model(batch)
    after = _memory()
    assert before is not None  # the parent checked this
    assert after is not None
    print(max(0, after[1] - before[0]))


def _memory() -> tuple[int, int] | None:
    """Return this process's resident bytes: now, and at the peak."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = (line.split() for line in status.read_text().splitlines())
        sizes = {line[0]: int(line[1]) * 1024 for line in lines if line and line[0][:2] == "Vm"}
        # not getrusage: on Linux a child starts with its parent's peak
        if "VmHWM:" in sizes:
            return sizes["VmRSS:"], sizes["VmHWM:"]
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


# Threads, overlap and batch size


@dataclass(frozen=True)
class Setting:
    """A way to run a model, and its speed, as medians over the rounds."""

    threads: int
    overlap: int  # calls in flight, each on a batch
    batch_size: int
    examples_per_second: float  # all calls together
    batch_seconds: float  # one call


def tune(
    load: Callable[[int], Model],
    input_shape: OpenShape | None = None,
    *,
    batch_sizes: Iterable[int] = (1, 8, 64),
    cores: int | None = None,
    seconds: float = 0.3,
    rounds: int = 5,
) -> list[Setting]:
    """Measure every split of the cores between threads and calls in flight; fastest first.

    A graph with a fixed batch is measured at that batch only.
    """
    available = available_cores() if cores is None else cores
    check_at_least(1, cores=available, rounds=rounds)
    check_at_least(0, seconds=seconds)
    sizes = _checked_sizes(batch_sizes)
    models = {threads: load(threads) for threads in _powers(available)}
    known, dtype = facts(models[1]), input_dtype_of(models[1])
    shape = batch_of_one(input_shape, known.input_shape, known.name)
    sizes = (known.fixed_batch,) if known.fixed_batch else sizes
    batches = {n: random_batch(n, shape, dtype) for n in sizes}
    found: dict[tuple[int, int, int], list[tuple[float, float]]] = {
        (threads, overlap, size): []
        for threads in models
        for overlap in _powers(available // threads)
        for size in batches
    }
    for each in models.values():
        each(batches[max(batches)])  # the first call allocates memory
    for _ in range(rounds):  # in turns, so that other load on the machine affects all settings
        for (threads, overlap, size), measured in found.items():
            measured.append(_run(models[threads], batches[size], overlap, seconds))
    settings = [
        Setting(*key, *(float(value) for value in np.median(measured, axis=0)))
        for key, measured in found.items()
    ]
    return sorted(settings, key=lambda setting: -setting.examples_per_second)


def _run(model: Model, batch: Any, overlap: int, seconds: float) -> tuple[float, float]:
    """Return inputs per second, and seconds per call, with `overlap` calls in flight."""
    began = time.perf_counter()
    with ThreadPoolExecutor(overlap) as pool:
        work = [pool.submit(timed_calls, model, batch, began + seconds) for _ in range(overlap)]
        times = [each for future in work for each in future.result()]
    spent = time.perf_counter() - began
    return len(times) * len(batch) / spent, float(np.median(times))


def _powers(most: int) -> list[int]:
    """Return 1, 2, 4 and so on, and `most`."""
    return sorted({*(2**k for k in range(most.bit_length()) if 2**k <= most), most})
