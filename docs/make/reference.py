"""The names that the Python reference shows."""

from __future__ import annotations

import re
from pathlib import Path

from docs.make.sources import DOCS

DIRECTIVE = re.compile(r"^(?:#+ )?::: (\S+)\n((?:    .*\n)*)", re.MULTILINE)


def shown(folder: Path = DOCS / "reference") -> dict[str, str]:
    """Return the names that the reference should show, and the page of each."""
    found = {}
    for page in sorted(folder.glob("*.md")):
        for name, options in DIRECTIVE.findall(page.read_text()):
            members = re.findall(r"members: \[(.*)\]", options)
            names = [f"{name}.{each}" for each in members[0].split(", ")] if members else []
            found |= dict.fromkeys([name, *names], page.stem)
    return found


def not_shown(site: Path) -> list[str]:
    """Return the names that the built site lacks."""
    pages = {page.stem: page.read_text() for page in (site / "reference").glob("*.html")}
    return [name for name, page in shown().items() if f'id="{name}"' not in pages[page]]
