"""Which pairs of language models and rivals pay: `python -m experiments.language.table`.

Reads ``answers/`` and writes ``results.json`` and the tables of ``README.md``. Of each pair the
threshold is chosen on one half for the teacher's accuracy and judged on the other, mean of
`SPLITS`; intervals hold 95 % over rows and splits, as `experiments.intervals` makes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp

from ebjr import Cost, Outcomes, oracle
from ebjr.evaluation.ranking import score_table
from ebjr.evaluation.tests import mcnemar
from ebjr.files import write_whole
from ebjr.stats import share_interval
from experiments import intervals
from experiments.choices import choices
from experiments.intervals import Half
from experiments.language.data import TASKS, UNLABELED
from experiments.language.models import LANGUAGE_MODELS
from experiments.language.record import ANSWERS, HERE
from experiments.splits import judged_halves
from runs import about, save

README = HERE / "README.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"

SPLITS = 20
WORTH = 1.1
"""How many times cheaper a second model must make the first: a free student is never dearer."""

SCORES = ("energy", "softmax", "entropy", "margin", "softmax_energy", "random")
AUTO = "auto and blend"
PRIOR_REMOVED = "without its prior"
SHORT = 1.0
"""Points under the teacher with which a threshold has missed its goal, on average over splits."""

PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
MANY = 100
"""Times that are no longer told apart."""

LEAST_ROWS = 400
"""Of a pair of which anything is said."""

LEAST_OF_ONE = 50
"""Of a model of which anything is said."""


PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "sentiment": (
        ("tfidf 200", f"smollm2, asked, {PRIOR_REMOVED}"),
        ("tfidf 1000", f"smollm2, asked, {PRIOR_REMOVED}"),
        ("tfidf 1000", f"gemma, few, {PRIOR_REMOVED}"),
        ("tfidf 1000", "minilm 1000"),
        ("minilm 200", f"smollm2, asked, {PRIOR_REMOVED}"),
        ("minilm 1000", f"gemma, few, {PRIOR_REMOVED}"),
        (f"smollm2, asked, {PRIOR_REMOVED}", f"gemma, few, {PRIOR_REMOVED}"),
        ("smollm2, asked", "gemma, few"),
        (f"smollm2, asked, {PRIOR_REMOVED}", f"smollm2, few, {PRIOR_REMOVED}"),
        (f"gemma, asked, {PRIOR_REMOVED}", f"gemma, few, {PRIOR_REMOVED}"),
    ),
    "section": (
        ("tfidf 100", f"smollm2, few, {PRIOR_REMOVED}"),
        ("tfidf 100", f"gemma, few, {PRIOR_REMOVED}"),
        ("tfidf 200", "minilm 200"),
        ("tfidf 1000", "minilm 1000"),
        ("minilm 200", f"gemma, few, {PRIOR_REMOVED}"),
    ),
    "language": (
        ("fasttext", "lingua"),
        ("lingua, quick", "lingua"),
        ("tfidf 100", f"smollm2, few, {PRIOR_REMOVED}"),
        ("tfidf 200", f"smollm2, few, {PRIOR_REMOVED}"),
        ("fasttext", f"smollm2, few, {PRIOR_REMOVED}"),
    ),
}
"""Student and teacher; where the teacher is no better, that is all that is said of the pair."""


class Model(NamedTuple):
    """A model's answers to the rows of a task, and its cost a row.

    Attributes
    ----------
    output
        (n, labels); NaN where it gave no answer.
    prior
        (labels,): what is taken off a language model's log-probabilities, 0 of others.
    cost
        Of a row.
    """

    output: np.ndarray
    prior: np.ndarray
    cost: Cost


def models_of(task: str, costs: dict[str, dict[str, float]]) -> tuple[dict[str, Model], np.ndarray]:
    """Every model of a task by name, on the rows that are judged, and these rows' labels.

    A language model stands there twice: as it is asked, and without its prior for each
    label: the mean of its log-probability over other rows, whose labels nobody needs to know.
    """
    with np.load(ANSWERS / f"{task}.npz") as file:
        said = {name: file[name].astype(np.float64) for name in file.files}
    targets = said.pop("targets").astype(np.int64)
    found = {}
    for name, output in said.items():
        if len(output) < UNLABELED + LEAST_OF_ONE:
            continue
        cost = Cost(**{unit: costs[name].get(unit) for unit in ("flops", "seconds")})
        found[name] = Model(output[UNLABELED:], np.zeros(output.shape[1]), cost)
        if is_language_model(name):
            prior = prior_of(output[:UNLABELED])
            own = Model(output[UNLABELED:] - prior, prior, cost)
            found[f"{name}, {PRIOR_REMOVED}"] = own
    return found, targets[UNLABELED:]


def prior_of(output: np.ndarray) -> np.ndarray:
    """Return (labels,): each label's mean log-probability over all rows, less their mean."""
    answered = output[np.isfinite(output).all(axis=1)]
    if not len(answered):
        return np.zeros(output.shape[1])
    mean = log_softmax(answered, axis=1).mean(axis=0)
    return mean - mean.mean()


def is_language_model(name: str) -> bool:
    """By the name that a model has here."""
    return name.split(",")[0] in LANGUAGE_MODELS


def alone(model: Model, targets: np.ndarray, language: bool) -> dict[str, Any]:
    """Return a model's accuracy alone; an unanswered row counts as wrong."""
    output, right = model.output, model.output.argmax(axis=1) == targets[: len(model.output)]
    answered = np.isfinite(output).all(axis=1)
    right &= answered
    accuracy, *ends = share_interval(int(right.sum()), len(right))
    return {
        "accuracy": round(accuracy, 4),
        "interval": [round(end, 4) for end in ends],
        "rows": len(right),
        "unanswered": int((~answered).sum()),
        "mass_on_labels": _mass(model) if language else None,
        "flops": model.cost.flops,
        "seconds": model.cost.seconds,
    }


def _mass(model: Model) -> float | None:
    """The median over the rows that it answers; None where it answers none."""
    mass = np.exp(logsumexp(model.output + model.prior, axis=1))
    known = mass[np.isfinite(mass)]
    return round(float(np.median(known)), 3) if len(known) else None


def outcomes_of(student: Model, teacher: Model, targets: np.ndarray) -> Outcomes:
    """Both models' answers to the rows that both have answered."""
    n = min(len(student.output), len(teacher.output))
    both = np.isfinite(student.output[:n]).all(axis=1) & np.isfinite(teacher.output[:n]).all(axis=1)
    return Outcomes(
        student.output[:n][both],
        teacher.output[:n][both],
        targets[:n][both],
        student_cost=student.cost,
        teacher_cost=teacher.cost,
    )


def label_mass(prior: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The score of a student whose prior was removed: how likely it says a label at all."""

    def mass(output: np.ndarray) -> np.ndarray:
        return logsumexp(output + prior, axis=1)

    mass.__name__ = "label_mass"
    return mass


def chosen_and_judged(outcomes: Outcomes, **how: Any) -> dict[str, Any]:
    """Means over splits, with intervals: how many times cheaper than the teacher, and how good."""
    halves = list(judged_halves(outcomes, SPLITS, **how))
    points = [point for *_, point in halves]
    cost = np.mean([1 / (point.saving or np.inf) for point in points])
    over = np.mean([100 * (point.quality - point.teacher_quality) for point in points])
    drawn = intervals.of_points(halves)
    return {
        "splits": len(points),
        "deferral_rate": round(float(np.mean([point.deferral_rate for point in points])), 4),
        "times_cheaper": round(float(1 / cost), 3),
        "over_teacher_points": round(float(over), 3),
        **intervals.factor(drawn, *_prices(outcomes)),
    }


def ideal(outcomes: Outcomes) -> dict[str, Any]:
    """The same of a score that knows where the teacher helps."""
    parts = [outcomes.split(0.5, seed) for seed in range(SPLITS)]
    halves = (tuple(Half.of(half, oracle(half)) for half in each) for each in parts)
    drawn = intervals.draws(halves, SPLITS)  # type: ignore[arg-type]
    student, teacher = _prices(outcomes)
    return {
        "deferral_rate": round(float(drawn.rate.mean()), 4),
        "times_cheaper": round(float(teacher / (student + drawn.rate.mean() * teacher)), 3),
        "over_teacher_points": round(float(drawn.points.mean()), 3),
        **intervals.factor(drawn, student, teacher),
    }


def _prices(outcomes: Outcomes) -> tuple[float, float]:
    unit = "flops" if outcomes.student_cost.flops is not None else "seconds"
    prices = getattr(outcomes.student_cost, unit), getattr(outcomes.teacher_cost, unit)
    return float(prices[0]), float(prices[1])


def pair(
    student: str, teacher: str, models: dict[str, Model], targets: np.ndarray
) -> dict[str, Any] | None:
    """All figures of one pair; accuracies alone where the teacher is not better."""
    outcomes = outcomes_of(models[student], models[teacher], targets)
    if len(outcomes) < LEAST_ROWS:
        return None
    test = mcnemar(outcomes.teacher_quality, outcomes.student_quality, names=("teacher", "student"))
    told = {
        "student": student,
        "teacher": teacher,
        "rows": len(outcomes),
        "student_accuracy": round(outcomes.quality("student"), 4),
        "teacher_accuracy": round(outcomes.quality("teacher"), 4),
        "p": float(f"{test.p_value:.2g}"),
    }
    if test.better != "teacher":
        return told | {"pays": "no better teacher"}
    scores: list[Any] = [*SCORES]
    if is_language_model(student):
        scores.append(label_mass(models[student].prior))
    by_score = {
        row.score: {
            "auroc": round(row.auroc, 4),
            "oracle_share": round(row.oracle_share, 4),
            **chosen_and_judged(outcomes, score=score, blend=0.0),
        }
        for row, score in zip(score_table(outcomes, scores), scores, strict=True)
    }
    found = chosen_and_judged(outcomes, **choices(outcomes, SPLITS))
    prices = _prices(outcomes)
    return told | {
        "teacher_costs_times": round(prices[1] / prices[0], 2),
        "scores": by_score | {"oracle": ideal(outcomes), AUTO: found},
        "pays": verdict(found),
    }


def verdict(found: dict[str, Any]) -> str:
    """Tell whether a joint model about as good as its teacher is cheaper, significantly."""
    low, high = found["interval"]
    if found["over_teacher_points"] < -SHORT:
        return "falls short"
    return "yes" if low > WORTH else "no" if high < WORTH else "undecided"


def model_rows(models: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of each model's accuracy alone; a language model's two ways in one row."""
    rows = [
        "| model | rows | no answer, % | right, % | without its prior, % | mass | a row costs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, own in models.items():
        if PRIOR_REMOVED in name:
            continue
        other = models.get(f"{name}, {PRIOR_REMOVED}")
        mass = "" if own["mass_on_labels"] is None else f"{own['mass_on_labels']:.2f}"
        price = _price(own["flops"], own["seconds"])
        share = ["" if one is None else _percent(one) for one in (own, other)]
        unanswered = "" if other is None else f"{100 * own['unanswered'] / own['rows']:.1f}"
        head = f"| {name} | {own['rows']:,} | {unanswered}"
        rows.append(f"{head} | {' | '.join(share)} | {mass} | {price} |")
    return rows


def _price(flops: float | None, seconds: float | None) -> str:
    if flops is None:
        return f"{1e6 * (seconds or 0):.0f} us"
    prefix, size = next(each for each in PREFIXES if flops >= each[1])
    return f"{flops / size:.3g} {prefix}FLOPs"


def _percent(own: dict[str, Any]) -> str:
    low, high = (100 * end for end in own["interval"])
    return f"{100 * own['accuracy']:.1f} ({low:.1f} to {high:.1f})"


def pair_rows(pairs: list[dict[str, Any]]) -> list[str]:
    """The table of pairs with a better teacher: how many times cheaper by each score."""
    names = (AUTO, *SCORES, "label_mass", "oracle")
    rows = [
        f"| student -> teacher | right, % | a teacher's row costs | {' | '.join(names)} | pays |",
        "|---|--:|--:|" + len(names) * "--:|" + "---|",
    ]
    for own in pairs:
        head = f"| {own['student']} -> {own['teacher']} | {_both(own)} |"
        if "scores" not in own:
            rows.append(f"{head} |{len(names) * ' |'} {own['pays']} |")
            continue
        each = (_times(own["scores"].get(name)) for name in names)
        costs = f"{_short(own['teacher_costs_times'])}x"
        rows.append(f"{head} {costs} | {' | '.join(each)} | {own['pays']} |")
    return rows


def _both(own: dict[str, Any]) -> str:
    return f"{100 * own['student_accuracy']:.1f} -> {100 * own['teacher_accuracy']:.1f}"


def _times(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    times, low, high = map(_short, (found["times_cheaper"], *found["interval"]))
    return f"{times} ({low} to {high}) at {found['over_teacher_points']:+.1f}"


def _short(times: float) -> str:
    """Three digits, and no more where a student costs next to nothing."""
    return f"{times:.3g}" if times < MANY else f"over {MANY}"


def page(found: dict[str, Any]) -> str:
    """The README with its tables made anew."""
    parts = []
    for task, own in found.items():
        parts += [f"### {task.capitalize()}", "", *model_rows(own["models"]), ""]
        parts += [*pair_rows(own["pairs"]), ""]
    made = "\n".join(parts)
    return re.sub(
        f"(?<={BEGIN}\n\n).*?(?={END})", lambda _: made + "\n", README.read_text(), flags=re.S
    )


def main() -> None:
    """Measure all pairs, write what was found, and make the README's tables."""
    costs = json.loads((HERE / "answers.json").read_text())["costs"]
    found: dict[str, Any] = {}
    for task in TASKS:
        models, targets = models_of(task, costs[task])
        here = [names for names in PAIRS[task] if {*names} <= models.keys()]
        pairs = [pair(*names, models, targets) for names in here]
        found[task] = {
            "models": {
                name: alone(model, targets, is_language_model(name))
                for name, model in models.items()
            },
            "pairs": [each for each in pairs if each is not None],
        }
    save("results", about(seed=0) | {"splits": SPLITS, "tasks": found}, folder=HERE)
    with write_whole(README) as file:
        file.write(page(found))


if __name__ == "__main__":
    main()
