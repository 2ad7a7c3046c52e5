"""Train one of the two: `python -m experiments.rotation.train student` (or `teacher`)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from experiments.rotation.data import load
from experiments.rotation.nets import NETS, bin_of

CHECKPOINTS = Path(__file__).parent / "checkpoints"
EPOCHS = {"student": 6, "teacher": 4}
IMAGES = 30_000
"""Half of the training images: more would be better, and slower."""

BATCH = 128
RATE = 2e-3
SEED = 0


def train(role: str) -> None:
    """Fit the bins by cross-entropy: Adam, its rate up for a tenth and down to 0 along a cosine."""
    torch.manual_seed(SEED)
    images, angles = (part[:IMAGES] for part in load("train"))
    inputs, shares = torch.as_tensor(images), bin_of(angles)
    net = NETS[role]()
    optimizer = torch.optim.Adam(net.parameters())
    steps = EPOCHS[role] * -(-len(inputs) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    began = time.perf_counter()
    for epoch in range(EPOCHS[role]):
        total = 0.0
        for rows in torch.randperm(len(inputs)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(net(inputs[rows]), shares[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += float(loss.detach()) * len(rows)
        spent = time.perf_counter() - began
        print(f"epoch {epoch + 1}: loss {total / len(inputs):.4f}, {spent:.0f} s", flush=True)
    CHECKPOINTS.mkdir(exist_ok=True)
    torch.save(net.state_dict(), CHECKPOINTS / f"{role}.pt")


if __name__ == "__main__":
    train(sys.argv[1])
