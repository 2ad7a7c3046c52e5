"""What a program can see of how we write: ``python -m docs.make.prose``, part of ``make check``.

It finds phrases that hide their subject, and entries under ``Raises`` that do not name what is
wrong. The rest is for readers.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from docs.make.sources import ROOT

FOLDERS = ("src", "docs", "experiments", "benchmarks", "examples", "deploy", "tests")
PAGES = (".md", ".html", ".js", ".yaml", ".toml", ".json")
AT_MOST = 200_000
"""Bytes of a page; a larger file is data."""

PHRASE = re.compile(r"\b(so\s+many|whoever|whomever|that\s+it\s+has)\b", re.IGNORECASE)
RAISES = re.compile(
    r"^( *)Raises\n\1-+\n(?P<entries>(?:\1 *\S.*\n|[ \t]*\n(?=\1 ))*)", re.MULTILINE
)
VAGUE = re.compile(
    r"^ *\w+\n +(?P<text>(?:It|There|One|What|That|This|They|Nothing|Some)\b.*)", re.MULTILINE
)


def in_docstring(text: str) -> Iterator[tuple[int, str]]:
    """Entries under ``Raises`` that do not begin with their subject.

    Yields where each stands in `text`, and its first line.
    """
    for section in RAISES.finditer(text):
        for entry in VAGUE.finditer(section["entries"]):
            yield section.start("entries") + entry.start("text"), entry["text"]


def in_text(text: str) -> Iterator[tuple[int, str]]:
    """The phrases in a text, and where each stands."""
    for found in PHRASE.finditer(text):
        yield found.start(), found.group()


def in_python(source: str) -> Iterator[tuple[int, str]]:
    """The lines on which a Python file's docstrings, other texts and comments want other words."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = str(node.value.value)
            for place, found in in_docstring(text + "\n"):
                yield node.lineno + text.count("\n", 0, place), f"`Raises` without subject: {found}"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for place, found in in_text(token.string):
                yield token.start[0] + token.string.count("\n", 0, place), found


def in_file(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that want other words, with the words."""
    if path.suffix == ".py":
        yield from in_python(path.read_text())
    elif path.suffix in PAGES and path.stat().st_size <= AT_MOST:
        text = path.read_text()
        for place, found in in_text(text):
            yield 1 + text.count("\n", 0, place), found


def findings(root: Path = ROOT) -> list[str]:
    """Every place in the repository, as ``file:line: words``."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    return [
        f"{path.relative_to(root)}:{line}: {found}"
        for path in sorted([*root.glob("*.md"), *files])
        if path.is_file() and path.name != Path(__file__).name
        for line, found in in_file(path)
    ]


def main() -> None:
    """Print every finding; exit with 1 where there is one."""
    if found := findings():
        print(*found, sep="\n")
        sys.exit(f"{len(found)} places want other words: name the subject (CONTRIBUTING.md, Prose)")


if __name__ == "__main__":
    main()
