"""Timing of models, free ports, and the folder of result files."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import runs
from runs import about

__all__ = ["PASSES", "RESULTS", "about", "free_port", "passes", "save", "seconds_of"]

RESULTS = Path(__file__).parent / "results"
PASSES = 5

Measured = TypeVar("Measured")


def seconds_of(model: Callable[[np.ndarray], Any], batch: np.ndarray) -> float:
    """Return the seconds that a model takes to answer a batch."""
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


def passes(
    measure: Callable[[np.ndarray], Measured], rows: np.ndarray, warm_up: int
) -> list[Measured]:
    """Return each pass's measurement over some rows, after a warm-up on the first of them."""
    measure(rows[:warm_up])
    return [measure(rows) for _ in range(PASSES)]


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a result file and print it."""
    runs.save(name, figures, folder)
