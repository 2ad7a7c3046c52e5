"""Quantize: an ONNX model in eight-bit numbers, calibrated on real inputs. A cheaper student.

ONNX Runtime's static quantization, as it is: weights in int8, of which they use seven bits unless
told otherwise, a scale for each output channel; activations in uint8, a scale for each tensor, from
the range that real inputs span. The result is an ONNX file with quantize and dequantize nodes
(QDQ), which any runtime reads, and which is faster where the processor multiplies eight-bit
numbers (VNNI, AMX, NEON dot products).
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebjr.backends.onnx import OnnxModel, quiet
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError, check_at_least, check_choice, needs, one_line
from ebjr.evaluation.profile import measure_latency
from ebjr.files import write_whole
from ebjr.model import Model

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
WEIGHT_BITS = (7, 8)

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Quantized:
    """What came of quantizing a model."""

    path: str
    examples: int
    bytes_before: int
    bytes_after: int
    operators: dict[str, int]  # products that compute in eight bits, by kind
    agreement: float | None  # the share whose largest output is as before, if of several
    difference: float  # how far an output moved on average, in standard deviations of those before

    def as_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for JSON."""
        return asdict(self)


def quantize(
    source: str | os.PathLike[str],
    batches: Iterable[Any],
    output: str | os.PathLike[str],
    *,
    preprocess: Preprocess | None = None,
    examples: int = 512,
    method: str = "minmax",
    weight_bits: int = 7,
    tell: Tell = lambda what, done, total: None,
) -> Quantized:
    """Write an ``.onnx`` model in eight-bit numbers, but for what computes its outputs last.

    256 values of a logit would give a score ties, and a threshold between two says nothing. The
    first `examples` of `batches` calibrate: real inputs (n, ...), or decoded images where there is
    a `preprocess`. A range is all that was seen with the method ``"minmax"``; ``"entropy"`` and
    ``"percentile"`` clip what is rare, and keep every activation in memory meanwhile. Weights of 7
    bits are right on every processor; with 8, sums of two products overflow on x86 without VNNI.

    ModelError: `source` is no ONNX model, is quantized already, or cannot be.
    """
    check_choice("method", method, METHODS)
    check_at_least(1, examples=examples)
    if weight_bits not in WEIGHT_BITS:
        raise ValueError(f"weight_bits must be 7 or 8, but is {weight_bits}")
    source, output = Path(source), Path(output)
    if output.resolve() == source.resolve():
        raise ValueError(f"{output} is the model itself; give the quantized one another name")
    model = OnnxModel(source)
    _check_input(model)
    inputs = _first(batches, examples, model, preprocess)
    before = _answers(model, inputs)
    with tempfile.TemporaryDirectory(prefix="ebjr-quantize-") as folder:
        made = Path(folder) / "quantized.onnx"
        _quantize(model, inputs, made, method, weight_bits, tell)
        # asked before it takes the place of what was there: it must run
        operators, after = _operators(made), _answers(OnnxModel(made), inputs)
        with made.open("rb") as finished, write_whole(output, "wb") as file:
            shutil.copyfileobj(finished, file)
    alike = before.argmax(axis=1) == after.argmax(axis=1)
    return Quantized(
        path=str(output),
        examples=len(inputs),
        bytes_before=source.stat().st_size,
        bytes_after=output.stat().st_size,
        operators=operators,
        agreement=float(alike.mean()) if before.shape[1] > 1 else None,
        difference=float(np.abs(after - before).mean() / max(before.std(), 1e-12)),
    )


def compare_seconds(before: Model, after: Model, row: Any) -> dict[str, dict[str, float]]:
    """The median seconds of a batch of 1 and of 64, before and after, as far as models take it."""
    sizes = [size for size in (1, 64) if getattr(before, "fixed_batch", None) in (None, size)]
    times = [
        measure_latency(each, lambda n: np.repeat(row, n, axis=0), sizes, seconds=1.0)
        for each in (before, after)
    ]
    return {
        f"batch_{size}": {"before": one.p50_seconds, "after": other.p50_seconds}
        for size, one, other in zip(sizes, *times, strict=True)
    }


def _check_input(model: OnnxModel) -> None:
    if model.input_dtype != np.float32:
        raise ModelError(
            f"{model.path} must take float32 inputs to be quantized, but takes "
            f"{model.input_dtype}; export it in single precision"
        )
    kinds = {node.op_type for node in _graph(model.path).node}
    if any(kind in _QUANTIZED or kind.startswith("QLinear") for kind in kinds):
        raise ModelError(f"{model.path} is quantized already; give the model it was made of")


def _first(
    batches: Iterable[Any], examples: int, model: OnnxModel, preprocess: Preprocess | None
) -> NDArray[Any]:
    parts: list[NDArray[Any]] = []
    for batch in batches:
        rows = batch[: examples - sum(map(len, parts))]
        parts.append(np.asarray(rows if preprocess is None else preprocess(rows), np.float32))
        if sum(map(len, parts)) >= examples:
            break
    if not parts:
        raise ValueError(f"there are no inputs to calibrate {model.path} on; give some")
    return np.concatenate(parts)


def _batches(model: OnnxModel, inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
    # all batches have one length: ONNX Runtime's histograms fail on a last one that is shorter
    step = model.fixed_batch or next(n for n in range(32, 0, -1) if len(inputs) % n == 0)
    for start in range(0, len(inputs), step):
        rows = inputs[start : start + step]
        yield np.pad(rows, [(0, step - len(rows)), *[(0, 0)] * (rows.ndim - 1)], "edge")


def _quantize(
    model: OnnxModel, inputs: NDArray[Any], target: Path, method: str, weight_bits: int, tell: Tell
) -> None:
    with needs("onnx", f"quantizing {model.path}"):
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
        from onnxruntime.quantization import quantize_static as quantize_file
        from onnxruntime.quantization.shape_inference import quant_pre_process
    folded, feeds = target.with_name("folded.onnx"), _feeds(model, inputs, tell)
    try:
        with quiet():  # its advice is about how it is called, which is settled here
            quant_pre_process(str(model.path), str(folded), skip_symbolic_shape=True)
            last = _last_layers(_graph(folded))
            quantize_file(
                str(folded),
                str(target),
                SimpleNamespace(get_next=partial(next, feeds, None)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[METHODS[method]],
                nodes_to_exclude=last,
            )
    except Exception as error:  # its errors share no base but this one
        if isinstance(error, OSError | MemoryError):
            raise
        raise ModelError(
            f"{model.path} cannot be quantized: ONNX Runtime says: {one_line(error)}"
        ) from error
    if not _operators(target):
        raise ModelError(
            f"{model.path} has nothing to quantize but what computes its outputs last: it has no "
            "other convolution, matrix product or the like"
        )


def _feeds(model: OnnxModel, inputs: NDArray[Any], tell: Tell) -> Iterator[dict[str, NDArray[Any]]]:
    """The inputs as ONNX Runtime's calibration asks for them, with progress."""
    done, total = 0, len(inputs)
    for batch in _batches(model, inputs):
        tell("calibrating", min(done, total), total)
        yield {model.input_name: batch}
        done += len(batch)
    tell("calibrating", total, total)


_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def _last_layers(graph: Any) -> list[str]:
    """The nodes from each output back to the product that it comes from, that one included."""
    maker = {name: node for node in graph.node for name in node.output}
    names, waiting = [], [value.name for value in graph.output]
    while waiting:
        if (node := maker.pop(waiting.pop(), None)) is not None:
            names.append(node.name)
            waiting += [] if node.op_type in _PRODUCTS else node.input
    return names


def _graph(path: Path) -> Any:
    with needs("onnx", f"quantizing {path}"):
        import onnx
    return onnx.load(path, load_external_data=False).graph


def _operators(path: Path) -> dict[str, int]:
    graph = _graph(path)
    narrow = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    kinds = [node.op_type for node in graph.node if narrow.issuperset(node.input[:2])]
    return {kind: kinds.count(kind) for kind in sorted(_PRODUCTS.intersection(kinds))}


def _answers(model: OnnxModel, inputs: NDArray[Any]) -> NDArray[np.float64]:
    parts = [model(batch) for batch in _batches(model, inputs)]
    return np.concatenate(parts)[: len(inputs)].reshape(len(inputs), -1).astype(np.float64)
