"""Known classes: a specialized student knows the popular classes, and calls the rest "other".

`known_classes` are the teacher's labels that the student knows, in the student's order: its label k
is the teacher's label ``known_classes[k]``, and its last label, ``other_class``, is all others
(section 2.4).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import numpy as np

from ebjr.arrays import Array, as_float, convert_like, logsumexp, namespace, take_places, to_numpy


def check_known_classes(known_classes: Any, classes: int | None = None) -> tuple[int, ...]:
    """Return the known classes as a tuple of different labels among the teacher's `classes`.

    Raises
    ------
    ValueError
        `known_classes` are not such labels, are none, or are all, which leaves no "other".
    """
    array = np.asarray(to_numpy(known_classes))
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
        raise ValueError(
            "known_classes must be a list of the teacher's labels, integers in the student's "
            f"order, not {known_classes!r}"
        )
    known = tuple(array.tolist())
    if len(set(known)) < len(known):
        twice = next(label for label in known if known.count(label) > 1)
        raise ValueError(f"known_classes must differ, but label {twice} is there twice")
    outside = [k for k in known if k < 0 or (classes is not None and k >= classes)]
    if outside:
        limits = "be at least 0" if classes is None else f"lie in 0..{classes - 1}"
        raise ValueError(f"known_classes must {limits}, the teacher's labels, not {outside[0]}")
    if classes is not None and len(known) >= classes:
        raise ValueError(
            f"{len(known)} known classes leave none of the teacher's {classes} for 'other': for a "
            "student of all classes use task 'classification'"
        )
    return known


def other_class(known_classes: Any) -> int:
    """Return the student's label for every class that it does not know: its last."""
    return len(known_classes)


def top_classes(
    labels: Any, count: int | None = None, *, share: float | None = None
) -> tuple[int, ...]:
    """Return the most popular classes, most frequent first; ties: the smaller label first.

    Parameters
    ----------
    labels
        (n,): the labels of the traffic, or the teacher's own answers.
    count
        C: the number of classes.
    share
        Instead of `count`: the fewest classes that make up at least this share of the labels.

    Raises
    ------
    ValueError
        `count` is more than the classes among `labels`, `share` is outside (0, 1], or `labels` are
        not integers from 0.

    Examples
    --------
    >>> top_classes([5, 2, 2, 5, 5, 0], 2), top_classes([5, 2, 2, 5, 5, 0], share=0.5)
    ((5, 2), (5,))
    """
    if (count is None) == (share is None):
        raise ValueError(
            "give either count, or share, the share of the labels that the classes hold"
        )
    found, frequency = np.unique(_labels(labels), return_counts=True)
    order = np.argsort(-frequency, kind="stable")
    if share is not None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {share}")
        held = np.cumsum(frequency[order])
        # 1e-12: rounding must not turn 0.3 of ten labels into four
        count = int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1
    if not isinstance(count, int | np.integer) or not 1 <= count <= len(found):
        raise ValueError(
            f"count must be an integer from 1 to {len(found)}, the classes among the labels, not "
            f"{count}; for a share of the labels use share="
        )
    return tuple(found[order[:count]].tolist())


@dataclass(frozen=True)
class Traffic:
    """A mix of inputs: a share of popular classes, and the rest from all others (figure 6)."""

    popular: float
    popular_classes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.popular <= 1:
            raise ValueError(f"the popular share must lie between 0 and 1, not {self.popular}")
        object.__setattr__(self, "popular_classes", check_known_classes(self.popular_classes))

    @classmethod
    def parse(cls, text: str, popular_classes: Any) -> Self:
        """Read ``popular=0.75``."""
        name, _, share = text.partition("=")
        try:
            number = float(share if name.strip() == "popular" else "")
        except ValueError:
            raise ValueError(f"traffic must be written like 'popular=0.75', not {text!r}") from None
        return cls(number, popular_classes)

    def __str__(self) -> str:
        return f"popular={self.popular:g}"

    def draw(self, targets: Any, seed: int = 0) -> np.ndarray:
        """Return the rows of the largest sample in this mix, ascending.

        `targets`, (n,), are labels or the teacher's answers. No row is drawn twice, so that a
        guarantee can rest on the sample.
        """
        popular = np.isin(_labels(targets), self.popular_classes)
        wanted = {True: self.popular, False: 1 - self.popular}
        groups = {part: np.flatnonzero(popular == part) for part in wanted}
        for part, share in wanted.items():
            if share and not len(groups[part]):
                raise ValueError(
                    f"{share:.0%} of the traffic is of {'popular' if part else 'other'} classes, "
                    "but no example is: change --traffic or --popular"
                )
        total = min(len(groups[part]) / share for part, share in wanted.items() if share)
        random = np.random.default_rng(seed)
        drawn = [
            random.permutation(groups[part])[: round(total * share)]
            for part, share in wanted.items()
        ]
        return np.sort(np.concatenate(drawn))


def relabel(labels: Any, known_classes: Any, classes: int | None = None) -> np.ndarray:
    """Return the teacher's labels as the student's: 0 to C - 1, and C for "other".

    Parameters
    ----------
    labels
        (n,), the teacher's labels.
    known_classes
        The labels that the student knows, in its order.
    classes
        The number of the teacher's classes: a label beyond it is an error, not "other".

    Raises
    ------
    ValueError
        `known_classes` are not labels, or `labels` has one that the teacher does not know.

    Examples
    --------
    >>> relabel([7, 0, 3, 9], known_classes=[7, 3])
    array([0, 2, 1, 2])
    """
    known = check_known_classes(known_classes, classes)
    array = _labels(labels)
    if classes is not None and len(array) and array.max() >= classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1}, the teacher's, but one is {array.max()}"
        )
    order = np.argsort(known)
    ascending = np.asarray(known)[order]
    place = np.minimum(np.searchsorted(ascending, array), len(known) - 1)
    return np.where(ascending[place] == array, order[place], other_class(known))


def to_teacher(output: Array, known_classes: tuple[int, ...], classes: int) -> Array:
    """Return a specialized student's logits, (n, C + 1), as logits of all the teacher's classes.

    "Other" is spread evenly over the unknown classes, so that the softmax is a distribution over
    all. A known class wins a tie with "other" (eq. 16), even if "other" is a single class.
    """
    output = as_float(output)
    column, unknown = _columns(known_classes, classes)
    xp = namespace(output)
    if len(unknown) == 1:
        output = _other_under_ties(output)
    other = column == other_class(known_classes)
    spread = convert_like(np.log(len(unknown)) * other, output)
    return take_places(output, column) - xp.astype(spread, output.dtype)


def _other_under_ties(output: Array) -> Array:
    """Return the student's logits, with "other" lowered by a rounding if a known class ties."""
    xp = namespace(output)
    known, other = output[:, :-1], output[:, -1]
    limits = xp.finfo(output.dtype)
    lower = other - 2 * limits.eps * xp.abs(other) - limits.smallest_normal
    tied = other == xp.max(known, axis=-1)
    return xp.concat([known, xp.where(tied, lower, other)[:, None]], axis=1)


def to_student(output: Array, known_classes: Any) -> Array:
    """Return the teacher's logits as a specialized student's: "other" has the sum of the rest."""
    output = as_float(output)
    known = check_known_classes(known_classes, int(output.shape[1]))
    _, unknown = _columns(known, int(output.shape[1]))
    other = logsumexp(take_places(output, unknown))
    of_known = take_places(output, np.array(known))
    return namespace(output).concat([of_known, other[:, None]], axis=1)


def refine(student: Array, teacher: Array, known_classes: tuple[int, ...]) -> Array:
    """Return `to_teacher`'s logits with "other" spread in the teacher's proportions, not evenly."""
    teacher = as_float(teacher)
    classes = int(teacher.shape[1])
    column, unknown = _columns(known_classes, classes)
    xp = namespace(teacher)
    of_unknown = logsumexp(take_places(teacher, unknown))
    other = convert_like(column == other_class(known_classes), teacher)
    spread = teacher - of_unknown[:, None] + float(np.log(len(unknown)))
    return student + xp.where(other, spread, xp.zeros_like(teacher))


@lru_cache(maxsize=64)
def _columns(known_classes: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the student's column of each teacher's label, and the labels it does not know."""
    check_known_classes(known_classes, classes)
    column = relabel(np.arange(classes), known_classes)
    unknown = np.flatnonzero(column == other_class(known_classes))
    for array in (column, unknown):
        array.flags.writeable = False
    return column, unknown


def _labels(labels: Any) -> np.ndarray:
    if isinstance(labels, Iterable) and not hasattr(labels, "shape"):
        labels = list(labels)
    array = np.asarray(to_numpy(labels))
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu" or array.min() < 0:
        came = f"{array.dtype} of shape {array.shape}"
        if array.ndim == 1 and len(array) and array.dtype.kind in "iu":
            came = f"{array.min()}"
        raise ValueError(f"labels must be (n,) integers of at least 0, not {came}")
    return array.astype(np.int64)
