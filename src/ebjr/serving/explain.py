"""One input, both models: what each answers, which one the router picks, and how long each took."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from ebjr.arrays import Batch, to_numpy
from ebjr.errors import ModelError
from ebjr.joint import JointModel
from ebjr.serving.events import Asked

SHOWN = 3  # most probable classes in an answer


def explain(
    joint: JointModel,
    inputs: Batch,
    threshold: float,
    labels: Sequence[str] | None = None,
    tell: Callable[[Asked], None] = lambda event: None,
) -> dict[str, Any]:
    """Return both models' answers to a batch of one input, and the joint answer, as JSON.

    The teacher runs whatever the score, so this inspects single inputs; it does not serve load.
    `stage` names the model that gave an answer. `answer` is None if the policy is ``"error"`` and
    the teacher is away. A failing student raises ModelError. `tell` gets what both models spent.
    """
    began = time.perf_counter()
    found = joint.ask_student(inputs)
    tell(Asked("both", 0, found.spent))
    score = to_numpy(joint.router.score(found.output))
    own = joint.of_student(found.output)
    spent = time.perf_counter() - began
    stage = 0 if found.stage is None else int(to_numpy(found.stage)[0])
    student = _said(joint, own, labels) | {"seconds": spent, "stage": stage}
    deferred, degraded, output = bool(joint.router.deferred(score, threshold)[0]), False, own
    began = time.perf_counter()
    try:
        found = joint.ask_teacher_alone(joint.for_teacher(inputs, found), own)
    except ModelError as error:
        teacher: dict[str, Any] = {"error": " ".join(str(error).split())}
        degraded, deferred = deferred, False
    else:
        tell(Asked("both", 0, found.spent))
        taught, stage = found.output, int(joint.stage_of(found, 1)[0])
        spent = time.perf_counter() - began
        teacher = _said(joint, taught, labels) | {"seconds": spent, "stage": stage}
        if deferred:
            output = joint.mix(own, taught) if joint.blend else taught
    answered = not (degraded and joint.when_unavailable == "error")
    return {
        "score": float(score[0]),
        "threshold": threshold,
        "deferred": deferred,
        "degraded": degraded,
        "student": student,
        "teacher": teacher,
        "answer": _said(joint, output, labels) if answered else None,
    }


def _said(joint: JointModel, output: Any, labels: Sequence[str] | None) -> dict[str, Any]:
    (said,) = joint.kind.plain(joint.predict(output), labels)
    if not joint.kind.has_logits:
        return said
    shares = softmax(np.asarray(to_numpy(output)[0], np.float64))
    best = np.argsort(-shares)[:SHOWN].tolist()
    names = {} if labels is None else {row: {"label": labels[row]} for row in best}
    top = [{"prediction": row, **names.get(row, {}), "probability": shares[row]} for row in best]
    return {**said, "top": top}
