"""The cascade behind a micro-batcher written by hand: Starlette, a queue, a pool of threads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
from cascade import BATCH, WAIT_SECONDS, WORKERS, open_model, pixels
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

model, pool = open_model(), ThreadPoolExecutor(WORKERS)


def answer(images: list[np.ndarray]) -> list[bytes]:
    return [json.dumps(each).encode() for each in model(np.stack(images))]


async def collect() -> None:
    """Form a batch whenever a worker is free: what waits, or what comes within the wait."""
    while True:
        rows = [await app.state.queue.get()]
        if WAIT_SECONDS and app.state.queue.qsize() + 1 < BATCH:
            await asyncio.sleep(WAIT_SECONDS)
        await app.state.free.acquire()
        while len(rows) < BATCH and not app.state.queue.empty():
            rows.append(app.state.queue.get_nowait())
        images = [image for image, _ in rows]
        done = asyncio.get_running_loop().run_in_executor(pool, answer, images)
        done.add_done_callback(partial(give, rows))


def give(
    rows: list[tuple[np.ndarray, asyncio.Future[bytes]]], done: asyncio.Future[list[bytes]]
) -> None:
    app.state.free.release()
    error = done.exception()
    for number, (_, waiting) in enumerate(rows):
        if waiting.done():  # its client has gone
            continue
        if error:
            waiting.set_exception(error)
        else:
            waiting.set_result(done.result()[number])


async def predict(request: Request) -> Response:
    waiting = asyncio.get_running_loop().create_future()
    app.state.queue.put_nowait((pixels(await request.body()), waiting))
    return Response(await waiting, media_type="application/json")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    app.state.queue, app.state.free = asyncio.Queue(), asyncio.Semaphore(WORKERS)
    collecting = asyncio.create_task(collect())
    yield
    collecting.cancel()


app = Starlette(routes=[Route("/predict", predict, methods=["POST"])], lifespan=lifespan)
