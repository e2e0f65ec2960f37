"""Values of an ONNX graph that stored tensors alone make: what they hold, and how to compute them.

Operators that keep levels and steps have rules in `slimbit.survey.onnx_weights`; anything else is computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from slimbit.numerics.levels import LayerLevels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError
from slimbit.survey.files import one_line
from slimbit.survey.onnx_graph import FLOATS, STANDARD_DOMAINS, OnnxGraph, as_tensor, node_name, operand, operator

INTEGER_BITS = {
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32,
    **{getattr(TensorProto, f"{sign}INT{bits}", -bits): bits for sign in ("", "U") for bits in (2, 4)},
}  # fmt: skip
"""Width of each integer element type."""
LARGEST = 1 << 30
"""Elements of a tensor that is computed from stored ones."""


@dataclass(frozen=True)
class Quantized:
    """Levels in the file's own order, with a step that broadcasts over them."""

    levels: Tensor
    step: Tensor
    grid: Grid
    bits: int


@dataclass(frozen=True)
class Source:
    """A value that stored tensors alone make.

    Attributes:
        roots: Names of the stored tensors, the one that names the layer first.
        key: Spells the way from them; equal keys are equal values.
        shape: Shape of the value.
        element: ONNX element type.
        read: Computes it.
        quantized: Whether it stands for integers times a step.
        bits: Width of integers that a narrower range than their type's holds; 0 = as the type says.
    """

    roots: tuple[str, ...]
    key: str
    shape: tuple[int, ...]
    element: int
    read: Callable[[], Tensor | Quantized]
    quantized: bool = False
    bits: int = 0

    @property
    def root(self) -> str:
        """The stored tensor that names the layer."""
        return self.roots[0]

    @property
    def width(self) -> int:
        """Bits of its integers; 0 = it holds floats, or integers too wide for levels."""
        return self.bits or INTEGER_BITS.get(self.element, 0)


Rule = Callable[[OnnxGraph, NodeProto, Source], Source | None]
_RULES: dict[str, Rule] = {}


def follows(*operators: str) -> Callable[[Rule], Rule]:
    """Register what an operator makes of a source; None where it cannot be told."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def trace(graph: OnnxGraph, value: str) -> Source | None:
    """The stored tensors behind a value, or None if it is computed from anything else.

    Quantizers, and what only moves, casts or scales integers, keep levels and steps; anything else is computed.
    """
    if value in graph.constants:
        stored = graph.constants[value]
        return Source((value,), value, tuple(stored.dims), stored.data_type, lambda: graph.tensor(value))
    if value not in graph.roots:
        return None
    node = graph.producers[value]
    step = _RULES.get(operator(node))
    source = trace(graph, operand(node, 0)) if step and operand(node, 0) else None
    found = step(graph, node, source) if step and source is not None else None
    return found or _computed(graph, value)


def arranged(read: Callable[[], Tensor | Quantized], arrange: Callable[[Tensor], Tensor]) -> Tensor | LayerLevels:
    """A source's value filters first.

    Levels whose step is neither one number nor one per filter come as plain weights.

    Args:
        read: Of a `Source`.
        arrange: Brings a tensor of the source's shape into filters-first order.

    Raises:
        InputError: A step is 0 or not finite.
    """
    value = read()
    if isinstance(value, Tensor):
        return arrange(value)
    size = value.step.abs()  # the sign of a factor goes to the levels: a folded BatchNorm may have a negative scale
    if not bool((torch.isfinite(size) & (size > 0)).all()):
        raise InputError(f"quantization steps must be finite and not 0, got {size.min().item():g}")
    levels = arrange(value.levels * value.step.sign())
    steps = arrange(size.expand(value.levels.shape)).reshape(len(levels), -1)
    if not torch.equal(steps, steps[:, :1].expand_as(steps)):
        return levels * steps.reshape(levels.shape)
    step = steps[:, 0].clone()
    return LayerLevels(levels, step[0] if bool((step == step[0]).all()) else step, value.grid, value.bits)


def constant(graph: OnnxGraph, value: str) -> Tensor:
    """The numbers of a value that stored tensors alone make.

    Raises:
        InputError: It is computed from anything else, or by what cannot be run here.
    """
    source = trace(graph, value)
    if source is None:
        raise InputError(f"value {value!r} must be stored in the file, or made of what is")
    return plain(source.read())


def plain(value: Tensor | Quantized) -> Tensor:
    """Numbers: a weight quantized twice is quantized from what the first time left."""
    return value if isinstance(value, Tensor) else value.levels * value.step


def _computed(graph: OnnxGraph, value: str) -> Source | None:
    """A value that an operator without a rule of its own makes of stored tensors: its node is run on them."""
    node = graph.producers[value]
    shape = graph.shapes.get(value)
    sources = [trace(graph, name) if name else None for name in node.input]
    known = [source for source in sources if source is not None]
    if node.domain not in STANDARD_DOMAINS or shape is None or math.prod(shape) > LARGEST:
        return None
    if len(known) != sum(map(bool, node.input)):
        return None
    place = list(node.output).index(value)
    roots = dict.fromkeys(root for source in known for root in source.roots)
    by_size = sorted(roots, key=lambda root: (graph.types[root] not in FLOATS, -math.prod(graph.shapes[root])))

    def read() -> Tensor:
        feeds = {s_name: _numbers(s) for s_name, s in zip(node.input, sources, strict=True) if s is not None}
        return as_tensor(_evaluated(graph, node, feeds)[place])

    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    key = f"{operator(node)}({[source.key if source else '' for source in sources]}, {settings})[{place}]"
    return Source(tuple(by_size), key, shape, graph.types.get(value, TensorProto.FLOAT), read)


def _numbers(source: Source) -> np.ndarray[Any, Any]:
    element = source.element if source.element in FLOATS or not source.quantized else TensorProto.FLOAT
    numbers: np.ndarray[Any, Any] = plain(source.read()).numpy()
    return numbers.astype(helper.tensor_dtype_to_np_dtype(element))


def _evaluated(graph: OnnxGraph, node: NodeProto, feeds: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "constant", inputs, outputs), opset_imports=graph.model.opset_import
    )
    try:
        return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception as error:
        raise InputError(
            f"the constant {node_name(node)!r} ({operator(node)}) must be computable, got {one_line(error)}"
        ) from error
