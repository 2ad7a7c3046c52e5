"""FLOPs and parameters of a model, counted from its file or its module.

FLOPs are counted like PyTorch's own counter: only the multiply-adds of matrix products and
convolutions (1 MAC = 2 FLOPs). A net has the same count as an ONNX graph and as a torch module.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ebjr.errors import ModelError, needs, one_line
from ebjr.evaluation.inputs import OpenShape, Shape, batch_of_one, input_dtype_of, random_batch
from ebjr.files import check_file
from ebjr.model import facts, model_name


@dataclass(frozen=True)
class Flops:
    """A model's computation per example."""

    flops: int  # a lower bound if `uncounted` is not empty
    parameters: int  # trained numbers, without running statistics and shapes
    parameter_bytes: int
    by_operator: dict[str, int]  # the largest first
    uncounted: dict[str, int]  # operators that cannot be counted: control flow, custom ones

    @property
    def known(self) -> int | None:
        """`flops`; None if nothing that computes could be counted, as in trees."""
        return None if self.uncounted and not self.flops else self.flops


def can_count(model: Any) -> bool:
    """Whether a model can be counted: it has an ONNX file, or is or holds a torch module."""
    known = facts(model)
    graph = known.path is not None and known.path.suffix.lower() == ".onnx"
    return (graph and known.preprocess is None) or _torch_module(model) is not None


def count_flops(
    model: Any, input_shape: OpenShape | None = None, *, input_dtype: str | None = None
) -> Flops:
    """Count the FLOPs of one example and the parameters of a model.

    - `model`: A path to an ``.onnx`` file, a model loaded from a file, or a torch module.
    - `input_shape`: The shape of a batch, (n, ...); one example is counted, for any n. None takes
      it from the file, in which only the batch may be open.
    - `input_dtype`: The type of a torch module's inputs, such as ``"int64"`` for token ids; None is
      float32, or the exported program's type. ONNX graphs have their own.

    Raises
    ------
    TypeError
        `model` cannot be counted.
    ValueError
        `input_shape` is needed, or does not fit the model.
    FileNotFoundError
        `model` is a path without a file.
    ModelError
        The file is corrupt, or the module failed on the input.

    Examples
    --------
    >>> import torch
    >>> count_flops(torch.nn.Linear(10, 5), (1, 10)).flops
    100
    """
    module = _torch_module(model)
    if module is not None:
        known = facts(model).input_shape
        one = batch_of_one(input_shape, known, model_name(model))
        batch = (_fixed_batch(known), *one[1:])
        return _count_torch(module, batch, input_dtype_of(model, input_dtype), model_name(model))
    path = model if isinstance(model, str | os.PathLike) else facts(model).path
    if path is None or Path(path).suffix.lower() != ".onnx":
        raise TypeError(
            f"FLOPs are counted for an .onnx file, a torch module or a model from ebjr.load_model, "
            f"not for {model!r}: load it first, or give its FLOPs (--student-flops)"
        )
    return _count_onnx(check_file(path), input_shape)


def _flops(
    by_operator: Counter[str], sizes: Sequence[tuple[int, int]], uncounted: Counter[str]
) -> Flops:
    """Sum up counts; `sizes` has each parameter tensor's elements and bits per element."""
    parameters = sum(count for count, _ in sizes), sum(count * bits for count, bits in sizes) // 8
    counted = {name: flops for name, flops in by_operator.most_common() if flops}
    return Flops(sum(counted.values()), *parameters, counted, dict(uncounted.most_common()))


def _fixed_batch(shape: OpenShape | None) -> int:
    return (shape[0] or 1) if shape else 1


# FLOPs of torch modules


def _torch_module(model: Any) -> Any:
    # a torch module exists only if torch is imported already
    torch: Any = sys.modules.get("torch")
    candidates = () if torch is None else (model, getattr(model, "module", None))
    return next((each for each in candidates if isinstance(each, torch.nn.Module)), None)


def _count_torch(module: Any, shape: Shape, dtype: np.dtype[Any], name: str) -> Flops:
    """Run a module once while PyTorch counts, and restore the module's mode."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    inputs = _torch_input(module, shape, dtype)
    counter = FlopCounterMode(display=False, custom_mapping=_torch_formulas())
    watcher = _torch_watcher()
    try:
        with torch.inference_mode(), _plain_evaluation(module), watcher, counter:
            module(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise ModelError(
            f"{name} failed on an input of shape {tuple(inputs.shape)}, so its FLOPs cannot be "
            f"counted: {one_line(error)}"
        ) from error
    counts = counter.get_flop_counts().get("Global", {})
    by_operator = Counter({str(op): flops // shape[0] for op, flops in counts.items()})
    sizes = [(tensor.numel(), 8 * tensor.element_size()) for tensor in module.parameters()]
    return _flops(by_operator, sizes, watcher.uncounted)


def _torch_input(module: Any, shape: Shape, dtype: np.dtype[Any]) -> Any:
    import torch

    inputs = torch.from_numpy(random_batch(shape[0], shape, dtype))
    first = next(module.parameters(), inputs)
    both_floating = first.is_floating_point() and inputs.is_floating_point()
    return inputs.to(device=first.device, dtype=first.dtype if both_floating else None)


@contextmanager
def _plain_evaluation(module: Any) -> Iterator[None]:
    """Switch to evaluation, with transformers in the plain operators that the counter knows."""
    import torch

    fast_path = torch.backends.mha.get_fastpath_enabled()
    training = [part for part in module.modules() if part.training]
    exported = isinstance(module, torch.fx.GraphModule)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield None if exported else module.eval()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for part in training:
            part.training = True


def _torch_formulas() -> dict[Any, Callable[..., int]]:
    """Return the FLOPs of two CPU kernels that PyTorch's counter does not know."""
    import torch

    def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
        return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    def recurrent(inputs: Shape, w_input: Shape, w_hidden: Shape, *_: Any, **__: Any) -> int:
        return 2 * prod(inputs[:2]) * (prod(w_input) + prod(w_hidden))

    found = {
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "mkldnn_rnn_layer": recurrent,
    }
    return {
        getattr(torch.ops.aten, name): formula
        for name, formula in found.items()
        if hasattr(torch.ops.aten, name)
    }


def _torch_watcher() -> Any:
    """Make a mode that notes operators from outside PyTorch's own set, which nothing counts."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watcher(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.uncounted: Counter[str] = Counter()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func.namespace not in {"aten", "prim", "prims"}:
                self.uncounted[str(func.overloadpacket)] += 1
            return func(*args, **(kwargs or {}))

    return Watcher()


# FLOPs of ONNX graphs


class _Node(NamedTuple):
    """An ONNX operator; LookupError if a shape is unknown."""

    shapes: Mapping[str, Shape]
    inputs: Sequence[str]
    output: str
    attributes: dict[str, Any]

    def shape(self, index: int) -> Shape:
        return self.shapes[self.inputs[index]]

    @property
    def out(self) -> Shape:
        return self.shapes[self.output]


Formula = Callable[[_Node], int]


def _convolution(weight: int, of: Callable[[_Node], Shape] = lambda node: node.out) -> Formula:
    # the weight is (out, in / groups, kernel...): each output needs in * kernel MACs
    # transposed it is (in, out / groups, kernel...): each input is spread over out * kernel
    return lambda node: 2 * prod(of(node)) * prod(node.shape(weight)[1:])


def _matrix_product(node: _Node) -> int:
    left = node.shape(0)
    return 2 * prod(node.out) * left[-2 if node.attributes.get("transA") else -1]


def _recurrent(node: _Node) -> int:
    # X is (steps, batch, in), or batch first; W and R have the matrices of all gates
    steps = prod(node.shape(0)[:2])
    return 2 * steps * (prod(node.shape(1)) + prod(node.shape(2)))


def _attention(node: _Node) -> int:
    """Queries (..., length, width) on keys, then weights on values; the width has all heads."""
    if any(name in node.shapes for name in node.inputs[4:6]):  # a cache, whose length is unknown
        raise LookupError
    return 2 * node.shape(1)[-2] * (prod(node.shape(0)) + prod(node.out))


def _einsum(node: _Node) -> int:
    equation = node.attributes["equation"].decode().replace(" ", "")
    terms, _, result = equation.partition("->")
    terms = terms.split(",")
    if len(terms) == 1 and "->" in equation:
        return 0  # a transposition or a sum
    if len(terms) != 2 or "." in equation or "->" not in equation:
        raise LookupError
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        sizes |= dict(zip(term, node.shape(index), strict=True))
    # a letter of only one operand is summed first, and costs no product
    shared = set(terms[0]) & set(terms[1])
    return 2 * prod(size for letter, size in sizes.items() if letter in result or letter in shared)


_CONVOLUTIONS = ("Conv", "ConvInteger", "DeformConv", "FusedConv", "NhwcFusedConv")
_PRODUCTS = (
    *("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"),
)

FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution(1)),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _convolution(1, of=lambda node: node.shape(0)),
    **dict.fromkeys(_PRODUCTS, _matrix_product),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "Attention": _attention,
    "Einsum": _einsum,
}
"""Operators that multiply matrices, from ONNX and ONNX Runtime's own domain."""

FREE_EXTENSIONS = {
    *("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "LayerNormalization", "SkipLayerNormalization"),
    *("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    *("EmbedLayerNormalization", "BiasSoftmax", "GroupNorm"),
    *("QuantizeLinear", "DequantizeLinear", "QLinearAdd", "QLinearMul", "QLinearSigmoid"),
    *("QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearConcat"),
    *("QLinearSoftmax", "RotaryEmbedding", "NhwcMaxPool"),
}
"""ONNX Runtime's own operators without matrix products."""

OPAQUE = {"If", "Loop", "Scan", "SequenceMap", "DFT", "STFT", "Det"}
"""ONNX operators whose work depends on more than shapes, or is not a matrix product."""

NOT_TRAINED = {
    "BatchNormalization": {3, 4},
    "QuantizeLinear": {1, 2},
    "DequantizeLinear": {1, 2},
    "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7},
    "Resize": {1, 2},
}
"""Constant inputs that are not parameters: running statistics, scales and zero points."""


def _count_onnx(path: Path, input_shape: OpenShape | None) -> Flops:
    model = _read_onnx(path)
    batch = _set_input_shape(model, input_shape, path.stem)
    constants = _constants(model)
    shapes = _inferred_shapes(model) | {name: dims for name, (dims, _) in constants.items()}
    unknown = sorted(_wanted(model) - set(shapes))
    if unknown:
        shapes |= _shapes_by_running(model, path, unknown)
    by_operator: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    for node in model.graph.node:
        flops = _node_flops(node, shapes)
        if flops is None:
            uncounted[node.op_type] += 1
        else:
            by_operator[node.op_type] += flops
    by_operator = Counter({name: flops // batch for name, flops in by_operator.items()})
    return _flops(by_operator, _sizes(model, constants), uncounted)


def _read_onnx(path: Path) -> Any:
    """Read a graph with its functions inlined; weights in other files are not read."""
    with needs("onnx", f"counting the FLOPs of {path}"):
        import onnx
        import onnx.inliner
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's error class is not public
        raise ModelError(f"{path} is not an ONNX model: export it again") from error
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX model with operators: export it again")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _set_input_shape(model: Any, given: OpenShape | None, name: str) -> int:
    """Write the input's shape into the graph, and return its batch."""
    with needs("onnx", f"counting the FLOPs of {name}"):
        from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed
    inputs = _inputs(model)
    if len(inputs) != 1:
        raise ModelError(
            f"{name} must have one required input, but has {len(inputs)} "
            f"({', '.join(value.name for value in inputs) or 'none'}): export it with the others "
            "as constants"
        )
    tensor = inputs[0].type.tensor_type
    known = None
    if tensor.HasField("shape"):
        known = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    shape = (_fixed_batch(known), *batch_of_one(given, known, name)[1:])
    if known is None:
        tensor.shape.Clear()
        for _ in shape:
            tensor.shape.dim.add()
    make_input_shape_fixed(model.graph, inputs[0].name, shape)
    return shape[0]


def _inputs(model: Any) -> list[Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _inferred_shapes(model: Any) -> dict[str, Shape]:
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # the graph is run instead
        inferred = model
    graph = inferred.graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim if tensor.HasField("shape") else None
        if dims is not None and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def _constants(model: Any) -> dict[str, tuple[Shape, int]]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = attribute.t
    return {name: (tuple(tensor.dims), tensor.data_type) for name, tensor in found.items()}


def _wanted(model: Any) -> set[str]:
    """Return the names of the tensors whose shapes the formulas need."""
    return {
        name
        for node in model.graph.node
        if node.op_type in FORMULAS
        for name in (*node.input, node.output[0])
        if name
    }


def _shapes_by_running(model: Any, path: Path, names: list[str]) -> dict[str, Shape]:
    """Run the graph once on zeros, for shapes that depend on computed values."""
    import onnx

    with needs("onnx", f"counting the FLOPs of {path}"):
        import onnxruntime
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    own = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
    )
    value = _inputs(model)[0]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        results = session.run(names, {value.name: np.zeros(shape, dtype)})
    except Exception:  # operators of other builds, or over 2 GB: left uncounted
        return {}
    return {name: np.shape(result) for name, result in zip(names, results, strict=True)}


def _node_flops(node: Any, shapes: dict[str, Shape]) -> int | None:
    import onnx

    standard = node.domain in {"", "ai.onnx"}
    if node.op_type in OPAQUE or not (standard or node.domain == "com.microsoft"):
        return None
    formula = FORMULAS.get(node.op_type)
    if node.op_type == "Attention" and not standard:
        return None  # Microsoft's operator of that name has the projections inside
    if formula is None:
        return 0 if standard or node.op_type in FREE_EXTENSIONS else None
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    try:
        return formula(_Node(shapes, node.input, node.output[0], attributes))
    except LookupError:
        return None


def _sizes(model: Any, constants: dict[str, tuple[Shape, int]]) -> list[tuple[int, int]]:
    """Return the elements, and bits per element, of each trained constant."""
    import onnx

    kinds = onnx.TensorProto
    floating = {kinds.FLOAT: 32, kinds.FLOAT16: 16, kinds.BFLOAT16: 16, kinds.DOUBLE: 64}
    # 8-bit and smaller integers in 2 dimensions are quantized weights; shapes and indices are wider
    narrow = {kinds.INT8: 8, kinds.UINT8: 8, kinds.INT4: 4, kinds.UINT4: 4}
    used = {
        name
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if index not in NOT_TRAINED.get(node.op_type, ())
    }
    return [
        (prod(dims), (floating | narrow)[kind])
        for name, (dims, kind) in constants.items()
        if name in used
        and ((kind in floating and len(dims) >= 1) or (kind in narrow and len(dims) >= 2))
    ]
