"""Descent: the loop that both trainings share, with a learning rate that falls along a cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def descend(
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batches: Callable[[], Sequence[Any]],
    count: int,
    loss: Callable[[Any], torch.Tensor],
) -> Iterator[tuple[int, float]]:
    """Each epoch and its mean loss, once it is done.

    `batches` gives an epoch's rows, of `count` batches, and `loss` the mean over some rows.
    """
    from torch.optim.lr_scheduler import CosineAnnealingLR

    falling = CosineAnnealingLR(optimizer, max(epochs * count, 1))
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
        yield epoch, total / seen
