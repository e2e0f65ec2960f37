"""Where an ONNX operand comes from: stored tensors, moved, cast, quantized or computed with on the way."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from slimbit.survey.onnx_graph import (
    FLOATS,
    STANDARD_DOMAINS,
    OnnxGraph,
    as_tensor,
    attribute,
    node_name,
    operand,
    operator,
)

INTEGER_BITS = {
    TensorProto.INT8: 8, TensorProto.UINT8: 8, TensorProto.INT16: 16, TensorProto.UINT16: 16,
    TensorProto.INT32: 32, TensorProto.UINT32: 32,
    **{getattr(TensorProto, f"{sign}INT{bits}", -bits): bits for sign in ("", "U") for bits in (2, 4)},
}  # fmt: skip
"""Width of each integer element type."""
_RANGES = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.UINT16: (0, 65535),
           TensorProto.INT16: (-32768, 32767), getattr(TensorProto, "UINT4", -1): (0, 15),
           getattr(TensorProto, "INT4", -2): (-8, 7)}  # fmt: skip
_SAME_VALUES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Dropout")
LARGEST = 1 << 30
"""Elements of a tensor that is computed from stored ones."""
_ROUNDING: dict[str, Callable[[Tensor], Tensor]] = {
    "ROUND": torch.round,  # half to even
    "HALF_EVEN": torch.round,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ROUND_TO_ZERO": torch.trunc,
    "DOWN": torch.trunc,
    "UP": lambda x: x.sign() * x.abs().ceil(),
    "HALF_UP": lambda x: x.sign() * (x.abs() + 0.5).floor(),
    "HALF_DOWN": lambda x: x.sign() * (x.abs() - 0.5).ceil(),
}


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
    step = _STEPS.get(operator(node))
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
        InputError: A step is not positive and finite.
    """
    value = read()
    if isinstance(value, Tensor):
        return arrange(value)
    if not bool((torch.isfinite(value.step) & (value.step > 0)).all()):
        raise InputError(f"quantization steps must be positive and finite, got {value.step.min().item():g}")
    levels = arrange(value.levels)
    steps = arrange(value.step.expand(value.levels.shape)).reshape(len(levels), -1)
    if not torch.equal(steps, steps[:, :1].expand_as(steps)):
        return levels * steps.reshape(levels.shape)
    step = steps[:, 0].clone()
    return LayerLevels(levels, step[0] if bool((step == step[0]).all()) else step, value.grid, value.bits)


def declared_bits(graph: OnnxGraph, value: str) -> int | None:
    """Width that a quantizer gives to a value, or None if none does."""
    while (node := graph.producers.get(value)) is not None:
        kind = operator(node).removeprefix("com.microsoft.")
        if kind in {"Quant", "IntQuant"}:
            return _bit_width(graph, node)
        if kind == "BipolarQuant":
            return 1
        if kind in {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Clip"}:
            integers = operand(node, 0) if kind == "DequantizeLinear" else value
            clip = graph.producers.get(integers)
            width = INTEGER_BITS.get(graph.types.get(integers, 0))
            if width and clip is not None and operator(clip) == "Clip":
                return min(width, _clipped_bits(graph, clip) or width)
            return width
        if kind not in _SAME_VALUES:
            break
        value = operand(node, 0)
    return INTEGER_BITS.get(graph.types.get(value, 0))


def with_scale(graph: OnnxGraph, source: Source, scale: str, zero_point: str, axis: int) -> Source:
    """Constant integers as mid-tread levels: ``levels = integers - zero point``, step ``scale`` (1 if "")."""
    bits, grids = source.width, graph.contents.grids

    def read() -> Quantized:
        integers = plain(source.read())
        offset = constant(graph, zero_point) if zero_point else torch.zeros(())
        step = constant(graph, scale).float() if scale else torch.ones(())
        levels = integers.float() - _along(offset.float(), integers, axis)
        grid = next((grids[root] for root in source.roots if root in grids), None)
        if grid is not None:  # the width is what the levels need, not what their type could hold
            factor = 1.0 if grid == "midtread" else 2.0
            return Quantized(levels / factor, factor * _along(step, integers, axis), grid, 0)
        return Quantized(levels, _along(step, integers, axis), "midtread", bits)

    key = f"Scaled({source.key}, {scale}, {zero_point}, {axis})"
    return replace(source, key=key, element=TensorProto.FLOAT, read=read, quantized=True)


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


def _identity(_graph: OnnxGraph, _node: NodeProto, source: Source) -> Source:
    return source


def _cast(_graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """A cast of integers to floats makes levels of step 1; one of floats keeps values as far as a cost can tell."""
    to = attribute(node, "to", 0)
    if to in FLOATS and source.width and not source.quantized:
        levels = replace(source, quantized=True, element=to, key=f"Cast({source.key})")
        return replace(levels, read=lambda: _of_step_one(plain(source.read()).float(), source.width))
    if to in FLOATS:
        return replace(source, element=to, read=lambda: _floating(source.read()))
    widens = INTEGER_BITS.get(to, 64) >= source.width
    return replace(source, element=to, bits=source.width) if source.width and widens and not source.quantized else None


def _moving(function: Callable[[OnnxGraph, NodeProto, Source, tuple[int, ...]], Callable[[Tensor], Tensor]]) -> Any:
    """The rule of an operator that moves entries: levels and steps move alike."""

    def rule(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
        shape = graph.shapes.get(node.output[0])
        if shape is None:
            return None
        move = function(graph, node, source, shape)

        def read() -> Tensor | Quantized:
            value = source.read()
            if isinstance(value, Tensor):
                return move(value)
            step = move(value.step.expand(value.levels.shape)) if value.step.ndim else value.step
            return Quantized(move(value.levels), step, value.grid, value.bits)

        settings = [helper.get_attribute_value(entry) for entry in node.attribute]
        key = f"{operator(node)}({source.key}, {settings}, {shape})"
        return replace(source, key=key, shape=shape, read=read)

    return rule


@_moving
def _transpose(
    _graph: OnnxGraph, node: NodeProto, source: Source, _shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    order = list(attribute(node, "perm", range(len(source.shape))[::-1]))
    return lambda value: value.permute(order)


@_moving
def _reshape(
    _graph: OnnxGraph, _node: NodeProto, _source: Source, shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    return lambda value: value.reshape(shape)


def _clip(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """A clip of integers narrows their width, as Brevitas writes few bits into eight."""
    bits = _clipped_bits(graph, node)
    if bits is None or not source.width or source.quantized:
        return None
    low, high = _clip_range(graph, node)

    def read() -> Tensor:
        return plain(source.read()).clamp(low, high)

    key = f"Clip({source.key}, {low}, {high})"
    return replace(source, key=key, bits=min(bits, source.width), read=read)


def _scaled(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """Levels of step 1, moved by a zero point or times a scale: ``Sub``, ``Mul`` and ``Div`` by constants."""
    kind, factor = operator(node), operand(node, 1)
    if kind == "Mul" and not source.quantized:
        other = trace(graph, factor)
        if other is not None and other.quantized:
            source, factor = other, operand(node, 0)
    if not source.quantized or factor not in graph.roots or source.shape != graph.shapes.get(node.output[0]):
        return None

    def read() -> Quantized:
        value, number = source.read(), constant(graph, factor).float()
        assert isinstance(value, Quantized)
        if kind == "Sub":
            return replace(value, levels=value.levels - number / value.step)
        step = value.step * number if kind == "Mul" else value.step / number
        return replace(value, step=step)

    roots = tuple(dict.fromkeys((*source.roots, *graph.roots[factor])))
    return replace(source, roots=roots, key=f"{kind}({source.key}, {factor})", read=read)


def _quantize_linear(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    scale, zero_point, axis = operand(node, 1), operand(node, 2), attribute(node, "axis", 1)
    element = graph.types.get(zero_point, 0) if zero_point else attribute(node, "output_dtype", 0) or TensorProto.UINT8
    if element not in _RANGES:
        return None
    low, high = _RANGES[element]

    def read() -> Tensor:
        weight = plain(source.read()).float()
        offset = constant(graph, zero_point).float() if zero_point else torch.zeros(())
        ratio = weight / _along(constant(graph, scale).float(), weight, axis)
        return (ratio.round() + _along(offset, weight, axis)).clamp(low, high).int()

    key = f"Quantize({source.key}, {scale}, {zero_point}, {axis})"
    return replace(source, key=key, element=element, read=read, quantized=False, bits=0)


def _dequantize_linear(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    scale, axis = operand(node, 1), attribute(node, "axis", 1)
    if source.width:
        return with_scale(graph, source, scale, operand(node, 2), axis)

    def read() -> Tensor:  # eight-bit floats have no integer levels
        weight = plain(source.read())
        return weight * _along(constant(graph, scale).float(), weight, axis)

    return replace(source, key=f"Scaled({source.key}, {scale}, {axis})", element=TensorProto.FLOAT, read=read)


def _quant(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """QONNX: ``clamp(round(w / scale + zero point)) - zero point`` levels of ``scale``."""
    names = [operand(node, place) for place in (1, 2, 3)]
    bits = _bit_width(graph, node)
    rounding = _ROUNDING.get(attribute(node, "rounding_mode", "ROUND").upper())
    if bits is None or rounding is None:
        return None
    low, high = _integer_range(graph, node, names[2])

    def read() -> Quantized:
        weight = plain(source.read()).float()
        step, offset = constant(graph, names[0]).float(), constant(graph, names[1]).float()
        levels = torch.clamp(rounding(weight / step + offset), low, high) - offset
        return Quantized(levels, _right_aligned(step, weight), "midtread", bits)

    key = f"Quant({source.key}, {names}, {low.tolist()}, {high.tolist()})"
    return replace(source, key=key, read=read, quantized=True)


def _bipolar(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """QONNX: ``+-scale`` by sign, which is the one-bit mid-rise grid ``+-0.5`` with a step of ``2 scale``."""
    scale = operand(node, 1)

    def read() -> Quantized:
        weight = plain(source.read())
        levels = torch.where(weight >= 0, 0.5, -0.5)
        return Quantized(levels, _right_aligned(2 * constant(graph, scale).float(), weight), "midrise", 1)

    return replace(source, key=f"Bipolar({source.key}, {scale})", read=read, quantized=True)


def _bit_width(graph: OnnxGraph, node: NodeProto) -> int | None:
    name = operand(node, 3)
    return int(constant(graph, name).max().ceil().item()) if name in graph.roots else None


def _clip_range(graph: OnnxGraph, node: NodeProto) -> tuple[float | None, float | None]:
    found: list[float | None] = []
    for place, name in ((1, "min"), (2, "max")):
        value = operand(node, place)
        found.append(float(constant(graph, value)) if value in graph.roots else attribute(node, name, None))
    return found[0], found[1]


def _clipped_bits(graph: OnnxGraph, node: NodeProto) -> int | None:
    """Bits of the integers that a clip lets through; None where it is open."""
    low, high = _clip_range(graph, node)
    if low is None or high is None or high < low:
        return None
    return max(1, math.ceil(math.log2(high - low + 1)))


def _integer_range(graph: OnnxGraph, node: NodeProto, bit_width: str) -> tuple[Tensor, Tensor]:
    signed, narrow = attribute(node, "signed", 1), attribute(node, "narrow", 0)
    codes = 2.0 ** constant(graph, bit_width).float()
    if signed:
        return -codes / 2 + int(bool(narrow)), codes / 2 - 1
    return torch.zeros_like(codes), codes - 1 - int(bool(narrow))


def _of_step_one(levels: Tensor, bits: int) -> Quantized:
    return Quantized(levels, torch.ones(()), "midtread", bits)


def _floating(value: Tensor | Quantized) -> Tensor | Quantized:
    return value if isinstance(value, Quantized) or value.is_floating_point() else value.float()


def _right_aligned(step: Tensor, weight: Tensor) -> Tensor:
    return step.reshape(*[1] * (weight.ndim - step.ndim), *step.shape) if step.ndim else step


def _along(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Scales or zero points shaped to broadcast: one number, one per index of an axis, or one per block."""
    if values.numel() == 1:
        return values.reshape(())
    if values.ndim == 1:
        shape: list[Any] = [1] * weight.ndim
        shape[axis] = -1
        return values.reshape(shape)
    block = -(-weight.shape[axis] // values.shape[axis])
    return values.repeat_interleave(block, dim=axis).narrow(axis, 0, weight.shape[axis])


_STEPS: dict[str, Callable[[OnnxGraph, NodeProto, Source], Source | None]] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Clip": _clip,
    **dict.fromkeys(("Mul", "Sub", "Div"), _scaled),
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "com.microsoft.QuantizeLinear": _quantize_linear,
    "com.microsoft.DequantizeLinear": _dequantize_linear,
    "Quant": _quant,
    "IntQuant": _quant,
    "BipolarQuant": _bipolar,
}
