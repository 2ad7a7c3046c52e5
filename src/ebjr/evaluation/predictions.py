"""Predictions: other models' answers to the same examples, from a file."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import open_npz, take_rows
from ebjr.files import check_file
from ebjr.labels import check_same_classes
from ebjr.outcomes import Outcomes


def read_predictions(
    path: str | os.PathLike[str], outcomes: Outcomes, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Read other models' predictions on some rows of the outcomes, by name.

    The file is outcomes that `record` saved, which gives both of its models, or an ``.npz`` with
    `predictions` (n,) and optionally `targets` (n,) to check. It covers all examples of `outcomes`,
    in order, or those of `rows`.

    Raises
    ------
    ValueError
        `path` cannot be read, or has other examples, classes or predictions.
    """
    name = Path(path).name
    arrays = _arrays(path)
    if "about" in arrays:
        other = Outcomes.load(path)
        way = "record it again with the same --classes"
        check_same_classes(name, other.labels, "the outcomes", outcomes.labels, way)
        targets: Any = other.targets
        found: dict[str, Any] = {
            f"the {role} of {name}": other.predictions(role) for role in ("teacher", "student")
        }
    elif "predictions" in arrays:
        targets = arrays.get("targets")
        found = {name: _answers(path, arrays["predictions"], outcomes)}
    else:
        raise ValueError(
            f"cannot compare with {path}: `ebjr record` did not write it, and it has no array "
            f"named predictions; it has {', '.join(arrays) or 'nothing'}"
        )
    return {key: _taken(path, labels, targets, outcomes, rows) for key, labels in found.items()}


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read an ``.npz``'s arrays; of outcomes only `about`: `Outcomes.load` reads the rest."""
    file = check_file(path, f"there is no file {path} to compare with")
    try:
        with file.open("rb") as opened:
            if opened.read(2) != b"PK":  # an .npz is a zip archive
                raise ValueError("it is not an .npz file")
            opened.seek(0)
            archive = open_npz(opened)
            names = ["about"] if "about" in archive else archive.files
            return {name: archive[name] for name in names}
    except ValueError as error:
        reason = "it holds objects" if "allow_pickle" in str(error) else error
        raise ValueError(f"cannot compare with {path}: {reason}") from error
    except Exception as error:  # a damaged archive may raise anything, like zlib.error
        raise ValueError(f"cannot compare with {path}: the file is damaged") from error


def _answers(
    path: str | os.PathLike[str], predictions: np.ndarray, outcomes: Outcomes
) -> np.ndarray:
    binary = outcomes.measure.binary
    known = predictions.ndim == 1 and predictions.dtype.kind in ("iu" if binary else "fiu")
    if not known or not np.isfinite(predictions).all():
        what = "integer labels" if binary else "finite numbers"
        raise ValueError(
            f"cannot compare with {path}: predictions must be {what} (n,), not "
            f"{predictions.dtype} {predictions.shape}"
        )
    return predictions.astype(np.int64 if binary else np.float64)


def _taken(
    path: str | os.PathLike[str], labels: Any, targets: Any, outcomes: Outcomes, rows: np.ndarray
) -> Any:
    """Return the rows' labels, after checking that examples and classes are the same."""
    if len(labels) not in (len(outcomes), len(rows)):
        raise ValueError(
            f"cannot compare with {path}: it has {len(labels):,} examples, not all "
            f"{len(outcomes):,} or the {len(rows):,} held-out ones"
        )
    whole = len(labels) == len(outcomes)
    expected = outcomes.targets if whole else take_rows(outcomes.targets, rows)
    if targets is not None and not outcomes.kind.equal(targets, expected):
        raise ValueError(
            f"cannot compare with {path}: its targets differ from the outcomes' targets, in value "
            "or order"
        )
    if outcomes.kind.has_labels:
        classes = outcomes.kind.common_classes(outcomes.student, outcomes.teacher) or 0
        outside = (labels < 0) | (labels >= classes)
        if outside.any():
            raise ValueError(
                f"cannot compare with {path}: predictions must lie in 0..{classes - 1}, the "
                f"classes of the outcomes, but one is {labels[outside][0]}"
            )
    return take_rows(labels, rows) if whole else labels
