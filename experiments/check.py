"""Make rows of the table again: `python -m experiments.check ROW [ROW ...]`, or `--all SCRIPT`.

A row's name is the first column of the table, as ``fig3_ablation/2``. The one step of its script
that found it runs on what is committed; all other steps are taken from the result file. What comes
out is printed beside what is committed, and the exit status is 1 where they differ by more than
another machine's arithmetic makes. Times are made again, too, and not compared.
"""

from __future__ import annotations

import argparse
import copy
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments import frame
from experiments.frame import Run
from experiments.table import ours, results

NEAR = 0.005
"""By which part of itself a figure may differ: libraries sum in another order elsewhere."""

WIDE = 0.05
"""The same of an interval's ends, which a resample more or less moves."""


class Again(Run):
    """A run that makes one step anew and takes the others from the result file."""

    kept: Mapping[str, Any]
    wanted: str
    place: Path

    @property
    def folder(self) -> Path:
        """Return a temporary folder for its pictures."""
        return self.place

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the file's steps except the one to remake."""
        anew = name == self.wanted or name not in self.kept
        self.steps[name] = frame._plain(make()) if anew else copy.deepcopy(self.kept[name])
        return self.steps[name]


def again(name: str, result: Mapping[str, Any], step: str) -> list[dict[str, Any]]:
    """Every row of a script, one of its steps made anew."""
    script = import_module(f"experiments.{name}")
    with TemporaryDirectory() as folder:
        run = Again(name, result["figure"], asked=Namespace(add=None))
        run.kept, run.wanted, run.place = result["steps"], step, Path(folder)
        script.main(run)
    return run.rows


def near(one: Any, other: Any, share: float) -> bool:
    """Tell whether two figures agree up to a share."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= share * max(abs(one), abs(other), 0.1)
    return bool(one == other)


def same(kept: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Tell whether a row agrees with the file."""
    ends = [row["interval"] or [] for row in (kept, made)]
    return (
        kept["what"] == made["what"]
        and near(kept["ours"], made["ours"], NEAR)
        and (kept["points"] is None) == (made["points"] is None)
        and abs((kept["points"] or 0.0) - (made["points"] or 0.0)) <= 0.02
        and len(ends[0]) == len(ends[1])
        and all(near(one, other, WIDE) for one, other in zip(*ends, strict=True))
    )


def find(row: str, found: Mapping[str, Any]) -> tuple[str, int]:
    """The script and the place of a row.

    Raises
    ------
    ValueError
        `row` names none.
    """
    name, _, place = row.partition("/")
    count = len(found[name]["rows"]) if name in found else 0
    if not place.isdecimal() or not 1 <= int(place) <= count:
        scripts = ", ".join(one for one, result in found.items() if result["rows"])
        there = f"1 to {count}" if count else f"of {scripts}"
        raise ValueError(f"there is no row {row}: give SCRIPT/NUMBER, {there}")
    return name, int(place) - 1


def check(row: str, found: Mapping[str, Any]) -> bool:
    """Make a row again, print both, and say whether they are one."""
    name, place = find(row, found)
    kept = found[name]["rows"][place]
    print(f"{row}: {kept['what']}\n  committed: {ours(kept)}{points(kept)}")
    if not kept.get("step"):
        print(f"  not made again: experiments.{name} has read it from elsewhere, or has not run it")
        return False
    made = again(name, found[name], kept["step"])[place]
    print(f"  made again: {ours(made)}{points(made)}")
    if kept["timed"]:
        print("  a time: another machine, or a busier one, has another")
        return True
    equal = same(kept, made)
    print("  the same" if equal else "  NOT the same")
    return equal


def points(row: Mapping[str, Any]) -> str:
    """Its accuracy, as printed behind its figure."""
    return "" if row["points"] is None else f" at {row['points']:+.2f} points"


def main() -> None:
    """Check the rows that are asked for."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("rows", nargs="*", metavar="ROW", help="as fig3_ablation/2")
    words.add_argument("--all", metavar="SCRIPT", help="every row of a script")
    asked, found = words.parse_args(), results()
    rows = list(asked.rows)
    if asked.all in found:
        rows += [f"{asked.all}/{place + 1}" for place in range(len(found[asked.all]["rows"]))]
    elif asked.all is not None:
        words.error(f"there is no result file of {asked.all}: {', '.join(found)}")
    if not rows:
        words.error("name a row, as fig3_ablation/2, or --all SCRIPT")
    try:
        for row in rows:
            find(row, found)
    except ValueError as error:
        words.error(str(error))
    equal = [check(row, found) for row in rows]
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
