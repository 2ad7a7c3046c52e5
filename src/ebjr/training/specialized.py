"""A specialized student: a small network of the popular classes plus "other" (section 2.4).

Train a small network as a whole, or in seconds a head on the features of a frozen backbone. The
student sees all the data, and so learns what it does not know. With a teacher, no labels are
needed.

Source: section 2.4 of the paper; distillation: Hinton, Vinyals & Dean, "Distilling the knowledge
in a neural network", 2015.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ebjr.arrays import row_count, to_numpy
from ebjr.errors import ModelError, needs
from ebjr.tasks.specialized import Specialized
from ebjr.tasks.specialized.known_classes import (
    check_known_classes,
    other_class,
    relabel,
    to_student,
)
from ebjr.training.descent import descend

with needs("torch", "training"):
    import torch


def train_specialized(
    network: torch.nn.Module,
    inputs: Any,
    labels: Any,
    known_classes: Any,
    *,
    backbone: torch.nn.Module | None = None,
    teacher: Any = None,
    distillation: float = 0.5,
    temperature: float = 2.0,
    popular: float | None = None,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    epochs: int = 20,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> torch.nn.Module:
    """Train a network on some classes and "other": minutes on a CPU, if it is small.

    - `network`: A module with output (n, C + 1), "other" last; `small_head` makes one for features.
      It is trained in place.
    - `inputs`: (n, ...), inputs of the network, or of the backbone.
    - `labels`: (n,), in the teacher's numbering. None takes the teacher's own answers.
    - `known_classes`: The labels that the student learns, in its order: see `top_classes`.
    - `backbone`: A trained module from inputs to features. It stays frozen and runs once on each
      input; `augment` then works on its features.
    - `teacher`: (n, classes), the teacher's logits for the same inputs, for distillation.
    - `distillation`: The weight of the teacher's distribution, compared at `temperature`; the
      labels have 1 minus that.
    - `popular`: The known classes' share of the traffic, to which the examples are weighted. None
      leaves them unweighted.
    - `augment`: A function of a batch and a generator that returns a batch.
    - `epochs`, `batch_size`, `learning_rate`, `weight_decay`: For AdamW, with a cosine learning
      rate.
    - `seed`: The same seed and the same initial weights give the same student.
    - `progress`: Called with the epoch and its mean loss.

    Returns a module from inputs to (n, C + 1), ready for inference: the network, behind the
    backbone if given.

    Raises
    ------
    ValueError
        `inputs`, `labels` and `teacher` do not match, a known class or "other" has no example, or
        `distillation`, `temperature` or `popular` is out of range.
    ModelError
        `network` does not return (n, C + 1), or the loss is not finite.

    Examples
    --------
    >>> import torch
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 5, 400)
    >>> inputs = (3 * np.eye(5)[labels] + rng.normal(0, 1, (400, 5))).astype(np.float32)
    >>> student = train_specialized(small_head(5, 2), inputs, labels, [3, 1], epochs=5)
    >>> tuple(student(torch.as_tensor(inputs[:4])).shape)
    (4, 3)
    """
    known = check_known_classes(known_classes)
    task = Specialized(known)
    taught = None if teacher is None else np.asarray(to_numpy(teacher), np.float32)
    if labels is None and taught is None:
        raise ValueError("give labels=, or teacher= with logits, whose answers replace the labels")
    if taught is not None and (taught.ndim != 2 or not np.isfinite(taught).all()):
        raise ValueError(
            f"the teacher's logits must be (n, classes) and finite, not {taught.shape}"
        )
    classes = None if taught is None else taught.shape[1]
    own = relabel(taught.argmax(axis=1) if labels is None else labels, known, classes)  # type: ignore[union-attr]
    lengths = {row_count(inputs), len(own), *([] if taught is None else [len(taught)])}
    if len(lengths) > 1:
        raise ValueError(
            "inputs, labels and the teacher's logits must have the same length, not "
            + ", ".join(map(str, sorted(lengths)))
        )
    _check_numbers(distillation=distillation, popular=popular, temperature=temperature)
    weight = torch.as_tensor(_weights(own, known, popular), dtype=torch.float32)
    hard = torch.as_tensor(own)
    soft = None if taught is None else torch.as_tensor(to_student(taught, known))
    table = torch.as_tensor(np.asarray(to_numpy(inputs)))
    if backbone is not None:
        backbone.eval()
        with torch.no_grad():
            table = torch.cat([backbone(batch) for batch in table.split(batch_size)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    parts = math.ceil(len(own) / batch_size)
    log_softmax = torch.nn.functional.log_softmax

    def batches() -> tuple[torch.Tensor, ...]:
        return torch.randperm(len(own), generator=generator).tensor_split(parts)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        batch = table[rows] if augment is None else augment(table[rows], generator)
        logits = task.check_width(network(batch), ModelError)
        loss = torch.nn.functional.cross_entropy(logits, hard[rows], reduction="none")
        if soft is not None:
            goal = torch.softmax(soft[rows] / temperature, dim=1)
            matched = -(goal * log_softmax(logits / temperature, dim=1)).sum(dim=1)
            loss = (1 - distillation) * loss + distillation * temperature**2 * matched
        return (weight[rows] * loss).mean()

    network.train()
    descend(optimizer, epochs, batches, parts, loss_of, progress)
    network.eval()
    return network if backbone is None else torch.nn.Sequential(backbone, network).eval()


def small_head(features: int, known: int, hidden: int = 0, seed: int = 0) -> torch.nn.Module:
    """Make a head from standardized features (n, features) to (n, known + 1).

    It has one layer of `hidden` units; with 0 it is linear.
    """
    if features < 1 or known < 1 or hidden < 0:
        raise ValueError(
            "a head needs at least 1 feature, 1 known class and 0 hidden units, not "
            f"{features}, {known} and {hidden}"
        )
    layers: list[torch.nn.Module] = [torch.nn.BatchNorm1d(features, affine=False)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if hidden:
            layers += [torch.nn.Linear(features, hidden), torch.nn.ReLU()]
        layers.append(torch.nn.Linear(hidden or features, known + 1))
    return torch.nn.Sequential(*layers)


def _check_numbers(distillation: float, popular: float | None, temperature: float) -> None:
    if not 0 <= distillation <= 1:
        raise ValueError(f"distillation must lie between 0 and 1, not {distillation}")
    if popular is not None and not 0 < popular < 1:
        raise ValueError(f"popular must lie between 0 and 1, both excluded, not {popular}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, not {temperature}")


def _weights(own: np.ndarray, known: tuple[int, ...], popular: float | None) -> np.ndarray:
    """Return weights (n,) of mean 1 that give the known classes their share."""
    other = other_class(known)
    count = np.bincount(own, minlength=other + 1)
    if not count[other]:
        raise ValueError("labels must include other classes, from which 'other' is learned")
    if not count[:other].all():
        absent = known[int(np.argmin(count[:other]))]
        raise ValueError(f"known class {absent} has no example among the {len(own)}")
    if popular is None:
        return np.ones(len(own))
    share = 1 - count[other] / len(own)
    return np.where(own == other, (1 - popular) / (1 - share), popular / share)
