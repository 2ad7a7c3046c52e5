"""Names of classes: those of both models and of the data, compared and put in one order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np


def are_names(labels: Sequence[str] | None) -> bool:
    """Whether labels are known and say more than 0, 1, 2, ..."""
    return labels is not None and list(labels) != list(map(str, range(len(labels))))


def check_same_names(student: Sequence[str], teacher: Sequence[str]) -> None:
    """Check that two models name the same classes in the same order; else ValueError."""
    order = "in another order" if {*student} == {*teacher} else "by other names"
    # the numbers of classes are compared where the models answer
    for k, (one, other) in enumerate(zip(student, teacher, strict=False)):
        if one != other:
            raise ValueError(
                "student and teacher must answer the same classes in the same order, but they name "
                f"them {order}: class {k} is {one!r} for the student and {other!r} for the "
                "teacher; put the outputs of one in the other's order"
            )


def check_same_classes(
    who: str, names: Sequence[str] | None, whose: str, expected: Sequence[str] | None, way: str
) -> None:
    """Check that two name the same classes in the same order, where both name them."""
    for k, (one, other) in enumerate(zip_longest(names or (), expected or ())):
        if one != other and are_names(names) and are_names(expected):
            raise ValueError(f"class {k} is {one!r} in {who} and {other!r} in {whose}: {way}")


@dataclass(frozen=True, eq=False)
class Places:
    """Where the labels of some data are among the classes that the models answer."""

    labels: tuple[str, ...] | None  # the classes' names, in the order of the models, if known
    place: np.ndarray | None = None  # (k,): the class of each label 0..k - 1; None: the label
    by_name: bool = False  # whether a label, text or a number, is looked up in `labels`
    said: str | None = None  # what to tell the user of it

    def of(self, targets: Any, classes: int) -> Any:
        """Targets as the models number them: of (n,) labels, or of (n, labels) label sets."""
        if not isinstance(targets, np.ndarray):
            return targets
        if targets.dtype.kind == "U" or self.by_name:
            known, where = np.unique(targets, return_inverse=True)
            if self.labels is None:
                raise ValueError(unnamed(known))
            return _found(list(map(label_text, known)), self.labels)[where.reshape(-1)]
        if self.place is None:
            return targets
        if targets.ndim == 2:
            if targets.shape[1] != len(self.place):
                return targets  # refused by its shape
            placed = np.zeros((len(targets), classes), targets.dtype)
            placed[:, self.place] = targets
            return placed
        outside = (targets < 0) | (targets >= len(self.place))
        if outside.any():
            raise ValueError(
                f"labels must lie in 0..{len(self.place) - 1}, as the data name "
                f"{len(self.place)} classes, but one is {targets[outside][0]}"
            )
        return self.place[targets]


def places(
    names: Sequence[str] | None, models: Sequence[str] | None, classes: int, named_by: str | None
) -> Places:
    """Where the labels of data, called `names`, are among the classes of the models; or ValueError.

    `models` is what the models call their `classes` classes, in order; None if they do not.
    `named_by` says where `names` come from: ``"folders"`` may be of some classes alone and called
    by their numbers; ``"given"`` are the user's word for what the models call otherwise.
    """
    named = tuple(models) if models is not None and are_names(models) else None
    if named is not None and len(named) != classes:
        raise ValueError(
            f"the models name {len(named)} classes ({some(named)}) and answer {classes}"
        )
    if names is None:
        return Places(named, by_name=named is not None and whole_numbers(named) is not None)
    numbers, folders = whole_numbers(names), named_by == "folders"
    shared = named is not None and not {*names}.isdisjoint(named)
    if named is not None and (shared or not (numbers or named_by == "given")):
        found = _found(names, named)
        if np.array_equal(found, np.arange(classes)):
            return Places(named)
        return Places(named, found, said=_told(names, found, "their names") if folders else None)
    in_range = numbers is not None and 0 <= min(numbers) <= max(numbers) < classes
    if in_range and (folders or len(names) < classes):
        found = np.array(numbers)
        if np.array_equal(found, np.arange(classes)):
            return Places(named or tuple(names))
        return Places(named, found, said=_told(names, found, "their numbers"))
    if len(names) != classes:
        raise ValueError(
            f"the data have {len(names)} classes ({some(names)}), and the models answer "
            f"{classes}: name the models' classes, in their order, with --classes (classes=)"
        )
    if named is not None and named_by != "given":
        raise ValueError(_unknown(names[0], named))
    if folders and numbers is not None and numbers != sorted(numbers):
        told = _told(names, np.arange(classes), "the order of their names, as text")
        return Places(tuple(names), said=told)
    return Places(tuple(names))


def whole_numbers(names: Sequence[str]) -> list[int] | None:
    """Names as whole numbers, where all of them are."""
    return list(map(int, names)) if all(re.fullmatch(r"-?[0-9]+", name) for name in names) else None


def as_names(array: np.ndarray) -> np.ndarray:
    """An array of objects that are all text, as one of text; any other as it is."""
    words = array.dtype.kind == "O" and all(isinstance(each, str) for each in array.flat)
    return array.astype(str) if words else array


def label_text(label: Any) -> str:
    """What a class is called: a number that is whole, or a bool, as a whole number."""
    whole = isinstance(label, bool | np.bool_ | float | np.floating) and label % 1 == 0
    return str(int(label) if whole else label)


def _found(names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    where = {name: place for place, name in enumerate(labels)}
    for name in names:
        if name not in where:
            raise ValueError(_unknown(name, labels))
    return np.array([where[name] for name in names], np.int64)


def unnamed(targets: np.ndarray) -> str:
    """What is wrong where labels are text and nobody names the classes."""
    return (
        f"targets must be integer labels where neither model says what its classes are called, but "
        f"one is {str(targets[0])!r}: name them in the models' order with --classes (classes=), or "
        "as `labels` in an .npz of raw outputs"
    )


def _unknown(name: str, labels: Sequence[str]) -> str:
    return (
        f"the data have the class {name!r}, which is none of the models' {len(labels)} classes "
        f"({some(labels)}); say with --classes (classes=) what these are called in the data"
    )


def _told(names: Sequence[str], found: np.ndarray, way: str) -> str:
    pairs = [f"{name} is class {place}" for name, place in zip(names, found.tolist(), strict=True)]
    more = f" and {len(pairs) - 8} more" if len(pairs) > 8 else ""
    return f"the data's classes are taken by {way}: {', '.join(pairs[:8])}{more}"


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
