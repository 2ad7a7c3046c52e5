"""The rivals' networks. Each answers (n, classes, answers): from its cheapest answer to its best.

Early exits on a trained chain (S. Teerapittayanon et al., "BranchyNet", ICPR 2016; with the chain
frozen, as Y. Kaya et al., "Shallow-deep networks", ICML 2019), exits on features of several scales
(G. Huang et al., "Multi-scale dense networks", ICLR 2018), one network at two widths (J. Yu et
al., "Slimmable neural networks", ICLR 2019), and a single network between student and teacher. All
take float32 RGB pictures in 0..1 and start with the pair's fixed filters.

A multi-exit network is a student whose teacher goes on from its features: `MultiExit.stages` and
`MultiExit.heads` are those two, and `as_joint` puts them together with the library's own loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebjr import JointClassifier, Router
from experiments.cifar10_pair.nets import Whitened, WhitenedNet, flops

SINGLE = (32, 96, 192)
"""Widths of the single network: about what the joint model costs at the teacher's accuracy."""

NARROW = (16, 48, 96)
"""Widths of the slimmable network's cheap answer; its other answer has `SINGLE`'s."""


def build_single(widths: tuple[int, ...] = SINGLE) -> WhitenedNet:
    """The single network: the pooled student of `cifar10_pair`, wider."""
    return WhitenedNet(widths, (1, 1, 1), strides=(2, 1, 1))


class MultiExit(nn.Module):
    """A chain of stages with a head after each: what a head says costs what came before it.

    Attributes
    ----------
    heads : ModuleList
        One for each stage: features (n, ...) to logits (n, classes).
    """

    heads: nn.ModuleList

    def stage(self, k: int, x: Tensor) -> Tensor:
        """Features after stage k from those before it; before the first, the pictures."""
        raise NotImplementedError

    def answers(self, image: Tensor, count: int) -> list[Tensor]:
        """Return the logits (n, classes) of the first `count` heads."""
        found, x = [], image
        for k in range(count):
            x = self.stage(k, x)
            found.append(self.heads[k](x))
        return found

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (n, 3, 32, 32) in 0..1 to logits (n, classes, exits)."""
        return torch.stack(self.answers(image, len(self.heads)), dim=-1)

    def costs(self) -> list[int]:
        """FLOPs of a picture that leaves at each exit, the heads that it passed included."""
        return [flops(_Until(self, k + 1)) for k in range(len(self.heads))]

    def as_joint(
        self, routers: Sequence[Router], blends: Sequence[float] = (), start: int = 0
    ) -> Callable[[Tensor], Any]:
        """The library's own loop over the exits: student = exit, teacher = all that comes after.

        A teacher goes on from the features that its student read, and is itself such a joint model
        up to the last exit.

        Parameters
        ----------
        routers
            Of every exit but the last.
        blends
            The weight of each exit's answer in a deferred one; 0 if left out.
        start
            The first exit; features before it go in.

        Returns
        -------
        callable
            Pictures, if the start is 0, to a `JointAnswer`; from the last exit to logits.
        """
        answer: Callable[[Tensor], Any] = self.heads[start]
        if start < len(self.heads) - 1:
            after = self.as_joint(routers, blends, start + 1)
            blend = blends[start] if blends else 0.0
            answer = JointClassifier(answer, after, routers[start], blend=blend)
        return lambda x: answer(self.stage(start, x))


class _Until(nn.Module):
    """The part of a multi-exit network that its first exits need."""

    def __init__(self, net: MultiExit, count: int) -> None:
        super().__init__()
        self.net, self.count = net, count

    def forward(self, image: Tensor) -> Tensor:
        return self.net.answers(image, self.count)[-1]


class EarlyExits(MultiExit):
    """Two early exits on a trained chain, which stays as it is: its own answer is the last.

    The first is after the first block, the second where the second block has halved the picture.
    While it is trained it answers at its early exits alone, as no other has anything to learn.

    Parameters
    ----------
    chain : WhitenedNet
        Trained, of three blocks.
    width : int
        Channels of the early heads.
    """

    def __init__(self, chain: WhitenedNet, width: int = 128) -> None:
        super().__init__()
        self.chain = chain.requires_grad_(False)
        first, second = (block.conv.out_channels for block in chain.blocks[:2])
        classes = chain.head.out_features
        self.heads = nn.ModuleList(
            [
                nn.Sequential(
                    conv_norm(first, width, stride=2),
                    conv_norm(width, width, stride=2),
                    _Mean(),
                    nn.Linear(width, classes),
                ),
                nn.Sequential(
                    conv_norm(second, width, stride=2), _Mean(), nn.Linear(width, classes)
                ),
                _Last(chain),
            ]
        )

    def train(self, mode: bool = True) -> EarlyExits:
        """Train the early heads, but not the norms of the chain."""
        super().train(mode)
        self.chain.eval()
        return self

    def stage(self, k: int, x: Tensor) -> Tensor:
        """Features after stage k: of the first block, of the second one's halving, of the last."""
        blocks = self.chain.blocks
        with torch.no_grad():
            if k == 0:
                return blocks[0](self.chain.whitened(x))
            return blocks[1].halve(x) if k == 1 else blocks[2](blocks[1].refine(x))

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures to logits (n, classes, exits); in training, of the early exits."""
        return torch.stack(self.answers(image, len(self.heads) - self.training), dim=-1)


class _Mean(nn.Module):
    """The mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class _Last(nn.Module):
    """The end of a `WhitenedNet`: global maximum and the chain's own head."""

    def __init__(self, chain: WhitenedNet) -> None:
        super().__init__()
        self.head = chain.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.amax(dim=(2, 3))) / 9


def conv_norm(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Convolution, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class MultiScale(MultiExit):
    """Exits on features of three scales, dense along depth: every exit sees the coarsest scale.

    A layer adds channels to each scale: one half computed from the scale itself, the other from
    the next finer one (the finest: all from itself). All that was computed before stays visible.

    Parameters
    ----------
    channels : tuple of int
        What the first layer finds, at 16x16, 8x8 and 4x4.
    growth : tuple of int
        What every layer adds there.
    layers : tuple of int
        Layers of each stage; an exit follows each.
    """

    SIZES = (16, 8, 4)

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64),
        growth: tuple[int, ...] = (8, 16, 32),
        layers: tuple[int, ...] = (2, 2, 2),
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.begin = Whitened()
        into = (24, *channels[:-1])
        self.scales = nn.ModuleList(
            conv_norm(a, b, stride=2) for a, b in zip(into, channels, strict=True)
        )
        self.channels = []
        stages, heads = [], []
        for count in layers:
            stage = []
            self.channels.append(channels)
            for _ in range(count):
                stage.append(_ScaleLayer(channels, growth))
                channels = tuple(c + g for c, g in zip(channels, growth, strict=True))
            stages.append(nn.Sequential(*stage))
            heads.append(
                nn.Sequential(
                    conv_norm(channels[-1], 256, size=1), _Mean(), nn.Linear(256, classes)
                )
            )
        self.layers = nn.ModuleList(stages)
        self.heads = nn.ModuleList(nn.Sequential(_Coarsest(head[0][0]), head) for head in heads)

    def stage(self, k: int, x: Tensor) -> Tensor:
        """Features after stage k, (n, ...): those of all scales, laid flat, one after another."""
        if k:
            scales = self._scales(x, self.channels[k])
        else:
            scales, x = [], self.begin.whitened(x)
            for scale in self.scales:
                x = scale(x)
                scales.append(x)
        return torch.cat([each.flatten(1) for each in self.layers[k](scales)], dim=1)

    def _scales(self, x: Tensor, channels: tuple[int, ...]) -> list[Tensor]:
        """Flat features as what they are on each scale, (n, channels, size, size)."""
        shapes = [(c, size, size) for c, size in zip(channels, self.SIZES, strict=True)]
        parts = x.split([c * h * w for c, h, w in shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


class _Coarsest(nn.Module):
    """The coarsest scale of flat features, which comes last."""

    def __init__(self, reader: nn.Conv2d) -> None:
        super().__init__()
        self.shape = (reader.in_channels, MultiScale.SIZES[-1], MultiScale.SIZES[-1])

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -int(np.prod(self.shape)) :].unflatten(1, self.shape)


class _ScaleLayer(nn.Module):
    """A layer of `MultiScale`: more channels on every scale."""

    def __init__(self, channels: tuple[int, ...], growth: tuple[int, ...]) -> None:
        super().__init__()
        self.same = nn.ModuleList(
            conv_norm(c, g // 2 if i else g)
            for i, (c, g) in enumerate(zip(channels, growth, strict=True))
        )
        self.down = nn.ModuleList(
            conv_norm(c, g // 2, stride=2) for c, g in zip(channels[:-1], growth[1:], strict=True)
        )

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        found = []
        for i, (x, same) in enumerate(zip(scales, self.same, strict=True)):
            finer = [self.down[i - 1](scales[i - 1])] if i else []
            found.append(torch.cat([x, same(x), *finer], dim=1))
        return found


class Slimmable(nn.Module):
    """One network at several widths: a narrow one has the first channels of each wide layer.

    Norms are each width's own, as in the paper, and so are heads, which cost nothing here.

    Parameters
    ----------
    *widths : tuple of int
        Channels of the three blocks, the narrowest first.
    """

    def __init__(self, *widths: tuple[int, ...]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(build_single(each) for each in widths)
        for net in self.nets[:-1]:
            for name, _ in self._shared(net):
                net.get_parameter(name).requires_grad_(False)

    @staticmethod
    def _shared(net: nn.Module) -> list[tuple[str, Tensor]]:
        """The filters that all widths share, by name."""
        return [(name, value) for name, value in net.named_parameters() if value.ndim == 4]

    def filters(self, net: nn.Module) -> dict[str, Tensor]:
        """The part of the widest network's filters that a width uses, by name."""
        return {
            name: self.nets[-1].get_parameter(name)[: value.shape[0], : value.shape[1]]
            for name, value in self._shared(net)
        }

    def at(self, answer: int) -> WhitenedNet:
        """The network of one width, on its own: its filters are copies."""
        net = self.nets[answer]
        with torch.no_grad():
            for name, value in self.filters(net).items():
                net.get_parameter(name).copy_(value)
        return net

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (n, 3, 32, 32) in 0..1 to logits (n, classes, widths)."""
        answers = [functional_call(net, self.filters(net), (image,)) for net in self.nets]
        return torch.stack(answers, dim=-1)

    def costs(self) -> list[int]:
        """FLOPs of each answer."""
        return [flops(self.at(k)) for k in range(len(self.nets))]


def widen(wide: WhitenedNet, narrow: WhitenedNet, image: Tensor) -> None:
    """Let a wide network begin as a narrow one: the channels that are new feed nothing yet.

    Source: T. Chen et al., "Net2Net", ICLR 2016, with zeros in place of copies.

    Parameters
    ----------
    wide
        Changed in place.
    narrow
        As deep, and nowhere wider.
    image
        (n, 3, 32, 32): on these the norms of the new channels take their statistics.
    """
    old = narrow.state_dict()
    new = wide.state_dict()
    for name, value in new.items():
        part = old[name]
        place = tuple(slice(0, length) for length in part.shape)
        if value.ndim == 4:
            value[: part.shape[0]] = 0
        elif name == "head.weight":
            value.zero_()
        value[place] = part
    wide.load_state_dict(new)
    known = {name: len(old[f"{name}.running_mean"]) for name, _ in _norms(wide)}

    def take_statistics(name: str, norm: nn.BatchNorm2d, x: Tensor) -> None:
        fresh = slice(known[name], None)
        norm.running_mean[fresh] = x.mean(dim=(0, 2, 3))[fresh]
        norm.running_var[fresh] = x.var(dim=(0, 2, 3))[fresh]

    _with_norms(wide, image, take_statistics)


def unfold(net: WhitenedNet, path: str | Path, image: Tensor) -> None:
    """Read back a network that `cifar10_pair.export` wrote, its norms folded into its filters.

    The norms get the statistics of `image` (n, 3, 32, 32), so that it can be trained further.
    """
    import onnx
    from onnx import numpy_helper

    stored = onnx.load(path).graph.initializer
    arrays = iter([torch.tensor(numpy_helper.to_array(each)).float() for each in stored])
    weight, bias = next(arrays), next(arrays)
    state = net.state_dict()
    state["whiten.weight"] = weight * net.std
    state["whiten.bias"] = bias + (weight * net.mean).sum(dim=(1, 2, 3))
    biases = {}
    for name, _ in _norms(net):
        conv = name.replace("norms.", "convs.").replace("norm", "conv")
        state[f"{conv}.weight"], biases[name] = next(arrays), next(arrays)
    state["head.weight"] = 9 * next(arrays).T
    net.load_state_dict(state)

    def stand_aside(name: str, norm: nn.BatchNorm2d, x: Tensor) -> None:
        norm.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        norm.running_var.copy_(x.var(dim=(0, 2, 3)))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(biases[name] + norm.running_mean)

    _with_norms(net, image, stand_aside)


def _norms(net: nn.Module) -> list[tuple[str, nn.BatchNorm2d]]:
    """The batch norms by name, in the order of their layers."""
    return [(name, each) for name, each in net.named_modules() if isinstance(each, nn.BatchNorm2d)]


@torch.no_grad()
def _with_norms(net: nn.Module, image: Tensor, change: Callable[..., None]) -> None:
    """Run a network and let `change(name, norm, input)` set each norm before it is applied."""
    hooks = [
        norm.register_forward_pre_hook(lambda layer, args, name=name: change(name, layer, args[0]))
        for name, norm in _norms(net)
    ]
    net.eval()
    net(image)
    for hook in hooks:
        hook.remove()
