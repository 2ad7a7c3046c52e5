"""Train the teacher: `python -m experiments.cifar10_pair.train_teacher`."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebjr.demo.cifar10 import load
from experiments.cifar10_pair.nets import build_teacher, fit_whitening
from experiments.cifar10_pair.train import HERE, Augmenter, fit, parser, split_indices


def main() -> None:
    """Read the options, train, leave `checkpoints/teacher.pt` behind."""
    options = parser(
        name="teacher",
        epochs=26,
        batch_size=500,
        lr=0.06,
        lr_rest=0.01,
        shift=4,
        cutout=8,
        smoothing=0.1,
        seed=0,
        limit=0,
    ).parse_args()
    torch.manual_seed(options.seed)
    images, labels = load("train")
    kept, held_out = split_indices(len(images))
    if options.limit:
        kept = kept[: options.limit]
    net = build_teacher()
    fit_whitening(net, images[kept[:5000]])
    targets = torch.from_numpy(labels[kept])

    def loss_of(logits: Tensor, index: np.ndarray, _epoch: int) -> Tensor:
        return F.cross_entropy(logits, targets[index], label_smoothing=options.smoothing)

    fit(
        net,
        Augmenter(images[kept], options.shift, options.cutout, options.seed),
        loss_of,
        (images[held_out], labels[held_out]),
        name=options.name,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        lr_rest=options.lr_rest,
        log=HERE / f"train_{options.name}.log",
    )


if __name__ == "__main__":
    main()
