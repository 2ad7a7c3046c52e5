"""Promises about one batch, kept and paid for: ours beside `bargain`.

    python -m benchmarks.promises.measure --packages FOLDER

Ours (`ebjr.answer_within`) beside `bargain` 0.1.3, on five pairs, for batches of 1,000 to 50,000
rows, at delta 0.1. Each redraw draws a batch and a seed; both get the same batches, the same
scores, promise and delta. A promise is about the rows of the batch, and is broken where the final
answers miss it by as much as one row. What is asked counts once for a row, for the sample and for
the final answers alike.

**Agreement** is one figure to compare: rows asked. Both answer every row.

**Precision and recall** leave a choice: an empty set is precise, a set of all rows recalls all. So
both get the same budget of calls, and what comes out is compared: the recall of a set whose
precision is promised, the precision of one whose recall is. A budget is a most; what is really
asked is reported. `bargain` returns a set, which keeps rows that it paid to learn do not belong
there: `corrected` removes them, which can only help it. Where all rows must be answered, a row of
the set is a yes and any other a no: neither needs another call for that. `asked_for_same` is what
we ask where our mean utility reaches the rival's, between the budgets that were run by linear
interpolation, and `ratio` is that over the rows that the rival asked.

**Both** (`BARGAIN_PR`: precision and recall at once) takes no budget: rows asked are compared
again.

A batch larger than its pair is drawn with replacement, and `repeats` says so: CIFAR-10's and
CIFAR-100's at 50,000 rows, ImageNet's from 3,000 on, the texts' at 50,000.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, about, save
from benchmarks.promises import rival as package
from benchmarks.promises.ours import ours
from benchmarks.promises.pairs import PAIRS, Pair, load
from ebjr.files import write_whole
from ebjr.stats import share_interval

Way = Callable[[Pair, str, float, float, int, int | None], tuple[np.ndarray, np.ndarray]]
"""``way(pair, promise, at_least, delta, seed, calls) -> (asked_mask, final_answers)``, both (n,).

Answers are labels for ``"agreement"``, else whether the row is what is looked for."""

SIZES = (1000, 3000, 10_000, 50_000)
AGREEMENTS = (0.9, 0.95, 0.97, 0.99)
SHARE = 0.9
KEYS = ("pair", "n", "promise", "at_least", "calls")
PROMISES = ("agreement", "precision", "recall", "both")
BUDGETS = (100, 200, 400, 800, 1600)
DELTA = 0.1
MOST_OF_BOTH = 10_000
"""Rows: beyond it one run of `BARGAIN_PR`, whose test is quadratic in its sample, takes minutes."""


def corrected(way: Way) -> Way:
    """The same, with rows that were asked about answered as the teacher said."""

    def answer(
        pair: Pair, promise: str, at_least: float, delta: float, seed: int, calls: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        asked, answers = way(pair, promise, at_least, delta, seed, calls)
        truth = pair.teacher if promise == "agreement" else pair.wanted
        return asked, np.where(asked, truth, answers)

    return answer


WAYS: dict[str, Way] = {"ebjr": ours, "bargain": corrected(package.rival)}


def quality(pair: Pair, promise: str, answers: np.ndarray) -> dict[str, float]:
    """Agreement; or precision and recall, 1 of nothing."""
    if promise == "agreement":
        return {"agreement": float((answers == pair.teacher).mean())}
    hits = int((answers & pair.wanted).sum())
    found, wanted = int(answers.sum()), int(pair.wanted.sum())
    return {
        "precision": hits / found if found else 1.0,
        "recall": hits / wanted if wanted else 1.0,
    }


def kept(found: dict[str, float], promise: str, at_least: float) -> bool:
    """Tell whether the figures keep the promise, exactly."""
    promised = ("precision", "recall") if promise == "both" else (promise,)
    return all(found[name] >= at_least - 1e-12 for name in promised)


def settings(sizes: tuple[int, ...], promises: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every promise that is asked for, by pair and size."""
    for name, n in product(PAIRS, sizes):
        asked = {
            "agreement": [(share, None) for share in AGREEMENTS],
            "precision": [(SHARE, calls) for calls in BUDGETS if calls < n],
            "recall": [(SHARE, calls) for calls in BUDGETS if calls < n],
            "both": [(SHARE, None)] if n <= MOST_OF_BOTH else [],
        }
        for promise in promises:
            for at_least, calls in asked[promise]:
                yield dict(zip(KEYS, (name, n, promise, at_least, calls), strict=True))


def redraws(setting: dict[str, Any], way: str, count: int) -> dict[str, Any]:
    """Run one way on `count` batches of a setting; errors count as broken promises."""
    pair, promise, at_least = load(setting["pair"]), setting["promise"], setting["at_least"]
    asked, broken, failed, qualities = [], 0, 0, []
    began = time.perf_counter()
    for seed in range(count):
        batch = pair.draw(setting["n"], seed)
        try:
            with np.errstate(all="ignore"):
                mask, answers = WAYS[way](batch, promise, at_least, DELTA, seed, setting["calls"])
        except Exception as error:  # a rival's own fault is a result
            failed += 1
            last = f"{type(error).__name__}: {error}"
            continue
        found = quality(batch, promise, answers)
        asked.append(int(mask.sum()))
        qualities.append(found)
        broken += not kept(found, promise, at_least)
    share = share_interval(broken + failed, count)
    figures = {
        **setting,
        "way": way,
        "redraws": count,
        "repeats": setting["n"] > len(pair),
        "asked": round(float(np.mean(asked)), 1) if asked else None,
        "asked_share": round(float(np.mean(asked)) / setting["n"], 4) if asked else None,
        "broken": round(share.estimate, 4),
        "broken_interval": [round(share.low, 4), round(share.high, 4)],
        "seconds": round((time.perf_counter() - began) / count, 4),
    }
    if qualities:
        figures |= {
            name: round(float(np.mean([one[name] for one in qualities])), 4)
            for name in qualities[0]
        }
    if failed:
        figures |= {"failed": failed, "last_error": last}
    return figures


def compared(rows: Sequence[Mapping[str, Any]], ours: str, rival: str) -> list[dict[str, Any]]:
    """Rows that we ask over those that a rival asks, by setting, see this module."""
    own, found = [row for row in rows if row["way"] == ours], []
    for row in (row for row in rows if row["way"] == rival and row["asked"]):
        alike = [one for one in own if all(one[key] == row[key] for key in KEYS if key != "calls")]
        if not alike:
            continue
        asked: float | None = alike[0]["asked"]
        if (
            utility := {"precision": "recall", "recall": "precision"}.get(row["promise"])
        ) is not None:
            asked = asked_for(alike, utility, row[utility])
        ratio = None if asked is None else round(asked / row["asked"], 3)
        found.append({**{key: row[key] for key in KEYS}, "asked_for_same": asked, "ratio": ratio})
    return found


def asked_for(rows: Sequence[Mapping[str, Any]], utility: str, wanted: float) -> float | None:
    """Rows asked where a utility is reached, interpolated between budgets; None: at none of them.

    Examples
    --------
    >>> rows = [{"asked": 100, "recall": 0.5}, {"asked": 200, "recall": 0.7}]
    >>> [asked_for(rows, "recall", wanted) for wanted in (0.6, 0.9, 0.2)]
    [150.0, None, 100.0]
    >>> asked_for([*rows, {"asked": 400, "recall": 0.7}], "recall", 0.7)
    200.0
    """
    asked, reached = (
        np.array([row[name] for row in sorted(rows, key=lambda row: row["asked"])], np.float64)
        for name in ("asked", utility)
    )
    reached = np.maximum.accumulate(reached)
    if wanted > reached[-1]:
        return None
    first = int(np.searchsorted(reached, wanted))  # the least budget of those that reach it
    ends = slice(max(first - 1, 0), first + 1)
    return round(float(np.interp(wanted, reached[ends], asked[ends])), 1)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redraws", type=int, default=1000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--promises", nargs="+", default=PROMISES)
    parser.add_argument("--ways", nargs="+", default=tuple(WAYS), choices=tuple(WAYS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--packages", type=Path, required=True, help="where bargain is, or is put")
    parser.add_argument("--partial", type=Path, help="kept here as it comes, and gone on from")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def main() -> None:
    """Run every setting and write `promises.json`."""
    options = arguments()
    package.install(options.packages)
    rows = (
        json.loads(options.partial.read_text())
        if options.partial and options.partial.exists()
        else []
    )
    done = {(row["way"], *(row[key] for key in KEYS)) for row in rows}
    work = [
        (setting, way)
        for setting in settings(tuple(options.sizes), tuple(options.promises))
        for way in options.ways
        if (way, *(setting[key] for key in KEYS)) not in done
    ]
    with get_context("fork").Pool(options.processes) as pool:
        for row in pool.imap(partial(_one, count=options.redraws), work):
            rows.append(row)
            print(_line(row), flush=True)
            if options.partial:
                with write_whole(options.partial) as file:
                    file.write(json.dumps(rows))
    save(
        "promises",
        {**about(0), "delta": DELTA, "rival": package.PACKAGE, "rows": rows},
        options.folder,
    )


def _line(row: dict[str, Any]) -> str:
    names = (
        "pair",
        "n",
        "promise",
        "at_least",
        "calls",
        "way",
        "asked_share",
        "broken",
        "agreement",
        "precision",
        "recall",
    )
    return " ".join(f"{name}={row[name]}" for name in names if row.get(name) is not None)


def _one(work: tuple[dict[str, Any], str], count: int) -> dict[str, Any]:
    return redraws(*work, count)


if __name__ == "__main__":
    main()
