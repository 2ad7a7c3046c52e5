"""Cost of starting: `import ebjr` beside NumPy, and `ebjr --help` beside Typer and Rich.

Each is a process of its own, and what it costs is the processor time of that process, the
interpreter's own included. All take turns: a change of the machine's speed meets them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from benchmarks.machine import about, save

ROUNDS = 15
SCRIPTS = {
    "interpreter": "pass",
    "import_numpy": "import numpy",
    "import_ebjr": "import ebjr",
    "import_typer_and_rich": "import typer, rich",
    "ebjr_help": "import sys; sys.argv = ['ebjr', '--help']; from ebjr.cli import main; main()",
}
RATIOS = {
    "import_ebjr_over_import_numpy": ("import_ebjr", "import_numpy"),
    "ebjr_help_over_import_typer_and_rich": ("ebjr_help", "import_typer_and_rich"),
}


def processor_seconds(script: str) -> float:
    """Processor time of a Python process that runs some lines."""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {script}")
    return used.ru_utime + used.ru_stime


def measure(rounds: int = ROUNDS) -> dict[str, list[float]]:
    """By script: its processor time in each round, after one that fills the caches."""
    for script in SCRIPTS.values():
        processor_seconds(script)
    found: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    for _ in range(rounds):
        for name, script in SCRIPTS.items():
            found[name].append(processor_seconds(script))
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The median ratios of whole processes: the interpreter's own time is in both."""
    return {
        name: round(
            statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3
        )
        for name, (one, other) in RATIOS.items()
    }


def main() -> None:
    """Measure, and write the result file."""
    found = measure()
    medians = {name: round(1e3 * statistics.median(each), 1) for name, each in found.items()}
    figures = {"rounds": ROUNDS, "milliseconds_of_processor_time": medians, **ratios(found)}
    save("startup", {**about(seed=0), **figures})


if __name__ == "__main__":
    main()
