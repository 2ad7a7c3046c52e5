"""Write `README.md` of this folder from the result files: `python -m experiments.table`.

A summary of one screen comes first (`experiments.claims`), then how to read it (``head.md``), then
every row: its name, by which `python -m experiments.check` makes it again, and what is honest to
put beside it (`experiments.baselines`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebjr.files import write_whole
from experiments.claims import standing, summary

HERE = Path(__file__).parent
README = HERE / "README.md"
FOLDERS = ("results", "rivals/results", "rivals")
"""Where result files of a `Run` are; later ones come after the paper's own."""

ORDER = (
    "table1",
    "table1_latency",
    "fig2_fig3",
    "fig3_ablation",
    "baselines",
    "fig4",
    "table2_power",
    "fig5_resolution",
    "significance",
    "fig5_detection",
    "fig6_specialized",
    "edge_cloud",
)
"""The paper's order; what is not in it follows by name."""


def results() -> dict[str, dict[str, Any]]:
    """By script, in the paper's order: the result files that a `Run` wrote in full."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((HERE / folder).glob("*.json")):
            result = json.loads(file.read_text())
            if "rows" in result and not result.get("quick"):
                found.setdefault(file.stem, {**result, "folder": folder})
    places = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (places.get(item[0], len(ORDER)), item[0])))


def number(value: Any, unit: str = "") -> str:
    """A figure as people write it.

    Examples
    --------
    >>> number(2.1503, "x"), number(34201.0, "MFLOPs"), number(None), number("none")
    ('2.15x', '34,201 MFLOPs', '', 'none')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    joined = unit if unit == "x" or not unit else f" {unit}"
    return f"{value:,.0f}{joined}" if abs(value) >= 1000 else f"{value:.4g}{joined}"


def ours(row: dict[str, Any]) -> str:
    """Our figure, and its interval.

    Examples
    --------
    >>> ours({"ours": 4.366, "unit": "x", "interval": [3.142, 6.03]})
    '4.366x (3.14 to 6.03)'
    """
    text = number(row["ours"], row["unit"])
    return text + (" ({:.3g} to {:.3g})".format(*row["interval"]) if row.get("interval") else "")


def difference(row: dict[str, Any]) -> str:
    """Compare ours with the paper's, if both are numbers.

    Bold where ours is beyond the paper's: no less accurate than the paper's own loss allows, and
    its interval lies on the better side of the paper's figure. Where it is less accurate than that
    there is no difference to speak of. A count, which is neither better nor worse, is never bold.

    Examples
    --------
    >>> row = {"paper": 2.0, "ours": 3.0, "unit": "x", "lower": False, "points": -0.1, "loss": 0.0}
    >>> difference({**row, "interval": [2.5, 3.5]})
    'not at equal accuracy'
    >>> difference({**row, "points": 0.0, "interval": [2.5, 3.5]})
    '**+1x**'
    """
    paper, ours = row["paper"], row["ours"]
    if isinstance(paper, str | None) or isinstance(ours, str):
        return ""
    if standing(row) == "unequal":
        return "not at equal accuracy"
    gap = f"{ours - paper:+.3g}" + (
        "x" if row["unit"] == "x" else f" {row['unit']}" * bool(row["unit"])
    )
    return f"**{gap}**" if standing(row) == "beyond" else gap


def accuracy(row: dict[str, Any]) -> str:
    """Points over the teacher, and how far under it the paper's figure is.

    Examples
    --------
    >>> accuracy({"paper": 2.15, "points": -0.188, "loss": 0.02})
    '-0.19 (paper -0.02)'
    """
    if row["points"] is None:
        return ""
    text = f"{round(row['points'], 2) + 0.0:+.2f}"
    return text if row["paper"] is None else f"{text} (paper {-row.get('loss', 0.0) + 0.0:.2g})"


def line(cells: list[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Every comparison, a row each, by figure."""
    beside = found["baselines"]["figures"]["pairs"] if "baselines" in found else {}
    lines: list[str] = []
    for name, result in found.items():
        if not result["rows"]:
            continue
        module = ".".join(["experiments", *Path(result["folder"]).parts, name])
        module = module.replace(".results.", ".")
        command = f"`python -m {module}`, {number(result['minutes'])} minutes, {result['commit']}"
        head = ["row", "what", "paper", "ours", "difference", "points", "why", "beside it"]
        lines += ["", f"### {result['figure']}", "", command, "", line(head)]
        lines.append("|---|---|--:|--:|--:|--:|---|---|")
        for place, row in enumerate(result["rows"], start=1):
            pair = beside.get(row.get("pair", ""), {})
            cells = [number(row["paper"], row["unit"]), ours(row), difference(row), accuracy(row)]
            names = [f"`{name}/{place}`", row["what"]]
            lines.append(line([*names, *cells, row["why"], pair.get("words", "")]))
    return lines


def pictures(found: dict[str, dict[str, Any]]) -> list[str]:
    """Every picture under its figure's name."""
    lines = []
    for result in found.values():
        for picture in result["pictures"]:
            figure, file = result["figure"], f"{result['folder']}/{picture}"
            lines += ["", f"**{figure}**", "", f"![{figure}]({file})"]
            if result.get("caption"):
                lines += ["", result["caption"]]
    return lines


def page() -> str:
    """The whole README."""
    found = results()
    title, _, head = (HERE / "head.md").read_text().rstrip().partition("<!-- The summary. -->")
    lines = [
        title.rstrip(),
        "",
        *summary(found),
        "",
        head.strip(),
        "",
        "## The table",
        *table(found),
    ]
    return "\n".join([*lines, "", "## The pictures", *pictures(found)]) + "\n"


if __name__ == "__main__":
    with write_whole(README) as stream:
        stream.write(page())
    print(README)
