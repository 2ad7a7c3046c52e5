"""The site's sources: the pages of `docs/`, and of the repository the files that they link to.

A page's links lead to files of the repository, as on any forge. The site has a copy of each file
that is linked to, at the place that it has in the repository, with `docs/` as the top: so a link
into `docs/` stays as it is, and the others are turned to the copy.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
SOURCES = BUILD / "docs"
PARTS = BUILD / "parts"

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
"""The path of a link to another file."""

NAMED = re.compile(r"\]\([^)#\s]+#(ebjr[\w.]*)\)")
"""The end of a link to a name in the reference."""

FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def navigation(config: Path = ROOT / "zensical.toml") -> list[str]:
    """The pages of the site, in the order in which they are to be read."""

    def pages(entries: list) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    return list(pages(tomllib.loads(config.read_text())["project"]["nav"]))


def in_repository(page: str) -> Path:
    """Where a page of the site is in the repository."""
    return DOCS / page if (DOCS / page).exists() else ROOT / page


def on_site(path: Path) -> str:
    """Where a file of the repository is on the site."""
    return (
        path.relative_to(DOCS) if path.is_relative_to(DOCS) else path.relative_to(ROOT)
    ).as_posix()


def links(text: str) -> list[str]:
    """The paths that a page links to; what is in a block of code is none."""
    return LINK.findall(FENCED.sub("", text))


def linked(page: Path) -> list[Path]:
    """The files of the repository that a page links to.

    Raises
    ------
    FileNotFoundError
        One of them is not there, or is a folder, which the site cannot show.
    """
    found = [Path(os.path.normpath(page.parent / path)) for path in links(page.read_text())]
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"{page.relative_to(ROOT)} links to {path}, which is no file")
    return found


def moved(page: Path) -> str:
    """A page's text with its links as they are on the site.

    A link to a name of the reference becomes one that mkdocstrings resolves and holds to be there.
    """
    folder = Path(on_site(page)).parent

    def turned(match: re.Match[str]) -> str:
        target = on_site(Path(os.path.normpath(page.parent / match[0])))
        return Path(os.path.relpath(target, folder)).as_posix()

    return LINK.sub(turned, NAMED.sub(r"][\1]", page.read_text()))


def gather(pages: list[str]) -> int:
    """Copy pages, and all that they link to: how many files these are."""
    waiting, seen = [in_repository(page) for page in pages], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        target = SOURCES / on_site(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(moved(path))
            waiting += linked(path)
        else:
            target.write_bytes(path.read_bytes())
    return len(seen)
