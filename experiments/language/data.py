"""Three closed tasks with real labels, from packages.

| task | rows | labels | from |
|---|---|---|---|
| `language` | a sentence of a program | 10 languages | catalogs of Django and Wagtail |
| `section` | a package's one-line description | 8 sections | Debian's list of packages |
| `sentiment` | a sentence of a film review | 2, by 20 people's ratings | vaderSentiment 0.5 |

Rows are shuffled once with a seed. The first `EXAMPLES` of a task are for prompts and for what is
trained, the last `UNLABELED` of them tell how often a model says each label, and all figures are
taken on the `JUDGED` after these.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from experiments.language.models import folder_of

EXAMPLES = 1000
"""Rows of a task that are for prompts and for training."""

UNLABELED = 200
"""Rows of these whose labels no language model is told."""

JUDGED = 2000
"""Rows of a task that figures are taken on."""

LANGUAGES = {
    "da": "Danish",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "sv": "Swedish",
}

SECTIONS = ("database", "fonts", "games", "graphics", "mail", "science", "sound", "web")
SECTION_ROWS = 800
"""Rows of a section, at most: of some Debian has thousands."""

CLEAR = 0.5
"""A film review's mean rating, -4 to 4, is at least this far from 0."""


@dataclass(frozen=True)
class Labeled:
    """Texts and their labels.

    Attributes
    ----------
    texts
        n of them.
    targets
        (n,) int64.
    classes
        What the labels are called.
    """

    texts: list[str]
    targets: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, rows: slice) -> Labeled:
        return Labeled(self.texts[rows], self.targets[rows], self.classes)


@cache
def examples(task: str) -> Labeled:
    """The rows for prompts and for training."""
    return TASKS[task]()[:EXAMPLES]


@cache
def recorded(task: str) -> Labeled:
    """The rows that models are asked about: `UNLABELED`, and then those that are judged."""
    return TASKS[task]()[EXAMPLES - UNLABELED : EXAMPLES + JUDGED]


def language() -> Labeled:
    """Sentences of at least three words, in the language of the catalog they stand in."""
    rows = []
    for code, name in LANGUAGES.items():
        for message, translation in _messages(code):
            text = message if code == "en" else translation
            if len(text.split()) >= 3 and not re.search(r"[%{<\\]", text):
                rows.append((text, name))
    return without_doubt(rows)


def section() -> Labeled:
    """The first line of descriptions of Debian's packages, each once."""
    found = subprocess.run(
        ["apt-cache", "dumpavail"], capture_output=True, text=True, check=True
    ).stdout
    rows: list[tuple[str, str]] = []
    for record in found.split("\n\n"):
        field = dict(re.findall(r"^(Section|Description): (.*)$", record, re.MULTILINE))
        # what comes in parts says so at its end, and would stand here a part at a time
        text = re.split(r" \(|\s-+\s", field.get("Description", ""))[0].strip()
        if field.get("Section") in SECTIONS and len(text.split()) >= 3:
            rows.append((text, field["Section"]))
    return without_doubt(rows, most=SECTION_ROWS)


def sentiment() -> Labeled:
    """Sentences of film reviews whose mean rating is on one side."""
    place = folder_of("vaderSentiment") / "hutto_ICWSM_2014" / "movieReviewSnippets_GroundTruth.txt"
    rows = []
    for line in place.read_text("latin-1").splitlines():
        _, rating, text = line.split("\t")
        if abs(float(rating)) >= CLEAR:
            rows.append((text.strip(), "positive" if float(rating) > 0 else "negative"))
    return without_doubt(rows)


TASKS: dict[str, Callable[[], Labeled]] = {
    "language": language,
    "section": section,
    "sentiment": sentiment,
}


def _messages(code: str) -> Iterator[tuple[str, str]]:
    """Each message of the catalogs in a language, and its translation."""
    places = (folder_of("django"), folder_of("wagtail"))
    name = f"locale/{code}/LC_MESSAGES/django.po"
    for file in sorted(file for place in places for file in place.rglob(name)):
        for record in file.read_text("utf-8").split("\n\n"):
            lines = [line for line in record.splitlines() if not line.startswith("#")]
            found = re.fullmatch(r"msgid (.*?)\nmsgstr (.*)", "\n".join(lines), re.DOTALL)
            if found and "#, fuzzy" not in record:
                yield tuple("".join(re.findall(r'"(.*)"', part)) for part in found.groups())


def without_doubt(rows: list[tuple[str, str]], most: int | None = None) -> Labeled:
    """Rows shuffled, without those that stand under two labels, and each text once."""
    labels: dict[str, set[str]] = {}
    for text, name in rows:
        labels.setdefault(text, set()).add(name)
    kept = sorted((text, *names) for text, names in labels.items() if len(names) == 1)
    random.Random(0).shuffle(kept)
    classes = tuple(sorted({name for _, name in kept}))
    if most is not None:
        own = {name: [row for row in kept if row[1] == name][:most] for name in classes}
        kept = [row for row in kept if row in own[row[1]]]
    targets = np.array([classes.index(name) for _, name in kept], np.int64)
    return Labeled([text for text, _ in kept], targets, classes)
