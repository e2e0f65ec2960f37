"""What operators make of stored weights on their way: quantizers, moves, casts and scales keep levels and steps."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

from slimbit.survey.onnx_graph import FLOATS, OnnxGraph, attribute, operand, operator
from slimbit.survey.onnx_sources import INTEGER_BITS, Quantized, Source, constant, follows, plain, trace

_RANGES = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127), TensorProto.UINT16: (0, 65535),
           TensorProto.INT16: (-32768, 32767), getattr(TensorProto, "UINT4", -1): (0, 15),
           getattr(TensorProto, "INT4", -2): (-8, 7)}  # fmt: skip
_SAME_VALUES = ("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Dropout")
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


def declared_bits(graph: OnnxGraph, value: str) -> int | None:
    """Width that a quantizer gives to a value, or None if none does."""
    while (node := graph.producers.get(value)) is not None:
        kind = operator(node).removeprefix("com.microsoft.")
        if kind in {"Quant", "IntQuant"}:
            return _bit_width(graph, node)
        if kind == "BipolarQuant":
            return 1
        if kind in {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Clip"}:
            return _integer_bits(graph, operand(node, 0) if kind == "DequantizeLinear" else value)
        if kind not in _SAME_VALUES:
            break
        value = operand(node, 0)
    return _integer_bits(graph, value)


def _integer_bits(graph: OnnxGraph, value: str) -> int | None:
    """Width of integers: that of their type, or of the clip that they have passed."""
    width, clip = INTEGER_BITS.get(graph.types.get(value, 0)), _clip_of(graph, value)
    return width if not width or clip is None else min(width, _clipped_bits(graph, clip) or width)


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


@follows("Identity", "Dropout")
def _identity(_graph: OnnxGraph, _node: NodeProto, source: Source) -> Source:
    return source


@follows("Cast")
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


@follows("Transpose")
@_moving
def _transpose(
    _graph: OnnxGraph, node: NodeProto, source: Source, _shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    order = list(attribute(node, "perm", range(len(source.shape))[::-1]))
    return lambda value: value.permute(order)


@follows("Reshape", "Flatten", "Squeeze", "Unsqueeze")
@_moving
def _reshape(
    _graph: OnnxGraph, _node: NodeProto, _source: Source, shape: tuple[int, ...]
) -> Callable[[Tensor], Tensor]:
    return lambda value: value.reshape(shape)


@follows("Clip")
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


@follows("Mul", "Sub", "Div")
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


@follows("QuantizeLinear", "com.microsoft.QuantizeLinear")
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


@follows("DequantizeLinear", "com.microsoft.DequantizeLinear")
def _dequantize_linear(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    scale, axis = operand(node, 1), attribute(node, "axis", 1)
    if source.width:
        return with_scale(graph, source, scale, operand(node, 2), axis)

    def read() -> Tensor:  # eight-bit floats have no integer levels
        weight = plain(source.read())
        return weight * _along(constant(graph, scale).float(), weight, axis)

    return replace(source, key=f"Scaled({source.key}, {scale}, {axis})", element=TensorProto.FLOAT, read=read)


@follows("Quant", "IntQuant")
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


@follows("BipolarQuant")
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


def _clip_of(graph: OnnxGraph, value: str) -> NodeProto | None:
    """The Clip that values have passed, where nothing but moves lies between."""
    moves = (*_SAME_VALUES, "Slice", "Pad", "Concat", "DepthToSpace", "Resize")
    while (node := graph.producers.get(value)) is not None and operator(node) in moves:
        value = operand(node, 0)
    return node if node is not None and operator(node) == "Clip" else None


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
