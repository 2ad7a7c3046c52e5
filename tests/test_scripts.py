"""Benchmarks and experiments stand on their own: neither imports the other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def imported(file: Path) -> set[str]:
    """The packages that a file imports from."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    taken = [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in (*plain, *taken)}


@pytest.mark.parametrize(
    ("one", "other"), [("benchmarks", "experiments"), ("experiments", "benchmarks")]
)
def test_neither_imports_the_other(one, other):
    files = sorted((ROOT / one).rglob("*.py"))
    assert files
    assert not [file for file in files if other in imported(file)]
