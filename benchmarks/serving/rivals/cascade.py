"""The cascade that each rival serves: two sessions, or the exported file that has both.

Nothing of EBJR is imported here: these apps run in an environment of their own. What a user tunes
comes from the environment (see ``servers.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime


def setting(name: str, default: str) -> str:
    """Read ``CASCADE_NAME`` from the environment."""
    return os.environ.get(f"CASCADE_{name}", default)


THREADS, WORKERS = int(setting("THREADS", "1")), int(setting("WORKERS", "1"))
BATCH, WAIT_SECONDS = int(setting("BATCH", "32")), float(setting("WAIT", "2")) / 1e3


def open_session(role: str) -> onnxruntime.InferenceSession:
    """The student's, the teacher's or the exported file's session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
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
    """Read the threshold from the environment."""
    return float(os.environ["CASCADE_THRESHOLD"])


def answers(labels: np.ndarray, found: np.ndarray, deferred: np.ndarray) -> list[dict[str, Any]]:
    """A small table for each row."""
    return [
        {"prediction": label, "score": score, "deferred": late}
        for label, score, late in zip(
            labels.tolist(), found.tolist(), deferred.tolist(), strict=True
        )
    ]


def cascade(student: Any, teacher: Any, images: np.ndarray) -> list[dict[str, Any]]:
    """Answer a batch: the teacher gets the rows whose score is too low, as one batch."""
    logits = ask(student, images)
    found = scores(logits)
    deferred = found < threshold()
    if deferred.any():
        logits[deferred] = ask(teacher, images[deferred])
    return answers(logits.argmax(axis=1), found, deferred)


def open_model() -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """Images in, answers out: by the exported file, or by both sessions."""
    if setting("MODEL", "pair") == "pair":
        student, teacher = open_session("student"), open_session("teacher")
        return lambda images: cascade(student, teacher, images)
    joint = open_session("joint")
    (name,) = (each.name for each in joint.get_inputs())
    outputs = ["prediction", "score", "deferred"]
    return lambda images: answers(*joint.run(outputs, {name: images}))


def pixels(body: bytes) -> np.ndarray:
    """An image from raw float32."""
    return np.frombuffer(body, np.float32).reshape(3, 32, 32)
