"""How models are timed, and what a result file says about the run that made it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ebjr.files import write_whole

RESULTS = Path(__file__).parent / "results"
PASSES = 5

Measured = TypeVar("Measured")


def about(seed: int) -> dict[str, Any]:
    """Command, seed, commit and machine of this run, and how busy that was when it began."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "seed": seed,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def seconds_of(model: Callable[[np.ndarray], Any], batch: np.ndarray) -> float:
    """How long a model takes to answer a batch."""
    began = time.perf_counter()
    model(batch)
    return time.perf_counter() - began


def passes(
    measure: Callable[[np.ndarray], Measured], rows: np.ndarray, warm_up: int
) -> list[Measured]:
    """What each pass over some rows measures, after one over the first of them to warm up."""
    measure(rows[:warm_up])
    return [measure(rows) for _ in range(PASSES)]


def save(name: str, figures: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write a result file and print it."""
    text = json.dumps(figures, indent=2)
    with write_whole(folder / f"{name}.json") as file:
        file.write(text + "\n")
    print(text)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return "unknown" if spec is None else spec.name


def _processor() -> str:
    lines = Path("/proc/cpuinfo")
    if not lines.exists():
        return platform.processor() or platform.machine()
    names = [line for line in lines.read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()
