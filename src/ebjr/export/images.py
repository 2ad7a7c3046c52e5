"""Preprocessing inside the graph, bit for bit equal to `ebjr.data.preprocess`.

ONNX's Resize rounds differently. So resampling is a product with a matrix of Pillow's 22-bit
fixed-point weights, in double precision, which holds the sums exactly.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ebjr.data.preprocess import LUMA, PADDING, Preprocess
from ebjr.export.operators import Operators, Value

Sides = tuple[Value, Value]  # a height and a width, whole numbers or values of the graph

Place = tuple[Sides, Value, Value]
"""An image's sides, top and left within a model's input."""

BITS = 22  # fixed-point bits of Pillow's weights for uint8


def prepare_images(op: Operators, images: Value, preprocess: Preprocess) -> Value:
    """Turn images (n, height, width, 3), uint8, into a model's input."""
    planes = op.Transpose(images, perm=[0, 3, 1, 2])
    if preprocess.height_width is not None:
        planes = _fitted(op, planes, preprocess)
    planes = _moved(op, planes, preprocess)
    if preprocess.color == "bgr":
        planes = op.Gather(planes, np.array([2, 1, 0]), axis=1)
    if preprocess.color == "gray":
        planes = _luminance(op, planes)
    channels = np.arange(preprocess.channels)[:, None, None]
    if preprocess.layout == "nhwc":
        planes, channels = op.Transpose(planes, perm=[0, 2, 3, 1]), channels.ravel()
    if preprocess.dtype == "uint8":
        return planes
    # a table lookup, as outside the graph: each value is rounded once
    table = preprocess.values().astype(preprocess.dtype)
    places = op.Cast(planes, to=int(ir.DataType.INT32))
    if (table == table[0]).all():
        return op.Gather(table[0], places)
    return op.Gather(table.ravel(), op.Add(places, (256 * channels).astype(np.int32)))


def _moved(op: Operators, planes: Value, preprocess: Preprocess) -> Value:
    """Mirror planes, then shift them, repeating edge pixels."""
    right, down = preprocess.shift
    height, width = preprocess.height_width or _sides(op, planes)
    for axis, side, by, mirror in ((2, height, down, False), (3, width, right, preprocess.mirror)):
        if by or mirror:
            last = op.Sub(side, 1)
            places = op.Min(op.Max(op.Sub(op.Range(0, side, 1), by), 0), last)
            planes = op.Gather(planes, op.Sub(last, places) if mirror else places, axis=axis)
    return planes


def _luminance(op: Operators, planes: Value) -> Value:
    """Turn planes (n, 3, height, width) into gray (n, 1, height, width), in integers."""
    parts = op.Mul(
        op.Cast(planes, to=int(ir.DataType.INT32)), np.array(LUMA, np.int32)[:, None, None]
    )
    total = op.Add(op.reduce("ReduceSum", parts, keep=True, axis=1), np.int32(2**15))
    return op.Cast(op.Div(total, np.int32(2**16)), to=int(ir.DataType.UINT8))


def place_images(op: Operators, own: Sides, preprocess: Preprocess) -> tuple[Sides, Place]:
    """Return the size of a model's input, and the place in it of an image with sides `own`."""
    if preprocess.height_width is None:
        return own, (own, 0, 0)
    size = preprocess.height_width
    return size, _PLACES[preprocess.resize](op, own, size)


def _crop_place(op: Operators, own: Sides, size: Sides) -> Place:
    """Scale until the size is covered, and keep the center."""
    (tall, wide), (height, width) = own, size
    high = op.GreaterOrEqual(op.Mul(wide, height), op.Mul(tall, width))
    covering = (
        op.Where(high, height, op.Div(op.Mul(tall, width), wide)),
        op.Where(high, op.Div(op.Mul(wide, height), tall), width),
    )
    top, left = (
        op.Neg(_halved(op, op.Sub(one, other))) for one, other in zip(covering, size, strict=True)
    )
    return covering, top, left


def _letterbox_place(op: Operators, own: Sides, size: Sides) -> Place:
    """Scale until the image fits, and center it."""
    exact = op.computing(np.float64)
    sides = [exact.to(side, np.float64) for side in own]
    scale = exact.Min(*(exact.Div(float(n), side) for n, side in zip(size, sides, strict=True)))
    whole = [exact.Max(exact.Round(exact.Mul(side, scale)), 1.0) for side in sides]
    tall, wide = (op.Cast(side, to=int(ir.DataType.INT64)) for side in whole)
    top, left = (
        op.Div(op.Sub(side, fitting), 2) for side, fitting in zip(size, (tall, wide), strict=True)
    )
    return (tall, wide), top, left


def _fitted(op: Operators, planes: Value, preprocess: Preprocess) -> Value:
    (height, width), (scaled, top, left) = place_images(op, _sides(op, planes), preprocess)
    planes = _scaled(op, planes, scaled, preprocess.interpolation)
    if preprocess.resize == "crop":
        ends = [op.Sub(side, start) for side, start in ((height, top), (width, left))]
        return op.Slice(planes, _list(op, op.Neg(top), op.Neg(left)), _list(op, *ends), [2, 3])
    if preprocess.resize == "letterbox":
        after = [op.Sub(op.Sub(height, scaled[0]), top), op.Sub(op.Sub(width, scaled[1]), left)]
        pads = _list(op, 0, 0, top, left, 0, 0, *after)
        return op.Pad(planes, pads, np.array(PADDING, np.uint8))
    return planes


def _scaled(op: Operators, planes: Value, size: Sides, interpolation: str) -> Value:
    """Resize planes, unless they have the size."""
    own = _sides(op, planes)
    same = op.And(*(op.Equal(one, other) for one, other in zip(own, size, strict=True)))
    kept, resized = op.part(f"{op.name}/kept"), op.part(f"{op.name}/resized")
    kept.Identity(planes)
    exact = resized.computing(np.float64)
    across = _weights(exact, own[1], size[1], interpolation)
    down = _weights(exact, own[0], size[0], interpolation)
    wide = _bytes(exact, exact.MatMul(exact.to(planes, np.float64), exact.Transpose(across)))
    tall = _bytes(exact, exact.MatMul(down, wide))
    exact.Cast(tall, to=int(ir.DataType.UINT8))
    (output,) = op.either(same, kept, resized)
    return output


def _sides(op: Operators, planes: Value) -> Sides:
    shape = op.Shape(planes)
    return op.Gather(shape, 2), op.Gather(shape, 3)


def _halved(op: Operators, whole: Value) -> Value:
    """Halve a whole number, rounding half to even."""
    exact = op.computing(np.float64)
    half = exact.Round(exact.Mul(exact.to(whole, np.float64), 0.5))
    return op.Cast(half, to=int(ir.DataType.INT64))


def _list(op: Operators, *numbers: Value) -> Value:
    return op.Concat(*(op.Unsqueeze(number, [0]) for number in numbers), axis=0)


def _bytes(op: Operators, sums: Value) -> Value:
    """Round sums of pixels times weights back to pixels."""
    return op.Clip(op.Floor(op.Mul(op.Add(sums, 2.0 ** (BITS - 1)), 2.0**-BITS)), 0.0, 255.0)


def _weights(op: Operators, before: Value, after: Value, interpolation: str) -> Value:
    """Return Pillow's weights, (after, before), times ``2**BITS``."""
    reach, weigh = _FILTERS[interpolation]
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


def _bicubic(op: Operators, distance: Value) -> Value:
    near = op.Mul(op.Sub(op.Mul(distance, 1.5), 2.5), op.Mul(distance, distance))
    far = op.Sub(op.Mul(op.Add(op.Mul(op.Sub(distance, 5.0), distance), 8.0), distance), 4.0)
    outer = op.Where(op.Less(distance, 2.0), op.Mul(far, -0.5), 0.0)
    return op.Where(op.Less(distance, 1.0), op.Add(near, 1.0), outer)


_FILTERS: Mapping[str, tuple[float, Callable[[Operators, Value], Value]]] = {
    "bilinear": (1.0, lambda op, distance: op.Max(op.Sub(1.0, distance), 0.0)),
    "bicubic": (2.0, _bicubic),
}
"""Each filter's reach, and its weight at a distance."""
_PLACES: Mapping[str, Callable[[Operators, Sides, Sides], Place]] = {
    "squash": lambda op, own, size: (size, 0, 0),
    "crop": _crop_place,
    "letterbox": _letterbox_place,
}
