"""Train and record the paper's own pair on a data set: for a GPU, days for all four.

    python -m experiments.full_scale cifar10 --data cifar-10-batches-bin --device cuda
    python -m experiments.full_scale cifar10 --short --minutes 50
    python -m experiments.full_scale cifar10 --short --fast --device cuda
    python -m experiments.full_scale cifar100 --data cifar-100-binary --device cuda
    python -m experiments.full_scale imagenet --data ILSVRC2012 --pretrained
    python -m experiments.full_scale caltech256 --data 256_ObjectCategories --pretrained

Trains student and teacher of table 1, records what both say on the test set, and leaves
``trained/outcomes/DATA.npz``, which every other script here then finds. `--data` is the data set as
its site gives it (see `experiments.data`); CIFAR-10 is fetched as `ebjr demo` does where it is left
out. The schedules are those of the networks' papers:
stochastic gradient descent with Nesterov's momentum, a learning rate that falls tenfold at half and
at three quarters (CIFAR) or every thirty epochs; images are shifted and flipped.

``--short`` is for CIFAR on two cores: 25 epochs of the student and 12 of the teacher, the learning
rate in one cycle. A run is kept every two minutes and goes on, in the middle of an epoch, where it
was, on another machine too; ``--minutes`` ends it by itself. ``--fast`` is bfloat16 and compiled,
which needs g++ on a CPU, and on a GPU channels last; on a CPU without AVX-512, where bfloat16 takes
three times as long, float32 with channels last. ``--pretrained`` begins with the weights that the
package timm fetches: ImageNet's networks are recorded as they are, those of Caltech-256 trained
from there. timm has no DenseNet-121 of growth 12: its own, of growth 32, stands in for the student.
``--quick`` trains a step on made-up images, from nothing, and leaves nothing, to see that all of it
runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjr import Cost, Outcomes, load_model, record_batches
from ebjr.evaluation.flops import count_flops
from ebjr.files import write_whole
from experiments.data import Images, fetched_cifar10, made_up, read
from experiments.nets import PAPER
from experiments.pairs import ROLES, TRAINED, checkpoint

SAVE_SECONDS = 120.0
RISING = 0.3
"""The share of one cycle in which the learning rate rises."""


@dataclass(frozen=True)
class Recipe:
    """The training recipe of a data set.

    With `falls` the learning rate is `rate`, and a tenth of it after each of these shares of the
    training; without it rises to `rate` and falls to zero, in one cycle.
    """

    epochs: int
    batch_size: int
    rate: float
    falls: tuple[float, ...] = ()
    weight_decay: float = 1e-4

    def rate_at(self, progress: float) -> float:
        """The learning rate at a share of the training.

        Examples
        --------
        >>> round(Recipe(300, 64, 0.1, (0.5, 0.75)).rate_at(0.6), 3)
        0.01
        >>> [round(Recipe(25, 128, 0.2).rate_at(share), 3) for share in (0.0, 0.3, 0.65, 1.0)]
        [0.02, 0.2, 0.1, 0.0]
        """
        if self.falls:
            return self.rate * 0.1 ** sum(progress >= fall for fall in self.falls)
        if progress < RISING:
            return self.rate * (0.1 + 0.9 * progress / RISING)
        return self.rate * (1 + math.cos(math.pi * (progress - RISING) / (1 - RISING))) / 2


Recipes = Mapping[str, Recipe]
"""By role."""


def both(recipe: Recipe) -> Recipes:
    """The same for student and teacher."""
    return dict.fromkeys(ROLES, recipe)


RECIPES: Mapping[str, Recipes] = {
    "cifar10": both(Recipe(300, 64, 0.1, (0.5, 0.75))),
    "cifar100": both(Recipe(300, 64, 0.1, (0.5, 0.75))),
    "imagenet": both(Recipe(90, 256, 0.1, (1 / 3, 2 / 3))),
    "caltech256": both(Recipe(90, 64, 0.02, (1 / 3, 2 / 3))),
}
"""DenseNet's own (Huang et al., CVPR 2017); of Caltech-256 the paper says nothing."""

SHORT: Recipes = {"student": Recipe(25, 128, 0.2), "teacher": Recipe(12, 128, 0.2)}
"""Of CIFAR: at 130 and 37 images a second, as two cores reach without `fast`, 3 and 5 hours."""

PRETRAINED: Mapping[str, tuple[Recipes, tuple[str, str]]] = {
    "imagenet": (both(Recipe(0, 256, 0.1)), ("densenet121", "densenet201")),
    "caltech256": (both(Recipe(15, 64, 0.01)), ("resnet18", "resnet152")),
}
"""How timm's weights are trained on, and the names of student and teacher there."""


class Unfinished(Exception):
    """The time is over before the training is."""


def varied(images: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Each image of a batch shifted by up to `pad` pixels, half of them flipped."""
    padded, size, n = F.pad(images, (pad,) * 4), images.shape[-1], len(images)
    rows, columns = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=rng)
    across = torch.arange(size).repeat(n, 1)
    flip = torch.rand(n, generator=rng) < 0.5
    across[flip] = across[flip].flip(-1)
    down, across = rows + torch.arange(size), columns + across
    every = torch.arange(n)[:, None, None], down[:, :, None], across[:, None, :]
    return padded.permute(0, 2, 3, 1)[every].permute(0, 3, 1, 2)


def train(
    net: nn.Module,
    data: Images,
    recipe: Recipe,
    file: Path,
    device: str,
    fast: bool = False,
    compiled: bool = False,
    ends: float = math.inf,
) -> nn.Module:
    """Train, or go on from what `file` holds.

    `ends` is a time of `time.monotonic`.

    Raises
    ------
    Unfinished
        `ends` has passed; what was done is in `file`.
    ValueError
        `file` was begun by another recipe.
    """
    gpu = device.startswith("cuda")
    half = fast and (gpu or torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
    last = fast and (gpu or not half)
    net.to(device, memory_format=torch.channels_last if last else torch.preserve_format)
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.rate, 0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    epochs = batches = 0
    if file.exists():
        kept = torch.load(file, map_location=device, weights_only=True)
        if kept["recipe"] != asdict(recipe):
            raise ValueError(
                f"{file} was begun by {Recipe(**kept['recipe'])}, not by {recipe}: give the flags "
                "that it was begun with, or move it away"
            )
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        epochs, batches = kept["epochs"], kept["batches"]
    # An epoch's last batch is smaller.
    run = torch.compile(net, dynamic=False) if compiled and half else net
    each, saved_at = -(-len(data) // recipe.batch_size), time.monotonic()
    for epoch in range(epochs, recipe.epochs):
        net.train()
        first = batches if epoch == epochs else 0
        loss = torch.zeros(())
        for number, inputs, labels in left(data, recipe, epoch, first):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at((epoch + number / each) / recipe.epochs)
            with torch.autocast(device.split(":")[0], torch.bfloat16) if half else nullcontext():
                loss = F.cross_entropy(run(inputs.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            now = time.monotonic()
            if now - saved_at > SAVE_SECONDS or now > ends:
                keep(file, net, optimizer, recipe, epoch, number + 1)
                saved_at = time.monotonic()
            if now > ends:
                raise Unfinished(f"{file.stem}: {epoch + number / each:.1f} of {recipe.epochs}")
        keep(file, net, optimizer, recipe, epoch + 1, 0)
        print(f"{file.stem}: epoch {epoch + 1} of {recipe.epochs}, loss {loss.item():.3f}")
    return net.eval()


def left(
    data: Images, recipe: Recipe, epoch: int, first: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The batches of an epoch from one on: their numbers, varied images and labels.

    What a batch is does not depend on where a run began.
    """
    batches = enumerate(data.batches(recipe.batch_size, shuffle=epoch))
    for number, (images, labels) in islice(batches, first, None):
        rng = torch.Generator().manual_seed(1_000_003 * epoch + number)
        yield number, varied(torch.as_tensor(images), data.size // 8, rng), torch.as_tensor(labels)


def keep(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epochs: int,
    batches: int,
) -> None:
    """Write a checkpoint: the number of finished epochs, and of batches in the next."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "recipe": asdict(recipe)}
    with write_whole(file, "wb") as stream:
        torch.save({**kept, "epochs": epochs, "batches": batches}, stream)


def trained(data: str, role: str) -> nn.Module:
    """Return a network of the paper's own, as a run of this script left it."""
    net: nn.Module = getattr(PAPER[data], role).make()
    net.load_state_dict(torch.load(checkpoint(data, role), weights_only=True)["net"])
    return net.eval()


def from_timm(name: str, classes: int, weights: bool) -> nn.Module:
    """A network of timm, with its weights or without.

    Raises
    ------
    ImportError
        timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm is not installed: pip install timm") from error
    net: nn.Module = timm.create_model(name, pretrained=weights, num_classes=classes)
    return net


def networks(data: str, pretrained: bool, weights: bool) -> dict[str, nn.Module]:
    """Student and teacher of a data set, from nothing or as timm has them."""
    pair = PAPER[data]
    torch.manual_seed(0)
    if not pretrained:
        return {role: getattr(pair, role).make() for role in ROLES}
    names = zip(ROLES, PRETRAINED[data][1], strict=True)
    return {role: from_timm(name, pair.classes, weights) for role, name in names}


def cost(net: nn.Module, size: int) -> Cost:
    """Return an image's cost, counted by the library."""
    return Cost(flops=count_flops(net, (1, 3, size, size)).flops)


def images_of(data: str, place: Path | None, split: str, quick: bool) -> Images:
    """The images of a split; made up for a quick run, and CIFAR-10 without a folder fetched."""
    pair = PAPER[data]
    if quick:
        return made_up(pair.student.size, pair.classes, 2)
    return fetched_cifar10(split) if place is None else read(data, place, split, pair.student.size)


def run(
    data: str,
    place: Path | None,
    recipes: Recipes,
    folder: Path,
    pretrained: bool = False,
    quick: bool = False,
    **how: Any,
) -> Outcomes:
    """Train both networks of a data set and record them; `quick` on made-up images.

    `how` is as `train` takes it.
    """
    size = PAPER[data].student.size
    parts = {split: images_of(data, place, split, quick) for split in ("train", "test")}
    models, costs = {}, {}
    for role, net in networks(data, pretrained, weights=not quick).items():
        file = checkpoint(data, role, folder)
        costs[role] = cost(net.eval(), size)
        models[role] = load_model(train(net, parts["train"], recipes[role], file, **how))
    outcomes = record_batches(
        models["student"],
        models["teacher"],
        parts["test"].batches(recipes["student"].batch_size),
        student_cost=costs["student"],
        teacher_cost=costs["teacher"],
    )
    (folder / "outcomes").mkdir(parents=True, exist_ok=True)
    outcomes.save(folder / "outcomes" / f"{data}.npz")
    return outcomes


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("name", choices=list(PAPER), metavar="|".join(PAPER))
    words.add_argument(
        "--data", type=Path, help="the data set's folder; CIFAR-10 is fetched without"
    )
    words.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words.add_argument("--batch-size", type=int, help="the recipe's if left out")
    words.add_argument("--epochs", type=int, help="of both networks; the recipe's if left out")
    words.add_argument("--short", action="store_true", help="CIFAR: hours on two cores")
    words.add_argument("--fast", action="store_true", help="the quickest of this machine")
    words.add_argument("--minutes", type=float, default=math.inf, help="end after this time")
    words.add_argument("--pretrained", action="store_true", help="begin with timm's weights")
    words.add_argument("--quick", action="store_true", help="a step on made-up images")
    return words


def recipes_of(asked: argparse.Namespace) -> Recipes:
    """The recipe of each role, as the command line changes it."""
    usual = RECIPES[asked.name]
    if asked.short:
        usual = SHORT
    elif asked.pretrained:
        usual = PRETRAINED[asked.name][0]
    epochs, batch_size = asked.epochs, asked.batch_size
    if asked.quick:
        epochs, batch_size = epochs or 1, batch_size or 2
    return {
        role: replace(
            recipe,
            epochs=recipe.epochs if epochs is None else epochs,
            batch_size=batch_size or recipe.batch_size,
        )
        for role, recipe in usual.items()
    }


def main(given: list[str] | None = None) -> None:
    """Train, record, say what both reach."""
    words = arguments()
    asked = words.parse_args(given)
    if not asked.quick and asked.data is None and asked.name != "cifar10":
        words.error("give --data, the data set's folder, or --quick")
    if asked.short and not asked.name.startswith("cifar"):
        words.error(f"--short is for CIFAR's networks, not {asked.name}'s: leave it out")
    if asked.pretrained and asked.name not in PRETRAINED:
        words.error(f"timm has no networks of {asked.name}: leave --pretrained out")
    how = {"device": asked.device, "fast": asked.fast, "pretrained": asked.pretrained}
    how["compiled"] = asked.fast and not asked.quick  # which takes longer than the quick run
    how["ends"] = time.monotonic() + 60 * asked.minutes
    recipes = recipes_of(asked)
    try:
        if asked.quick:
            with TemporaryDirectory() as folder:
                outcomes = run(asked.name, None, recipes, Path(folder), quick=True, **how)
        else:
            outcomes = run(asked.name, asked.data, recipes, TRAINED, **how)
    except Unfinished as done:
        sys.exit(f"{done} epochs are done: the same command goes on from there")
    except (ImportError, FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    for role in ROLES:
        paper = getattr(PAPER[asked.name], role).paper_accuracy
        print(f"{role}: {100 * outcomes.quality(role):.2f} %, the paper's {paper} %")


if __name__ == "__main__":
    main()
