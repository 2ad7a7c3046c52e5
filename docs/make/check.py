"""Check that the built site is whole and needs no network: python -m docs.make.check."""

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


if __name__ == "__main__":
    missing = [f"the reference does not show {name}" for name in not_shown(BUILD / "site")]
    sys.exit("\n".join([*asks(BUILD / "site"), *missing]) or None)
