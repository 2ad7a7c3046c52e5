"""The result file as tables: `python -m benchmarks.promises.table [promises.json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.promises.measure import AGREEMENTS, BUDGETS, KEYS, PROMISES, SHARE, compared

OURS, RIVAL = "ebjr", "bargain"


def table(rows: Sequence[Mapping[str, Any]], promise: str) -> str:
    """A line for each pair and size: our rows asked over the rival's, and ours broken in percent.

    A dash is where our utility never reaches the rival's.
    """
    over_budgets = promise in ("precision", "recall")
    columns = [(SHARE, calls) for calls in BUDGETS] if over_budgets else [(SHARE, None)]
    if promise == "agreement":
        columns = [(share, None) for share in AGREEMENTS]
    titles = [f"{calls:,} calls" if over_budgets else f"{share:g}" for share, calls in columns]
    ratios = {_key(row): row["ratio"] for row in compared(rows, OURS, RIVAL)}
    broken = {_key(row): row["broken"] for row in rows if row["way"] == OURS}
    lines = [f"| pair | rows | {' | '.join(titles)} |", "|---" * (2 + len(columns)) + "|"]
    for pair, n in dict.fromkeys((row["pair"], row["n"]) for row in rows):
        keys = [(pair, n, promise, *column) for column in columns]
        cells = [_cell(ratios[key], broken[key]) if key in ratios else "" for key in keys]
        lines.append(f"| {pair} | {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(ratio: float | None, broken: float) -> str:
    return f"{'–' if ratio is None else f'{ratio:.2f}'} ({100 * broken:.1f} %)"


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEYS)


def main() -> None:
    """Print a table for each promise."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "promises.json"
    rows = json.loads(file.read_text())["rows"]
    for promise in PROMISES:
        print(f"\n**{promise}**\n\n{table(rows, promise)}")


if __name__ == "__main__":
    main()
