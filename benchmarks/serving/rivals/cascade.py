"""The cascade that each rival serves: two sessions, and the deferred rows gathered for the teacher.

Nothing of EBJR is imported here: these apps run in an environment of their own.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime


def open_session(role: str) -> onnxruntime.InferenceSession:
    """The student's or the teacher's session, with as many threads as the environment says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("CASCADE_THREADS", "2"))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        os.environ[f"CASCADE_{role.upper()}"], options, providers=["CPUExecutionProvider"]
    )


def ask(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Logits of images (n, 3, 32, 32)."""
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def scores(logits: np.ndarray) -> np.ndarray:
    """The largest softmax probability of each row."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted.max(axis=1) / shifted.sum(axis=1)


def threshold() -> float:
    """What the environment says."""
    return float(os.environ["CASCADE_THRESHOLD"])


def cascade(student: Any, teacher: Any, images: np.ndarray) -> list[dict[str, Any]]:
    """Answer a batch: the teacher gets the rows whose score is too low, as one batch."""
    logits = ask(student, images)
    found = scores(logits)
    deferred = found < threshold()
    if deferred.any():
        logits[deferred] = ask(teacher, images[deferred])
    return [
        {"prediction": int(label), "score": float(score), "deferred": bool(late)}
        for label, score, late in zip(logits.argmax(axis=1), found, deferred, strict=True)
    ]
