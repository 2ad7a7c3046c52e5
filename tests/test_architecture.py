"""ARCHITECTURE.md says where each equation is, and a newcomer's first guess is right."""

from __future__ import annotations

import ast
import re

import pytest

from docs.make.sources import ROOT

SOURCE = ROOT / "src/ebjr"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (`.+?) \| (.+?) \|$", TEXT, re.MULTILINE)
EQUATIONS = [
    (*map(int, re.findall(r"\d+", what.partition(":")[0])), path.strip("`"), name.strip("`"))
    for what, path, name in ROWS
    if what.startswith("eq.")
]

GUESSES = {
    "eq. 3": ("scores.py", r"eq\. 3"),
    "eq. 6": ("router.py", r"eq\. 6"),
    "eq. 13": ("tasks/detection/scores.py", r"eq\. 13"),
    "eq. 16": ("tasks/specialized/scores.py", r"eq\. 16"),
    "the importance sampling": ("tasks/regression/models.py", "importance sampling"),
    "the proof of the guarantee": ("calibration/guarantee.py", r"\*Proof\.\*"),
    "the knob's route": ("serving/knob_control.py", r"``/v1/router``"),
    "where rows are re-batched": ("serving/row_queue.py", r"(?i)batch"),
}
"""The newcomer's test of CONTRIBUTING.md: the file guessed from its name, and what is in it."""


def docstrings(path: str) -> dict[str, str]:
    """The docstrings of a module, its classes and functions, by name; the module's is ''."""
    tree = ast.parse((SOURCE / path).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {
        node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, kinds)
    }
    return {"": ast.get_docstring(tree) or "", **found}


def equations_in(text: str) -> set[int]:
    """The numbers of the equations that a text mentions, ranges included."""
    found = set[int]()
    for numbers in re.findall(r"(?i)eq\. ((?:\d+|-|, | and )+)", text):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers):
            found |= set(range(int(first), int(last or first) + 1))
    return found


@pytest.mark.parametrize("row", EQUATIONS, ids=lambda row: f"{row[-1]}-{row[0]}")
def test_the_docstring_at_an_equations_place_mentions_it(row):
    *numbers, path, name = row
    known = docstrings(path)
    assert set(numbers) <= equations_in(known[""] + known[name])


def test_every_equation_that_is_code_has_a_row():
    assert {number for row in EQUATIONS for number in row[:-2]} == {
        *(3, 6, 7, 8, 9, 12, 13, 14, 16, 17, 18)
    }


@pytest.mark.parametrize("what", GUESSES)
def test_the_first_guess_is_right(what):
    path, words = GUESSES[what]
    assert re.search(words, "\n".join(docstrings(path).values()))
    line = next(
        line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if what in line
    )
    assert f"`{path}`" in line


def test_every_file_that_the_architecture_names_is_there():
    named = set(re.findall(r"`([\w./]+\.(?:py|json|proto))`", TEXT)) - {"tasks/TASK/scores.py"}
    missing = [
        path
        for path in named
        if not ((SOURCE / path).exists() or (ROOT / path).exists()) and not list(SOURCE.rglob(path))
    ]
    assert len(named) > 30
    assert not missing
