"""Saving and loading outcomes beside NumPy: `python -m benchmarks.outcomes`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import about, save
from ebjr import Outcomes

EXAMPLES, CLASSES = 50_000, 1_000
TRIES = 7


def plain(path: Path, arrays: dict[str, Any], *, flush: bool) -> None:
    """Write the arrays as NumPy does; `flush` waits for the disk, as our files do."""
    with path.open("wb") as file:
        np.savez(file, **arrays)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> dict[str, Any]:
    """All arrays, as NumPy reads them."""
    with np.load(path) as arrays:
        return dict(arrays)


def main() -> None:
    """Time every way in turn, several times, and write the result file."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(EXAMPLES, CLASSES)).astype(np.float32) for _ in range(2)]
    table = Outcomes(*rows, rng.integers(0, CLASSES, EXAMPLES))
    arrays = {"student": table.student, "teacher": table.teacher, "targets": table.targets}
    with tempfile.TemporaryDirectory() as name:
        ours, theirs = Path(name) / "ours.npz", Path(name) / "theirs.npz"
        ways: dict[str, Callable[[], object]] = {
            "np.savez": lambda: plain(theirs, arrays, flush=False),
            "np.savez, flushed to the disk": lambda: plain(theirs, arrays, flush=True),
            "Outcomes.save": lambda: table.save(ours),
            "np.load": lambda: read(theirs),
            "Outcomes.load": lambda: Outcomes.load(ours),
            "Outcomes.fingerprint": lambda: table.fingerprint,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(TRIES):
            for way, job in ways.items():
                os.sync()  # what the job before left to be written is not this one's
                began = time.perf_counter()
                job()
                seconds[way].append(time.perf_counter() - began)
        sizes = [round(path.stat().st_size / 2**20, 1) for path in (ours, theirs)]
    median = {way: float(np.median(each)) for way, each in seconds.items()}
    pairs = {
        "save / np.savez": ("Outcomes.save", "np.savez"),
        "save / np.savez, flushed": ("Outcomes.save", "np.savez, flushed to the disk"),
        "load / np.load": ("Outcomes.load", "np.load"),
    }
    figures: dict[str, Any] = {
        **about(seed=0),
        "examples": EXAMPLES,
        "classes": CLASSES,
        "mebibytes": dict(zip(("outcomes", "np.savez"), sizes, strict=True)),
        "median_seconds": {way: round(value, 2) for way, value in median.items()},
        "ratio": {name: round(median[a] / median[b], 2) for name, (a, b) in pairs.items()},
    }
    save("outcomes", figures)


if __name__ == "__main__":
    main()
