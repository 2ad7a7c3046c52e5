"""Version, changelog and citation agree, and the release check knows every extra."""

from __future__ import annotations

import re
import tomllib

import ebjr
from docs.make.sources import ROOT
from tools.dist import TOGETHER, USES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_place_sets_the_version_and_the_citation_follows():
    assert PROJECT["dynamic"] == ["version"]
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == ebjr.__version__


def test_the_changelog_begins_with_this_version_and_the_citations_date():
    text = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.search(r"^## (\S+) \((\S+)\)$", text, re.MULTILINE).groups()
    assert version == ebjr.__version__
    assert f"date-released: {date}\n" in (ROOT / "CITATION.cff").read_text()
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Fixed", "Limits"}


def test_the_release_check_uses_every_extra():
    extras = set(PROJECT["optional-dependencies"]) - set(TOGETHER)
    assert set(USES) == {"core", *extras}
