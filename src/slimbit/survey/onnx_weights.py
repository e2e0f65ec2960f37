"""Where an ONNX operand comes from: a stored tensor, possibly transposed, cast or quantized on the way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from slimbit.numerics.levels import LayerLevels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError
from slimbit.survey.onnx_graph import OnnxGraph, attribute, operand, operator

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
    """A value that comes from one stored tensor.

    Attributes:
        root: Name of the stored tensor.
        key: Spells the way from it; equal keys are equal values.
        shape: Shape of the value.
        element: ONNX element type.
        read: Computes it.
        quantized: Whether it stands for integers times a step.
    """

    root: str
    key: str
    shape: tuple[int, ...]
    element: int
    read: Callable[[], Tensor | Quantized]
    quantized: bool = False


def trace(graph: OnnxGraph, value: str) -> Source | None:
    """The stored tensor behind a value, or None if it is computed from anything else."""
    if value in graph.constants:
        stored = graph.constants[value]
        return Source(value, value, tuple(stored.dims), stored.data_type, lambda: graph.tensor(value))
    node = graph.producers.get(value)
    step = _STEPS.get(operator(node)) if node is not None else None
    source = trace(graph, operand(node, 0)) if node is not None and step else None
    if node is None or step is None or source is None:
        return None
    return step(graph, node, source)


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
        kind = operator(node)
        if kind in {"Quant", "IntQuant"}:
            return _bit_width(graph, node)
        if kind == "BipolarQuant":
            return 1
        if kind in {"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"}:
            integers = operand(node, 0) if kind == "DequantizeLinear" else value
            return _clipped_bits(graph, integers) or INTEGER_BITS.get(graph.types.get(integers, 0))
        if kind not in _SAME_VALUES:
            break
        value = operand(node, 0)
    return _clipped_bits(graph, value) or INTEGER_BITS.get(graph.types.get(value, 0))


def _clipped_bits(graph: OnnxGraph, value: str) -> int | None:
    """Width of integers that a Clip keeps narrower than their type, None where none does."""
    moves = (*_SAME_VALUES, "Slice", "Pad", "Concat", "DepthToSpace", "Resize")
    while (node := graph.producers.get(value)) is not None and operator(node) in (*moves, "Clip"):
        bounds = [operand(node, place) for place in (1, 2)]
        if operator(node) == "Clip" and all(name in graph.constants for name in bounds):
            low, high = (int(graph.tensor(name)) for name in bounds)
            return max(1, (high - low).bit_length())
        value = operand(node, 0)
    return None


def with_scale(graph: OnnxGraph, source: Source, scale: str, zero_point: str, axis: int) -> Source:
    """Stored integers as mid-tread levels: ``levels = integers - zero point``, step ``scale`` (1 if "")."""

    def read() -> Quantized:
        integers = _plain(source.read())
        offset = graph.tensor(zero_point) if zero_point else torch.zeros(())
        step = graph.tensor(scale).float() if scale else torch.ones(())
        levels = integers.float() - _along(offset.float(), integers, axis)
        grid = graph.contents.grids.get(source.root)
        if grid is not None:  # the width is what the levels need, not what their type could hold
            factor = 1.0 if grid == "midtread" else 2.0
            return Quantized(levels / factor, factor * _along(step, integers, axis), grid, 0)
        return Quantized(levels, _along(step, integers, axis), "midtread", INTEGER_BITS[source.element])

    key = f"Scaled({source.key}, {scale}, {zero_point}, {axis})"
    return replace(source, key=key, element=TensorProto.FLOAT, read=read, quantized=True)


def _identity(_graph: OnnxGraph, _node: NodeProto, source: Source) -> Source:
    return source


def _cast(_graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """A cast to a floating type, or of integers to a wider type, keeps values as far as a cost can tell."""
    to = attribute(node, "to", 0)
    if INTEGER_BITS.get(source.element, 99) <= INTEGER_BITS.get(to, 0):
        return source  # the width that counts is the one that is stored
    if to not in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}:
        return None
    return replace(source, element=attribute(node, "to", 0), read=lambda: _floating(source.read()))


def _transpose(_graph: OnnxGraph, node: NodeProto, source: Source) -> Source:
    order = list(attribute(node, "perm", range(len(source.shape))[::-1]))

    def read() -> Tensor | Quantized:
        value = source.read()
        if isinstance(value, Tensor):
            return value.permute(order)
        step = value.step.permute(order) if value.step.ndim else value.step
        return Quantized(value.levels.permute(order), step, value.grid, value.bits)

    shape = tuple(source.shape[axis] for axis in order)
    return replace(source, key=f"Transpose({source.key}, {order})", shape=shape, read=read)


def _quantize_linear(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    scale, zero_point, axis = operand(node, 1), operand(node, 2), attribute(node, "axis", 1)
    if scale not in graph.constants or (zero_point and zero_point not in graph.constants):
        return None
    element = graph.types[zero_point] if zero_point else attribute(node, "output_dtype", 0) or TensorProto.UINT8
    if element not in _RANGES:
        return None
    low, high = _RANGES[element]

    def read() -> Tensor:
        weight = _plain(source.read()).float()
        offset = graph.tensor(zero_point).float() if zero_point else torch.zeros(())
        ratio = weight / _along(graph.tensor(scale).float(), weight, axis)
        return (ratio.round() + _along(offset, weight, axis)).clamp(low, high).int()

    key = f"Quantize({source.key}, {scale}, {zero_point}, {axis})"
    return replace(source, key=key, element=element, read=read)


def _dequantize_linear(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    scale, zero_point = operand(node, 1), operand(node, 2)
    if scale not in graph.constants or (zero_point and zero_point not in graph.constants):
        return None
    axis = attribute(node, "axis", 1)
    if source.element in INTEGER_BITS:
        return with_scale(graph, source, scale, zero_point, axis)

    def read() -> Tensor:  # eight-bit floats have no integer levels
        weight = _plain(source.read())
        return weight * _along(graph.tensor(scale).float(), weight, axis)

    return replace(source, key=f"Scaled({source.key}, {scale}, {axis})", element=TensorProto.FLOAT, read=read)


def _quant(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """QONNX: ``clamp(round(w / scale + zero point)) - zero point`` levels of ``scale``."""
    names = [operand(node, place) for place in (1, 2, 3)]
    bits = _bit_width(graph, node)
    rounding = _ROUNDING.get(attribute(node, "rounding_mode", "ROUND").upper())
    if bits is None or rounding is None or any(name not in graph.constants for name in names):
        return None
    low, high = _integer_range(graph, node, names[2])

    def read() -> Quantized:
        weight = _plain(source.read()).float()
        step, offset = graph.tensor(names[0]).float(), graph.tensor(names[1]).float()
        levels = torch.clamp(rounding(weight / step + offset), low, high) - offset
        return Quantized(levels, _right_aligned(step, weight), "midtread", bits)

    key = f"Quant({source.key}, {names}, {low.tolist()}, {high.tolist()})"
    return replace(source, key=key, read=read, quantized=True)


def _bipolar(graph: OnnxGraph, node: NodeProto, source: Source) -> Source | None:
    """QONNX: ``+-scale`` by sign, which is the one-bit mid-rise grid ``+-0.5`` with a step of ``2 scale``."""
    scale = operand(node, 1)
    if scale not in graph.constants:
        return None

    def read() -> Quantized:
        weight = _plain(source.read())
        levels = torch.where(weight >= 0, 0.5, -0.5)
        return Quantized(levels, _right_aligned(2 * graph.tensor(scale).float(), weight), "midrise", 1)

    return replace(source, key=f"Bipolar({source.key}, {scale})", read=read, quantized=True)


def _bit_width(graph: OnnxGraph, node: NodeProto) -> int | None:
    name = operand(node, 3)
    return int(graph.tensor(name).max().ceil().item()) if name in graph.constants else None


def _integer_range(graph: OnnxGraph, node: NodeProto, bit_width: str) -> tuple[Tensor, Tensor]:
    signed, narrow = attribute(node, "signed", 1), attribute(node, "narrow", 0)
    codes = 2.0 ** graph.tensor(bit_width).float()
    if signed:
        return -codes / 2 + int(bool(narrow)), codes / 2 - 1
    return torch.zeros_like(codes), codes - 1 - int(bool(narrow))


def _plain(value: Tensor | Quantized) -> Tensor:
    """Numbers: a weight quantized twice is quantized from what the first time left."""
    return value if isinstance(value, Tensor) else value.levels * value.step


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
    "Cast": _cast,
    "Transpose": _transpose,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "Quant": _quant,
    "IntQuant": _quant,
    "BipolarQuant": _bipolar,
}
