"""A real language model, from a package, behind a real server: the whole way of a pair."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")

import ebjr
from ebjr.backends.chat import ChatModel
from experiments.language.check import ALONE, VOCABULARY, of_labels, whole_vocabulary
from experiments.language.models import served

LABELS = ("English", "German", "French")
SHOWN = (
    "Sentence: Where is the station?\nLanguage: English\n\n"
    "Sentence: Wo ist der Bahnhof?\nLanguage: German\n\n"
    "Sentence: Comment allez-vous?\nLanguage: French\n\n"
    "Sentence: {text}\nLanguage:"
)
TEXTS = {
    "Das ist ein guter Tag.": 1,
    "I have lost my keys.": 0,
    "Je ne sais pas encore.": 2,
    "Wir gehen nach Hause.": 1,
    "The weather is fine today.": 0,
    "Il fait froid ce matin.": 2,
}


@pytest.fixture(scope="module")
def address():
    try:
        with served("smollm2") as found:
            yield found
    except subprocess.CalledProcessError:
        pytest.skip("the packages of the language model cannot be fetched here")


def asked(address: str, prompt: str = SHOWN, **more) -> ChatModel:
    how = {"api": "completions", "concurrent": 1, "request": ALONE, **more}
    return ChatModel(address, model="smollm2", prompt=prompt, labels=LABELS, **how)


@pytest.mark.network
def test_log_probabilities_of_labels_are_those_of_all_logits_of_a_real_model(address):
    found = asked(address)(list(TEXTS))
    for text, own in zip(TEXTS, found.output, strict=True):
        prompt = SHOWN.replace("{text}", text)
        whole = whole_vocabulary(address, prompt, VOCABULARY["smollm2"])
        among = of_labels(whole[:20], LABELS)
        np.testing.assert_allclose(own[np.isfinite(among)], among[np.isfinite(among)], atol=1e-3)
    assert found.output.argmax(axis=1).tolist() == list(TEXTS.values())


@pytest.mark.network
def test_a_pair_of_two_prompts_of_a_real_model_answers(address):
    student = asked(address, SHOWN.split("\n\n", 1)[1])  # an example less, and cheaper
    joint = ebjr.JointClassifier(student, asked(address), ebjr.Router("softmax", 0.9))
    answer = joint(list(TEXTS))
    assert answer.prediction.tolist() == list(TEXTS.values())
    both, alone = answer.spent[answer.deferred, 0], answer.spent[~answer.deferred, 0]
    assert len(both) == 0 or len(alone) == 0 or both.min() > alone.max()
