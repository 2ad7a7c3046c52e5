"""Write `README.md` of this folder from the result files: `python -m experiments.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ebjr.files import write_whole

HERE = Path(__file__).parent
README = HERE / "README.md"
FOLDERS = ("results", "rivals/results", "rivals")
"""Where result files of a `Run` are; later ones come after the paper's own."""

ORDER = (
    "table1",
    "table1_latency",
    "fig2_fig3",
    "fig3_ablation",
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


def difference(row: dict[str, Any]) -> str:
    """Ours against the paper's, where both are numbers; bold where ours is no worse.

    A figure that is neither better nor worse, such as a count, is never bold.

    Examples
    --------
    >>> difference({"paper": 2.0, "ours": 3.0, "unit": "x", "lower": False, "points": None})
    '**+1x**'
    """
    words = []
    paper, ours = row["paper"], row["ours"]
    if not isinstance(paper, str | None) and not isinstance(ours, str):
        gap = ours - paper
        text = f"{gap:+.3g}" + (
            "x" if row["unit"] == "x" else f" {row['unit']}" * bool(row["unit"])
        )
        good = row["lower"] is not None and (gap <= 0 if row["lower"] else gap >= 0)
        words.append(f"**{text}**" if good else text)
    if row["points"] is not None:
        words.append(f"at {row['points']:+.2f} points of the teacher's accuracy")
    return "; ".join(words)


def line(cells: list[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """Every comparison, a row each."""
    lines = [
        line(["figure", "command", "minutes", "what", "paper", "ours", "difference", "why"]),
        "|---|---|--:|---|--:|--:|---|---|",
    ]
    for name, result in found.items():
        module = ".".join(["experiments", *Path(result["folder"]).parts, name])
        module = module.replace(".results.", ".")
        first = [result["figure"], f"`python -m {module}`", number(result["minutes"])]
        for row in result["rows"]:
            cells = [
                row["what"],
                number(row["paper"], row["unit"]),
                number(row["ours"], row["unit"]),
            ]
            lines.append(line([*first, *cells, difference(row), row["why"]]))
            first = ["", "", ""]
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
    head = (HERE / "head.md").read_text().rstrip()
    lines = [head, "", "## The table", "", *table(found), "", "## The pictures", *pictures(found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with write_whole(README) as stream:
        stream.write(page())
    print(README)
