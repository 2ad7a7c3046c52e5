"""Train and record the paper's own pair on a data set: for a GPU, days for all four.

    python -m experiments.full_scale cifar10 --data cifar-10-batches-bin --device cuda
    python -m experiments.full_scale cifar100 --data cifar-100-binary --device cuda
    python -m experiments.full_scale imagenet --data ILSVRC2012 --device cuda --batch-size 256
    python -m experiments.full_scale caltech256 --data 256_ObjectCategories --device cuda

Trains student and teacher of table 1 from nothing, each resumable from its last epoch, records what
both say on the test set, and leaves ``trained/outcomes/DATA.npz``, which every other script here
then finds. `--data` is the data set as its site gives it (see `experiments.data`). The schedules
are those of the networks' papers: stochastic gradient descent with Nesterov's momentum, a learning
rate that falls tenfold at half and at three quarters (CIFAR) or every thirty epochs; images are
shifted and flipped. ``--quick`` trains a step on made-up images and leaves nothing, to see that all
of it runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebjr import Cost, Outcomes, load_model, record_batches
from ebjr.evaluation.flops import count_flops
from ebjr.files import write_whole
from experiments.data import Images, made_up, read
from experiments.nets import PAPER, Net
from experiments.pairs import TRAINED


@dataclass(frozen=True)
class Recipe:
    """How the networks of a data set are trained."""

    epochs: int
    batch_size: int
    rate: float
    falls: tuple[float, ...]
    weight_decay: float = 1e-4

    def rate_at(self, progress: float) -> float:
        """The learning rate at a share of the training.

        Examples
        --------
        >>> Recipe(300, 64, 0.1, (0.5, 0.75)).rate_at(0.6)
        0.01
        """
        return self.rate * 0.1 ** sum(progress >= fall for fall in self.falls)


RECIPES = {
    "cifar10": Recipe(300, 64, 0.1, (0.5, 0.75)),
    "cifar100": Recipe(300, 64, 0.1, (0.5, 0.75)),
    "imagenet": Recipe(90, 256, 0.1, (1 / 3, 2 / 3)),
    "caltech256": Recipe(90, 64, 0.02, (1 / 3, 2 / 3)),
}
"""DenseNet's own (Huang et al., CVPR 2017); of Caltech-256 the paper says nothing."""


def varied(images: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Each image of a batch shifted by up to `pad` pixels, half of them flipped."""
    padded = F.pad(images, (pad,) * 4)
    size = images.shape[-1]
    rows, columns = torch.randint(0, 2 * pad + 1, (2, len(images)), generator=rng).tolist()
    cut = torch.stack(
        [
            one[:, row : row + size, column : column + size]
            for one, row, column in zip(padded, rows, columns, strict=True)
        ]
    )
    flip = torch.rand(len(images), generator=rng) < 0.5
    cut[flip] = cut[flip].flip(-1)
    return cut


def train(net: nn.Module, data: Images, recipe: Recipe, file: Path, device: str) -> nn.Module:
    """Train from nothing, or go on from the last epoch that `file` holds."""
    net.to(device)
    optimizer = torch.optim.SGD(
        net.parameters(), recipe.rate, 0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    first = 0
    if file.exists():
        kept = torch.load(file, map_location=device, weights_only=True)
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["epochs"]
    pad = data.size // 8
    for epoch in range(first, recipe.epochs):
        rng = torch.Generator().manual_seed(epoch)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(epoch / recipe.epochs)
        net.train()
        loss = torch.zeros(())
        for images, labels in data.batches(recipe.batch_size, shuffle=epoch):
            inputs = varied(torch.as_tensor(images), pad, rng).to(device)
            loss = F.cross_entropy(net(inputs), torch.as_tensor(labels).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epoch + 1}
        with write_whole(file, "wb") as stream:
            torch.save(kept, stream)
        print(f"{file.stem}: epoch {epoch + 1} of {recipe.epochs}, loss {loss.item():.3f}")
    return net.eval()


def cost(net: Net) -> Cost:
    """What an image costs, counted by the library."""
    return Cost(flops=count_flops(net.make(), (1, 3, net.size, net.size)).flops)


def run(data: str, place: Path | None, device: str, recipe: Recipe, folder: Path) -> Outcomes:
    """Train both networks of a data set and record them; `place` None: made-up images."""
    pair = PAPER[data]
    size = pair.student.size
    if place is None:
        parts = {split: made_up(size, pair.classes, 2) for split in ("train", "test")}
    else:
        parts = {split: read(data, place, split, size) for split in ("train", "test")}
    models = {}
    for role, net in (("student", pair.student), ("teacher", pair.teacher)):
        torch.manual_seed(0)
        file = folder / "checkpoints" / f"{data}_{role}.pt"
        models[role] = load_model(train(net.make(), parts["train"], recipe, file, device))
    outcomes = record_batches(
        models["student"],
        models["teacher"],
        parts["test"].batches(recipe.batch_size),
        student_cost=cost(pair.student),
        teacher_cost=cost(pair.teacher),
    )
    (folder / "outcomes").mkdir(parents=True, exist_ok=True)
    outcomes.save(folder / "outcomes" / f"{data}.npz")
    return outcomes


def main() -> None:
    """Train, record, say what both reach."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("name", choices=list(PAPER), metavar="|".join(PAPER))
    words.add_argument("--data", type=Path, help="the data set's folder")
    words.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words.add_argument("--batch-size", type=int, help="the data set's usual one if left out")
    words.add_argument("--epochs", type=int, help="the data set's usual ones if left out")
    words.add_argument("--quick", action="store_true", help="a step on made-up images")
    asked = words.parse_args()
    if not asked.quick and asked.data is None:
        words.error("give --data, the data set's folder, or --quick")
    usual = RECIPES[asked.name]
    recipe = Recipe(
        asked.epochs or (1 if asked.quick else usual.epochs),
        asked.batch_size or (2 if asked.quick else usual.batch_size),
        *(usual.rate, usual.falls, usual.weight_decay),
    )
    if asked.quick:
        with TemporaryDirectory() as folder:
            outcomes = run(asked.name, None, asked.device, recipe, Path(folder))
    else:
        outcomes = run(asked.name, asked.data, asked.device, recipe, TRAINED)
    for role in ("student", "teacher"):
        paper = getattr(PAPER[asked.name], role).paper_accuracy
        print(f"{role}: {100 * outcomes.quality(role):.2f} %, the paper's {paper} %")


if __name__ == "__main__":
    main()
