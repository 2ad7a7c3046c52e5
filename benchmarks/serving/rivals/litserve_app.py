"""The cascade on LitServe: one API, batching switched on."""

from __future__ import annotations

import base64
import os
import sys
from typing import Any

import litserve
import numpy as np
from cascade import cascade, open_session


class Cascade(litserve.LitAPI):
    """Batches are formed from single images; the teacher sees what of a batch is deferred."""

    def setup(self, device: str) -> None:
        self.student, self.teacher = open_session("student"), open_session("teacher")

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["image"]), np.float32).reshape(3, 32, 32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[dict[str, Any]]:
        return cascade(self.student, self.teacher, x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Cascade(max_batch_size=64, batch_timeout=0.002)
    workers = int(os.environ.get("CASCADE_WORKERS", "1"))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
