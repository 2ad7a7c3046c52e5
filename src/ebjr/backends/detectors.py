"""Detectors in ``.onnx`` files: decoded images in, a `Detections` for each out.

A graph of a detector gives raw maps, whose layout differs from family to family. A decoder turns
one layout into boxes in pixels of the model's input; `Preprocess` made that input and takes the
boxes back to the image, in one place for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from ebjr.backends.chunks import run_in_chunks
from ebjr.backends.onnx import OnnxModel
from ebjr.data.preprocess import Image, Preprocess, facts_of_images, infer_preprocess
from ebjr.errors import ModelError
from ebjr.model import ModelFacts
from ebjr.tasks.detection.boxes import Detections

Outputs = Mapping[str, NDArray[Any]]
Size = tuple[int, int]

CANDIDATES = 3000
"""How many boxes and classes of an image go into non-maximum suppression at most."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a head says about one image, in pixels of the model's input.

    `boxes` (b, 4) and `logits` (b, classes); `bins` (b, 4, k) and `bin_width` (b,) as of
    `Detections`, or None; `labels` and `scores` (b,) where a box has one class alone, else None.
    """

    boxes: NDArray[Any]
    logits: NDArray[Any]
    bins: NDArray[Any] | None = None
    bin_width: NDArray[Any] | None = None
    labels: NDArray[Any] | None = None
    scores: NDArray[Any] | None = None


@dataclass(frozen=True)
class Layout:
    """How to read the outputs of a family of detectors.

    `decode` makes n `Decoded` of all outputs for n inputs, their (height, width) and the number of
    classes, or raises a ModelError where the outputs are not of this family. `nms` is the overlap
    above which the family suppresses; None where it does not.
    """

    decode: Callable[[Outputs, Size, int], list[Decoded]]
    nms: float | None


def decode_nanodet(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """NanoDet, GFL, PicoDet: a map for each stride, class logits, then four sides of bin logits.

    Each output is (n, classes + 4 k, height, width). A cell's center is ((x + 1/2) stride,
    (y + 1/2) stride), and a side's distance stride times the mean of its k bins (distribution
    focal loss; Li et al., "Generalized focal loss", NeurIPS 2020).
    """
    rows, grids = [], []
    for name, output in outputs.items():
        channels = output.shape[1] if output.ndim == 4 else 0
        if channels <= classes or (channels - classes) % 4:
            raise ModelError(_misfit(name, output, f"(n, {classes} + 4 k, height, width)"))
        rows.append(output.reshape(*output.shape[:2], -1).swapaxes(1, 2))
        grids.append((output.shape[2], output.shape[3], size[0] / output.shape[2]))
    whole = np.concatenate(rows, axis=1)
    center, stride = _cells(grids)
    return [_distances_decoded(row[:, :classes], row[:, classes:], center, stride) for row in whole]


def decode_yolov8(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOv8 and later without NMS: logits and bins apart, or one output that is decoded already.

    Two outputs: class logits (n, classes, a) and bin logits (n, 4 k, a), on strides 8, 16 and 32.
    One output: (n, 4 + classes, a), center, width and height in pixels, then probabilities.
    """
    if len(outputs) == 1:
        ((name, output),) = outputs.items()
        if output.ndim != 3 or output.shape[1] != 4 + classes:
            raise ModelError(_misfit(name, output, f"(n, {4 + classes}, boxes)"))
        rows = output.swapaxes(1, 2)
        return [Decoded(_corners(row[:, :4]), _log_odds(row[:, 4:])) for row in rows]
    first = _pick(outputs, lambda value: value.ndim == 3 and value.shape[1] == classes, "logits")
    second = _pick(
        {name: value for name, value in outputs.items() if name != first},
        lambda value: value.ndim == 3 and value.shape[1] % 4 == 0,
        "bins (n, 4 k, boxes)",
    )
    logits, bins = outputs[first], outputs[second]
    grids = [(size[0] // stride, size[1] // stride, stride) for stride in (8, 16, 32)]
    center, strides = _cells(grids)
    if len(center) != logits.shape[2] or bins.shape[2] != logits.shape[2]:
        raise ModelError(
            f"an input of {size[0]} x {size[1]} has {len(center)} boxes on strides 8, 16 and 32, "
            f"but the outputs have {logits.shape[2]} and {bins.shape[2]}"
        )
    return [
        _distances_decoded(row.T, sides.T, center, strides)
        for row, sides in zip(logits, bins, strict=True)
    ]


def decode_yolov5(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOv5 to v7: (n, a, 5 + classes): center, width, height, objectness, then class scores.

    A class's score is objectness times its own, both probabilities.
    """
    name = _pick(
        outputs,
        lambda value: value.ndim == 3 and value.shape[2] == 5 + classes,
        f"output (n, boxes, {5 + classes})",
    )
    return [
        Decoded(_corners(row[:, :4]), _log_odds(row[:, 4:5] * row[:, 5:])) for row in outputs[name]
    ]


def decode_detr(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """DETR, RT-DETR, D-FINE, DEIM: class logits and boxes of q queries, and bin logits if any.

    Class logits (n, q, classes), sigmoids, or (n, q, classes + 1), a softmax whose last class is
    "nothing"; boxes (n, q, 4), center, width and height from 0 to 1; bin logits of any shape with
    4 n q rows. Where boxes and logits have one shape, the boxes' name has "box" in it.
    """
    names = detr_outputs(outputs, classes)
    boxes, logits, *sides = (outputs[name] for name in names)
    count, queries = boxes.shape[:2]
    pixels = _corners(boxes) * np.array([size[1], size[0]] * 2, boxes.dtype)
    bins = sides[0].reshape(count, queries, 4, -1) if sides else [None] * count
    return [
        Decoded(box, row[:, :classes], side, None, *_softmax_answer(row, classes))
        for box, row, side in zip(pixels, logits, bins, strict=True)
    ]


def detr_outputs(outputs: Outputs, classes: int) -> tuple[str, ...]:
    """The names of the boxes and the class logits, and of the bin logits if there are any."""
    named = {name: value for name, value in outputs.items() if "box" in name.lower()} or outputs
    boxes = _pick(named, lambda value: value.ndim == 3 and value.shape[2] == 4, "boxes (n, q, 4)")
    left = {name: value for name, value in outputs.items() if name != boxes}
    logits = _pick(
        left,
        lambda value: value.ndim == 3 and value.shape[2] in (classes, classes + 1),
        f"class logits (n, q, {classes} or {classes + 1})",
    )
    rows = outputs[boxes].shape[0] * outputs[boxes].shape[1] * 4
    sides = [name for name, value in left.items() if name != logits and value.size % rows == 0]
    return (boxes, logits, *sides[:1])


def decode_torchvision(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """What torchvision gives: boxes (b, 4), labels (b,), scores (b,) of one image, NMS done.

    Boxes are in pixels of the input. Labels are those of the training: class k has the label
    k + 1, as 0 is the background.
    """
    names = (
        _pick(outputs, lambda value: value.ndim == 2 and value.shape[1] == 4, "boxes (b, 4)"),
        _pick(outputs, lambda value: value.ndim == 1 and value.dtype.kind in "iu", "labels (b,)"),
        _pick(outputs, lambda value: value.ndim == 1 and value.dtype.kind == "f", "scores (b,)"),
    )
    boxes, labels, scores = (outputs[name] for name in names)
    wrong = (labels < 1) | (labels > classes)
    if wrong.any():
        raise ModelError(
            f"labels must lie in 1..{classes}, but one is {labels[wrong][0]}; "
            "say how many classes there are with classes="
        )
    logits = np.full((len(boxes), classes), -np.inf, np.float32)
    logits[np.arange(len(boxes)), labels - 1] = _log_odds(scores)
    return [Decoded(boxes, logits, labels=labels - 1, scores=scores)]


LAYOUTS: dict[str, Layout] = {
    "nanodet": Layout(decode_nanodet, 0.6),
    "yolov8": Layout(decode_yolov8, 0.7),
    "yolov5": Layout(decode_yolov5, 0.6),
    "detr": Layout(decode_detr, None),
    "torchvision": Layout(decode_torchvision, None),
}
"""The families that can be read, by name."""


def find_layout(model: OnnxModel, preprocess: Preprocess, classes: int) -> str:
    """The only one of `LAYOUTS` that fits a model's outputs, by running it on a gray image."""
    rows = model.fixed_batch or 1
    height, width = preprocess.height_width or (64, 64)
    batch = preprocess([np.full((height, width, 3), 127, np.uint8)] * rows)
    outputs = model.answer_all(batch)
    fitting = []
    for name, layout in LAYOUTS.items():
        try:
            layout.decode(outputs, (height, width), classes)
        except (ModelError, ValueError, IndexError):
            continue
        fitting.append(name)
    if len(fitting) != 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in outputs.items())
        which = " and ".join(fitting) + " all fit" if fitting else "no layout fits"
        raise ModelError(
            f"{which} the outputs of {model.name} for {classes} classes: {shapes}; give layout, "
            f"one of {', '.join(LAYOUTS)}, or say how many classes there are with classes="
        )
    return fitting[0]


class OnnxDetector:
    """A detector in an ``.onnx`` file: decoded images in, a list of `Detections` out.

    A graph with a fixed batch of one is run one image at a time (`loops`): a batch costs as much as
    its images one by one.

    Parameters
    ----------
    layout
        What its outputs look like: a name in `LAYOUTS`, a `Layout` of your own, or ``"auto"``: the
        one that fits what the model says of a gray image.
    preprocess
        How images become its input; by default squashed to its size, RGB from 0 to 1.
    nms
        The overlap above which the worse of two boxes of a class is dropped; ``"default"`` is
        the layout's, None or ``"none"`` keeps all.
    above, limit
        A box is reported for every class with a score above `above`, at most `limit` an image.
        The defaults are COCO's.
    threads, providers
        As of an `OnnxModel`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: str | Layout = "auto",
        preprocess: Preprocess | None = None,
        *,
        classes: int = 80,
        nms: float | str | None = "default",
        above: float = 0.001,
        limit: int = 100,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
    ) -> None:
        if isinstance(layout, str) and layout not in ("auto", *LAYOUTS):
            raise ValueError(f"layout must be one of auto, {', '.join(LAYOUTS)}, not {layout!r}")
        if not 0 <= above < 1:
            raise ValueError(f"above must lie in 0..1, under 1, not {above}")
        if limit < 1 or classes < 1:
            raise ValueError(f"limit and classes must be at least 1, not {limit} and {classes}")
        self.model = OnnxModel(path, threads=threads, providers=providers)
        self.name, self.path = self.model.name, self.model.path
        self.preprocess = preprocess or infer_preprocess(self.model.input_shape or ())
        self.classes = classes
        if layout == "auto":
            layout = find_layout(self.model, self.preprocess, classes)
        self.layout = LAYOUTS[layout] if isinstance(layout, str) else layout
        nms = None if nms == "none" else nms
        self.nms = self.layout.nms if nms == "default" else nms
        if self.nms is not None and not (isinstance(self.nms, float | int) and 0 <= self.nms <= 1):
            raise ValueError(f"nms must lie in 0..1, be None or 'default', not {nms!r}")
        self.above = above
        self.limit = limit
        self.loops = self.model.fixed_batch == 1

    @property
    def facts(self) -> ModelFacts:
        """All that the detector says of itself."""
        inside = facts_of_images(self.model.facts, self.preprocess)
        names = [name for name, layout in LAYOUTS.items() if layout is self.layout]
        options: dict[str, Any] = {
            **inside.options,
            "layout": names[0] if names else self.layout,
            "classes": self.classes,
            "above": self.above,
            "limit": self.limit,
        }
        if self.nms != self.layout.nms:
            options["nms"] = "none" if self.nms is None else self.nms
        return replace(inside, input_shape=(None, None, None, 3), options=options)

    def with_preprocess(self, preprocess: Preprocess) -> OnnxDetector:
        """The same detector, whose images are prepared in another way."""
        other = copy(self)
        other.preprocess = preprocess
        return other

    def __call__(self, images: Sequence[Image], /) -> list[Detections]:
        """What is on n images, uint8 (height, width, 3) of any sizes.

        Of each its `Detections`, best first, one row for each box and class.
        """
        return [self._final(found, single) for found, single in self._run(images)]

    def candidates(self, images: Sequence[Image], top: int | None = None) -> list[Detections]:
        """What the head says before suppression: each box once, with its best class.

        At most the best `top` boxes an image; None gives all above `above`.
        """
        found = [one for one, _ in self._run(images)]
        return found if top is None else [one.top(top) for one in found]

    def _run(self, images: Sequence[Image]) -> list[tuple[Detections, bool]]:
        """What may be reported on each image, and whether a box has one class alone."""
        fixed = self.model.fixed_batch
        if not len(images):
            return []

        def join(parts: Sequence[Any]) -> list[Any]:
            return list(chain(*parts))

        return list(run_in_chunks(self._run_batch, list(images), fixed, fixed, join))

    def _run_batch(self, images: list[Image]) -> list[tuple[Detections, bool]]:
        batch = self.preprocess(images)
        sides = batch.shape[2:] if self.preprocess.layout == "nchw" else batch.shape[1:3]
        size = (int(sides[0]), int(sides[1]))
        answers = self.layout.decode(self.model.answer_all(batch), size, self.classes)
        if len(answers) != len(batch):
            raise ModelError(
                f"{self.name} was given {len(batch)} images and answered {len(answers)}; "
                "give it one at a time"
            )
        return [
            (self._placed(decoded, image.shape[:2], size), decoded.labels is not None)
            for decoded, image in zip(answers, images, strict=True)
        ]

    def _placed(self, decoded: Decoded, image_size: Size, size: Size) -> Detections:
        """The boxes that may be reported, in pixels of the image."""
        sure = expit(decoded.logits.max(axis=1)) if decoded.scores is None else decoded.scores
        rows = np.flatnonzero(sure > self.above)

        def some(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[rows]

        return Detections(
            self.preprocess.boxes_to_image(decoded.boxes[rows], size, image_size),
            decoded.logits[rows],
            image_size,
            labels=some(decoded.labels),  # type: ignore[arg-type]
            scores=some(decoded.scores),  # type: ignore[arg-type]
            bins=some(decoded.bins),
            bin_width=some(decoded.bin_width),
        )

    def _final(self, found: Detections, single: bool) -> Detections:
        if not single:
            found = found.expand(self.above, CANDIDATES if self.nms is not None else self.limit)
        if isinstance(self.nms, float | int):
            found = found.nms(self.nms)
        return found.top(self.limit)

    def __repr__(self) -> str:
        loops = ", one image at a time: its graph has a fixed batch of 1" if self.loops else ""
        return f"OnnxDetector({str(self.model.path)!r}{loops})"


def _cells(grids: Sequence[tuple[int, int, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of all cells of maps (height, width, stride), row by row: centers (a, 2), strides (a,)."""
    centers, strides = [], []
    for height, width, stride in grids:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        cells = np.stack([x.ravel(), y.ravel()], axis=1) + np.float32(0.5)
        centers.append(cells * np.float32(stride))
        strides.append(np.full(len(cells), stride, np.float32))
    return np.concatenate(centers), np.concatenate(strides)


def _distances_decoded(
    logits: NDArray[Any], sides: NDArray[Any], center: NDArray[Any], stride: NDArray[Any]
) -> Decoded:
    """Boxes from the mean distance of each side to the center; sides left, top, right, bottom."""
    bins = sides.reshape(len(sides), 4, -1)
    steps = np.arange(bins.shape[2], dtype=bins.dtype)
    distance = (softmax(bins, axis=2) @ steps) * stride[:, None]
    boxes = np.concatenate([center - distance[:, :2], center + distance[:, 2:]], axis=1)
    return Decoded(boxes, logits, bins, stride)


def _corners(boxes: NDArray[Any]) -> NDArray[Any]:
    """Center, width and height to x1, y1, x2, y2."""
    center, half = boxes[..., :2], np.maximum(boxes[..., 2:], 0) / 2
    return np.concatenate([center - half, center + half], axis=-1)


def _log_odds(scores: NDArray[Any]) -> NDArray[Any]:
    return logit(np.clip(scores, 0, 1 - np.finfo(scores.dtype).epsneg))


def _softmax_answer(
    logits: NDArray[Any], classes: int
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Label and score of a head whose last class is "nothing"; None, None of one without it."""
    if logits.shape[1] == classes:
        return None, None
    likely = softmax(logits, axis=1)[:, :classes]
    return likely.argmax(axis=1), likely.max(axis=1)


def _pick(outputs: Outputs, fits: Callable[[NDArray[Any]], bool], what: str) -> str:
    """The name of the first output that fits."""
    for name, value in outputs.items():
        if fits(value):
            return name
    shapes = ", ".join(f"{name} {value.shape}" for name, value in outputs.items()) or "none"
    raise ModelError(
        f"the model must have the output {what}, but has {shapes}; choose another layout, of "
        f"{', '.join(LAYOUTS)}, or say how many classes there are with classes="
    )


def _misfit(name: str, output: NDArray[Any], expected: str) -> str:
    return (
        f"the output {name} must have the shape {expected}, but has {output.shape}; choose another "
        f"layout, of {', '.join(LAYOUTS)}, or say how many classes there are with classes="
    )
