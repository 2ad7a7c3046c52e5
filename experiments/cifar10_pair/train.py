"""Training shared by both networks: augmentation, the optimizer, the epoch loop."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
CHECKPOINTS = HERE / "checkpoints"
HELD_OUT = 2500
MEAN_COLOR = (125, 123, 114)

#: bfloat16 where the processor multiplies matrices in it (a float32 one emulates it, at half speed)
PRECISION = torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def split_indices(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out pictures; the same for both networks."""
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[HELD_OUT:]), np.sort(order[:HELD_OUT])


def to_input(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in 0..1, in channels-last memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


class Augmenter:
    """Batches of shifted and mirrored pictures, each with a square cut out.

    A picture is mirrored in every second epoch (which half starts mirrored is random), so that
    two epochs in a row always show both sides. Borders are filled by reflection.

    Parameters
    ----------
    images : ndarray of uint8, (n, 32, 32, 3)
        The pictures.
    shift : int
        Largest shift, in pixels, along either axis.
    cutout : int
        Side of the square that is painted over with the mean color, in pixels; 0 paints nothing.
    seed : int
        Fixes every draw.
    views : int, optional
        Repeat the first `views` epochs for ever; by default every epoch is drawn anew.
    """

    def __init__(
        self, images: np.ndarray, shift: int, cutout: int, seed: int, views: int | None = None
    ) -> None:
        self.size = images.shape[1]
        self.shift = shift
        self.cutout = cutout
        self.seed = seed
        self.views = views
        margin = ((0, 0), (shift, shift), (shift, shift), (0, 0))
        self.padded = np.pad(images, margin, mode="reflect")
        self.mirrored_first = np.random.default_rng(seed).random(len(images)) < 0.5

    def batches(self, epoch: int, batch_size: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (indices, pictures) for one epoch; the last incomplete batch is dropped."""
        if self.views is not None:
            epoch %= self.views
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.padded))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            index = order[start : start + batch_size]
            rows, columns = rng.integers(0, 2 * self.shift + 1, (2, batch_size, 1))
            rows = rows + np.arange(self.size)
            columns = columns + np.arange(self.size)
            mirrored = self.mirrored_first[index] ^ bool(epoch % 2)
            columns[mirrored] = columns[mirrored, ::-1]
            views = self.padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
            if self.cutout:
                corners = rng.integers(0, self.size - self.cutout + 1, (2, batch_size, 1))
                within = np.arange(self.size) - corners
                down, across = (within >= 0) & (within < self.cutout)
                views[down[:, :, None] & across[:, None, :]] = MEAN_COLOR
            yield index, to_input(views)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Nearest matrix with singular values of about one, by Newton-Schulz iteration.

    Each step maps a singular value s to 3.4445 s - 4.7750 s^3 + 2.0315 s^5, which pulls all of
    (0, 1] toward 1 quickly (coefficients of K. Jordan's Muon optimizer).
    """
    x = matrix.to(PRECISION)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for convolution filters followed by a norm.

    Each layer's filters are kept at unit root-mean-square norm, so the learning rate is the
    relative size of a step.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.6) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step along the orthogonalized Nesterov momentum."""
        for group in self.param_groups:
            for weight in group["params"]:
                if "buffer" not in self.state[weight]:
                    self.state[weight]["buffer"] = torch.zeros_like(weight)
                buffer = self.state[weight]["buffer"]
                buffer.mul_(group["momentum"]).add_(weight.grad)
                update = weight.grad + group["momentum"] * buffer
                update = orthogonalize(update.reshape(len(update), -1)).view_as(update)
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.sub_(group["lr"] * update)


def build_optimizers(net: nn.Module, lr: float, lr_rest: float) -> list[torch.optim.Optimizer]:
    """Muon for filters that mix channels, Adam for everything else that learns."""
    learned = [p for p in net.parameters() if p.requires_grad]
    filters = [p for p in learned if p.ndim == 4 and p.shape[1] > 1]
    rest = [p for p in learned if p.ndim != 4 or p.shape[1] == 1]
    return [Muon(filters, lr), torch.optim.Adam(rest, lr_rest, betas=(0.85, 0.95))]


def computing() -> torch.autocast:
    """Context in which networks compute in `PRECISION`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=PRECISION is torch.bfloat16)


@torch.no_grad()
def predict(net: nn.Module, images: np.ndarray, batch_size: int = 500) -> Tensor:
    """Logits of uint8 pictures, in evaluation mode."""
    net.eval()
    parts = []
    for start in range(0, len(images), batch_size):
        with computing():
            parts.append(net(to_input(images[start : start + batch_size])).float())
    return torch.cat(parts)


def accuracy(logits: Tensor, labels: np.ndarray) -> np.ndarray:
    """Fraction of rows whose largest logit is the label's.

    Logits are (n, classes), or (n, classes, answers) of a network that answers more than once: the
    fraction is then one of each answer, (answers,).
    """
    said = logits.argmax(1).numpy()
    return (labels == said.T).T.mean(axis=0)


def fit(
    net: nn.Module,
    augmenter: Augmenter,
    loss_of: Callable[[Tensor, np.ndarray, int], Tensor],
    validation: tuple[np.ndarray, np.ndarray],
    *,
    name: str,
    epochs: int,
    batch_size: int,
    lr: float,
    lr_rest: float,
    log: Path,
) -> None:
    """Train `net`; the learning rate warms up for one epoch, then falls linearly to zero.

    A checkpoint is written after every epoch and picked up again when the run is restarted.

    Parameters
    ----------
    net : Module
        The network, changed in place.
    augmenter : Augmenter
        Source of training batches.
    loss_of : callable
        (logits, indices, epoch) -> scalar loss.
    validation : tuple
        Held-out pictures and labels.
    name : str
        Name of the checkpoint file.
    epochs, batch_size, lr, lr_rest
        The recipe; `lr` for filters, `lr_rest` for everything else.
    log : Path
        One JSON line per epoch is appended here.
    """
    net.to(memory_format=torch.channels_last)
    optimizers = build_optimizers(net, lr, lr_rest)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps_per_epoch = len(augmenter.padded) // batch_size
    steps = epochs * steps_per_epoch
    checkpoint, first = CHECKPOINTS / f"{name}.pt", 0
    CHECKPOINTS.mkdir(exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint)
        net.load_state_dict(state["net"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["epoch"] + 1
    for epoch in range(first, epochs):
        start, total = time.time(), 0.0
        net.train()
        for i, (index, pictures) in enumerate(augmenter.batches(epoch, batch_size)):
            step = epoch * steps_per_epoch + i
            rate = min((step + 1) / steps_per_epoch, 1 - step / steps)
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * rate
                optimizer.zero_grad()
            with computing():
                logits = net(pictures)
            loss = loss_of(logits.float(), index, epoch)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.item()
        line = {
            "epoch": epoch + 1,
            "of": epochs,
            "loss": round(total / steps_per_epoch, 4),
            "held_out_accuracy": accuracy(predict(net, validation[0]), validation[1])
            .round(4)
            .tolist(),
            "seconds": round(time.time() - start, 1),
        }
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
        state = {"net": net.state_dict(), "epoch": epoch}
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        torch.save(state, checkpoint)


def parser(**defaults: float | str) -> argparse.ArgumentParser:
    """Command line with one option per keyword, typed as its default."""
    result = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for option, value in defaults.items():
        result.add_argument(
            f"--{option.replace('_', '-')}", type=type(value), default=value, help=" "
        )
    return result
