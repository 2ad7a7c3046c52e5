"""Names of classes: those of both models and of the data, compared and put in one order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np


def are_names(labels: Sequence[str] | None) -> bool:
    """Tell whether labels are known and are more than 0, 1, 2, ..."""
    return labels is not None and list(labels) != list(map(str, range(len(labels))))


def check_once(what: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name occurs twice; the message calls the names `what`."""
    known = set[str]()
    for name in names:
        if name in known:
            raise ValueError(f"{what} must be distinct, but one name occurs twice: {name!r}")
        known.add(name)


def check_same_names(student: Sequence[str], teacher: Sequence[str]) -> None:
    """Check that two models name the same classes in the same order; else a ValueError."""
    order = "in another order" if {*student} == {*teacher} else "by other names"
    # not strict: the numbers of classes are compared on the models' outputs
    for k, (one, other) in enumerate(zip(student, teacher, strict=False)):
        if one != other:
            raise ValueError(
                "student and teacher must have the same classes in the same order, but they name "
                f"them {order}: class {k} is {one!r} for the student and {other!r} for the "
                "teacher; reorder the outputs of one"
            )


def check_same_classes(
    who: str, names: Sequence[str] | None, whose: str, expected: Sequence[str] | None, way: str
) -> None:
    """Check that two lists of classes, if both have names, are equal."""
    for k, (one, other) in enumerate(zip_longest(names or (), expected or ())):
        if one != other and are_names(names) and are_names(expected):
            raise ValueError(f"class {k} is {one!r} in {who} and {other!r} in {whose}: {way}")


@dataclass(frozen=True, eq=False)
class Places:
    """The mapping from the labels of some data to the models' classes."""

    labels: tuple[str, ...] | None  # the classes' names, in the models' order, if known
    place: np.ndarray | None = None  # (k,): the class of each label 0..k - 1; None: the same
    by_name: bool = False  # look labels, text or numbers, up in `labels`
    said: str | None = None  # a note for the user

    def of(self, targets: Any, classes: int) -> Any:
        """Map labels (n,), or label sets (n, labels), to the models' classes."""
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
                return targets  # its shape is refused later
            placed = np.zeros((len(targets), classes), targets.dtype)
            placed[:, self.place] = targets
            return placed
        outside = (targets < 0) | (targets >= len(self.place))
        if outside.any():
            raise ValueError(
                f"labels must lie in 0..{len(self.place) - 1}, since the data name "
                f"{len(self.place)} classes, but one is {targets[outside][0]}"
            )
        return self.place[targets]


def places(
    names: Sequence[str] | None, models: Sequence[str] | None, classes: int, named_by: str | None
) -> Places:
    """Map the data's labels, named `names`, to the models' classes.

    `models` are the models' names of their `classes` classes, in order, or None. `named_by` is the
    source of `names`: ``"folders"`` may be only some classes, or named by their numbers;
    ``"given"`` are the user's names, which replace the models'.

    Raises
    ------
    ValueError
        `names` and the models' classes do not match.
    """
    named = tuple(models) if models is not None and are_names(models) else None
    if named is not None and len(named) != classes:
        raise ValueError(
            f"the models name {len(named)} classes ({some(named)}), but return {classes}"
        )
    if names is None:
        return Places(named, by_name=named is not None and whole_numbers(named) is not None)
    if tuple(names) == named:
        return Places(named)
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
            f"the data have {len(names)} classes ({some(names)}), but the models return {classes}: "
            "name the models' classes, in their order, with --classes (classes=)"
        )
    if named is not None and named_by != "given":
        raise ValueError(_unknown(names[0], named))
    if folders and numbers is not None and numbers != sorted(numbers):
        told = _told(names, np.arange(classes), "the order of their names, as text")
        return Places(tuple(names), said=told)
    return Places(tuple(names))


def whole_numbers(names: Sequence[str]) -> list[int] | None:
    """Return names as whole numbers, or None if one is not a number."""
    return list(map(int, names)) if all(re.fullmatch(r"-?[0-9]+", name) for name in names) else None


def spelled_places(names: Sequence[str], kind: str) -> dict[int, int] | None:
    """Return the class of each number, for labels of a NumPy kind; None if numbers are places.

    Numbers are names if every class is named by one of its own: 3 is then "3" or "03", whatever its
    place. Bools are names if two classes are called true and false, in any case.
    """
    words = [name.casefold() for name in names]
    if kind == "b" and {"false", "true"} <= {*words}:
        return {0: words.index("false"), 1: words.index("true")}
    found = {number: place for place, number in enumerate(whole_numbers(names) or ())}
    return found if kind in "biu" and len(found) == len(names) else None


def listed_places(words: Sequence[str], names: Sequence[str] | None) -> list[int]:
    """Return the places of classes that a user lists, all by name or all by number.

    Numbers are places, counted from 0, unless every class of `names` is named by a number.

    Raises
    ------
    ValueError
        A word is no class, or the name of several.
    """
    known = [label_text(name) for name in names or ()]
    if all(map(str.isdecimal, words)) and {*known}.isdisjoint(words):
        numbers, places = list(map(int, words)), spelled_places(known, "i") if known else None
        if places is None:
            return numbers
        if {*numbers} <= places.keys():
            return [places[number] for number in numbers]
    for word in words:
        if known.count(word) != 1:
            what = "not a class name" if known and word.isdecimal() else _NEITHER
            what = "the name of several classes" if word in known else what
            has = f"known are {some(known)}" if known else "no class has a name"
            raise ValueError(f"{word!r} is {what}; {has}")
    return [known.index(word) for word in words]


_NEITHER = "neither a class number nor a class name"


def as_names(array: np.ndarray) -> np.ndarray:
    """Turn an object array of texts into a text array; leave others unchanged."""
    words = array.dtype.kind == "O" and all(isinstance(each, str) for each in array.flat)
    return array.astype(str) if words else array


def label_text(label: Any) -> str:
    """Return the name of a class; a whole float or a bool is named by its integer."""
    whole = isinstance(label, bool | np.bool_ | float | np.floating) and label % 1 == 0
    return str(int(label) if whole else label)


def _found(names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    where = {name: place for place, name in enumerate(labels)}
    for name in names:
        if name not in where:
            raise ValueError(_unknown(name, labels))
        if labels.count(name) > 1:
            raise ValueError(
                f"the data have the class {name!r}, and several of the models' classes are called "
                "so: give each its own name with --classes (classes=)"
            )
    return np.array([where[name] for name in names], np.int64)


def unnamed(targets: np.ndarray) -> str:
    """Return the message about text labels of unnamed classes."""
    return (
        "targets must be integer labels since neither model names its classes, but one is "
        f"{str(targets[0])!r}: name the classes in the models' order with --classes (classes=), or "
        "with `labels` in an .npz of raw outputs"
    )


def _unknown(name: str, labels: Sequence[str]) -> str:
    return (
        f"the data have the class {name!r}, which is not one of the models' {len(labels)} classes "
        f"({some(labels)}); give the data's names of these with --classes (classes=)"
    )


def _told(names: Sequence[str], found: np.ndarray, way: str) -> str:
    pairs = [f"{name} is class {place}" for name, place in zip(names, found.tolist(), strict=True)]
    more = f" and {len(pairs) - 8} more" if len(pairs) > 8 else ""
    return f"the data's classes are matched by {way}: {', '.join(pairs[:8])}{more}"


def some(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
