"""Record every rival on CIFAR-10's test set: `python -m experiments.rivals.record [NAME ...]`.

Each is asked once; `answers/NAME.npz` keeps the logits, in half precision, and what each answer
costs in FLOPs. Trained rivals are taken from their checkpoints, and left out where there is none.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ebjr import Model, load_model
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load
from ebjr.files import write_whole
from ebjr.quantize import quantize
from experiments.cifar10_pair.nets import STUDENTS, build_teacher, flops
from experiments.cifar10_pair.train import CHECKPOINTS, predict, split_indices, to_input
from experiments.pairs import shipped_pair
from experiments.rivals.nets import NARROW, SINGLE, EarlyExits, MultiScale, Slimmable, build_single
from experiments.rivals.train import POOLED

ANSWERS = Path(__file__).parent / "answers"
BATCH = 500
CALIBRATED_ON = 256


class Answers(NamedTuple):
    """A network's answers to n images.

    Attributes
    ----------
    logits
        (n, classes, answers): the cheapest answer first.
    flops
        (answers,): of an image that takes this answer.
    """

    logits: np.ndarray
    flops: np.ndarray


def read(name: str) -> Answers:
    """The answers of a rival, recorded before."""
    with np.load(ANSWERS / f"{name}.npz") as kept:
        return Answers(kept["logits"].astype(np.float32), kept["flops"].astype(np.float64))


def recorded() -> dict[str, Answers]:
    """The answers of every rival that was recorded, by name."""
    return {name: read(name) for name in RIVALS if (ANSWERS / f"{name}.npz").exists()}


def single(images: np.ndarray) -> Answers:
    """The single network between student and teacher."""
    net = build_single()
    net.load_state_dict(_trained("single"))
    return Answers(predict(net, images).numpy(), np.array([flops(net)]))


def slimmable(images: np.ndarray) -> Answers:
    """Record one network at two widths."""
    net = Slimmable(NARROW, SINGLE)
    net.load_state_dict(_trained("slimmable"))
    return Answers(predict(net, images).numpy(), np.array(net.costs()))


def multi_scale(images: np.ndarray) -> Answers:
    """Exits on features of several scales."""
    net = MultiScale()
    net.load_state_dict(_trained("multi_scale"))
    return Answers(predict(net, images).numpy(), np.array(net.costs()))


def early_exits(images: np.ndarray) -> Answers:
    """Early exits on the teacher."""
    net = EarlyExits(build_teacher())
    net.load_state_dict(_trained("early_exits"))
    return Answers(predict(net, images).numpy(), np.array(net.costs()))


def student_3(images: np.ndarray) -> Answers:
    """The pair's student after three epochs, as many as the early exits had."""
    return _student("student_3", images)


def student_8(images: np.ndarray) -> Answers:
    """The pair's student after eight epochs, as many as the exits of several scales had."""
    return _student("student_8", images)


def pooled(images: np.ndarray) -> Answers:
    """The pooled student, which was shipped before: a second student beside the shipped one."""
    cost = flops(STUDENTS["pooled"]())
    return Answers(_said(load_model(POOLED, threads=1), images), np.array([cost]))


def pooled_mirrored(images: np.ndarray) -> Answers:
    """The pooled student on mirrored images."""
    return pooled(images[:, :, ::-1])


def mirrored(images: np.ndarray) -> Answers:
    """The shipped student on mirrored images."""
    with shipped("student.onnx") as path:
        said = _said(load_model(path, threads=1), images[:, :, ::-1])
    return Answers(said, np.array([shipped_pair().student_cost.flops]))


def int8_student(images: np.ndarray) -> Answers:
    """The shipped student in eight-bit numbers."""
    with _quantized("student") as model:
        return Answers(_said(model, images), np.array([shipped_pair().student_cost.flops]))


def int8_teacher(images: np.ndarray) -> Answers:
    """The shipped teacher in eight-bit numbers."""
    with _quantized("teacher") as model:
        return Answers(_said(model, images), np.array([shipped_pair().teacher_cost.flops]))


RIVALS: dict[str, Callable[[np.ndarray], Answers]] = {
    each.__name__: each
    for each in (
        pooled,
        pooled_mirrored,
        mirrored,
        int8_student,
        int8_teacher,
        single,
        early_exits,
        multi_scale,
        slimmable,
        student_3,
        student_8,
    )
}


def _trained(name: str) -> dict[str, torch.Tensor]:
    file = CHECKPOINTS / f"rival_{name}.pt"
    if not file.exists():
        way = f"python -m experiments.rivals.train {name}"
        raise FileNotFoundError(f"there is no {file}: train it, {way}")
    return torch.load(file)["net"]


def _student(name: str, images: np.ndarray) -> Answers:
    net = STUDENTS["inverted"]()
    net.load_state_dict(_trained(name))
    return Answers(predict(net, images).numpy(), np.array([flops(net)]))


def _said(model: Model, images: np.ndarray) -> np.ndarray:
    """Logits (n, classes, 1)."""
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([model(_inputs(part)) for part in parts])[:, :, None]


def _inputs(images: np.ndarray) -> np.ndarray:
    return to_input(np.ascontiguousarray(images)).contiguous().numpy()


@contextmanager
def _quantized(role: str) -> Iterator[Model]:
    """A shipped model in eight-bit numbers, calibrated on training images, as `quantized` does."""
    images, _ = load("train")
    kept, _ = split_indices(len(images))
    rows = np.random.default_rng(0).choice(kept, CALIBRATED_ON, replace=False)
    with tempfile.TemporaryDirectory() as folder, shipped(f"{role}.onnx") as path:
        made = Path(folder) / f"{role}.onnx"
        quantize(path, [_inputs(images[rows])], made, examples=CALIBRATED_ON)
        yield load_model(made, threads=1)


def main() -> None:
    """Ask those that are named, or all, and keep what they said; other files stay as they are."""
    named = sys.argv[1:] or list(RIVALS)
    if unknown := [name for name in named if name not in RIVALS]:
        raise SystemExit(f"say whom to record: {', '.join(RIVALS)}, not {', '.join(unknown)}")
    torch.set_num_threads(1)
    images, _ = load("test")
    ANSWERS.mkdir(exist_ok=True)
    for name in named:
        try:
            found = RIVALS[name](images)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}", flush=True)
            continue
        logits = found.logits if found.logits.ndim == 3 else found.logits[:, :, None]
        with write_whole(ANSWERS / f"{name}.npz", "wb") as file:
            np.savez_compressed(file, logits=logits.astype(np.float16), flops=found.flops)
        print(f"{name}: {found.flops / 1e6} MFLOPs", flush=True)


if __name__ == "__main__":
    main()
