"""Tracing: a function of arrays becomes a part of the graph, so that no score is written twice.

The function is called once with ndonnx's arrays, which record the operators.
"""

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import array_api_compat
import ndonnx as ndx
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import spox
from onnx import defs, helper
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from spox import _future

from ebjr import arrays
from ebjr.arrays import Array, as_float
from ebjr.errors import ModelError, one_line
from ebjr.export.operators import Operators, forget_shapes, name_after
from ebjr.scores import Score

LIBRARIES = (ndx, spox, np, onnx, array_api_compat)
ELSEWHERE = (__file__, arrays.__file__, *(str(Path(str(one.__file__)).parent) for one in LIBRARIES))
"""Files to skip when a message names the line of the traced function that failed."""

HOW = "compute with the functions of ebjr.arrays.namespace(input) alone"

LEANER = ir.passes.Sequential(
    passes.IdentityEliminationPass(),
    passes.RemoveUnusedNodesPass(),
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    passes.DeduplicateInitializersPass(),
    passes.CommonSubexpressionEliminationPass(),
    passes.RemoveUnusedNodesPass(),
)

RECORDED = 21  # the opset that ndonnx records
FAR = 1e-3  # largest difference of a score from its graph, relative for scores above 1


def traced(
    op: Operators, name: str, what: str, function: Callable[..., Array], *given: ir.Value
) -> ir.Value:
    """Apply a function to values (n, ...) of a graph, whose types and sides but n are known.

    Raises
    ------
    ValueError
        The function uses more than the arrays' own namespace.
    ModelError
        The opset lacks an operator that the function needs.
    """
    return _put(op, name, trace(what, function, *given, opset=op.opset), *given)


def traced_score(op: Operators, score: Score, raw: ir.Value, tried: np.ndarray) -> ir.Value:
    """Trace a score of raw output (n, ...), and compare it with the score on rows `tried`."""

    def function(output: Array) -> Array:
        return as_float(score.function(output, **score.parameters))

    what = f"the score {score.title}"
    model = trace(what, function, raw, opset=op.opset)
    _check(what, model, function, as_float(tried))
    return _put(op, "score", model, raw)


def _put(op: Operators, name: str, model: ir.Model, *given: ir.Value) -> ir.Value:
    sides = tuple(model.graph.outputs[0].shape)[1:]
    forget_shapes(model)
    name_after(f"{op.name}/{name}", model)
    (output,) = op.inline(model, *given)
    output.shape = ir.Shape([None, *sides])
    return output


def trace(what: str, function: Callable[..., Array], *given: ir.Value, opset: int) -> ir.Model:
    """Trace a function to a graph of its own, like `traced`."""
    model = _lean(_recorded(what, function, *given))
    _lower(what, model, opset)
    return model


def _recorded(what: str, function: Callable[..., Array], *given: ir.Value) -> ir.Model:
    # the other backend starts ONNX Runtime for each constant
    known = _future.value_prop_backend(_future.ValuePropBackend.REFERENCE)
    with known, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inputs = {
                f"x{place}": ndx.argument(
                    shape=("n", *value.shape[1:]), dtype=getattr(ndx, str(value.dtype.numpy()))
                )
                for place, value in enumerate(given)
            }
            found = function(*inputs.values())
            if not isinstance(found, ndx.Array):
                raise TypeError(f"{type(found).__name__} is not an array computed from the input")
            return ir.from_proto(ndx.build(inputs, {"y": found}))
        except Exception as error:
            failed = error
    raise ValueError(
        f"{what} cannot be exported: {_line(failed)} cannot be traced ({one_line(failed)}); {HOW}"
    ) from failed


def _line(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(ELSEWHERE)]
    if not own:
        return "the returned value"
    return f"`{own[-1].line}` ({Path(own[-1].filename).name}, line {own[-1].lineno})"


# Simplifying the recorded graph


def _lean(model: ir.Model) -> ir.Model:
    """Drop ndonnx's branches for empty arrays, and fold constants."""
    for node in list(model.graph):
        if node.op_type == "If" and _counts(node.inputs[0]):
            _take(model.graph, node, node.attributes["else_branch"].as_graph())
    passes.RemoveUnusedNodesPass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=True)
    return LEANER(model).model


def _counts(value: ir.Value) -> bool:
    """Tell whether a value is a number of elements, or a comparison of one."""
    node = value.producer()
    if node is None or node.op_type not in ("Equal", "Mul", "Size"):
        return False
    return node.op_type == "Size" or any(map(_counts, node.inputs))


def _take(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Replace an ``If`` by the nodes of a branch."""
    nodes, outputs = list(branch), list(branch.outputs)
    branch.outputs.clear()
    branch.remove(nodes)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


# Converting to another opset


def _lower(what: str, model: ir.Model, opset: int) -> None:
    """Convert a recorded graph to another opset, from 13 on."""
    for node in list(model.graph.all_nodes()):
        if node.op_type in ("ReduceMax", "ReduceMin") and opset < 20:
            _reduce_numbers(node)
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and opset < 18:
            _axes_within(node)
        if not _known(node, opset):
            raise ModelError(
                f"{what} needs the operator {node.op_type} of opset {RECORDED}, but the joint "
                f"graph has opset {opset}; export with --opset {RECORDED} (opset={RECORDED})"
            )
    model.graph.opset_imports[""] = opset
    model.ir_version = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])


def _known(node: ir.Node, opset: int) -> bool:
    """Tell whether an opset has the operator and all its non-default attributes."""
    if not defs.has(node.op_type, opset):
        return False
    usual = defs.get_schema(node.op_type, RECORDED).attributes
    for name in set(node.attributes) - set(defs.get_schema(node.op_type, opset).attributes):
        if name in usual:
            default = helper.get_attribute_value(usual[name].default_value)
            if node.attributes.pop(name).value != default:
                return False
    return True


def _reduce_numbers(node: ir.Node) -> None:
    """Cast around a reduction of booleans, which opsets before 20 lack."""
    graph, given, output = node.graph, node.inputs[0], node.outputs[0]
    if given.dtype != ir.DataType.BOOL:
        return
    before = ir.node("Cast", [given], {"to": int(ir.DataType.FLOAT)})
    after = ir.node("Cast", [output], {"to": int(ir.DataType.BOOL)})
    before.outputs[0].name, after.outputs[0].name = f"{output.name}_from", f"{output.name}_to"
    output.replace_all_uses_with(after.outputs[0], replace_graph_outputs=True)
    after.replace_input_with(0, output)
    output.type = ir.TensorType(ir.DataType.FLOAT)
    node.replace_input_with(0, before.outputs[0])
    graph.insert_before(node, before)
    graph.insert_after(node, after)


def _axes_within(node: ir.Node) -> None:
    """Turn axes into an attribute, as before opset 18."""
    if len(node.inputs) > 1:
        axes = ir.convenience.get_const_tensor(node.inputs[1]).numpy()
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())
        node.resize_inputs(1)


# Comparing the graph with the function


def _check(what: str, model: ir.Model, function: Callable[..., Array], tried: np.ndarray) -> None:
    """Compare a score's graph with the score, also on rows with NaN and infinity."""
    rows = hostile(tried)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = np.asarray(function(rows), np.float64)
        found = run_graph(model, rows).astype(np.float64)
        near = np.abs(found - wanted) <= FAR * np.maximum(1, np.abs(wanted))
    never, no_number = ~(found > -np.inf), np.isnan(rows.reshape(len(rows), -1)).any(axis=1)
    # NaN and -inf both defer: they may stand for each other, and for any score of a NaN row
    alike = near | (found == wanted) | (never & (no_number | ~(wanted > -np.inf)))
    for one, other, row, fine in zip(found, wanted, rows, alike, strict=True):
        if not fine:
            raise ModelError(
                f"{what} cannot be exported: for the raw output "
                f"{np.array2string(row, threshold=8)} its graph gives {one:g}, but NumPy gives "
                f"{other:g}; {HOW}"
            )


def hostile(rows: np.ndarray) -> np.ndarray:
    """Return at least ten rows like these, some of them with NaN or infinity."""
    rows = np.resize(rows, (max(10, len(rows)), *rows.shape[1:]))
    for place, (column, value) in enumerate(
        [(0, np.nan), (-1, np.nan), (0, np.inf), (-1, np.inf), (0, -np.inf), (-1, -np.inf)]
    ):
        rows[place].reshape(-1)[column] = value
    rows[6], rows[7] = -np.inf, np.inf
    return rows


def run_graph(model: ir.Model, rows: np.ndarray) -> np.ndarray:
    """Run rows through a graph of one input and one output in ONNX Runtime."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: rows})
    return found
