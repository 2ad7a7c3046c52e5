"""The reference of the command line, from `ebjr --help`."""

from __future__ import annotations

import re

import typer.cli
from typer.testing import CliRunner


def reference() -> str:
    """Return every command with its arguments and options, as Typer writes them.

    The list of all commands is left out: it cuts their first lines, and they follow anyway.
    """
    words = ["ebjr.cli", "utils", "docs", "--name", "ebjr"]
    text = CliRunner().invoke(typer.cli.app, words, catch_exceptions=False).stdout
    body = text.partition("\n\n")[2]  # the page has its own title
    listed = re.compile(r"\*\*Commands\*\*:.*?(?=^## )", re.DOTALL | re.MULTILINE)
    return listed.sub("", body, count=1)
