"""The differences between NumPy and PyTorch, and operations on batches of either.

Everything above this file is independent of the array library. Half precision is computed in
single. A batch may also be a list: images of different sizes, or detections.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import array_api_compat
import array_api_compat.numpy as _numpy_namespace
import numpy as np

Array = Any
"""A NumPy array or a PyTorch tensor."""

Batch = Any
"""An array (n, ...), a list of n inputs, or another table of n rows: see `row_count`."""


def namespace(array: Array) -> Any:
    """Return an array's array-API namespace; a TypeError if it is not an array."""
    if type(array) is np.ndarray:  # hot path: the look-up takes ten times as long
        return _numpy_namespace
    return array_api_compat.array_namespace(array)


def is_array(value: object) -> bool:
    """Tell whether `value` is an array of a known library."""
    return type(value) is np.ndarray or array_api_compat.is_array_api_obj(value)


def to_numpy(array: Array) -> np.ndarray:
    """Convert an array on any device to NumPy; bfloat16, which NumPy lacks, becomes float32.

    A ValueError refuses masked values, whose numbers mean nothing.
    """
    if type(array) is np.ndarray:
        return array
    if not array_api_compat.is_torch_array(array):
        if np.ma.is_masked(array):
            raise ValueError(
                f"{np.ma.getmaskarray(array).sum()} of {array.size} values are masked: leave their "
                "rows out, or fill them in with .filled()"
            )
        return np.asarray(array)
    tensor = array.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def open_npz(file: Any) -> Any:
    """Open an ``.npz`` without unpickling; a ValueError if two of its arrays have one name."""
    archive = np.load(file, allow_pickle=False)
    names = archive.files
    if twice := [name for name in names if names.count(name) > 1]:
        archive.close()  # NumPy would return the last
        raise ValueError(f"it has {len(twice)} arrays named {twice[0]}: keep one")
    return archive


def plain(batch: Batch) -> Batch:
    """Convert a batch to NumPy, unless it is a list."""
    return batch if isinstance(batch, list | tuple) else to_numpy(batch)


def convert_like(array: Array, reference: Array) -> Array:
    """Convert `array` to the library and the device of `reference`."""
    if isinstance(reference, list | tuple) or type(array) is type(reference) is np.ndarray:
        return array
    if array_api_compat.is_torch_array(reference):
        if not array_api_compat.is_torch_array(array):
            # a copy: PyTorch takes neither read-only arrays nor negative strides
            array = namespace(reference).asarray(np.array(array, order="C"))
        return array.to(reference.device)
    if not is_array(reference) or array_api_compat.is_numpy_array(reference):
        return to_numpy(array)
    xp = namespace(reference)
    return array if is_array(array) and namespace(array) is xp else xp.asarray(to_numpy(array))


def as_logits(output: Array, least: int = 2) -> Array:
    """Check that raw output is (n, classes) with at least `least` classes; widen half precision.

    Raises
    ------
    TypeError
        `output` is not an array.
    ValueError
        `output` has another rank, or fewer classes.
    """
    if not is_array(output):
        raise TypeError(
            f"logits must be a NumPy array or a PyTorch tensor, not {type(output).__name__}"
        )
    if output.ndim != 2 or output.shape[1] < least:
        raise ValueError(
            f"logits must have shape (n, classes) with at least {least} classes, "
            f"not {tuple(output.shape)}"
        )
    if type(output) is np.ndarray and not output.flags.c_contiguous:
        output = np.ascontiguousarray(output)  # so that sums round as for single rows
    return as_float(output)


def as_float(array: Array) -> Array:
    """Convert to float32 or float64: half precision is widened, integers become float64."""
    if type(array) is np.ndarray and array.dtype in _FLOATS:
        return array
    xp = namespace(array)
    if array.dtype in (xp.float32, xp.float64):
        return array
    integers = xp.isdtype(array.dtype, ("integral", "bool"))
    return xp.astype(array, xp.float64 if integers else xp.float32)


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def logsumexp(array: Array) -> Array:
    """``log(sum(exp(array)))`` over the last axis, safe from overflow; a NaN or +inf gives NaN."""
    top, total = top_and_total(array)
    return namespace(array).log(total) + top


def top_and_total(array: Array) -> tuple[Array, Array]:
    """Return the largest value and ``sum(exp(array - largest))``, over the last axis.

    They are all that a softmax and its logarithm need. A NaN or +inf makes the total NaN, and so
    does a row of -inf only.
    """
    if type(array) is np.ndarray:  # hot path: the ufuncs behind the methods
        top = np.maximum.reduce(array, axis=-1, keepdims=True)
        if not top.size or math.isfinite(np.add.reduce(top, axis=None)):
            return top[..., 0], np.add.reduce(np.exp(array - top), axis=-1)
        with np.errstate(invalid="ignore"):  # inf - inf
            return top[..., 0], np.add.reduce(np.exp(array - top), axis=-1)
    xp = namespace(array)
    top = xp.max(array, axis=-1)
    return top, xp.exp(array - top[..., None]).sum(-1)


def log_softmax(array: Array) -> Array:
    """Turn logits into log-probabilities over the last axis."""
    return array - logsumexp(array)[..., None]


def top_two(array: Array) -> tuple[Array, Array]:
    """Return the two largest values along the last axis; NaN for a row with a NaN."""
    if array_api_compat.is_torch_array(array):
        best = array.topk(2, dim=-1).values
        return best[..., 0], best[..., 1]
    if array_api_compat.is_numpy_array(array):
        best = np.partition(array, array.shape[-1] - 2, axis=-1)
        return best[..., -1], best[..., -2]
    xp = namespace(array)
    first = xp.arange(array.shape[-1]) == xp.argmax(array, axis=-1, keepdims=True)
    return xp.max(array, axis=-1), xp.max(xp.where(first, -math.inf, array), axis=-1)


def argmax(array: Array) -> Array:
    """Return the index of the largest value along the last axis, the first of equal ones."""
    if type(array) is np.ndarray:
        return array.argmax(-1)
    return namespace(array).argmax(array, axis=-1)


def take_places(array: Array, places: Array, axis: int = 1) -> Array:
    """Take rows (`axis` 0) or columns (1) of an array (n, k), in the order of `places`."""
    if type(array) is np.ndarray:
        return array[places] if axis == 0 else array[:, places]
    return namespace(array).take(array, convert_like(places, array), axis=axis)


def logaddexp(one: Array, other: Array) -> Array:
    """``log(exp(one) + exp(other))``, safe from underflow in every library."""
    xp = namespace(one)
    if type(one) is np.ndarray or array_api_compat.is_torch_array(one):
        return xp.logaddexp(one, other)
    apart = xp.where(one == other, xp.zeros_like(one), -xp.abs(one - other))  # -inf - -inf is NaN
    return xp.maximum(one, other) + xp.log(xp.exp(apart) + 1)


def unless_nan(array: Array, otherwise: Array) -> Array:
    """Replace the rows of an array (n, k) that have a NaN by those of `otherwise`."""
    xp = namespace(array)
    nan = xp.isnan(array)
    if type(array) is np.ndarray and not nan.any():  # hot path
        return array
    return xp.where(nan if nan.ndim == 1 else xp.any(nan, axis=-1, keepdims=True), otherwise, array)


def row_count(batch: Batch) -> int:
    """Count the inputs in a batch: an array, a list, a data frame or a sparse matrix.

    A TypeError refuses anything without rows that can be taken by position.
    """
    if type(batch) is np.ndarray and batch.ndim:  # hot path
        return len(batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return len(batch)
    shape = getattr(batch, "shape", None)
    if shape and _by_position(batch) is not None:
        return int(shape[0])
    raise TypeError(
        "inputs must be an array with a batch dimension or a list, or a pandas or sparse table, "
        f"not {type(batch).__name__}" + (" without dimensions" if shape == () else "")
    )


def take_rows(batch: Batch, rows: np.ndarray | slice) -> Batch:
    """Gather rows of a batch by position into one dense batch, in the order of `rows`."""
    if type(batch) is np.ndarray:
        return batch[rows]
    if isinstance(batch, Sequence):
        return batch[rows] if isinstance(rows, slice) else [batch[row] for row in rows]
    if is_array(batch):
        return batch[rows if isinstance(rows, slice) else convert_like(rows, batch)]
    return _by_position(batch)[rows]


def _by_position(batch: Batch) -> Any:
    """Return a view of a batch that is indexed by position, or None."""
    if is_array(batch) or hasattr(batch, "__array_interface__"):
        return batch
    if hasattr(batch, "iloc"):  # pandas: [] would use the index
        return batch.iloc
    return batch.tocsr() if hasattr(batch, "tocsr") else None  # CSR is the format with rows


def put_rows(array: Batch, rows: np.ndarray, values: Batch) -> Batch:
    """Copy `array` with `values` scattered into its `rows`, in the wider of both dtypes."""
    if isinstance(array, list | tuple):
        whole = list(array)
        for row, value in zip(rows, values, strict=True):
            whole[row] = value
        return whole
    xp = namespace(array)
    values = convert_like(values, array)
    merged = xp.astype(array, xp.result_type(array, values), copy=True)
    index = rows if type(array) is np.ndarray else convert_like(rows, array)
    merged[index] = xp.astype(values, merged.dtype, copy=False)
    return merged


def join_rows(parts: Sequence[Batch]) -> Batch:
    """Concatenate batches: NumPy arrays or lists."""
    if isinstance(parts[0], list | tuple):
        return [row for part in parts for row in part]
    return np.concatenate(parts)


def fingerprint(*parts: Any) -> str:
    """Hash arrays, sparse matrices, or lists of anything, by SHA-256."""
    found = hashlib.sha256()
    for part in parts:
        if hasattr(part, "tocsr"):  # its text has no numbers
            rows = part.tocsr()
            part = [np.array(rows.shape), rows.data, rows.indices, rows.indptr]
        for row in part if isinstance(part, list) else [part]:
            array = to_numpy(row) if is_array(row) else np.asarray(row, object)
            numbers = not array.dtype.hasobject
            found.update(repr((array.shape, array.dtype)).encode())
            found.update(array.tobytes() if numbers else repr(array.tolist()).encode())
    return found.hexdigest()
