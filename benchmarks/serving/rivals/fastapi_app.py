"""The exported file behind plain FastAPI: one image a call, no batching."""

from __future__ import annotations

from typing import Any

from cascade import open_model, pixels, setting
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

app, model = FastAPI(), open_model()
aside = setting("ASIDE", "no") == "yes"


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Raw float32 in, an answer out."""
    images = pixels(await request.body())[None]
    (found,) = await run_in_threadpool(model, images) if aside else model(images)
    return found
