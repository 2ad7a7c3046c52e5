"""Are a chat model's log-probabilities those of all logits? `python -m experiments.language.check`.

The server tells the log-probabilities of the whole vocabulary when it is asked for as many tokens:
logits less their log-sum-exp. From these, each label's is added up here by a rule of its own, and
compared with what `ChatModel` makes of the likeliest tokens alone. Writes ``check.json``.

Both are asked without the server's prompt cache: what it computes in another order it rounds
otherwise, and in a model of four bits that is seen. How much is written down, too.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ebjr.backends.chat import ChatModel
from experiments.language.data import TASKS, recorded
from experiments.language.models import LANGUAGE_MODELS, served
from experiments.language.record import HERE, prompt
from runs import about, save

ROWS = 5
TOPS = (20, 100)
VOCABULARY = {"smollm2": 49_152, "gemma": 262_144}
SHOTS = 1
ALONE = {"cache_prompt": False}
"""What asks llama.cpp to read the whole prompt."""

TOLERANCE = 1e-3
CACHED = ("top 20, with the cache", 20, {})


def whole_vocabulary(address: str, text: str, tokens: int) -> list[dict[str, Any]]:
    """Every token's text and log-probability after a prompt, the likeliest first."""
    asked = {"prompt": text, "n_predict": 1, "n_probs": tokens, "temperature": 0} | ALONE
    request = urllib.request.Request(
        address.removesuffix("/v1") + "/completion",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)["completion_probabilities"][0]["top_logprobs"]


def of_labels(listed: Sequence[dict[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """Return (labels,): the mass of all tokens that are a label in any case; -inf without one."""
    found: dict[str, list[float]] = {label.lower(): [] for label in labels}
    for token in listed:
        found.get(token["token"].strip().lower(), []).append(token["logprob"])
    return np.array([logsumexp(each) if each else -np.inf for each in found.values()])


def compared(model: str, task: str, address: str) -> dict[str, Any]:
    """Return `ChatModel`'s difference from all logits, by the number of tokens that it asks for."""
    rows, template = recorded(task)[:ROWS], prompt(task, SHOTS)
    asked = [template.replace("{text}", text) for text in rows.texts]
    whole = [whole_vocabulary(address, text, VOCABULARY[model]) for text in asked]
    truth = np.array([of_labels(listed, rows.classes) for listed in whole])
    found: dict[str, Any] = {
        "mass_of_the_vocabulary": round(
            float(np.mean([np.exp(logsumexp([t["logprob"] for t in each])) for each in whole])), 6
        )
    }
    for name, top, request in [(f"top {top}", top, ALONE) for top in TOPS] + [CACHED]:
        own = ChatModel(
            address,
            model=model,
            prompt=template,
            labels=rows.classes,
            api="completions",
            top_logprobs=top,
            request=request,
            concurrent=1,
            timeout_seconds=600,
        )
        answer = own(rows.texts)
        own.close()
        here = np.ones(len(rows), bool) if answer.answered is None else answer.answered
        output = np.full(truth.shape, np.nan)
        output[here] = answer.output
        heard = np.array([of_labels(listed[:top], rows.classes) for listed in whole])
        told = np.isfinite(heard) & here[:, None]
        found[name] = {
            "answered": int(here.sum()),
            "labels_among_them": int(told.sum()),
            "of": int(told.size),
            "most_apart": _most(output - heard, told),
            "most_in_other_spellings": _most(heard - truth, told),
        }
    return found


def _most(apart: np.ndarray, here: np.ndarray) -> float:
    return float(f"{np.abs(apart[here]).max():.2g}")


def main() -> None:
    """Compare both language models on every task."""
    found: dict[str, Any] = {}
    for model in LANGUAGE_MODELS:
        with served(model) as address:
            found[model] = {task: compared(model, task, address) for task in TASKS}
    worst = max(
        each["most_apart"]
        for tasks in found.values()
        for task in tasks.values()
        for name, each in task.items()
        if name in {f"top {top}" for top in TOPS}
    )
    ran = about(seed=0) | {"rows": ROWS, "tolerance": TOLERANCE, "most_apart": worst}
    save("check", ran | {"holds": worst <= TOLERANCE, "models": found}, folder=HERE)


if __name__ == "__main__":
    main()
