"""Record the trunk and both teachers on CIFAR-100: `python -m experiments.specialized.record`.

Runs each network once on each image and keeps the answers in ``outcomes/``, which is not committed:
the student's frozen trunk, cut from the published early-exit graph at two depths, and the logits of
both teachers on the test images. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx.utils

from ebjr import load_model
from ebjr.evaluation.flops import count_flops
from ebjr.files import write_whole
from experiments.other_pairs.pairs import answers, cifar100_images, data_folder

CACHE = Path(__file__).parent / "outcomes"
BATCH = 100
SHAPE = (1, 3, 32, 32)
IMAGES = {"test": 10_000, "train": 25_000}
"""How many of each split: half of the training images is plenty for a head."""
TEACHERS = ("osi_full", "densenet_bc_100_12")
CUTS = {"whole": "/GlobalAveragePool_5_output_0", "half": "/Conv_14_output_0"}
"""Depths of the early-exit trunk: its pooled features, and maps about half way, of 15 x 15."""


def cut(names: list[str], folder: Path) -> Path:
    """The early-exit graph up to some of its tensors."""
    source = data_folder() / "cifar100" / "weights" / "osi_exit_cifar100.onnx"
    file = folder / "trunk.onnx"
    onnx.utils.extract_model(str(source), str(file), ["image"], names, check_model=False)
    return file


@cache
def trunk_flops(depth: str) -> float:
    """FLOPs of the trunk up to a cut."""
    with tempfile.TemporaryDirectory() as folder:
        return count_flops(load_model(cut([CUTS[depth]], Path(folder))), SHAPE).flops


def pooled(maps: np.ndarray) -> np.ndarray:
    """(n, c, 15, 15) maps to (n, c, 7, 7) in half precision: means of 2 x 2, the edge left out."""
    n, channels = maps.shape[:2]
    even = maps[:, :, :14, :14].reshape(n, channels, 7, 2, 7, 2)
    return even.mean(axis=(3, 5)).astype(np.float16)


def features(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the features of both depths, in one run of the trunk."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = cut(list(CUTS.values()), Path(folder))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options)
    found: dict[str, list[np.ndarray]] = {depth: [] for depth in CUTS}
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH].transpose(0, 3, 1, 2).astype(np.float32) / 255
        whole, half = session.run(list(CUTS.values()), {"image": batch})
        found["whole"].append(whole[:, :, 0, 0])
        found["half"].append(pooled(half))
    return {depth: np.concatenate(parts) for depth, parts in found.items()}


def logits(teacher: str, images: np.ndarray) -> np.ndarray:
    """A teacher's, of the test images, from the first on."""
    return answers(teacher)["output"][: len(images)]


def main() -> None:
    """Run the networks that were not run yet."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--splits", nargs="*", default=list(IMAGES), choices=list(IMAGES))
    words.add_argument("--networks", nargs="*", default=["trunk", *TEACHERS])
    words.add_argument("--most", type=int, help="images of each split, for a quick look")
    options = words.parse_args()
    CACHE.mkdir(exist_ok=True)
    for split in options.splits:
        images, labels = cifar100_images(split, options.most or IMAGES[split])
        jobs = {"trunk": lambda images: features(images)}
        if split == "test":
            jobs |= {
                name: lambda images, name=name: {"logits": logits(name, images)}
                for name in TEACHERS
            }
        for name, job in jobs.items():
            file = CACHE / f"{split}_{name}.npz"
            if file.exists() or name not in options.networks:
                continue
            with write_whole(file, "wb") as target:
                np.savez(target, labels=labels, **job(images))
            print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
