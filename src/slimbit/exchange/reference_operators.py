"""Operators of the integer reference that neither round nor multiply by weights: each from its ONNX definition."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, helper

from slimbit.exchange.reference_sums import Window
from slimbit.exchange.reference_values import (
    Array,
    Exact,
    Scaled,
    Value,
    array_of,
    attribute,
    exact_of,
    floats_of,
)
from slimbit.records.errors import InputError


def _arithmetic(node: NodeProto, given: list[Value | None]) -> Value:
    left, right = given
    plus = node.op_type == "Add"
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return (left + right) if plus else (left * right)
    if isinstance(left, Scaled) and left.is_sum and isinstance(right, np.ndarray):
        if not plus:
            return (left.numbers.astype(np.float32) * left.step * right).astype(np.float32)
        whole = np.rint(right)
        if left.step.size == 1 and float(left.step) == 1.0 and np.array_equal(whole, right):
            return Scaled(left.numbers + whole.astype(np.int64), left.step, is_sum=True)
    return Exact(exact_of(left) + exact_of(right) if plus else exact_of(left) * exact_of(right))


def _average(node: NodeProto, given: list[Value | None]) -> Value:
    values = exact_of(given[0])
    if node.op_type == "GlobalAveragePool":
        return Exact(values.mean(axis=tuple(range(2, values.ndim)), keepdims=True))
    window = _pool_window(node, values.ndim - 2)
    sizes = window.sizes(values.shape[2:])
    padded = np.pad(values, ((0, 0), (0, 0), *window.pads))
    if any(map(any, window.pads)) and not attribute(node, "count_include_pad", 0):
        raise InputError(f"average pooling {node.name!r} must count its padding, got count_include_pad 0")
    parts = [part for _, part in window.parts(padded, sizes)]
    return Exact(sum(parts[1:], parts[0].copy()) / len(parts))


def _pool_window(node: NodeProto, dims: int) -> Window:
    kernel = tuple(attribute(node, "kernel_shape", ()))
    pads = attribute(node, "pads", [0] * (2 * dims))
    strides, dilations = (tuple(attribute(node, key, [1] * dims)) for key in ("strides", "dilations"))
    return Window(kernel, strides, tuple(zip(pads[:dims], pads[dims:], strict=True)), dilations)


def _maximum(node: NodeProto, given: list[Value | None]) -> Value:
    if isinstance(given[0], Scaled) and given[0].step.size == 1:  # the order of integers is that of real numbers
        largest_ = _maximum(node, [given[0].numbers])
        return replace(given[0], numbers=array_of(largest_), bytes_=None)
    values = array_of(given[0])
    window = _pool_window(node, values.ndim - 2)
    sizes = window.sizes(values.shape[2:])
    if attribute(node, "ceil_mode", 0):
        sizes = tuple(_ceiled(window, d, size) for d, size in enumerate(values.shape[2:]))
    least = np.iinfo(values.dtype).min if np.issubdtype(values.dtype, np.integer) else -np.inf
    reach = [
        max(high, stride * (count - 1) + dilation * (kernel - 1) + 1 - size - low)
        for (low, high), stride, count, dilation, kernel, size in zip(
            window.pads, window.strides, sizes, window.dilations, window.kernel, values.shape[2:], strict=True
        )
    ]
    pads = tuple((low, more) for (low, _), more in zip(window.pads, reach, strict=True))
    padded = np.pad(values, ((0, 0), (0, 0), *pads), constant_values=least)
    largest: Array = np.maximum.reduce([part for _, part in window.parts(padded, sizes)])
    return largest


def _ceiled(window: Window, dim: int, size: int) -> int:
    """Positions where the last window may hang over; it must begin inside."""
    low, high = window.pads[dim]
    span = window.dilations[dim] * (window.kernel[dim] - 1) + 1
    count = -(-(size + low + high - span) // window.strides[dim]) + 1
    return count - ((count - 1) * window.strides[dim] >= size + low)


def _clamp(node: NodeProto, given: list[Value | None]) -> Value:
    value = given[0]
    if node.op_type == "Relu" and isinstance(value, Scaled):
        return replace(value, numbers=np.maximum(value.numbers, 0))
    bounds = [None if x is None else array_of(x) for x in (*given[1:], None, None)[:2]]
    low, high = (np.zeros(()), None) if node.op_type == "Relu" else bounds
    if isinstance(value, np.ndarray):
        return np.clip(value, low, high).astype(value.dtype) if bounds != [None, None] or low is not None else value
    return Exact(np.clip(exact_of(value), low, high))


_FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Exp": np.exp,
    "Abs": np.abs,
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
}


def _function(node: NodeProto, given: list[Value | None]) -> Value:
    values, alpha = exact_of(given[0]), attribute(node, "alpha", None)
    if node.op_type == "HardSigmoid":
        result = np.clip(values * float(np.float32(alpha)) + attribute(node, "beta", 0.5), 0, 1)
    elif node.op_type == "LeakyRelu":
        result = np.where(values < 0, values * alpha, values)
    elif node.op_type == "Elu":
        result = np.where(values < 0, alpha * np.expm1(np.minimum(values, 0)), values)
    else:
        result = _FUNCTIONS[node.op_type](values)
    return result.astype(np.float32) if isinstance(given[0], np.ndarray) else Exact(result)


def _softmax(node: NodeProto, given: list[Value | None]) -> Value:
    values, axis = floats_of(given[0]).astype(np.float64), attribute(node, "axis", -1)
    shifted = values - values.max(axis=axis, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    result: Array = logs if node.op_type == "LogSoftmax" else np.exp(logs)
    return result.astype(np.float32)


def _move(node: NodeProto, given: list[Value | None]) -> Value:
    """Operators that move entries: of codes, of floats, and of integers with one step for all."""
    first = given[0]
    if isinstance(first, np.ndarray):
        return _moved(node, first, given)
    if node.op_type == "Identity":
        assert first is not None
        return first
    if isinstance(first, Exact):
        return Exact(_moved(node, first.numbers, given))
    assert isinstance(first, Scaled)
    if node.op_type == "Concat":
        return _joined(node, first, given)
    if first.step.size > 1 and node.op_type == "Reshape":  # rows of a product, whose steps belong to the last axis
        numbers = _moved(node, first.numbers, given)
        return Scaled(numbers, first.step.reshape(-1), is_sum=first.is_sum)
    if first.step.size > 1:
        raise InputError(f"node {node.name!r} must move integers with one step, got {first.step.size}")
    bytes_ = None if first.bytes_ is None else _moved(node, first.bytes_, given)
    return Scaled(_moved(node, first.numbers, given), first.step, bytes_, is_sum=first.is_sum)


def _joined(node: NodeProto, first: Scaled, given: list[Value | None]) -> Value:
    """Integers of one step side by side; real numbers where steps differ."""
    axis = attribute(node, "axis", 0)
    alike = [x for x in given if isinstance(x, Scaled) and not x.is_sum and np.array_equal(x.step, first.step)]
    if len(alike) < len(given):
        return Exact(np.concatenate([exact_of(x) for x in given], axis=axis))
    return Scaled(np.concatenate([x.numbers for x in alike], axis=axis), first.step)


def _moved(node: NodeProto, values: Array, given: list[Value | None]) -> Array:  # noqa: PLR0911 - one per operator
    rest = [None if x is None else x for x in given[1:]]
    match node.op_type:
        case "Reshape":
            return values.reshape([int(n) for n in array_of(rest[0])])
        case "Transpose":
            return values.transpose(attribute(node, "perm", None))
        case "Slice":
            starts, stops, axes, steps = (array_of(x).tolist() for x in rest)
            index = [slice(None)] * values.ndim
            for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
                index[axis] = slice(start, stop, step)
            return values[tuple(index)]
        case "Pad":
            pads = array_of(rest[0]).tolist()
            fill = int(array_of(rest[1])) if len(rest) > 1 else 0
            return np.pad(
                values, list(zip(pads[: values.ndim], pads[values.ndim :], strict=True)), constant_values=fill
            )
        case "DepthToSpace":
            block = attribute(node, "blocksize", 1)
            n, c, h, w = values.shape
            split = values.reshape(n, c // block**2, block, block, h, w)
            return split.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // block**2, h * block, w * block)
        case "Resize":
            for axis, factor in enumerate(array_of(rest[1]).tolist()):
                values = values.repeat(int(factor), axis=axis)
            return values
        case "Concat":
            return np.concatenate([values, *(array_of(x) for x in rest)], axis=attribute(node, "axis", 0))
        case _:
            return values


def _cast(node: NodeProto, given: list[Value | None]) -> Value:
    """To float32 one rounding; among integers none."""
    return array_of(given[0]).astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to", 0)))


OPERATORS: Mapping[str, Callable[[NodeProto, list[Value | None]], Value]] = {
    **dict.fromkeys(("Add", "Mul"), _arithmetic),
    **dict.fromkeys(("GlobalAveragePool", "AveragePool"), _average),
    **dict.fromkeys(("Relu", "Clip"), _clamp),
    **dict.fromkeys((*_FUNCTIONS, "HardSigmoid", "LeakyRelu", "Elu"), _function),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Identity", "Reshape", "Transpose", "Slice", "Pad", "DepthToSpace", "Resize", "Concat"), _move),
    "MaxPool": _maximum,
    "Cast": _cast,
}
"""By operator: its value from a node and the values of its inputs."""
