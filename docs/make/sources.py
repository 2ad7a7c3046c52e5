"""The site's sources: the pages of `docs/`, and the files of the repository that they link to.

A page's links lead to files of the repository, as on any forge. The site has a copy of each linked
file at its place in the repository, with `docs/` as the top. So a link into `docs/` stays as it is,
and every other link is turned to the copy.
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
    """Return the pages of the site in the order of its navigation."""

    def pages(entries: list) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    return list(pages(tomllib.loads(config.read_text())["project"]["nav"]))


def in_repository(page: str) -> Path:
    """Return the place of a site's page in the repository."""
    return DOCS / page if (DOCS / page).exists() else ROOT / page


def on_site(path: Path) -> str:
    """Return the place of a repository's file on the site."""
    return (
        path.relative_to(DOCS) if path.is_relative_to(DOCS) else path.relative_to(ROOT)
    ).as_posix()


def links(text: str) -> list[str]:
    """Return the paths that a page links to, outside of blocks of code."""
    return LINK.findall(FENCED.sub("", text))


def linked(page: Path) -> list[Path]:
    """Return the files of the repository that a page links to.

    Raises
    ------
    FileNotFoundError
        A linked file is missing, or is a folder, which the site cannot show.
    """
    found = [Path(os.path.normpath(page.parent / path)) for path in links(page.read_text())]
    for path in found:
        if not path.is_file():
            raise FileNotFoundError(f"{page.relative_to(ROOT)} links to {path}, which is no file")
    return found


def moved(page: Path) -> str:
    """Return a page's text with the site's links.

    A link to a name of the reference becomes one that mkdocstrings resolves and checks.
    """
    folder = Path(on_site(page)).parent

    def turned(match: re.Match[str]) -> str:
        target = on_site(Path(os.path.normpath(page.parent / match[0])))
        return Path(os.path.relpath(target, folder)).as_posix()

    return LINK.sub(turned, NAMED.sub(r"][\1]", page.read_text()))


def gather(pages: list[str]) -> int:
    """Copy pages and all that they link to; return the number of files."""
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
