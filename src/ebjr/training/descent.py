"""Descent: the loop that both trainings share, with a learning rate that falls along a cosine."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ebjr.errors import ModelError, needs

with needs("torch", "training"):
    import torch


def descend(
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batches: Callable[[], Sequence[Any]],
    count: int,
    loss: Callable[[Any], torch.Tensor],
    progress: Callable[[int, float], None] | None,
) -> None:
    """Lower the mean `loss` of rows, an epoch's in `count` batches; `progress` is told of each."""
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * count, 1))
    for epoch in range(epochs):
        total, seen = 0.0, 0
        for rows in batches():
            value = loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            falling.step()
            total += float(value.detach()) * len(rows)
            seen += len(rows)
        if not math.isfinite(total):
            raise ModelError(
                f"the loss is no number after epoch {epoch}: check the inputs, or lower "
                f"learning_rate, which is {optimizer.defaults['lr']:g}"
            )
        if progress is not None:
            progress(epoch, total / seen)
