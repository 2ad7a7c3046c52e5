"""The two networks of the pair, and their cost in FLOPs (two per multiply-accumulate).

Both start with a fixed 2x2 "whitening" convolution whose filters are the principal directions of
the training set's 2x2 patches, each with both signs, and end with a global pool and a linear layer.
Between them the teacher has three blocks of dense 3x3 convolutions, the student inverted residuals
(M. Sandler et al., "MobileNetV2", CVPR 2018). Both take float32 RGB pictures in 0..1 and normalize
inside.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (0.4914, 0.4822, 0.4465)
PIXEL_STD = (0.2470, 0.2435, 0.2616)


class Whitened(nn.Module):
    """The start of both networks: normalized colors, and 24 fixed filters (`fit_whitening`)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)

    def whitened(self, image: Tensor) -> Tensor:
        """Map pictures (n, 3, h, w) in 0..1 to (n, 24, h - 1, w - 1)."""
        return F.relu(self.whiten((image - self.mean) / self.std))


class Block(nn.Module):
    """Convolve and halve the picture, then refine it with `depth` more convolutions.

    Parameters
    ----------
    channels_in, channels_out : int
        Width before and after the block.
    depth : int
        Convolutions after the pooling one: 0, 1, or 2 (2 adds a skip around both).
    stride : int
        1 halves the picture by a max pool after the convolution, 2 by a strided convolution,
        which costs a quarter of the FLOPs.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int, stride: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels_in, channels_out, stride)
        self.pool = nn.MaxPool2d(2) if stride == 1 else nn.Identity()
        self.norm = nn.BatchNorm2d(channels_out)
        self.more_convs = nn.ModuleList(conv3x3(channels_out, channels_out) for _ in range(depth))
        self.more_norms = nn.ModuleList(nn.BatchNorm2d(channels_out) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, about h / 2, about w / 2)."""
        return self.refine(self.halve(x))

    def halve(self, x: Tensor) -> Tensor:
        """The first convolution and the halving: all that changes the shape."""
        return F.relu(self.norm(self.pool(self.conv(x))))

    def refine(self, x: Tensor) -> Tensor:
        """The other convolutions."""
        skip = x if len(self.more_convs) == 2 else None
        for i, (conv, norm) in enumerate(zip(self.more_convs, self.more_norms, strict=True)):
            x = norm(conv(x))
            if skip is not None and i == 1:
                x = x + skip
            x = F.relu(x)
        return x


class WhitenedNet(Whitened):
    """Whitening layer, three blocks, global max pool, linear layer.

    Parameters
    ----------
    widths : tuple of int
        Channels of the three blocks.
    depths : tuple of int
        Extra convolutions of the three blocks, see `Block`.
    strides : tuple of int
        How each block halves the picture, see `Block`.
    classes : int
        Number of logits.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        strides: tuple[int, ...] = (1, 1, 1),
        classes: int = 10,
    ) -> None:
        super().__init__()
        channels = (24, *widths)
        shapes = zip(channels, widths, depths, strides, strict=False)
        self.blocks = nn.Sequential(*(Block(*shape) for shape in shapes))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (n, 3, 32, 32) in 0..1 to logits (n, classes)."""
        x = self.blocks(self.whitened(image)).amax(dim=(2, 3))
        return self.head(x) / 9


class Residual(nn.Module):
    """Two 3x3 convolutions and a skip around both, at constant width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        return F.relu(x + self.convs(x), inplace=True)


class InvertedResidual(nn.Module):
    """Widen by a 1x1, filter each channel by a 3x3, narrow by a 1x1; a skip where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, hidden: int, stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels_in, h, w) to (n, channels_out, h / stride, w / stride)."""
        return x + self.convs(x) if self.skip else self.convs(x)


class InvertedNet(Whitened):
    """Whitening layer, one residual at half size, inverted residuals at 1/4 and 1/8, mean, linear.

    Halving at once and widening late is where a small budget goes furthest: at 4x4 a 1x1
    convolution costs a 64th of what it costs on the whole picture.

    Parameters
    ----------
    classes : int
        Number of logits.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(24, 24, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(inplace=True),
            Residual(24),
            InvertedResidual(24, 56, 144, stride=2),
            *(InvertedResidual(56, 56, 224) for _ in range(3)),
            InvertedResidual(56, 112, 336, stride=2),
            *(InvertedResidual(112, 112, 448) for _ in range(3)),
            nn.Conv2d(112, 384, 1, bias=False),
            nn.BatchNorm2d(384),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(384, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map pictures (n, 3, 32, 32) in 0..1 to logits (n, classes)."""
        return self.head(self.features(self.whitened(image)).mean(dim=(2, 3)))


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that starts as the identity on the channels it can copy."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    nn.init.dirac_(conv.weight[: min(channels_in, channels_out)].data)
    return conv


def fit_whitening(net: Whitened, images: np.ndarray) -> None:
    """Set the first layer from the covariance of 2x2 patches of `images` (n, 32, 32, 3) uint8."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = (x - net.mean) / net.std
    patches = F.unfold(x, 2, stride=1).transpose(1, 2).reshape(-1, 12)
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (eigenvectors / (eigenvalues + 5e-4).sqrt()).T.reshape(12, 3, 2, 2)
    net.whiten.weight.data.copy_(torch.cat([filters, -filters]))


def build_teacher() -> WhitenedNet:
    """The expensive network of the pair."""
    return WhitenedNet((64, 256, 256), (1, 2, 2))


STUDENTS = {
    "pooled": lambda: WhitenedNet((32, 64, 128), (1, 1, 1), strides=(2, 1, 1)),
    "residual": lambda: WhitenedNet((32, 64, 128), (2, 2, 2), strides=(2, 2, 2)),
    "inverted": InvertedNet,
}


def flops(net: nn.Module) -> int:
    """FLOPs of one picture: twice the multiply-accumulates of convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += 2 * layer.weight[0].numel() * output[0].numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    net.eval()
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return total
