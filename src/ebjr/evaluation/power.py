"""Power: joules per example, measured if the machine allows it, else estimated, always labeled.

Measured joules come from the machine's own energy counters, read before and after a run: RAPL of
the processor packages (Linux, ``/sys/class/powercap``, Intel and AMD), and NVML of NVIDIA GPUs if
the model runs on one. Nothing is subtracted: other programs and the idle machine count too. Memory
modules are not in a package.

Estimated joules are FLOPs and bytes times constants, without intermediate results: they compare
models, and are not a bill. The two kinds are never mixed.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ebjr.arrays import row_count
from ebjr.costs import KINDS_OF_JOULES, Cost
from ebjr.errors import check_at_least, check_choice
from ebjr.evaluation.inputs import timed_calls
from ebjr.model import Model, as_answer, facts

POWERCAP = Path("/sys/class/powercap")  # Linux's energy counters of processors
PICOJOULES_PER_FLOP = 2.3  # half of a 32-bit multiplication (3.7 pJ) and addition (0.9 pJ)
PICOJOULES_PER_BYTE = 160.0  # main memory: 1.3 nJ for 64 bits, the lowest given


@dataclass(frozen=True)
class Power:
    """Joules per example, and how they are known."""

    joules: float
    how: str  # "measured" or "estimated"
    source: str  # the counters or constants used
    batch_size: int = 1  # a larger one reads the weights less often

    def __post_init__(self) -> None:
        _check_amounts(joules=self.joules)
        check_choice("how", self.how, KINDS_OF_JOULES)

    def add_to(self, cost: Cost) -> Cost:
        """Return a cost with these joules and their kind."""
        return replace(cost, joules=self.joules, joules_are=self.how)


# Measured


@dataclass(frozen=True)
class Meter:
    """Energy counters that can be read."""

    source: str
    read: Callable[[], tuple[int, ...]]  # microjoules of each counter, from an unknown start
    ranges: tuple[int, ...]  # the value at which each counter wraps to 0

    def joules_between(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Return the joules between two readings, if no counter wrapped twice between them."""
        steps = zip(before, after, self.ranges, strict=True)
        # At 250 W a package's counter wraps after minutes at the earliest; a run takes seconds.
        used = sum(end - start + (size if end < start else 0) for start, end, size in steps)
        return used / 1e6

    def __add__(self, other: Self) -> Self:
        return type(self)(
            f"{self.source} + {other.source}",
            lambda: self.read() + other.read(),
            self.ranges + other.ranges,
        )


def find_meter(*, gpu: bool = False, powercap: str | os.PathLike[str] = POWERCAP) -> Meter | None:
    """Return this machine's energy counters; None if there are none that may be read.

    On most systems only root may read the processor's. ``sudo chmod a+r
    /sys/class/powercap/intel-rapl:*/energy_uj`` opens them to every program until the next boot;
    note that fine timing of them has been used to guess secrets (CVE-2020-8694). A model on a `gpu`
    needs NVIDIA's (the extra ``power``); the processor's are added if they can be read.
    """
    packages = _rapl_meter(Path(powercap))
    if not gpu:
        return packages
    graphics = _nvidia_meter()
    return graphics if graphics is None or packages is None else packages + graphics


def _rapl_meter(powercap: Path) -> Meter | None:
    """Return the packages under a powercap folder; None unless all can be read."""
    try:
        # "intel-rapl-mmio:0" is the same package a second time; AMD's are "intel-rapl" too
        found = powercap.glob("intel-rapl:*")
        zones = {zone: (zone / "name").read_text().strip() for zone in found}
        # not "psys", which contains the packages, nor "core" and "dram", which are their parts
        packages = sorted((name, zone) for zone, name in zones.items() if name[:7] == "package")
        meter = Meter(
            "RAPL " + ", ".join(name for name, _ in packages),
            lambda: tuple(_number(zone / "energy_uj") for _, zone in packages),
            tuple(_number(zone / "max_energy_range_uj") for _, zone in packages),
        )
        return meter if meter.read() else None
    except (OSError, ValueError):
        return None


def _number(file: Path) -> int:
    value = int(file.read_text())
    if value < 0:
        raise ValueError(f"{file} must be a count, not {value}")
    return value


def _nvidia_meter() -> Meter | None:
    """Return every NVIDIA GPU; None unless all count energy (Volta, 2017, and later)."""
    try:
        import pynvml
    except ImportError:
        return None

    def read() -> tuple[int, ...]:
        try:
            return tuple(
                1000 * pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles
            )
        except pynvml.NVMLError as error:
            raise OSError(f"the GPU's energy counter cannot be read: {error}") from error

    try:
        pynvml.nvmlInit()  # never shut down: the counters are needed until the process ends
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        names = ", ".join(f"GPU {index}" for index in range(count))
        return Meter(f"NVML {names}", read, (1000 * 2**64,) * count) if read() else None
    except (pynvml.NVMLError, OSError):
        return None


def measure_joules(
    model: Model, batch: Any, *, meter: Meter | None = None, seconds: float = 1.0
) -> Power | None:
    """Measure a model's joules per example with the machine's counters, over runs of one batch.

    None if no counter can be read, or if it does not move, as in many virtual machines. Counters
    move every millisecond (processors) or tenth of a second (GPUs).
    """
    _check_amounts(seconds=seconds)
    rows = row_count(batch)
    if not rows:
        raise ValueError("the batch must have at least one example, but is empty")
    meter = meter or find_meter(gpu=runs_on_gpu(model))
    if meter is None:
        return None
    model(batch)  # a session's first call is slow
    _finish_gpu()
    before = _reading(meter)
    batches = len(timed_calls(model, batch, time.perf_counter() + seconds))
    _finish_gpu()
    after = _reading(meter)
    if before is None or after is None or before == after:
        return None
    joules = meter.joules_between(before, after) / (batches * rows)
    return Power(joules, "measured", meter.source, rows)


def _reading(meter: Meter) -> tuple[int, ...] | None:
    with suppress(OSError, ValueError):
        return meter.read()
    return None


def _finish_gpu() -> None:
    """Wait for the GPU's work: a call returns before the GPU is done."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def runs_on_gpu(model: Any) -> bool:
    """Whether a model, or a model in it, runs on something other than the processor."""
    return facts(model).device != "cpu"


# Estimated


def estimate_joules(
    flops: float,
    *,
    weight_bytes: float = 0.0,
    input_bytes: float = 0.0,
    output_bytes: float = 0.0,
    batch_size: int = 1,
) -> Power:
    """Estimate the joules per example from the FLOPs of one example and the bytes moved.

    ``flops * per_flop + (weights / batch_size + inputs + outputs) * per_byte``: the weights are
    read once per batch. The constants are those of a 45 nm chip at 0.9 V in single precision; a
    modern chip needs less of both, and 8-bit arithmetic far less per operation.

    Source: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
    figure 1.1.9: 32-bit floating-point multiplication 3.7 pJ and addition 0.9 pJ, DRAM 1.3-2.6 nJ
    for 64 bits.
    """
    moved = {"weight_bytes": weight_bytes, "input_bytes": input_bytes, "output_bytes": output_bytes}
    _check_amounts(flops=flops, **moved)
    check_at_least(1, batch_size=batch_size)
    bytes_moved = weight_bytes / batch_size + input_bytes + output_bytes
    picojoules = flops * PICOJOULES_PER_FLOP + bytes_moved * PICOJOULES_PER_BYTE
    source = f"{PICOJOULES_PER_FLOP:g} pJ per FLOP, {PICOJOULES_PER_BYTE:g} pJ per byte"
    return Power(picojoules / 1e12, "estimated", source, batch_size)


# Several models, with joules of one kind


@dataclass(frozen=True)
class Load:
    """A model and a batch to run it on."""

    model: Model
    batch: Any
    flops: float | None = None
    weight_bytes: float = 0.0


def find_joules(
    loads: Sequence[Load], *, meter: Meter | None = None, seconds: float = 1.0
) -> tuple[Power, ...]:
    """Return the joules per example of several loads: all measured, or all estimated, or none.

    All are measured by the same counters, `meter` or this machine's, each for `seconds`, so that
    they are comparable. The result has one `Power` per load, or is empty.

    Examples
    --------
    >>> import numpy as np
    >>> load = Load(lambda batch: batch, np.ones((2, 3)), flops=100)
    >>> [power.how for power in find_joules([load, load], meter=Meter("still", lambda: (0,), (1,)))]
    ['estimated', 'estimated']
    """
    meter = meter or find_meter(gpu=any(runs_on_gpu(load.model) for load in loads))
    measured: list[Power] = []
    for load in loads if meter is not None else ():
        power = measure_joules(load.model, load.batch, meter=meter, seconds=seconds)
        if power is None:
            break
        measured.append(power)
    if len(measured) == len(loads):
        return tuple(measured)
    if any(load.flops is None for load in loads):
        return ()
    return tuple(_estimated(load) for load in loads)


def with_joules(costs: Mapping[str, Cost], loads: Mapping[str, Load]) -> dict[str, Cost]:
    """Return costs with the joules that `find_joules` finds for the loads of the same names."""
    powers = dict(zip(loads, find_joules(list(loads.values())), strict=False))
    return {
        name: powers[name].add_to(cost) if name in powers else cost for name, cost in costs.items()
    }


def _estimated(load: Load) -> Power:
    assert load.flops is not None
    rows = row_count(load.batch)
    return estimate_joules(
        load.flops,
        weight_bytes=load.weight_bytes,
        input_bytes=_bytes(load.batch) / rows,
        output_bytes=_bytes(load.model(load.batch)) / rows,
        batch_size=rows,
    )


def _bytes(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return int(getattr(as_answer(value).output, "nbytes", 0))


def _check_amounts(**amounts: float) -> None:
    for name, value in amounts.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
