"""Preprocessing inside the graph, to the last bit what `ebjr.preprocess` does outside of it.

ONNX's own Resize rounds otherwise, so the weights of Pillow's resampling are computed here as a
matrix, from the sizes that the graph meets: sums of pixels times whole numbers of 22 bits, in
double precision, which holds them exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ebjr.export.operators import Operators, Value
from ebjr.preprocess import PADDING, Preprocess

Sides = tuple[Value, Value]
"""A height and a width, whole numbers or values of the graph."""

BITS = 22
"""Of Pillow's weights, as it resamples bytes in whole numbers."""


def prepare_images(op: Operators, images: Value, preprocess: Preprocess) -> Value:
    """A model's input made of images (n, height, width, 3), uint8."""
    planes = op.Transpose(images, perm=[0, 3, 1, 2])
    if preprocess.height_width is not None:
        planes = _FITS[preprocess.resize](
            op, planes, preprocess.height_width, _FILTERS[preprocess.interpolation]
        )
    if preprocess.color == "bgr":
        planes = op.Gather(planes, np.array([2, 1, 0]), axis=1)
    channels = np.arange(3)[:, None, None]
    if preprocess.layout == "nhwc":
        planes, channels = op.Transpose(planes, perm=[0, 2, 3, 1]), np.arange(3)
    if preprocess.dtype == "uint8":
        return planes
    # each value looked up, rounded once, as outside
    table = preprocess.values().astype(preprocess.dtype)
    places = op.Cast(planes, to=int(ir.DataType.INT32))
    if (table == table[0]).all():
        return op.Gather(table[0], places)
    return op.Gather(table.ravel(), op.Add(places, (256 * channels).astype(np.int32)))


def _squash(op: Operators, planes: Value, size: Sides, kernel: Kernel) -> Value:
    """Planes (n, 3, height, width) at a size; as they are where they have it."""
    own = _sides(op, planes)
    same = op.And(*(op.Equal(one, other) for one, other in zip(own, size, strict=True)))
    kept, resized = op.part(f"{op.name}/kept"), op.part(f"{op.name}/resized")
    kept.Identity(planes)
    exact = resized.computing(np.float64)
    across = kernel(exact, own[1], size[1])
    down = kernel(exact, own[0], size[0])
    wide = _bytes(exact, exact.MatMul(exact.to(planes, np.float64), exact.Transpose(across)))
    tall = _bytes(exact, exact.MatMul(down, wide))
    exact.Cast(tall, to=int(ir.DataType.UINT8))
    return op.either(same, kept, resized)


def _crop(op: Operators, planes: Value, size: Sides, kernel: Kernel) -> Value:
    """Scale until the size is covered, keep the center."""
    (tall, wide), (height, width) = _sides(op, planes), size
    high = op.GreaterOrEqual(op.Mul(wide, height), op.Mul(tall, width))
    covering = (
        op.Where(high, height, op.Div(op.Mul(tall, width), wide)),
        op.Where(high, op.Div(op.Mul(wide, height), tall), width),
    )
    scaled = _squash(op, planes, covering, kernel)
    starts = [_halved(op, op.Sub(one, other)) for one, other in zip(covering, size, strict=True)]
    ends = [op.Add(start, side) for start, side in zip(starts, size, strict=True)]
    return op.Slice(scaled, _list(op, *starts), _list(op, *ends), [2, 3])


def _letterbox(op: Operators, planes: Value, size: Sides, kernel: Kernel) -> Value:
    """Scale until it fits, pad with gray on both sides."""
    exact, own = op.computing(np.float64), _sides(op, planes)
    sides = [exact.to(side, np.float64) for side in own]
    scale = exact.Min(*(exact.Div(float(n), side) for n, side in zip(size, sides, strict=True)))
    whole = [exact.Max(exact.Round(exact.Mul(side, scale)), 1.0) for side in sides]
    fitting = tuple(op.Cast(side, to=int(ir.DataType.INT64)) for side in whole)
    scaled = _squash(op, planes, (fitting[0], fitting[1]), kernel)
    left = [op.Sub(side, own) for side, own in zip(size, fitting, strict=True)]
    before = [op.Div(side, 2) for side in left]
    after = [op.Sub(one, other) for one, other in zip(left, before, strict=True)]
    return op.Pad(scaled, _list(op, 0, 0, *before, 0, 0, *after), np.array(PADDING, np.uint8))


def _sides(op: Operators, planes: Value) -> Sides:
    shape = op.Shape(planes)
    return op.Gather(shape, 2), op.Gather(shape, 3)


def _halved(op: Operators, whole: Value) -> Value:
    """Half of a whole number, rounded to the even one."""
    exact = op.computing(np.float64)
    half = exact.Round(exact.Mul(exact.to(whole, np.float64), 0.5))
    return op.Cast(half, to=int(ir.DataType.INT64))


def _list(op: Operators, *numbers: Value) -> Value:
    return op.Concat(*(op.Unsqueeze(number, [0]) for number in numbers), axis=0)


def _bytes(op: Operators, sums: Value) -> Value:
    """Sums of pixels times weights as pixels again."""
    return op.Clip(op.Floor(op.Mul(op.Add(sums, 2.0 ** (BITS - 1)), 2.0**-BITS)), 0.0, 255.0)


Kernel = Callable[[Operators, Value, Value], Value]
"""From sides before and after to weights (after, before) times ``2**BITS``."""


def _kernel(reach: float, weigh: Callable[[Operators, Value], Value]) -> Kernel:
    """A kernel that reaches so far, and weighs by the distance in its own unit."""

    def weights(op: Operators, before: Value, after: Value) -> Value:
        inside, outside = op.to(op.value(before), np.float64), op.to(op.value(after), np.float64)
        step = op.Div(inside, outside)
        unit = op.Max(step, 1.0)
        support = op.Mul(unit, reach)
        center = op.Unsqueeze(op.Mul(op.Add(op.Range(0.0, outside, 1.0), 0.5), step), [1])
        pixel = op.Unsqueeze(op.Range(0.0, inside, 1.0), [0])
        first = op.Floor(op.Add(op.Sub(center, support), 0.5))
        end = op.Floor(op.Add(op.Add(center, support), 0.5))
        within = op.And(op.GreaterOrEqual(pixel, first), op.Less(pixel, end))
        distance = op.Mul(op.Add(op.Sub(pixel, center), 0.5), op.Div(1.0, unit))
        weight = op.Where(within, weigh(op, op.Abs(distance)), 0.0)
        share = op.Div(weight, op.reduce("ReduceSum", weight, keep=True))
        whole = op.Floor(op.Add(op.Mul(op.Abs(share), 2.0**BITS), 0.5))
        return op.Mul(op.Sign(share), whole)

    return weights


def _bilinear(op: Operators, distance: Value) -> Value:
    return op.Max(op.Sub(1.0, distance), 0.0)


def _bicubic(op: Operators, distance: Value) -> Value:
    near = op.Mul(op.Sub(op.Mul(distance, 1.5), 2.5), op.Mul(distance, distance))
    far = op.Sub(op.Mul(op.Add(op.Mul(op.Sub(distance, 5.0), distance), 8.0), distance), 4.0)
    outer = op.Where(op.Less(distance, 2.0), op.Mul(far, -0.5), 0.0)
    return op.Where(op.Less(distance, 1.0), op.Add(near, 1.0), outer)


_FILTERS: Mapping[str, Kernel] = {
    "bilinear": _kernel(1.0, _bilinear),
    "bicubic": _kernel(2.0, _bicubic),
}
_FITS: Mapping[str, Callable[[Operators, Value, Sides, Kernel], Value]] = {
    "squash": _squash,
    "crop": _crop,
    "letterbox": _letterbox,
}
