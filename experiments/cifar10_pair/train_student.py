"""Distill the student from the teacher: `python -m experiments.cifar10_pair.train_student`.

The teacher's logits are computed once, for a pool of differently shifted and mirrored views of
every training picture. The student sees exactly those views, again and again, and learns to
answer what the teacher answers ("function matching"); it never sees a label.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjr.demo.cifar10 import load
from experiments.cifar10_pair.nets import STUDENTS, build_teacher, fit_whitening
from experiments.cifar10_pair.train import (
    CHECKPOINTS,
    HERE,
    Augmenter,
    accuracy,
    computing,
    fit,
    parser,
    predict,
    split_indices,
)


@torch.no_grad()
def answers_on_views(teacher: nn.Module, augmenter: Augmenter, batch_size: int) -> Tensor:
    """The teacher's logits (view, picture, class) on the views of each of the augmenter's epochs.

    Kept as float16 in `checkpoints/`, because it takes minutes.
    """
    file = CHECKPOINTS / "teacher_answers.pt"
    CHECKPOINTS.mkdir(exist_ok=True)
    pool = torch.load(file) if file.exists() else []
    teacher.eval()
    for epoch in range(len(pool), augmenter.views):
        answers = torch.zeros(len(augmenter.padded), 10, dtype=torch.float16)
        for index, pictures in augmenter.batches(epoch, batch_size):
            with computing():
                answers[index] = teacher(pictures).half()
        pool.append(answers)
        torch.save(pool, file)
        print(f"teacher answered view {epoch + 1} of {augmenter.views}", flush=True)
    return torch.stack(pool)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean Kullback-Leibler divergence from the teacher's to the student's softened classes."""
    return temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def distill(
    teacher: nn.Module,
    begin: Callable[[np.ndarray], nn.Module],
    data: tuple[np.ndarray, np.ndarray],
    options: argparse.Namespace,
    *,
    name: str,
    log: Path,
) -> None:
    """Train what `begin` makes of the training pictures to answer what the teacher answers.

    Its logits may be those of several exits, (n, classes, exits): each learns the same. Leaves
    ``checkpoints/NAME.pt``.
    """
    images, labels = data
    kept, held_out = split_indices(len(images))
    augmenter = Augmenter(images[kept], options.shift, options.cutout, options.seed, options.views)
    pool = answers_on_views(teacher, augmenter, options.batch_size)

    def loss_of(logits: Tensor, index: np.ndarray, epoch: int) -> Tensor:
        answers = pool[epoch % options.views, index].float()
        if logits.ndim == 3:
            answers = answers[:, :, None].expand_as(logits)
        return distillation_loss(logits, answers, options.temperature)

    fit(
        begin(images[kept]),
        augmenter,
        loss_of,
        (images[held_out], labels[held_out]),
        name=name,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        lr_rest=options.lr_rest,
        log=log,
    )


def main() -> None:
    """Read the options, train, leave `checkpoints/<name>.pt` behind."""
    options = parser(
        name="student",
        net="inverted",
        epochs=42,
        batch_size=500,
        lr=0.06,
        lr_rest=0.01,
        shift=4,
        cutout=0,
        views=8,
        temperature=2.0,
        seed=1,
    ).parse_args()
    torch.manual_seed(options.seed)
    images, labels = load("train")
    _, held_out = split_indices(len(images))
    teacher = build_teacher().to(memory_format=torch.channels_last)
    trained = CHECKPOINTS / "teacher.pt"
    weights = trained if trained.exists() else HERE / "teacher.pt"
    teacher.load_state_dict(torch.load(weights)["net"])
    held_out_accuracy = accuracy(predict(teacher, images[held_out]), labels[held_out])
    print(f"teacher: {held_out_accuracy:.4f} held out", flush=True)

    def begin(pictures: np.ndarray) -> nn.Module:
        net = STUDENTS[options.net]()
        fit_whitening(net, pictures[:5000])
        return net

    log = HERE / f"train_{options.name}.log"
    distill(teacher, begin, (images, labels), options, name=options.name, log=log)


if __name__ == "__main__":
    main()
