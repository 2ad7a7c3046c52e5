"""Descent: the training loop, with a cosine learning rate."""

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
    """Minimize the mean `loss`; an epoch has `count` batches, after which `progress` is called."""
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
                f"the loss is not finite after epoch {epoch}: check the inputs, or lower "
                f"learning_rate, which is {optimizer.defaults['lr']:g}"
            )
        if progress is not None:
            progress(epoch, total / seen)
