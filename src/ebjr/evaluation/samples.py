"""Samples: examples that the joint model wins or loses by deferral, and images of all kinds."""

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ebjr.curve import OperatingPoint, score_values
from ebjr.evaluation import joint_prediction
from ebjr.evaluation.bootstrap import point_rows
from ebjr.evaluation.groups import by_rows
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key, is_deferred
from ebjr.tasks.detection.boxes import GroundTruth

_LONGEST_SIDE = 320
_QUALITY = 70
_MOST = 4

CHANGED = ("Lost to the teacher", "Won over the teacher")
ANSWERED = ("Deferred to the teacher", "Kept by the student")


def sample_groups(outcomes: Outcomes, point: OperatingPoint) -> dict[str, np.ndarray]:
    """Return rows to show, at most four per group: the most lost or won, or evenly spaced ones."""
    _, joint, _, teacher = point_rows(by_rows(outcomes, point), point).T
    score = score_values(point.router.score, outcomes)
    key, deferred, chosen = deferral_key(score), is_deferred(score, point.threshold), {}
    for name, change in zip(CHANGED, (joint - teacher, teacher - joint), strict=True):
        rows = np.flatnonzero(change < 0)
        chosen[name] = rows[np.lexsort((-key[rows], change[rows]))][:_MOST]
    for name, mask in zip(ANSWERED, (deferred, ~deferred), strict=True):
        rows = np.flatnonzero(mask)
        places = np.linspace(0, len(rows) - 1, min(_MOST, len(rows))).round().astype(int)
        chosen[name] = rows[np.argsort(key[rows], kind="stable")[np.unique(places)]]
    return chosen


def sample_rows(outcomes: Outcomes, point: OperatingPoint) -> np.ndarray:
    """Return the rows of all `sample_groups`, ascending."""
    return np.unique(np.concatenate([*sample_groups(outcomes, point).values()]))


def make_samples(
    outcomes: Outcomes,
    point: OperatingPoint,
    images: Sequence[Any] = (),
    numbers: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return a report's samples for JSON; without `images` only lost and won examples.

    `images` are those of `sample_rows`, and `numbers`, (n,), the rows' numbers in the report.
    """
    groups = sample_groups(outcomes, point)
    names = [name for name in groups for _ in groups[name] if len(images) or name in CHANGED]
    rows = np.concatenate([groups[name] for name in dict.fromkeys(names)] or [np.zeros(0, int)])
    if not len(rows):
        return []
    some, shown = outcomes.take(rows), np.searchsorted(sample_rows(outcomes, point), rows)
    score, deferred = point.router(some.student)
    answers = [some.predictions("student"), some.predictions("teacher")]
    said = [_plain(each, some) for each in (some.targets, *answers, joint_prediction(some, point))]
    called = rows if numbers is None else numbers[rows]
    return [
        {
            "group": names[k],
            "row": int(called[k]),
            "score": f"{score[k]:.4g}",
            "who": "teacher" if deferred[k] else "student",
            **dict(zip(("there", "student", "teacher", "joint"), words, strict=True)),
            **(_picture(images[shown[k]]) if len(images) else {}),
        }
        for k, words in enumerate(zip(*said, strict=True))
    ]


def _plain(answers: Any, outcomes: Outcomes) -> list[Any]:
    if isinstance(answers, list) and isinstance(answers[0], GroundTruth):
        return [{"prediction": [{"box": box} for box in each.boxes.tolist()]} for each in answers]
    labels = outcomes.labels
    if labels is None and outcomes.kind.targets_are.startswith("label"):
        labels = tuple(f"class {k}" for k in range(outcomes.teacher.shape[1]))
    return outcomes.kind.plain(answers, labels)


def as_picture(image: Any) -> np.ndarray:
    """Return an image as uint8, (height, width, 3); ValueError if an input is not an image."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(
            f"a report shows images (bytes, (height, width, 3)), but an input is {array.dtype} "
            f"{array.shape}: remove --data to list the examples instead"
        )
    return np.broadcast_to(array, (*array.shape[:2], 3))


def same_labels(given: Iterable[Any], targets: Iterable[Any]) -> bool:
    """Whether each label of some data always goes with the same target, under any name."""
    return _numbered(given) == _numbered(targets)


def _numbered(labels: Iterable[Any]) -> list[int]:
    """Number labels, label sets or boxes in the order in which they first appear."""
    seen: dict[Any, int] = {}
    keys = (x if np.isscalar(x) else getattr(x, "boxes", x).tobytes() for x in labels)
    return [seen.setdefault(key, len(seen)) for key in keys]


def _picture(image: Any) -> dict[str, Any]:
    from PIL import Image

    height, width = image.shape[:2]
    small = Image.fromarray(image)
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    file = BytesIO()
    small.save(file, "JPEG", quality=_QUALITY)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return {"image": uri, "width": width, "height": height}
