"""Ask each model about every row once: `python -m experiments.language.record`.

Language models take hours; what they said is kept in `models.CACHE` as it comes, so that a run
that was ended goes on where it was. All answers are then written to ``answers/``, which is
committed, and `experiments.language.table` reads nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebjr.backends.chat import ChatModel
from ebjr.files import write_whole
from experiments.language import cheap
from experiments.language.data import TASKS, UNLABELED, Labeled, examples, recorded
from experiments.language.models import CACHE, LANGUAGE_MODELS, served
from runs import about

HERE = Path(__file__).parent
ANSWERS = HERE / "answers"

TOP = 100
"""Tokens whose log-probabilities are asked for: with no example in the prompt, 20 miss labels."""

BATCH = 20
"""Rows after which what was said is kept."""

DIGITS = 3
"""Of a log-probability that is committed."""

TRAINED_ON = (100, 200, 1000)
"""Labeled rows that the cheap models are trained on."""


ALSO: dict[str, tuple[str, ...]] = {
    "database": ("databases",),
    "fonts": ("font",),
    "games": ("game",),
    "graphics": ("graphic",),
    "mail": ("email",),
    "sound": ("audio", "music"),
}
"""What else means a section: after "game" alone it is open whether "games" was meant."""


class Form(NamedTuple):
    """How a model is asked: examples of each label in the prompt, and which API of OpenAI's.

    A completion goes on with one text, a chat has a turn for each example.
    """

    shots: int
    api: str = "completions"


PROMPTS = {
    "asked": Form(0),
    "few": Form(1),
    "many": Form(4),
    "asked in a chat": Form(0, "chat"),
    "few in a chat": Form(1, "chat"),
}


class Wording(NamedTuple):
    """The words for a row and its label in a prompt, and the question."""

    row: str
    label: str
    instruction: str


WORDINGS = {
    "language": Wording("Sentence", "Language", "Name the language of the sentence"),
    "section": Wording("Description", "Category", "Name the category of the software package"),
    "sentiment": Wording("Review", "Sentiment", "Name the sentiment of the film review"),
}


def shown(task: str, shots: int) -> list[dict[str, str]]:
    """`shots` examples of each label, in an order drawn by lot."""
    rows, rng = examples(task)[:-UNLABELED], np.random.default_rng(0)
    chosen = [
        row
        for label in range(len(rows.classes))
        for row in rng.permutation(np.flatnonzero(rows.targets == label))[:shots]
    ]
    order = rng.permutation(np.array(chosen, np.int64))
    return [{"text": rows.texts[row], "label": rows.classes[rows.targets[row]]} for row in order]


def prompt(task: str, shots: int) -> str:
    """Return the question, the examples, and the row's place, as one text to continue."""
    wording = WORDINGS[task]
    told = [
        f"{wording.row}: {each['text']}\n{wording.label}: {each['label']}"
        for each in shown(task, shots)
    ]
    question = f"{wording.row}: {{text}}\n{wording.label}:"
    return "\n\n".join([f"{instruction(task)}.", *told, question])


def instruction(task: str) -> str:
    """Return the question with the labels to choose from."""
    return f"{WORDINGS[task].instruction}: {', '.join(examples(task).classes)}"


def language_model(model: str, task: str, form: Form, address: str) -> ChatModel:
    """The language model, asked in one of the forms."""
    how: dict[str, Any] = {"prompt": prompt(task, form.shots)}
    if form.api == "chat":
        system = f"{instruction(task)}. Answer with one word."
        how["prompt"] = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"{WORDINGS[task].row}: {{text}}"},
        ]
        how["examples"] = shown(task, form.shots)
    return ChatModel(
        address,
        model=model,
        labels={name: [name, *ALSO.get(name, ())] for name in examples(task).classes},
        api=form.api,
        top_logprobs=TOP,
        concurrent=1,
        timeout_seconds=600,
        **how,
    )


def ask(model: ChatModel, rows: Labeled, kept: Path) -> None:
    """Ask about the rows that are not kept yet: a line for each, null where there is no answer."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    done = len(kept.read_text().splitlines()) if kept.exists() else 0
    with kept.open("a") as file:
        for start in range(done, len(rows), BATCH):
            answer = model(rows.texts[start : start + BATCH])
            answered = (
                np.ones(len(answer.spent), bool) if answer.answered is None else answer.answered
            )
            said = iter(np.asarray(answer.output).round(DIGITS).tolist())
            for here, spent in zip(answered, answer.spent, strict=True):
                line = {"output": next(said) if here else None, "tokens": int(spent[0])}
                file.write(json.dumps(line) + "\n")
            file.flush()


def kept_answers(kept: Path, labels: int) -> dict[str, np.ndarray]:
    """Raw output (n, labels), NaN where there was no answer, and tokens in, (n,)."""
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    output = [line["output"] or labels * [np.nan] for line in lines]
    tokens = np.array([line["tokens"] for line in lines], np.int32)
    return {"output": np.array(output, np.float32), "tokens": tokens}


def place(task: str, model: str, prompt_name: str) -> Path:
    """Return the file of a language model's answers."""
    return CACHE / "said" / f"{task}-{model}-{prompt_name}.jsonl"


def record_language_models(
    tasks: list[str], models: list[str], prompts: list[str], rows: int | None
) -> None:
    """Ask each model with each prompt about the first `rows` of each task, or about all."""
    for model in models:
        with served(model) as address:
            for name in prompts:
                for task in tasks:
                    asked = language_model(model, task, PROMPTS[name], address)
                    ask(asked, recorded(task)[:rows], place(task, model, name))
                    asked.close()
                    print(f"{task}: {model}, {name}", flush=True)


def record_cheap(task: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the other models' answers and their cost a row; kept, too."""
    training, rows = examples(task), recorded(task)
    file = CACHE / "said" / f"{task}-cheap.npz"
    if not file.exists():
        found: dict[str, float | np.ndarray] = {}
        for name, train in (("tfidf", cheap.tfidf), ("minilm", cheap.minilm)):
            for count in TRAINED_ON:
                said = train(training[:count], rows.texts)
                found |= {
                    f"{name} {count}/output": said.output,
                    f"{name} {count}/flops": said.flops,
                }
        if task == "language":
            models = cheap.detectors(rows.classes)
            spent = cheap.seconds(models, rows.texts)
            for name, model in models.items():
                found |= {f"{name}/output": model(rows.texts), f"{name}/seconds": spent[name]}
        with write_whole(file, "wb") as stream:
            np.savez_compressed(stream, **found)
    by_name: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file) as kept:
        for key in kept.files:
            name, what = key.split("/")
            by_name.setdefault(name, {})[what] = kept[key]
    return by_name


def write_answers(task: str) -> dict[str, Any]:
    """Write what all models said of a task; returns what a row costs each."""
    arrays: dict[str, np.ndarray] = {"targets": recorded(task).targets.astype(np.int8)}
    costs: dict[str, Any] = {}
    for model, size in LANGUAGE_MODELS.items():
        for name in PROMPTS:
            kept = place(task, model, name)
            if kept.exists():
                said = kept_answers(kept, len(recorded(task).classes))
                arrays[f"{model}, {name}"] = said["output"]
                tokens = float(said["tokens"].mean())
                flops = size.flops(tokens)
                costs[f"{model}, {name}"] = {"tokens": round(tokens, 1), "flops": flops}
    for name, own in record_cheap(task).items():
        arrays[name] = own.pop("output").astype(np.float32).round(DIGITS)
        costs[name] = {unit: float(value) for unit, value in own.items()}
    ANSWERS.mkdir(exist_ok=True)
    with write_whole(ANSWERS / f"{task}.npz", "wb") as file:
        np.savez_compressed(file, **arrays)
    return costs


def main() -> None:
    """Ask what is asked for on the command line; then write all that is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, known in (("tasks", TASKS), ("models", LANGUAGE_MODELS), ("prompts", PROMPTS)):
        parser.add_argument(f"--{name}", nargs="*", default=[*known], choices=[*known])
    parser.add_argument("--rows", type=int, help="the first rows alone")
    parser.add_argument("--ask-only", action="store_true", help="write no answers")
    parser.add_argument("--write-only", action="store_true", help="write what was said before")
    asked = parser.parse_args()
    if not asked.write_only:
        record_language_models(asked.tasks, asked.models, asked.prompts, asked.rows)
    if not asked.ask_only:
        costs = {task: write_answers(task) for task in TASKS}
        text = json.dumps(about(seed=0) | {"costs": costs}, indent=2)
        (HERE / "answers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
