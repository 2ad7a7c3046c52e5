"""The paper's data sets, read as their own sites give them.

| name | `--data` is | training and test images |
|---|---|---|
| `cifar10` | ``cifar-10-batches-bin`` | ``data_batch_1.bin`` to ``_5``, ``test_batch.bin`` |
| `cifar100` | ``cifar-100-binary`` | ``train.bin``, ``test.bin``; fine labels |
| `imagenet` | a folder with ``train`` and ``val`` | a sub-folder for each class, named by its id |
| `caltech256` | ``256_ObjectCategories`` | 60 of a class drawn to train, the others to test |

An image is read once it is needed. Pixels are normalized: means and deviations of the colors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ebjr import Preprocess
from ebjr.data.examples import decode_image
from ebjr.data.open import open_data

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CALTECH_TRAINING = 60
CLUTTER = "257.clutter"


@dataclass(frozen=True)
class Images:
    """Labeled images: what reads some of them by their numbers, and the labels.

    Attributes
    ----------
    read
        From numbers (k,) to pixels, float32 (k, 3, size, size), normalized.
    labels
        (n,) int64.
    size
        The side of an image.
    """

    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, shuffle: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels and labels, in order, or shuffled with a seed."""
        rows = np.arange(len(self))
        if shuffle is not None:
            rows = np.random.default_rng(shuffle).permutation(rows)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            yield self.read(part), self.labels[part]


def read(name: str, place: Path, split: str, size: int) -> Images:
    """The ``"train"`` or ``"test"`` images of a data set.

    Raises
    ------
    FileNotFoundError
        A file of it is not there.
    ValueError
        A file is not what it should be.
    """
    return READERS[name](Path(place), split, size)


def cifar(place: Path, split: str, size: int, files: dict[str, Sequence[str]], skip: int) -> Images:
    """CIFAR's binary form: `skip` bytes, a byte of label, and 3,072 of pixels."""
    parts = []
    for name in files[split]:
        data = np.fromfile(place / name, np.uint8)
        if len(data) % (skip + 3073):
            raise ValueError(f"{place / name} does not hold whole records of {skip + 3073} bytes")
        parts.append(data.reshape(-1, skip + 3073))
    rows = np.concatenate(parts)
    pixels = rows[:, skip + 1 :].reshape(-1, 3, 32, 32)
    if size != 32:
        raise ValueError(f"CIFAR's images have 32 pixels, not {size}")
    return Images(lambda part: normalized(pixels[part]), rows[:, skip].astype(np.int64), 32)


def normalized(pixels: np.ndarray) -> np.ndarray:
    """Pixels (n, 3, h, w) of 0..255 with mean 0 and deviation 1, about."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.astype(np.float32) / 255 - mean) / std


def image_files(files: Sequence[Path], labels: np.ndarray, size: int) -> Images:
    """Images in files, squashed or cropped to the size as they are read."""
    prepare = Preprocess(size=size, resize="crop", mean=MEAN, std=STD)

    def opened(part: np.ndarray) -> np.ndarray:
        images = [decode_image(files[row].read_bytes()) for row in part]
        return np.asarray(prepare(images), np.float32)

    return Images(opened, labels, size)


def folder_files(place: Path) -> tuple[list[Path], np.ndarray]:
    """The images of a folder with a sub-folder for each class, in the order of `ebjr.data.open`."""
    classes = open_data(place).classes
    assert classes is not None
    files, labels = [], []
    for label, name in enumerate(classes):
        own = sorted(file for file in (place / name).iterdir() if file.is_file())
        files += own
        labels += len(own) * [label]
    return files, np.array(labels, np.int64)


def imagenet(place: Path, split: str, size: int) -> Images:
    """ImageNet: ``train`` and ``val``, the latter sorted into classes like the former."""
    return image_files(*folder_files(place / {"train": "train", "test": "val"}[split]), size)


def caltech256(place: Path, split: str, size: int) -> Images:
    """Read Caltech-256 without its clutter; the training images of each class are random."""
    files, labels = folder_files(place)
    keep = [file.parent.name != CLUTTER for file in files]
    files, labels = [file for file, own in zip(files, keep, strict=True) if own], labels[keep]
    rng = np.random.default_rng(0)
    training = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        training[own[:CALTECH_TRAINING]] = True
    rows = np.flatnonzero(training if split == "train" else ~training)
    return image_files([files[row] for row in rows], labels[rows], size)


READERS: dict[str, Callable[[Path, str, int], Images]] = {
    "cifar10": partial(
        cifar,
        files={
            "train": [f"data_batch_{number}.bin" for number in range(1, 6)],
            "test": ["test_batch.bin"],
        },
        skip=0,
    ),
    "cifar100": partial(cifar, files={"train": ["train.bin"], "test": ["test.bin"]}, skip=1),
    "imagenet": imagenet,
    "caltech256": caltech256,
}


def fetched_cifar10(split: str) -> Images:
    """CIFAR-10 as `ebjr demo` fetches and keeps it, for whom there is no folder."""
    from ebjr.demo.cifar10 import load

    images, labels = load(split)
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Images(lambda part: normalized(pixels[part]), labels.astype(np.int64), 32)


def made_up(size: int, classes: int, count: int) -> Images:
    """Noise with labels, for a look at whether all of it runs."""
    pixels = np.random.default_rng(0).normal(size=(count, 3, size, size)).astype(np.float32)
    return Images(lambda part: pixels[part], np.arange(count) % classes, size)
