"""The cascade on BentoML: one service, adaptive batching switched on."""

from __future__ import annotations

import base64
import os
from typing import Any

import bentoml
import numpy as np
from cascade import cascade, open_session


@bentoml.service(
    workers=int(os.environ.get("CASCADE_WORKERS", "1")),
    traffic={"timeout": 30, "max_concurrency": 4096},
    logging={"access": {"enabled": False}},
)
class Cascade:
    """Batches are formed from single images; the teacher sees what of a batch is deferred."""

    def __init__(self) -> None:
        self.student, self.teacher = open_session("student"), open_session("teacher")

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10_000)
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """Images as base64 of float32 (3, 32, 32)."""
        pixels = [np.frombuffer(base64.b64decode(image), np.float32) for image in images]
        return cascade(self.student, self.teacher, np.stack(pixels).reshape(-1, 3, 32, 32))
