"""The cascade on BentoML: one service, adaptive batching switched on.

Images come as base64 in JSON: a batchable method takes a list, BentoML reads a raw body into one
file alone, and a form's files are each written to disk first.
"""

from __future__ import annotations

import base64
from typing import Any

import bentoml
import numpy as np
from cascade import BATCH, WORKERS, open_model, pixels


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": 30, "max_concurrency": 4096},
    logging={"access": {"enabled": False}},
)
class Cascade:
    """Batches are formed from single images; the teacher sees what of a batch is deferred."""

    def __init__(self) -> None:
        self.model = open_model()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
    def predict(self, images: list[str]) -> list[dict[str, Any]]:
        """Images as base64 of float32 (3, 32, 32)."""
        return self.model(np.stack([pixels(base64.b64decode(image)) for image in images]))
