"""Check that the built site is whole, and opens from disk: python -m docs.make.check."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docs.make.reference import not_shown
from docs.make.sources import BUILD

ASKS = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="?(?:https?:)?//[^">\s]+'
    r'|<link\b[^>]*\brel="?(?:stylesheet|preconnect|preload|icon)\b[^>]*\bhref="?(?:https?:)?//[^">\s]+'
)
"""An element that a browser fetches from another host."""


def asks(site: Path) -> list[str]:
    """Return what the pages of a site fetch from other hosts."""
    return [
        f"{page.relative_to(site)}: {found}"
        for page in sorted(site.rglob("*.html"))
        for found in ASKS.findall(page.read_text())
    ]


ROOTED = re.compile(r'\b(?:href|src)="?(/[^/">\s][^">\s]*)')
"""A path from a server's root, which leads nowhere when a page is opened from disk."""


def rooted(site: Path) -> list[str]:
    """Return the paths in a site's pages that need a server.

    404.html is left out: a server answers with it at any depth, where only paths from the root
    lead to the site, and on disk nothing leads to it.
    """
    return [
        f"{page.relative_to(site)}: {found}"
        for page in sorted(site.rglob("*.html"))
        if page != site / "404.html"
        for found in ROOTED.findall(page.read_text())
    ]


if __name__ == "__main__":
    missing = [f"the reference does not show {name}" for name in not_shown(BUILD / "site")]
    sys.exit("\n".join([*asks(BUILD / "site"), *rooted(BUILD / "site"), *missing]) or None)
