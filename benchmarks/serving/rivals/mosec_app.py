"""The cascade on mosec: worker processes behind its own front, batching switched on."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from cascade import BATCH, WAIT_SECONDS, WORKERS, open_model, pixels
from mosec import Server, Worker


class Cascade(Worker):
    """Raw float32 in, small JSON out."""

    def __init__(self) -> None:
        self.model = open_model()

    def deserialize(self, data: bytes) -> np.ndarray:
        return pixels(data)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        return self.model(np.stack(data))

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Cascade, num=WORKERS, max_batch_size=BATCH, max_wait_time=max(1, round(1e3 * WAIT_SECONDS))
    )
    server.run()
