"""The page of checks: each names a test that there is, and says what the code says."""

from __future__ import annotations

import ast
import re

from pages import DOCS

ROOT = DOCS.parent
PAGE = (DOCS / "checks.md").read_text(encoding="utf-8")


def sentences() -> set[str]:
    """Every text in the code, with … for what is filled in."""
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_each_check_is_held_by_a_test_of_that_name():
    tests = "\n".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py")
    )
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 30
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_each_row_of_a_table_names_its_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| Compared")]
    assert [row for row in rows if not re.search(r"\| (`test_\w+`|the same) \|$", row)] == []


def test_what_a_check_says_is_what_the_code_says():
    known = sentences()
    quotes = re.findall(r"“(.*?)”", PAGE)
    assert len(quotes) > 15
    patterns = {quote: re.compile(".*?".join(map(re.escape, quote.split("…")))) for quote in quotes}
    assert [quote for quote, each in patterns.items() if not any(map(each.search, known))] == []
