"""Train a rival: `python -m experiments.rivals.train single` (or another of `RIVALS`).

Every answer of a rival is distilled from the pair's teacher on the views that the pair's student
saw: the recipe of `cifar10_pair.train_student`, with fewer epochs. What was held out there is here.
``student_3`` and ``student_8`` are the pair's own student, trained no longer than a rival.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ebjr.demo.cifar10 import load
from experiments.cifar10_pair.nets import STUDENTS, build_teacher, fit_whitening
from experiments.cifar10_pair.record import DEMO
from experiments.cifar10_pair.train import CHECKPOINTS, parser, to_input
from experiments.cifar10_pair.train import HERE as PAIR
from experiments.cifar10_pair.train_student import distill
from experiments.rivals.nets import (
    NARROW,
    SINGLE,
    EarlyExits,
    MultiScale,
    Slimmable,
    build_single,
    unfold,
    widen,
)

HERE = Path(__file__).parent
POOLED = DEMO / "second.onnx"
POOLED_WIDTHS = (32, 64, 128)


def load_teacher() -> nn.Module:
    """The pair's teacher."""
    teacher = build_teacher().to(memory_format=torch.channels_last)
    teacher.load_state_dict(torch.load(PAIR / "teacher.pt")["net"])
    return teacher


def start_single(images: np.ndarray) -> nn.Module:
    """The single network, which begins as the pooled student: 46 epochs it need not repeat."""
    some = to_input(images[:1000])
    narrow, net = build_single(POOLED_WIDTHS), build_single()
    unfold(narrow, POOLED, some)
    widen(net, narrow, some)
    return net


def start_early_exits(images: np.ndarray) -> nn.Module:
    """Early exits on the pair's teacher, which stays as it is."""
    return EarlyExits(load_teacher())


def start_multi_scale(images: np.ndarray) -> nn.Module:
    """The network of several scales, from nothing."""
    net = MultiScale()
    fit_whitening(net.begin, images[:5000])
    return net


def start_slimmable(images: np.ndarray) -> nn.Module:
    """The slimmable network, which begins at either width as the trained single one."""
    net = Slimmable(NARROW, SINGLE)
    trained = torch.load(CHECKPOINTS / "rival_single.pt")["net"]
    for each in net.nets:
        begin = {
            name: trained[name][tuple(slice(0, length) for length in value.shape)]
            for name, value in each.state_dict().items()
        }
        each.load_state_dict(begin)
    return net


def start_student(images: np.ndarray) -> nn.Module:
    """The pair's student, from nothing."""
    net = STUDENTS["inverted"]()
    fit_whitening(net, images[:5000])
    return net


RIVALS: dict[str, Callable[[np.ndarray], nn.Module]] = {
    "single": start_single,
    "early_exits": start_early_exits,
    "multi_scale": start_multi_scale,
    "slimmable": start_slimmable,
    "student_3": start_student,
    "student_8": start_student,
}
"""By name: an untrained rival, from the training pictures."""


def main() -> None:
    """Read the options, train, leave `checkpoints/rival_<name>.pt` beside the pair's."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in RIVALS:
        raise SystemExit(f"say which rival to train: {', '.join(RIVALS)}, not {name!r}")
    options = parser(
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
    log = HERE / f"train_{name}.log"
    distill(load_teacher(), RIVALS[name], load("train"), options, name=f"rival_{name}", log=log)


if __name__ == "__main__":
    main()
