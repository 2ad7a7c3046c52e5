"""The pairs that stand for the paper's: shipped, of others, or those of `full_scale`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from ebjr import Outcomes
from ebjr.demo import shipped
from experiments.frame import Run
from experiments.other_pairs import pairs as other

TRAINED = Path(__file__).parent / "trained"
"""Where `experiments.full_scale` leaves checkpoints and outcomes; CIFAR-10's are committed."""

ROLES = ("student", "teacher")


class Pair(NamedTuple):
    """A pair, the data set of the paper that it stands for, and what both said on its test set.

    `splits` is how many splits figures are means of, where a run is not quick.
    """

    title: str
    data: str
    load: Callable[[], Outcomes]
    splits: int = 5


def shipped_pair() -> Outcomes:
    """The pair of the demo on CIFAR-10."""
    return shipped_zoo().pair("student", "teacher")


def shipped_zoo() -> Outcomes:
    """All models of the demo on CIFAR-10: the student, it mirrored, a second one, the teacher."""
    with shipped("outcomes.npz") as path:
        return Outcomes.load(path)


def full_scale(data: str) -> Outcomes:
    """The paper's own pair on a data set, where `experiments.full_scale` has trained it.

    Raises
    ------
    FileNotFoundError
        The pair is not trained.
    """
    file = TRAINED / "outcomes" / f"{data}.npz"
    if not file.exists():
        raise FileNotFoundError(f"there is no {file}: train it, python -m experiments.full_scale")
    return Outcomes.load(file)


def checkpoint(data: str, role: str, folder: Path = TRAINED) -> Path:
    """Where `experiments.full_scale` keeps a network of a data set."""
    return folder / "checkpoints" / f"{data}_{role}.pt"


PAIRS: dict[str, Pair] = {
    "cifar10": Pair("CIFAR-10, the shipped pair", "cifar10", shipped_pair, splits=10),
    "cifar100_densenet": Pair(
        "CIFAR-100, early exit -> DenseNet-BC",
        "cifar100",
        partial(other.load, "cifar100_densenet"),
    ),
    "cifar100_early_exit": Pair(
        "CIFAR-100, early exit -> its full net",
        "cifar100",
        partial(other.load, "cifar100_early_exit"),
    ),
    "imagenet_160_260": Pair(
        "ImageNet's classes, Lite0 at 160 -> Lite2 at 260",
        "imagenet",
        partial(other.load, "imagenet_lite0_160_lite2_260"),
    ),
    "imagenet_224_260": Pair(
        "ImageNet's classes, Lite0 at 224 -> Lite2 at 260",
        "imagenet",
        partial(other.load, "imagenet_lite0_224_lite2_260"),
    ),
    **{
        f"paper_{data}": Pair(f"{title}, the paper's nets", data, partial(full_scale, data))
        for data, title in (
            ("cifar10", "CIFAR-10"),
            ("cifar100", "CIFAR-100"),
            ("imagenet", "ImageNet"),
            ("caltech256", "Caltech-256"),
        )
    },
}
"""By name. Those whose images and weights are not on the machine are left out of a run."""


def apart(
    share: float,
    student: float,
    teacher: float,
    paper: tuple[float, float, float] | None = None,
    title: str = "the paper's",
) -> str:
    """Return the distance of student and teacher, which bounds a pair's saving.

    Beside it the paper's own pair, as (share, student, teacher), where it gives these.

    Examples
    --------
    >>> apart(0.39, 63.8, 80.3)
    'the student costs 39 % of its teacher and is right on 63.8 %, its teacher on 80.3 %'
    >>> apart(0.12, 91.9, 93.7, (0.18, 91.81, 94.76)).partition("; ")[2]
    "the paper's costs 18 % and is right on 91.8 %, its teacher on 94.8 %"
    """
    words = (
        f"the student costs {100 * share:.0f} % of its teacher and is right on {student:.1f} %, "
        f"its teacher on {teacher:.1f} %"
    )
    if paper is None:
        return words
    share, student, teacher = paper
    return (
        f"{words}; {title} costs {100 * share:.0f} % and is right on {student:.1f} %, "
        f"its teacher on {teacher:.1f} %"
    )


def here(run: Run) -> Iterator[tuple[str, Pair]]:
    """The pairs at hand; for a quick look only the one that is shipped."""
    for name, pair in PAIRS.items():
        if run.quick and name != "cifar10":
            continue
        known = pair._replace(load=cache(pair.load), splits=2 if run.quick else pair.splits)
        try:
            known.load()
        except (FileNotFoundError, ImportError) as error:
            print(f"{run.name}: left out {name}: {error}", flush=True)
            continue
        yield name, known
