"""Shared by the scripts of figures: command line, result file, colors, pictures.

A script is one function of a `Run`, which says what the paper found and what was found here:

    def main(run: Run) -> dict[str, Any]:
        found = run.step("cifar10", lambda: measure(load("cifar10")))
        run.compare("CIFAR-10: times fewer FLOPs", paper=2.15, ours=found["times_fewer_flops"])
        return {"cifar10": found}

    if __name__ == "__main__":
        start(main, "Figure 2")

`python -m experiments.NAME` writes ``results/NAME.json`` and, where there is a picture,
``results/NAME.svg``; ``--quick`` looks at less and writes to ``results/quick``, which is not
committed. What a step has found is kept until the whole is written, so that a run that was ended
goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebjr.evaluation.plots import PALETTE
from ebjr.files import write_whole
from runs import about

RESULTS = Path(__file__).parent / "results"

COLORS: Mapping[str, str] = {
    **PALETTE,
    "learned": "#1B1F24",
    "auto and blend": PALETTE["chosen"],
    "teacher": "#1B1F24",
    "paper": "#A0A6AE",
    "single": "#1B1F24",
    "added": "#7A5C00",
    "energy (eq. 14)": PALETTE["energy"],
    "number of boxes": "#56B4E9",
    "learned gain": "#1B1F24",
    "adaptive feeding": "#009E73",
    "specialized": PALETTE["specialized_energy"],
    "general": PALETTE["softmax"],
    "slimmable": "#A6761D",
    "early exits": "#C2185B",
    "multi-scale exits": "#5B8C1A",
}
"""One color a thing, the same in every picture, and the same as in the library's own plots."""

OURS = (PALETTE["chosen"], "#A79FEA", "#1D1766")
"""Where a picture shows several joint models: shades of one color."""


@dataclass
class Run:
    """One run of a script.

    Attributes
    ----------
    name, figure
        The script's, and what it reproduces.
    quick
        Whether to look at less.
    asked
        The options of the script's own.
    caption
        A sentence or two under the picture.
    source
        The script's own text: steps of another are not taken over.
    steps
        What each step has found, in their order.
    about
        Command, commit and machine, and how busy that was when the run began.
    """

    name: str
    figure: str
    quick: bool = False
    asked: argparse.Namespace = field(default_factory=argparse.Namespace)
    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    caption: str = ""
    source: str = ""
    seconds: float = 0.0
    steps: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.about = about(seed=0)  # of the first split; the others have 1, 2 and so on

    @property
    def folder(self) -> Path:
        """Return the folder of its results."""
        return RESULTS / "quick" if self.quick else RESULTS

    def compare(
        self,
        what: str,
        *,
        paper: float | str | None,
        ours: float | str,
        unit: str = "",
        lower: bool | None = False,
        points: float | None = None,
        why: str = "",
        interval: Sequence[float] | None = None,
        loss: float = 0.0,
        pair: str = "",
        step: str | None = None,
        timed: bool = False,
    ) -> None:
        """Add a line to the table: the paper's figure, ours, and why they differ.

        Parameters
        ----------
        what
            The task and the figure.
        paper, ours
            Numbers, so that the difference is computed, or words. None: the paper has no such
            figure.
        unit
            Of both numbers: ``"x"`` for times, ``"%"``, ``"MFLOPs"``.
        lower
            Whether a lower number is better; None: neither is.
        points
            Accuracy over the teacher's where ours was measured, in points.
        why
            A sentence.
        interval
            The ends of the 95 % interval of `ours`.
        loss
            How many points of accuracy the paper gives up for its figure.
        pair
            The name of the pair in `experiments.pairs`, whose baselines stand beside the row.
        step
            The step that found `ours`, the last one if left out; "": no step of this script did.
        timed
            Whether `ours` is a time, which another machine does not repeat.
        """
        made_by = next(reversed(self.steps), "") if step is None else step
        row = {"what": what, "paper": paper, "ours": ours, "unit": unit, "lower": lower}
        row |= {"interval": None if interval is None else list(interval), "points": points}
        row |= {"loss": loss, "pair": pair, "step": made_by, "timed": timed, "why": why}
        self.rows.append(_plain(row))

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a step's finding as JSON; one that a stopped run left is not remade."""
        kept = self._kept()
        if name not in kept["steps"]:
            began = time.perf_counter()
            kept["steps"][name] = _plain(make())
            kept["seconds"] += time.perf_counter() - began
            with write_whole(self._partial) as file:
                json.dump(kept, file)
            print(f"{self.name}: {name}", flush=True)
        self.seconds = kept["seconds"]
        self.steps[name] = kept["steps"][name]
        return kept["steps"][name]

    @contextmanager
    def picture(self, columns: int = 1, rows: int = 1, **options: Any) -> Iterator[Any]:
        """Axes (rows, columns) to draw on; ``NAME.svg`` when they are done."""
        import matplotlib

        matplotlib.use("svg")
        from matplotlib import pyplot as plt

        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "ebjr", "font.family": "sans-serif"}
        )
        size = options.pop("figsize", (4.2 * columns, 3.5 * rows))
        canvas, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **options
        )
        for axis in axes.flat:
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(color="#E6E8EB", linewidth=0.6)
            axis.set_axisbelow(True)
        yield axes
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(canvas)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_whole(self.folder / f"{self.name}.svg") as file:
            file.write("\n".join(lines) + "\n")
        self.pictures.append(f"{self.name}.svg")

    @contextmanager
    def panels(self, count: int, label: str, more: int = 1) -> Iterator[Any]:
        """Make the axes of `count` panels, three in a row, with one legend for all.

        `label` is of the y axis; the legend has `more` columns than there are panels in a row.
        """
        columns = min(count, 3)
        with self.picture(columns, -(-count // 3)) as axes:
            yield axes.flat[:count]
            for axis in axes.flat[count:]:
                axis.set_axis_off()
            first = axes[0, 0]
            first.set_ylabel(label)
            handles, labels = first.get_legend_handles_labels()
            place = {"loc": "outside lower center", "ncols": more + columns, "frameon": False}
            first.figure.legend(handles, labels, fontsize=9, **place)

    def save(self, figures: Mapping[str, Any]) -> Path:
        """Write the result file, and forget the steps."""
        result = {
            **self.about,
            "figure": self.figure,
            "quick": self.quick,
            "minutes": round(self.seconds / 60, 1),
            "pictures": self.pictures,
            "caption": self.caption,
            "rows": self.rows,
            "figures": _plain(figures),
            "steps": _plain(self.steps),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.json"
        with write_whole(path) as file:
            file.write(json.dumps(result, indent=1) + "\n")
        self._partial.unlink(missing_ok=True)
        return path

    @property
    def _partial(self) -> Path:
        return self.folder / f"{self.name}.partial.json"

    def _kept(self) -> dict[str, Any]:
        """The steps of a run that was ended, if it was of this script and these options."""
        source = hashlib.sha256(self.source.encode()).hexdigest()
        made_by = {"source": source, "asked": str(self.asked)}
        if self._partial.exists():
            kept: dict[str, Any] = json.loads(self._partial.read_text())
            if kept["made_by"] == made_by:
                return kept
        self.folder.mkdir(parents=True, exist_ok=True)
        return {"made_by": made_by, "steps": {}, "seconds": 0.0}


def start(
    main: Callable[[Run], Mapping[str, Any]],
    figure: str,
    options: Callable[[argparse.ArgumentParser], None] = lambda words: None,
) -> None:
    """Run a script from the command line: `--quick` and its own `options`."""
    words = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    words.add_argument("--quick", action="store_true", help="look at less; results/quick")
    options(words)
    asked = words.parse_args()
    spec = sys.modules["__main__"].__spec__
    name = "unknown" if spec is None else spec.name.rpartition(".")[2]
    run = Run(name, figure, asked.quick, asked)
    run.source = Path(sys.argv[0]).read_text()
    path = run.save(main(run))
    for row in run.rows:
        print(f"{row['what']}: paper {row['paper']}, ours {row['ours']} {row['unit']}".rstrip())
    print(path)


def _plain(value: Any) -> Any:
    """Convert to what JSON returns, NumPy's numbers to plain ones."""
    return json.loads(json.dumps(value, default=lambda number: number.tolist()))
