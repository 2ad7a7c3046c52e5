"""What a result file says about the run that made it: for benchmarks and experiments alike."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from ebjr.files import write_whole


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


def save(name: str, figures: dict[str, Any], folder: Path) -> None:
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
