"""Student and teacher: how far a digit was turned, as a distribution over bins of the angle."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

BINS = 32
WIDTH = 3.0
EDGES = WIDTH * np.arange(-BINS / 2, BINS / 2 + 1)
"""In degrees: one bin more on either side than there are angles, whose mean could not be told."""


def student() -> nn.Module:
    """Three narrow layers, each of which halves the resolution."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, BINS),
    )


def teacher() -> nn.Module:
    """The full resolution, and three wide layers."""

    def block(inside: int, outside: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        return [convolution, nn.MaxPool2d(2), nn.BatchNorm2d(outside), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16),
        *block(16, 32),
        *block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * 9, 128),
        nn.ReLU(),
        nn.Linear(128, BINS),
    )


NETS = {"student": student, "teacher": teacher}


def bin_of(angles: np.ndarray) -> torch.Tensor:
    """(n, BINS): how much of each angle belongs to the two bins whose centers it lies between."""
    place = (angles - EDGES[0]) / WIDTH - 0.5
    low = np.floor(place).astype(int)
    share = torch.zeros(len(angles), BINS)
    rows = torch.arange(len(angles))
    share[rows, torch.as_tensor(low)] = torch.as_tensor(1 - (place - low), dtype=torch.float32)
    share[rows, torch.as_tensor(low + 1)] = torch.as_tensor(place - low, dtype=torch.float32)
    return share
