"""Writing the report of a million examples: `python -m benchmarks.report`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.calibration import CLASSES, EXAMPLES, outcomes
from benchmarks.machine import about, save
from ebjr import run_study


def main() -> None:
    """Time the study, and what its report takes then; write the result file."""
    table = outcomes(EXAMPLES)
    began = time.perf_counter(), time.process_time()
    study = run_study(table, "match-teacher", tolerance=0.01)
    ready = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        study.write_report(file, title="A million examples")
        size = file.stat().st_size
    done = time.perf_counter(), time.process_time()
    figures = {"study": parts(began, ready), "report": parts(ready, done), "bytes": size}
    save("report", {**about(seed=0), "examples": EXAMPLES, "classes": CLASSES, **figures})


def parts(start: tuple[float, float], end: tuple[float, float]) -> dict[str, Any]:
    """Seconds on the clock and of the processor between two readings of both."""
    clock, processor = (round(b - a, 2) for a, b in zip(start, end, strict=True))
    return {"seconds": clock, "processor_seconds": processor}


if __name__ == "__main__":
    main()
