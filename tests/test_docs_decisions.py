"""Decisions are short dated records, and the index lists each of them."""

from __future__ import annotations

import re

import pytest
from pages import DOCS

from docs.make.sources import ROOT, links

FOLDER = DOCS / "decisions"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))


def test_the_index_lists_every_record_by_its_title():
    text = (FOLDER / "index.md").read_text()
    titles = [path.read_text().partition("\n")[0].removeprefix("# ") for path in RECORDS]
    assert re.findall(r"^- \[(.*)\]\((.*)\)$", text, re.MULTILINE) == [
        (title, path.name) for title, path in zip(titles, RECORDS, strict=True)
    ]
    assert set(links(text)) == {path.name for path in FOLDER.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_its_number_a_date_and_three_short_parts(record):
    text = record.read_text()
    lines = text.splitlines()
    assert lines[0].startswith(f"# {int(record.name[:3])}. ")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", lines[2])
    assert re.findall(r"^\*\*(\w+)\.\*\* ", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequence",
    ]
    assert len(lines) <= 14


def test_numbers_have_no_gap():
    assert [int(path.name[:3]) for path in RECORDS] == list(range(1, len(RECORDS) + 1))


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_file_that_a_record_names_is_there(record):
    for path in re.findall(r"`([\w/]+/[\w/]*\.\w+|\w+\.py)`", record.read_text()):
        assert (ROOT / "src/ebjr" / path).exists() or (ROOT / path).exists(), path
