"""The networks of the paper, as torch modules: DenseNet-BC, ResNet, and MobileNet of given weights.

Depths and growth rates are the paper's (table 1). Nothing here is pretrained but MobileNet, whose
weights come as arrays with a list of layers (`read_mobilenet`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# DenseNet-BC


class DenseLayer(nn.Module):
    """A 1x1 bottleneck of four times the growth, then a 3x3 convolution; the input is kept."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        inner = 4 * growth
        self.squeeze = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, inner, 1, bias=False)
        )
        self.grow = nn.Sequential(
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, growth, 3, padding=1, bias=False)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, channels + growth, h, w)."""
        return torch.cat([maps, self.grow(self.squeeze(maps))], dim=1)


def transition(channels: int) -> nn.Module:
    """Half as many channels (compression 0.5), at half the size."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
    )


class DenseNet(nn.Module):
    """DenseNet-BC (Huang et al., CVPR 2017).

    Parameters
    ----------
    blocks
        How many layers each dense block has.
    growth
        The channels that a layer adds.
    classes
        Of the logits.
    first
        Channels of the first convolution; twice the growth if left out.
    small
        For 32 x 32 pixels: no stride and no pool at the beginning.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        growth: int,
        classes: int,
        *,
        first: int | None = None,
        small: bool = False,
    ) -> None:
        super().__init__()
        channels = 2 * growth if first is None else first
        if small:
            layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        else:
            layers = [
                nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            ]
        for number, depth in enumerate(blocks):
            for _ in range(depth):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            if number < len(blocks) - 1:
                layers.append(transition(channels))
                channels //= 2
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, classes)
        self.apply(start_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (n, 3, h, w) to logits (n, classes)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def densenet_bc(depth: int, growth: int, classes: int) -> DenseNet:
    """Build a DenseNet-BC of that depth for 32 x 32 pixels, three equal blocks.

    Examples
    --------
    >>> densenet_bc(52, 6, classes=10)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    if (depth - 4) % 6:
        raise ValueError(f"the depth of a DenseNet-BC must be 6 n + 4, not {depth}")
    return DenseNet(3 * ((depth - 4) // 6,), growth, classes, small=True)


IMAGENET_BLOCKS = {121: (6, 12, 24, 16), 201: (6, 12, 48, 32)}
"""Layers of each dense block, by depth, for ImageNet."""


# ResNet


class Residual(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the width."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        sizes = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
        if not bottleneck:
            sizes = [(width, 3, stride), (out, 3, 1)]
        steps: list[nn.Module] = []
        before = channels
        for after, size, step in sizes:
            padding = size // 2
            convolution = nn.Conv2d(before, after, size, step, padding, bias=False)
            steps += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.steps = nn.Sequential(*steps[:-1])
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.skip = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (n, channels, h, w) to (n, out, about h / stride, about w / stride)."""
        return F.relu(self.steps(maps) + self.skip(maps))


RESNET_BLOCKS = {18: (2, 2, 2, 2), 152: (3, 8, 36, 3)}
"""Residual blocks of each stage, by depth; from 50 on they are bottlenecks."""


class ResNet(nn.Module):
    """ResNet (He et al., CVPR 2016) for images of about 224 pixels.

    Parameters
    ----------
    depth
        18 or 152.
    classes
        Of the logits.
    """

    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        bottleneck, channels = depth >= 50, 64
        stages: list[nn.Module] = []
        for number, blocks in enumerate(RESNET_BLOCKS[depth]):
            width = 64 * 2**number
            for block in range(blocks):
                stride = 2 if number and not block else 1
                stages.append(Residual(channels, width, stride, bottleneck))
                channels = 4 * width if bottleneck else width
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, classes)
        self.apply(start_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalized images (n, 3, h, w) to logits (n, classes)."""
        return self.classifier(self.stages(self.stem(images)).mean(dim=(2, 3)))


def start_weights(module: nn.Module) -> None:
    """He's initialization of convolutions, zeros for the bias of the last layer."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


# The pairs of table 1


class Net(NamedTuple):
    """A network of table 1: how to make it, the side of its images, and the paper's figures."""

    title: str
    make: Callable[[], nn.Module]
    size: int
    paper_accuracy: float
    paper_flops: float
    paper_ms: float


class PaperPair(NamedTuple):
    """Student and teacher of a data set in table 1, and what the paper's joint model does."""

    title: str
    classes: int
    student: Net
    teacher: Net
    joint_accuracy: float
    joint_flops: float
    joint_ms: float

    @property
    def apart(self) -> tuple[float, float, float]:
        """The student's share of the teacher's FLOPs, and what either is right on, in percent."""
        student, teacher = self.student, self.teacher
        share = student.paper_flops / teacher.paper_flops
        return share, student.paper_accuracy, teacher.paper_accuracy

    @property
    def loss(self) -> float:
        """Points of accuracy that the paper's joint model is under its teacher."""
        return round(self.teacher.paper_accuracy - self.joint_accuracy, 2)


PAPER: dict[str, PaperPair] = {
    "cifar10": PaperPair(
        "CIFAR-10",
        10,
        Net("DenseNet-BC 52, growth 6", lambda: densenet_bc(52, 6, 10), 32, 91.81, 0.54e8, 14.0),
        Net("DenseNet-BC 64, growth 12", lambda: densenet_bc(64, 12, 10), 32, 94.76, 2.92e8, 35.0),
        94.74,
        1.36e8,
        23.78,
    ),
    "cifar100": PaperPair(
        "CIFAR-100",
        100,
        Net("DenseNet-BC 58, growth 6", lambda: densenet_bc(58, 6, 100), 32, 69.28, 0.64e8, 26.0),
        Net("DenseNet-BC 88, growth 8", lambda: densenet_bc(88, 8, 100), 32, 74.94, 2.14e8, 51.0),
        74.87,
        1.57e8,
        42.1,
    ),
    "imagenet": PaperPair(
        "ImageNet",
        1000,
        Net(
            "DenseNet-121, growth 12",
            lambda: DenseNet(IMAGENET_BLOCKS[121], 12, 1000, first=64),
            *(224, 66.28, 11.51e8, 84.0),
        ),
        Net(
            "DenseNet-201, growth 32",
            lambda: DenseNet(IMAGENET_BLOCKS[201], 32, 1000),
            *(224, 76.92, 86.37e8, 225.0),
        ),
        76.62,
        58.1e8,
        196.8,
    ),
    "caltech256": PaperPair(
        "Caltech-256",
        256,
        Net("ResNet-18", lambda: ResNet(18, 256), 272, 83.16, 54.0e8, 25.0),
        Net("ResNet-152", lambda: ResNet(152, 256), 272, 89.87, 340.0e8, 200.0),
        89.87,
        170.1e8,
        113.6,
    ),
}
"""By data set: the networks and figures of table 1."""


# MobileNet of given weights


class Mobile(nn.Module):
    """A MobileNet whose layers and weights come in a file, its normalizations folded in.

    Parameters
    ----------
    layers
        What the file says of each layer.
    weights
        Each layer's filters and biases.
    """

    def __init__(self, layers: list[dict[str, Any]], weights: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.layers = layers
        self.filters = nn.ParameterList(one for one, _ in weights)
        self.biases = nn.ParameterList(one for _, one in weights)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, 3, h, w), (rgb - 128) / 128, to the logits of ImageNet's classes."""
        maps, kept = images, images
        for layer, filters, bias in zip(self.layers, self.filters, self.biases, strict=True):
            if layer["mark"] == "save":
                kept = maps
            elif layer["mark"] == "gap":
                maps = maps.mean(dim=(2, 3), keepdim=True)
            padded = pad_same(maps, filters.shape[-1], layer["stride"])
            out = F.conv2d(padded, filters, bias, layer["stride"], groups=layer["groups"])
            maps = out.clamp(0, 6) if layer["relu6"] else out
            if layer["mark"] == "add":
                maps = maps + kept
        return maps.flatten(1)[:, 1:]  # the first class is "background"


def pad_same(maps: Tensor, size: int, stride: int) -> Tensor:
    """TensorFlow's padding: the output is as large as the input over the stride, rounded up."""
    sides = []
    for length in (maps.shape[-1], maps.shape[-2]):
        missing = max((-(-length // stride) - 1) * stride + size - length, 0)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(maps, sides)


def read_mobilenet(file: str | os.PathLike[str]) -> Mobile:
    """The network of a file of eight-bit weights, in single precision."""
    with np.load(file) as arrays:
        layers = json.loads(str(arrays["spec"]))["layers"]
        weights = []
        for number, layer in enumerate(layers):
            stored = arrays[f"{number:02d}_w"].astype(np.float32).reshape(layer["shape"])
            filters = (stored - layer["w_zero"]) * layer["w_scale"]
            bias = arrays[f"{number:02d}_b"].astype(np.float64) * layer["b_scale"]
            pair = (
                torch.tensor(filters, dtype=torch.float32),
                torch.tensor(bias, dtype=torch.float32),
            )
            weights.append(pair)
    return Mobile(layers, weights).eval()
