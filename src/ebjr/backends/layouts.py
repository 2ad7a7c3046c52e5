"""Layouts of detectors' outputs: a decoder for each family, and how a file's layout is found.

A decoder turns the outputs of one family into boxes in pixels of the model's input. Many families
share an output shape: the number of boxes and their values tell them apart.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, softmax

from ebjr.backends.onnx import OnnxModel
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError

Outputs = Mapping[str, NDArray[Any]]
Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A head's boxes on one image, in pixels of the model's input; see `Detections`."""

    boxes: NDArray[Any]  # (b, 4)
    logits: NDArray[Any]  # (b, classes)
    bins: NDArray[Any] | None = None  # (b, 4, k)
    bin_width: NDArray[Any] | None = None
    labels: NDArray[Any] | None = None  # (b,) if a box has a single class; so are the scores
    scores: NDArray[Any] | None = None

    @property
    def sure(self) -> NDArray[Any]:
        """(b,): the score of each box's best class."""
        return expit(self.logits.max(axis=1)) if self.scores is None else self.scores


Decode = Callable[[Outputs, Size, int], list[Decoded]]


@dataclass(frozen=True)
class Fixed:
    """What the export reads of outputs with the same number of boxes on every image.

    `names` takes all outputs for n inputs and the number of classes, and returns the names of the
    outputs with boxes (n, q, 4), class logits and any bin logits; or of one output (n, q, 4 + k)
    that has boxes, then class scores from 0 to 1, or if the layout is `by_label` a score and a
    class.
    """

    names: Callable[[Outputs, int], tuple[str, ...]]
    corners: bool = False  # boxes are two corners, not the center and both sides
    pixels: bool = False  # boxes are in pixels of the model's input, not positions from 0 to 1


@dataclass(frozen=True)
class Layout:
    """How to read the outputs of a family of detectors.

    `decode` takes all outputs for n inputs, the input's (height, width) and the number of classes,
    and returns n `Decoded`, or raises a ModelError if the outputs are of another family. Layouts
    with `fixed` can be exported.
    """

    decode: Decode
    nms: float | None  # the family's NMS overlap; None if it uses none
    # boxes that a cell of the maps may have: () without maps, None if `decode` checks it
    per_cell: tuple[int, ...] | None = None
    by_label: bool = False  # a class is a number in the outputs, not a column
    first: int = 0  # the number of the first class
    fixed: Fixed | None = None

    def check(self, outputs: Outputs, size: Size, classes: int) -> None:
        """Raise a ModelError if shapes, number of boxes or values are another family's."""
        found = self.decode(outputs, size, classes)
        if self.per_cell is not None and found:
            on_map = _grids(size, len(found[0].boxes), self.per_cell or (1, 3)) is not None
            if on_map is not bool(self.per_cell):
                raise ModelError(f"{len(found[0].boxes)} boxes fit {'' if on_map else 'no '}maps")
        check_values(found, size, self)


def decode_nanodet(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """NanoDet, GFL, PicoDet: (n, classes + 4 k, height, width) for each stride, k bins a side.

    A side's distance from the cell's center is stride times the mean of its bins (distribution
    focal loss; Li et al., "Generalized focal loss", NeurIPS 2020).
    """
    rows, grids = [], []
    for name, output in outputs.items():
        channels = output.shape[1] if output.ndim == 4 else 0
        if channels < classes + 8 or (channels - classes) % 4:  # at least two bins a side
            raise _no_output(f"(n, {classes} + 4 k, height, width)", {name: output})
        rows.append(output.reshape(*output.shape[:2], -1).swapaxes(1, 2))
        grids.append((output.shape[2], output.shape[3], size[0] / output.shape[2]))
    whole = np.concatenate(rows, axis=1)
    center, stride = _cells(grids)
    _check_logits(whole[:, :, :classes])
    return [_distances_decoded(row[:, :classes], row[:, classes:], center, stride) for row in whole]


def decode_yolov8(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOv8 and later without NMS: class logits (n, classes, a) and bin logits (n, 4 k, a).

    Or one output, (n, 4 + classes, a): center, width and height in pixels, then probabilities.
    """
    if len(outputs) == 1:
        name = _pick(outputs, _has(1, [4 + classes]), f"(n, {4 + classes}, boxes)")
        rows = outputs[name].swapaxes(1, 2)
        return [Decoded(_corners(row[:, :4]), _log_odds(row[:, 4:])) for row in rows]
    first = _pick(outputs, _has(1, [classes]), "logits")
    others = {name: value for name, value in outputs.items() if name != first}
    second = _pick(others, _has(1, range(4, 2**20, 4)), "bins (n, 4 k, boxes)")
    logits, bins = _check_logits(outputs[first]), outputs[second]
    center, strides = _map_of(size, logits.shape[2])
    if bins.shape[2] != logits.shape[2]:
        raise ModelError(
            f"the outputs have {logits.shape[2]} boxes of logits, but {bins.shape[2]} of bins"
        )
    return [
        _distances_decoded(row.T, sides.T, center, strides)
        for row, sides in zip(logits, bins, strict=True)
    ]


def decode_yolov5(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOv5 to v7, and decoded YOLOX: (n, a, 5 + classes).

    Center, width and height in pixels, objectness, and class scores to multiply it with.
    """
    rows = _dense(outputs, 5 + classes)
    return [Decoded(_corners(row[:, :4]), _objects(row)) for row in rows]


def decode_yolox(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOX as exported: (n, a, 5 + classes), a box for each cell, scores like YOLOv5's.

    The center's offset from the cell's corner, and the logarithms of both sides, in strides.
    """
    rows = _dense(outputs, 5 + classes)
    center, stride = _map_of(size, rows.shape[1])
    away = np.abs(rows[:, :, :2] * np.array(size[::-1]) - center).max(axis=2)
    if (away < stride).mean() > 0.5:
        raise ModelError("the centers are positions from 0 to 1, not offsets from the cells")
    middle = (rows[:, :, :2] - 0.5) * stride[:, None] + center
    sides = np.exp(np.minimum(rows[:, :, 2:4], 20)) * stride[:, None]
    boxes = _corners(np.concatenate([middle, sides], axis=2))
    return [Decoded(*one) for one in zip(boxes, map(_objects, rows), strict=True)]


def decode_end2end(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """YOLOv10, YOLO26 and exports with NMS inside: (n, k, 6): box in pixels, score and class."""
    return [_labeled(row[:, :4], row[:, 5], row[:, 4], classes, 0) for row in _dense(outputs, 6)]


def decode_rtdetr(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """RT-DETR in one output, (n, q, 4 + classes): box centers and sides in 0..1, then scores."""
    rows = _dense(outputs, 4 + classes)
    pixels = _corners(rows[:, :, :4]) * np.array([size[1], size[0]] * 2, rows.dtype)
    return [Decoded(*one) for one in zip(pixels, _log_odds(rows[:, :, 4:]), strict=True)]


def normalized(layout: Layout) -> Layout:
    """Return the layout of the same outputs with boxes from 0 to 1 instead of pixels."""

    def scaled(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
        sides = np.array([size[1], size[0]] * 2, np.float32)
        found = layout.decode(outputs, size, classes)
        return [replace(one, boxes=one.boxes * sides) for one in found]

    fixed = layout.fixed and replace(layout.fixed, pixels=False)
    return replace(layout, decode=scaled, fixed=fixed)


def decode_detr(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """DETR, RT-DETR, D-FINE, DEIM: boxes (n, q, 4), center, width and height from 0 to 1; logits.

    Logits (n, q, classes) of sigmoids, or (n, q, classes + 1) of a softmax, its last class
    "nothing"; and bin logits of any shape with 4 n q rows, or none.
    """
    names = detr_outputs(outputs, classes)
    boxes, logits, *sides = (outputs[name] for name in names)
    _check_logits(logits)
    count, queries = boxes.shape[:2]
    pixels = _corners(boxes) * np.array([size[1], size[0]] * 2, boxes.dtype)
    bins = sides[0].reshape(count, queries, 4, -1) if sides else [None] * count
    if logits.shape[2] == classes:
        return [Decoded(*one) for one in zip(pixels, logits, bins, strict=True)]
    likely, logits = softmax(logits, axis=2)[:, :, :classes], logits[:, :, :classes]
    best = likely.argmax(axis=2), likely.max(axis=2)
    parts = zip(pixels, logits, bins, [None] * count, *best, strict=True)
    return [Decoded(*one) for one in parts]


def detr_outputs(outputs: Outputs, classes: int) -> tuple[str, ...]:
    """Return the names of the outputs with boxes, with logits, and with bins if any."""
    named = {name: value for name, value in outputs.items() if "box" in name.lower()} or outputs
    boxes = _pick(named, _has(2, [4]), "boxes (n, q, 4)")
    left = {name: value for name, value in outputs.items() if name != boxes}
    what = f"class logits (n, q, {classes} or {classes + 1})"
    logits = _pick(left, _has(2, (classes, classes + 1)), what)
    rows = outputs[boxes].shape[0] * outputs[boxes].shape[1] * 4
    sides = [name for name, value in left.items() if name != logits and value.size % rows == 0]
    return (boxes, logits, *sides[:1])


def decode_torchvision(outputs: Outputs, size: Size, classes: int) -> list[Decoded]:
    """Torchvision, one image, after NMS: boxes (b, 4), labels (b,), scores (b,).

    Class k has the label k + 1; 0 is the background.
    """
    found = (
        _pick(outputs, lambda value: value.ndim == 2 and value.shape[1] == 4, "boxes (b, 4)"),
        _pick(outputs, lambda value: value.ndim == 1 and value.dtype.kind in "iu", "labels (b,)"),
        _pick(outputs, lambda value: value.ndim == 1 and value.dtype.kind == "f", "scores (b,)"),
    )
    boxes, labels, scores = (outputs[name] for name in found)
    return [_labeled(boxes, labels, scores, classes, 1)]


_YOLOV8 = Layout(decode_yolov8, 0.7, (1,))
_END2END = Layout(
    decode_end2end,
    None,
    by_label=True,
    fixed=Fixed(lambda outputs, classes: (_dense_name(outputs, 6),), corners=True, pixels=True),
)

LAYOUTS: dict[str, Layout] = {
    "nanodet": Layout(decode_nanodet, 0.6),
    "yolov8": _YOLOV8,
    "yolov5": Layout(decode_yolov5, 0.6, (1, 3)),
    "detr": Layout(decode_detr, None, fixed=Fixed(detr_outputs)),
    "torchvision": Layout(decode_torchvision, None, by_label=True, first=1),
    "yolov8_normalized": normalized(_YOLOV8),
    "yolox": Layout(decode_yolox, 0.65, (1,)),
    "end2end": _END2END,
    "end2end_normalized": normalized(_END2END),
    "rtdetr": Layout(
        decode_rtdetr,
        None,
        (),
        fixed=Fixed(lambda outputs, classes: (_dense_name(outputs, 4 + classes),)),
    ),
}
"""The supported families, by name."""

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Strides of the maps whose cells have boxes: the usual ones, then larger and smaller models'."""

SAY_WHICH = (
    "say which with --student-layout or --teacher-layout (layout= in Python), one of "
    f"{', '.join(LAYOUTS)}"
)
"""The end of messages about a layout."""


def check_values(found: Sequence[Decoded], size: Size, layout: Layout) -> None:
    """Raise a ModelError unless most of the best boxes lie on the input, and some reach far enough.

    Far enough is beyond the first pixel, or for maps, which have boxes everywhere, beyond 4 % of
    the input: boxes from 0 to 1 do not reach that far.
    """
    sides, where = np.array(size[::-1]), f"the input of {size[0]} x {size[1]}"
    best = _not_empty([one.boxes[one.sure >= one.sure.max(initial=0) / 2] for one in found])
    first, last = best[:, :2], best[:, 2:]
    apart = (last <= 0) | (first >= sides) | (last - first > 4 * sides) | (last < first)
    if len(best) and apart.any(axis=1).mean() > 0.5:
        box = ", ".join(f"{side:.3g}" for side in best[0])
        raise ModelError(
            f"most boxes lie outside {where}, the best is {box}: the outputs are of another "
            f"layout, {SAY_WHICH}"
        )
    ends = _not_empty([one.boxes for one in found])[:, 2:].max(axis=1, initial=0)
    least = max(4, 0.04 * max(size)) if layout.per_cell else 1.5
    reach = max(np.percentile(ends, 90), last.max(initial=0)) if len(ends) else least
    if reach < least < max(size):
        raise ModelError(
            f"boxes must be in pixels of {where}, but end at {reach:.3g}: they go from 0 to 1, or "
            f"are of another layout, {SAY_WHICH}"
        )


def find_layout(
    model: OnnxModel,
    preprocess: Preprocess,
    classes: int,
    source: str = "as given",
    class_ids: Sequence[int] = (),
) -> tuple[str, int]:
    """Return the only layout that fits a model's outputs, and the number of classes.

    The outputs are those for a gray image, and for noise if several layouts fit. The number is
    `classes` (known from `source`), or if no layout fits, what `class_ids` with gaps need.
    """
    size, names = preprocess.height_width or (64, 64), _allowed(model)
    gray = np.full((model.fixed_batch or 1, *size, 3), 127, np.uint8)
    outputs = model.answer_all(preprocess(gray))
    fits = _fitting(outputs, size, dict.fromkeys(names, classes))
    if len(fits) > 1:
        noise = np.random.default_rng(0).integers(0, 256, gray.shape, np.uint8)
        again = model.answer_all(preprocess(noise))
        fits = _fitting(again, size, dict.fromkeys(fits, classes)) or fits
    if not fits and class_ids and max(class_ids) - min(class_ids) >= len(class_ids):
        columns = {name: max(class_ids) + 1 - LAYOUTS[name].first for name in names}
        fits = _fitting(outputs, size, columns)
        classes = columns[fits[0]] if len(fits) == 1 else classes
    if len(fits) == 1:
        return fits[0], classes
    which = f"{' and '.join(fits)} all fit" if fits else "no layout fits"
    raise ModelError(
        f"{which} the outputs of {model.name} for {classes} classes ({source}): {_shapes(outputs)}"
        f"{'' if fits else _fitting_others(outputs, size, names)}; {SAY_WHICH}, or say the classes "
        "with --classes (in Python how many with classes=)"
    )


def _allowed(model: OnnxModel) -> list[str]:
    """Return the layouts that a file's metadata (written by ultralytics) allows."""
    task, whole = (model.metadata.get(key) for key in ("task", "end2end"))
    if task not in (None, "detect"):
        raise ModelError(f"{model.path} must be a detector, but its metadata has task {task!r}")
    return [name for name in LAYOUTS if whole != "True" or name.startswith("end2end")]


def _fitting(outputs: Outputs, size: Size, classes: Mapping[str, int]) -> list[str]:
    """Return the layouts that fit; if both do, pixels win over normalized boxes."""
    fits = []
    for name, count in classes.items():
        with suppress(ModelError, ValueError, IndexError):
            LAYOUTS[name].check(outputs, size, count)
            fits.append(name)
    return [name for name in fits if name.removesuffix("_normalized") not in {*fits} - {name}]


def _fitting_others(outputs: Outputs, size: Size, names: Sequence[str]) -> str:
    sides = {side for value in outputs.values() for side in value.shape[1:]}
    counts = sorted({side - more for side in sides for more in (0, 1, 4, 5) if side > more})
    columns = [name for name in names if not LAYOUTS[name].by_label]
    fits = {count: _fitting(outputs, size, dict.fromkeys(columns, count)) for count in counts}
    words = [f"with {count} classes {name} does" for count, some in fits.items() for name in some]
    return "".join(f"; {word}" for word in words[:3])


def _not_empty(boxes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack all boxes that have an area, swapped corners included."""
    whole = np.concatenate([np.zeros((0, 4)), *boxes])
    return whole[(whole[:, 2:] != whole[:, :2]).all(axis=1)]


def _map_of(size: Size, boxes: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return centers and strides of the cells of maps with one cell for each box."""
    grids = _grids(size, boxes, (1,))
    if grids is None:
        raise ModelError(
            f"an input of {size[0]} x {size[1]} does not have {boxes} cells, one for each box, on "
            "the usual strides"
        )
    return _cells(grids)


def _grids(size: Size, boxes: int, per_cell: Sequence[int]) -> list[tuple[int, int, float]] | None:
    """Return the maps (height, width, stride) whose cells have `boxes` in all, or None."""
    for strides in STRIDES:
        grids = [(-(-size[0] // stride), -(-size[1] // stride), stride) for stride in strides]
        if boxes in (count * sum(tall * wide for tall, wide, _ in grids) for count in per_cell):
            return [(tall, wide, float(stride)) for tall, wide, stride in grids]
    return None


def _cells(grids: Sequence[tuple[int, int, float]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return centers (a, 2) and strides (a,) of all cells of maps (height, width, stride)."""
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
    """Decode boxes from the mean distances of left, top, right and bottom to the center."""
    bins = sides.reshape(len(sides), 4, -1)
    steps = np.arange(bins.shape[2], dtype=bins.dtype)
    distance = (softmax(bins, axis=2) @ steps) * stride[:, None]
    boxes = np.concatenate([center - distance[:, :2], center + distance[:, 2:]], axis=1)
    return Decoded(boxes, logits, bins, stride)


def _corners(boxes: NDArray[Any]) -> NDArray[Any]:
    center, half = boxes[..., :2], np.maximum(boxes[..., 2:], 0) / 2
    return np.concatenate([center - half, center + half], axis=-1)


def _dense_name(outputs: Outputs, width: int) -> str:
    """Return the name of the first output (n, boxes, width)."""
    return _pick(outputs, _has(2, [width]), f"output (n, boxes, {width})")


def _dense(outputs: Outputs, width: int) -> NDArray[Any]:
    return outputs[_dense_name(outputs, width)]


def _objects(row: NDArray[Any]) -> NDArray[Any]:
    """Return the log-odds of objectness (column 4) times class scores (from column 5)."""
    return _log_odds(_in_range(row[:, 4:5]) * _in_range(row[:, 5:]))


def _labeled(
    boxes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], classes: int, first: int
) -> Decoded:
    """Decode boxes of one class each, labels from `first`; a score of 0 is padding."""
    last, real = classes - 1 + first, ~(scores <= 0)
    wrong = (labels % 1 != 0) | (real & ((labels < first) | (labels > last)))
    if wrong.any():
        raise ModelError(
            f"labels must lie in {first}..{last}, but one is {labels[wrong][0]:g}; give the number "
            "of classes with classes=, or their own numbers with label_ids="
        )
    boxes, labels, scores = boxes[real], labels[real], scores[real]
    places = labels.astype(np.int64) - first
    logits = np.full((len(boxes), classes), -np.inf, np.float32)
    logits[np.arange(len(boxes)), places] = _log_odds(scores)
    return Decoded(boxes, logits, labels=places, scores=scores)


def _in_range(scores: NDArray[Any]) -> NDArray[Any]:
    if scores.size and not (scores.min() > -1e-3 and scores.max() < 1.001):
        raise ModelError(
            f"scores must lie in 0..1, but range from {scores.min():g} to {scores.max():g}: the "
            f"outputs are of another layout, {SAY_WHICH}"
        )
    return scores


def _check_logits(logits: NDArray[Any]) -> NDArray[Any]:
    if logits.size and logits.min() >= 0 and 0 < logits.max() <= 1:
        raise ModelError(
            "class outputs must be logits, but all lie in 0..1, like probabilities; export the "
            "detector without its last sigmoid or softmax"
        )
    return logits


def _log_odds(scores: NDArray[Any]) -> NDArray[Any]:
    scores = _in_range(scores)
    return logit(np.clip(scores, 0, 1 - np.finfo(scores.dtype).epsneg))


def _pick(outputs: Outputs, fits: Callable[[NDArray[Any]], bool], what: str) -> str:
    for name, value in outputs.items():
        if fits(value):
            return name
    raise _no_output(what, outputs)


def _has(axis: int, sizes: Container[int]) -> Callable[[NDArray[Any]], bool]:
    """Return a test for outputs (n, ., .) with one of the sizes along an axis."""
    return lambda value: value.ndim == 3 and value.shape[axis] in sizes


def _no_output(what: str, outputs: Outputs) -> ModelError:
    return ModelError(
        f"the model must have the output {what}, but has {_shapes(outputs)}; give the number of "
        f"classes with classes=, or {SAY_WHICH}"
    )


def _shapes(outputs: Outputs) -> str:
    return ", ".join(f"{name} {value.shape}" for name, value in outputs.items()) or "none"
