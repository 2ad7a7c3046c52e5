"""Operators: a part of an ONNX graph, written as calls. The one place where nodes are made."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import onnx_ir as ir

Value = Any
"""A value of a graph, or what becomes a constant in it: a number, a list, an array."""


class Operators:
    """ONNX's operators as methods: ``op.Add(x, 1.0)`` adds a node and gives its output.

    Numbers with a point become constants of `dtype`, whole ones of int64; arrays stay what they
    are.

    Parameters
    ----------
    opset
        The version of the operators.
    dtype
        Of what is computed here.
    name
        Of this part of the graph: what its values are called after.

    Examples
    --------
    >>> op = Operators(17, np.float32, "example")
    >>> halved = op.Mul(ir.val("x", ir.DataType.FLOAT, ["n"]), 0.5)
    >>> [node.op_type for node in op.nodes], [value.name for value in op.constants]
    (['Mul'], ['example/constant_0'])
    """

    def __init__(self, opset: int, dtype: Any, name: str) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.name = name
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.given: list[ir.Value] = []

    def __getattr__(self, operator: str) -> Any:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def add(*inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
            name = f"{self.name}/{operator}_{len(self.nodes)}"
            values = [self.value(entry) for entry in inputs]
            node = ir.node(operator, values, attributes, name=name, num_outputs=outputs)
            for number, output in enumerate(node.outputs):
                output.name = name if outputs == 1 else f"{name}_{number}"
            self.nodes.append(node)
            return node.outputs[0] if outputs == 1 else node.outputs

        return add

    def value(self, entry: Value) -> ir.Value | None:
        """A value as it is, anything else as a constant; None is an input left out."""
        if entry is None or isinstance(entry, ir.Value):
            return entry
        array = np.asarray(entry)
        if array.dtype == np.float64 and not isinstance(entry, np.ndarray):
            array = array.astype(self.dtype)
        return self.constant(array, f"{self.name}/constant_{len(self.constants)}")

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """An array as a constant of that name."""
        tensor = ir.tensor(array, name=name)
        constant = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.constants.append(constant)
        return constant

    def to(self, x: ir.Value, dtype: Any) -> ir.Value:
        """`x` cast to a type."""
        wanted = ir.DataType.from_numpy(np.dtype(dtype))
        return x if x.dtype == wanted else self.Cast(x, to=int(wanted))

    def reduce(self, kind: str, x: Value, keep: bool = False, axis: int = -1) -> ir.Value:
        """``ReduceMax`` and its kin over one axis, which became an input with opset 18."""
        operator = getattr(self, kind)
        if self.opset >= (13 if kind == "ReduceSum" else 18):
            return operator(x, [axis], keepdims=int(keep))
        return operator(x, axes=[axis], keepdims=int(keep))

    def columns(self, x: Value, start: int, end: int = 2**31 - 1) -> ir.Value:
        """The columns of (n, k) from `start` up to `end`."""
        return self.Slice(x, [start], [end], [1])

    def column(self, x: Value, place: int) -> ir.Value:
        """One column of (n, k): (n,)."""
        return self.Gather(x, np.array(place), axis=1)

    def where_all(self, condition: Value, x: Value) -> ir.Value:
        """`x` (n,), NaN where a condition (n, k) does not hold throughout.

        No operator's own way with NaN is relied on, as runtimes differ in it.
        """
        holds = self.reduce("ReduceMin", self.Cast(condition, to=int(ir.DataType.FLOAT)))
        return self.Where(self.Cast(holds, to=int(ir.DataType.BOOL)), x, np.nan)

    def computing(self, dtype: Any) -> Operators:
        """The same part, whose numbers with a point become another type."""
        other = copy(self)
        other.dtype = np.dtype(dtype)
        return other

    def part(self, name: str) -> Operators:
        """Another part that may read this one's values: a branch."""
        return Operators(self.opset, self.dtype, name)

    def either(self, condition: ir.Value, then: Operators, otherwise: Operators) -> list[ir.Value]:
        """What one of two parts gives; only that part is run."""
        graphs = {"then_branch": then.graph(), "else_branch": otherwise.graph()}
        found = self.If(condition, outputs=len(graphs["then_branch"].outputs), **graphs)
        return [found] if isinstance(found, ir.Value) else list(found)

    def gives(self, values: Sequence[ir.Value]) -> None:
        """Say what this part gives, where that is not its last node's output alone."""
        self.given = list(values)

    def graph(self) -> ir.Graph:
        """A graph of this part that reads values from around it."""
        outputs = self.given or [self.nodes[-1].outputs[0]]
        return ir.Graph((), outputs, nodes=self.nodes, initializers=self.constants, name=self.name)

    def inline(self, model: ir.Model, x: ir.Value) -> list[ir.Value]:
        """The nodes and weights of a model's graph become this part's; its answers to `x`.

        The model is taken apart: it has one input, and no names of ours.
        """
        graph = model.graph
        (given,), outputs = graph.inputs, list(graph.outputs)
        graph.outputs.clear()
        given.replace_all_uses_with(x)
        graph.inputs.clear()
        nodes, weights = list(graph), list(graph.initializers.values())
        graph.remove(nodes)
        graph.initializers.clear()
        self.nodes += nodes
        self.constants += weights
        return outputs
