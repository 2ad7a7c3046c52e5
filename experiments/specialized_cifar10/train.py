"""Train the students that the demo ships: `python -m experiments.specialized_cifar10.train`.

All have the shipped CIFAR-10 student's first layers as a frozen backbone, which runs once on each
training image and its views, and two convolutions of their own. The specialized ones know the 3
popular classes, or these and 2 more, and "other"; the general one, of the same architecture and
budget, knows all ten. Choices are made on 2,500 training images that are held out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from ebjr import relabel
from ebjr.demo import cifar10, shipped
from ebjr.demo.specialized import DEMO, TRAFFIC
from ebjr.training.specialized import train_specialized
from experiments.cifar10_pair.export import Graph, add_layers, finished
from experiments.cifar10_pair.train import split_indices

HERE = Path(__file__).parent
PLACE = HERE.parents[1] / "src" / "ebjr" / "demo" / "shipped" / "specialized"
SEED = 0
POPULAR = TRAFFIC.popular_classes
SHARE = 0.75
STUDENTS: dict[str, tuple[int, ...] | None] = {
    name: about.get("known_classes") for name, about in DEMO.students.items()
}
"""By name: the classes that a student knows; None where it knows all."""
CUT = "conv_27"
CHANNELS = 56, 48, 96
VIEWS = 4
SHIFT = 3


@cache
def trunk() -> onnx.ModelProto:
    """The shipped student up to its first bottleneck: (n, 3, 32, 32) to (n, 56, 8, 8)."""
    with shipped("student.onnx") as whole, tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "trunk.onnx"
        onnx.utils.extract_model(str(whole), str(part), ["image"], [CUT], check_model=False)
        return onnx.load(part)


def tail(classes: int) -> nn.Sequential:
    """The trained part: two convolutions and a linear layer, (n, 56, 8, 8) to (n, classes)."""
    torch.manual_seed(SEED)
    inside, first, second = CHANNELS
    return nn.Sequential(
        nn.Conv2d(inside, first, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=1, bias=False),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(second, classes),
    )


@torch.no_grad()
def to_onnx(network: nn.Sequential, description: str) -> onnx.ModelProto:
    """Trunk and tail as one graph: `image` (batch, 3, 32, 32) in 0..1 to `logits`."""
    graph = Graph()
    graph.nodes, graph.weights = list(trunk().graph.node), list(trunk().graph.initializer)
    *layers, _, _, head = network
    x = graph.add("GlobalAveragePool", add_layers(graph, CUT, nn.Sequential(*layers)))
    x = graph.add("MatMul", graph.add("Flatten", x), graph.constant(head.weight.T))
    graph.add("Add", x, graph.constant(head.bias))
    return finished(graph, head.out_features, description)


def views(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the trunk's features of views of images: (n, count, 56, 8, 8), half precision.

    The first view is the image itself, every second one is mirrored, and all others are shifted.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(trunk().SerializeToString())
    rng = np.random.default_rng(seed)
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    found = np.empty((len(images), count, CHANNELS[0], 8, 8), np.float16)
    for start in range(0, len(images), 250):
        batch = padded[start : start + 250]
        for view in range(count):
            down, right = rng.integers(0, 2 * SHIFT + 1, 2) if view else (SHIFT, SHIFT)
            seen = batch[:, down : down + 32, right : right + 32]
            seen = (seen[:, :, ::-1] if view % 2 else seen).transpose(0, 3, 1, 2)
            found[start : start + 250, view] = session.run(
                None, {"image": seen.astype(np.float32) / 255}
            )[0]
    return found


def any_view(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return one random view of each image."""
    drawn = torch.randint(batch.shape[1], (len(batch),), generator=generator)
    chosen = batch[torch.arange(len(batch)), drawn].float()
    return chosen.contiguous(memory_format=torch.channels_last)


def known_share(known: tuple[int, ...]) -> float:
    """Return the known classes' share of the traffic if the popular ones make up `SHARE` of it."""
    more = len(set(known) - set(POPULAR)) / (10 - len(POPULAR))
    return SHARE * len(set(known) & set(POPULAR)) / len(POPULAR) + (1 - SHARE) * more


@torch.no_grad()
def held_out_figures(
    network: nn.Module, table: np.ndarray, labels: np.ndarray, known: tuple[int, ...] | None
) -> dict[str, float]:
    """Return its accuracy on images of popular classes, and on the others."""
    answers = network(torch.as_tensor(table).float()).argmax(dim=1).numpy()
    correct = answers == (labels if known is None else relabel(labels, known))
    popular = np.isin(labels, POPULAR)
    return {
        "held_out_right_on_popular": round(float(correct[popular].mean()), 4),
        "held_out_right_on_others": round(float(correct[~popular].mean()), 4),
    }


def main() -> None:
    """Train, say how it went on the held-out images, and write the graphs."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("names", nargs="*", default=list(STUDENTS), help="of the students")
    words.add_argument("--epochs", type=int, default=10)
    words.add_argument("--most", type=int, help="training images, for a quick look")
    options = words.parse_args()
    images, labels = cifar10.load("train")
    rows, held_out = split_indices(len(images))
    rows = rows[: options.most]
    table = views(images[rows], VIEWS, SEED)
    seen = views(images[held_out], 1, SEED)[:, 0]
    PLACE.mkdir(exist_ok=True)
    for name in options.names:
        known = STUDENTS[name]
        network = tail(10 if known is None else len(known) + 1)
        began = time.perf_counter()
        train_specialized(
            network.to(memory_format=torch.channels_last),
            table,
            labels[rows],
            # a student of all ten: it knows nine, and its "other" is the last
            range(9) if known is None else known,
            popular=None if known is None else known_share(known),
            augment=any_view,
            epochs=options.epochs,
            seed=SEED,
        )
        seconds = time.perf_counter() - began
        line = {
            "student": name,
            "epochs": options.epochs,
            "seconds": round(seconds, 1),
            **held_out_figures(network, seen, labels[held_out], known),
        }
        print(json.dumps(line), flush=True)
        knows = "ten classes" if known is None else f"classes {known} and other"
        file = PLACE / f"{name}.onnx"
        onnx.save(to_onnx(network, f"CIFAR-10 student of {knows}: image RGB in 0..1"), file)
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
