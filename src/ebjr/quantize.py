"""Quantize: an ONNX model in eight-bit numbers, calibrated on real inputs, as a cheaper student.

It is ONNX Runtime's static quantization: int8 weights (seven bits by default) with a scale for each
output channel, and uint8 activations with a scale for each tensor, from the range of real inputs.
Any runtime reads the result, a file with quantize and dequantize nodes (QDQ). It is faster on
processors that multiply eight-bit numbers (VNNI, AMX, NEON dot products).
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

from ebjr.backends.onnx import OnnxModel, check_named, quiet
from ebjr.data.preprocess import Preprocess
from ebjr.errors import ModelError, check_at_least, check_choice, needs, one_line
from ebjr.evaluation.profile import measure_latency
from ebjr.files import write_whole
from ebjr.model import Model
from ebjr.task import finite_rows

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
WEIGHT_BITS = (7, 8)

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing a model."""

    path: str
    examples: int
    bytes_before: int
    bytes_after: int
    operators: dict[str, int]  # products in eight bits, by operator
    agreement: float | None  # share of rows with the same largest output; None for one output
    difference: float  # mean change of an output, in standard deviations of the original's

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
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
    """Write an ``.onnx`` model in eight-bit numbers, except for its last layers.

    Outputs of 256 distinct values would tie in every score, and a threshold could not separate
    them. The first `examples` of `batches` calibrate: real inputs (n, ...), or decoded images with
    a `preprocess`. The method ``"minmax"`` covers the whole range; ``"entropy"`` and
    ``"percentile"`` clip rare values, and keep every activation in memory. 7-bit weights are right
    on every processor; with 8 bits, sums of two products overflow on x86 without VNNI.

    Raises
    ------
    ModelError
        `source` is not an ONNX model, is quantized already, or cannot be quantized.
    ValueError
        `batches` is empty or not finite, `output` is `source` or does not end in ``.onnx``, or an
        option is out of range.
    """
    check_choice("method", method, METHODS)
    check_at_least(1, examples=examples)
    if weight_bits not in WEIGHT_BITS:
        raise ValueError(f"weight_bits must be 7 or 8, not {weight_bits}")
    source, output = Path(source), check_named(output)
    if output.resolve() == source.resolve():
        raise ValueError(
            f"the output {output} is the model itself; give it another name (--output)"
        )
    model = OnnxModel(source)
    _check_input(model)
    inputs = _first(batches, examples, model, preprocess)
    before = _answers(model, inputs)
    with tempfile.TemporaryDirectory(prefix="ebjr-quantize-") as folder:
        made = Path(folder) / "quantized.onnx"
        _quantize(model, inputs, made, method, weight_bits, tell)
        # run it before it replaces an existing file
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
    """Return the median seconds of batches of 1 and 64, before and after, if the batch is free."""
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
            f"{model.path} must take float32 inputs to be quantized, not {model.input_dtype}; "
            "export it in single precision"
        )
    kinds = {node.op_type for node in _graph(model.path).node}
    if any(kind in _QUANTIZED or kind.startswith("QLinear") for kind in kinds):
        raise ModelError(f"{model.path} is quantized already; give the original model")


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
        raise ValueError(f"batches must hold inputs to calibrate {model.path} on, but are empty")
    return _finite(f"the inputs to calibrate {model.path} on", np.concatenate(parts))


def _finite(what: str, rows: NDArray[Any]) -> NDArray[Any]:
    finite_rows(what, rows.reshape(len(rows), -1))  # raises
    return rows


def _batches(model: OnnxModel, inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
    # equal batches: ONNX Runtime's histograms fail on a shorter last one
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
        with quiet():  # its warnings are advice to the caller, not to our user
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
    except Exception as error:  # its errors share no other base
        if isinstance(error, OSError | MemoryError):
            raise
        raise ModelError(f"ONNX Runtime cannot quantize {model.path}: {one_line(error)}") from error
    if not _operators(target):
        raise ModelError(
            f"{model.path} has nothing to quantize: no convolution or matrix product before its "
            "last layer"
        )


def _feeds(model: OnnxModel, inputs: NDArray[Any], tell: Tell) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the inputs for ONNX Runtime's calibration, with progress."""
    done, total = 0, len(inputs)
    for batch in _batches(model, inputs):
        tell("calibrating", min(done, total), total)
        yield {model.input_name: batch}
        done += len(batch)
    tell("calibrating", total, total)


_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def _last_layers(graph: Any) -> list[str]:
    """Return the nodes from each output back to its last product, inclusive."""
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
    rows = np.concatenate(parts)[: len(inputs)].reshape(len(inputs), -1).astype(np.float64)
    return _finite(f"the outputs of {model.path}", rows)
