"""The cascade on LitServe: one API, batching switched on."""

import json
import sys
from typing import Annotated, Any

import litserve
import numpy as np
from cascade import BATCH, WAIT_SECONDS, WORKERS, open_model, pixels
from fastapi import Body, Response


class Cascade(litserve.LitAPI):
    """Batches are formed from single images, which come as raw float32."""

    def setup(self, device: str) -> None:
        self.model = open_model()

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray:
        return pixels(request)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray) -> list[dict[str, Any]]:
        return self.model(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> Response:
        return Response(json.dumps(output), media_type="application/json")


if __name__ == "__main__":
    api = Cascade(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
