"""Figure 5, right, on the paper's own pair: EfficientDet D0 and D4, from files that you have.

    python -m experiments.detection.efficientdet d0.onnx d4.onnx

Records both on the labeled COCO images of `experiments.detection.pairs`, and measures them as
`experiments.detection.measure` does every pair; `experiments.fig5_detection` then shows them. What
an exported EfficientDet gives is declared here (`LAYOUT`): for each of five maps, strides 8 to 128,
or for all of them together, 9 anchors a cell with four sides and a logit, or a probability, of each
of COCO's 90 class numbers.

Source: Tan, Pang, Le, "EfficientDet: scalable and efficient object detection", CVPR 2020.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from ebjr import Preprocess
from ebjr.backends.detectors import OnnxDetector
from ebjr.backends.layouts import Decoded, Layout, Outputs, Size
from ebjr.errors import ModelError
from experiments.detection import measure, pairs

STRIDES = (8, 16, 32, 64, 128)
SCALE = 4.0
"""An anchor's side in strides, before its octave."""

OCTAVES = (0.0, 1 / 3, 2 / 3)
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
"""Width and height."""

COLUMNS = 90
"""COCO's class numbers, ten of which have no class."""

SIZES = (512, 640, 768, 896, 1024, 1280, 1280, 1536)
"""Pixels of D0 to D7."""

LEAST = 1e-7


@cache
def anchors(size: Size) -> NDArray[np.float64]:
    """(a, 4): center y and x, height and width in pixels, by map, row, column, octave, aspect."""
    maps = []
    for stride in STRIDES:
        sides = [
            (stride * SCALE * 2**octave * high, stride * SCALE * 2**octave * wide)
            for octave in OCTAVES
            for wide, high in ASPECTS
        ]
        rows, columns = (stride * (np.arange(-(-length // stride)) + 0.5) for length in size)
        centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)[:, :, None]
        centers = np.broadcast_to(centers, (len(rows), len(columns), len(sides), 2))
        every = np.broadcast_to(np.array(sides), centers.shape)
        maps.append(np.concatenate([centers, every], axis=-1).reshape(-1, 4))
    return np.concatenate(maps)


def boxes_of(sides: NDArray[np.floating], size: Size) -> NDArray[np.float32]:
    """Boxes (n, a, 4) in pixels, from a head's offsets (n, a, 4): y, x, height and width.

    Centers in sides of the anchor, heights and widths as logarithms.
    """
    at = anchors(size)
    center = sides[..., :2] * at[:, 2:] + at[:, :2]
    half = np.exp(np.minimum(sides[..., 2:], 20)) * at[:, 2:] / 2
    first, last = (center - half)[..., ::-1], (center + half)[..., ::-1]
    return np.concatenate([first, last], axis=-1).astype(np.float32)


def joined(outputs: Sequence[NDArray[np.floating]], columns: int) -> NDArray[np.floating]:
    """(n, a, columns): the maps (n, 9 columns, height, width) in one, the finest first."""
    rows = []
    for output in sorted(outputs, key=lambda output: -output.shape[-1]):
        n, _, height, width = output.shape
        cells = output.reshape(n, -1, columns, height, width).transpose(0, 3, 4, 1, 2)
        rows.append(cells.reshape(n, -1, columns))
    return np.concatenate(rows, axis=1)


def decode(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """Return the heads' outputs for each image.

    Raises
    ------
    ModelError
        The outputs lack sides and classes for that many anchors.
    """
    each = len(OCTAVES) * len(ASPECTS)
    found = {}
    for columns in (4, classes):
        maps = [one for one in outputs.values() if one.ndim == 4 and one.shape[1] == each * columns]
        whole = [one for one in outputs.values() if one.ndim == 3 and one.shape[2] == columns]
        if len(maps) == len(STRIDES):
            found[columns] = joined(maps, columns)
        elif len(whole) == 1:
            found[columns] = whole[0]
    count = len(anchors(size))
    if len(found) < 2 or any(one.shape[1] != count for one in found.values()):
        shapes = ", ".join(str(one.shape) for one in outputs.values())
        raise ModelError(
            f"EfficientDet at {size[0]} x {size[1]} pixels has {count} anchors, as (n, {count}, 4) "
            f"and (n, {count}, {classes}) or as five maps of each; the outputs are {shapes}"
        )
    logits = found[classes]
    if logits.min() >= 0 and logits.max() <= 1:
        logits = logit(np.clip(logits, LEAST, 1 - LEAST))
    return [Decoded(*one) for one in zip(boxes_of(found[4], size), logits, strict=True)]


LAYOUT = Layout(decode, nms=0.5, first=1)


def detector(file: str | Path, class_ids: Sequence[int], size: int) -> OnnxDetector:
    """The detector of a file, for the classes of these COCO numbers."""
    preprocess = Preprocess(
        size=size, resize="letterbox", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    return OnnxDetector(file, LAYOUT, preprocess, classes=COLUMNS, label_ids=class_ids)


class Own(pairs.Source):
    """A file of the user's own."""

    def load(self) -> OnnxDetector:
        """The detector, for the classes of the labels."""
        side, _ = self.preprocess.height_width or (0, 0)
        return detector(self.file, [int(one) for one in pairs.labels().class_ids], side)


def main() -> None:
    """Record and measure both."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("student", type=Path, help="EfficientDet D0, .onnx")
    words.add_argument("teacher", type=Path, help="EfficientDet D4, .onnx")
    words.add_argument("--sizes", type=int, nargs=2, default=[SIZES[0], SIZES[4]], help="pixels")
    words.add_argument("--splits", type=int, default=measure.SPLITS, help="each in two halves")
    asked = words.parse_args()
    for role in ("student", "teacher"):
        if not getattr(asked, role).is_file():
            words.error(f"{role}: there is no file {getattr(asked, role)}; give an .onnx file")
    names, files = ("efficientdet_d0", "efficientdet_d4"), (asked.student, asked.teacher)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    pairs.CACHE = pairs.CACHE / digest  # other files with these names have said other things
    for name, file, size in zip(names, files, asked.sizes, strict=True):
        pairs.SOURCES[name] = Own(str(file), "", Preprocess(size=size))
    measure.write(*names, asked.splits)


if __name__ == "__main__":
    main()
