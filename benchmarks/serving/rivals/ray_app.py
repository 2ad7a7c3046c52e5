"""The cascade on Ray Serve: student and teacher are deployments, both with batching."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import ray
from cascade import BATCH, WAIT_SECONDS, ask, open_session, pixels, scores, threshold
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Teacher:
    """Batches of deferred images, whichever student batch they come from."""

    def __init__(self) -> None:
        self.session = open_session("teacher")

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def __call__(self, images: list[np.ndarray]) -> list[int]:
        return ask(self.session, np.stack(images)).argmax(axis=1).tolist()


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Student:
    """Takes requests, answers in batches, and asks the teacher where the score is too low."""

    def __init__(self, teacher: Any) -> None:
        self.session, self.teacher = open_session("student"), teacher

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def answer(self, images: list[np.ndarray]) -> list[tuple[int, float]]:
        logits = ask(self.session, np.stack(images))
        return list(zip(logits.argmax(axis=1).tolist(), scores(logits).tolist(), strict=True))

    async def __call__(self, request: Request) -> dict[str, Any]:
        image = pixels(await request.body())
        label, score = await self.answer(image)
        deferred = score < threshold()
        if deferred:
            label = await self.teacher.remote(image)
        return {"prediction": label, "score": score, "deferred": deferred}


if __name__ == "__main__":
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    serve.run(Student.bind(Teacher.bind()), name="cascade")
    try:
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()
        ray.shutdown()
