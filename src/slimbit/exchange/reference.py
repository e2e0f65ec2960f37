"""The oracle: an ONNX file of quantized operations, computed in plain integers, slowly.

Written from the meaning of the ONNX operators and of nothing else of this project, so that it can prove the rest
right. DequantizeLinear does not make floats here: its result stays integers with a step. What is made of them stays
exact until a QuantizeLinear rounds it:

* sums of a convolution or product are integers times ``step_in * step_weight``; they become codes by one float32
  multiplication and one rounding, ``round(float32(sum) * ((step_in * step_weight) / step_out))``;
* sums, products, means and functions of integers are worked out in float64, and must not lie near a rounding tie.

Floats appear only where the file itself makes some: its inputs, its logits, and what is behind them.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slimbit.records.errors import InputError

Array = NDArray[Any]
NEAR_TIE = 2e-5
"""Exact results so close to a tie, in output steps, are counted: float arithmetic in another order may differ there."""


@dataclass(frozen=True)
class Scaled:
    """Integers times a step: ``numbers * step``; a step per entry of an axis has that axis.

    Attributes:
        numbers: int64; float64 where a bias of real numbers was added.
        step: float32, one number or shaped to line up with the numbers.
        bytes_: The codes as stored, before the zero point was taken off; for the saturation of 16-bit sums.
        is_sum: Whether they are sums of products: these are rounded by one float32 multiplication.
    """

    numbers: Array
    step: Array
    bytes_: Array | None = None
    is_sum: bool = False

    def exact(self) -> Array:
        """The real numbers in float64."""
        return self.numbers * self.step.astype(np.float64)

    def rounded(self) -> Array:
        """The real numbers as one float32 multiplication makes them."""
        return self.numbers.astype(np.float32) * self.step


@dataclass(frozen=True)
class Exact:
    """Real numbers in float64 that only a QuantizeLinear may round."""

    numbers: Array


Value = Array | Scaled | Exact


@dataclass
class Reference:
    """An ONNX model as the oracle runs it.

    Attributes:
        model: The model.
        saturating: Whether sums of products are formed as processors without VNNI form them: pairs of u8 x s8
            products are added in 16 bits and saturate.
        near_ties: Results so far that lay near a rounding tie.
    """

    model: ModelProto
    saturating: bool = False
    near_ties: int = 0
    _stored: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored = {tensor.name: stored_array(tensor) for tensor in self.model.graph.initializer}

    def run(self, inputs: Mapping[str, Array], *, keep: bool = False) -> tuple[list[Array], dict[str, Array]]:
        """Outputs as float32, and with ``keep`` the integer codes of every QuantizeLinear.

        Args:
            inputs: By name, float32, batch first.
            keep: Whether codes are wanted.

        Raises:
            InputError: An operator that the oracle does not know.
        """
        values: dict[str, Value] = {**self._stored, **{name: np.asarray(x, np.float32) for name, x in inputs.items()}}
        codes: dict[str, Array] = {}
        last = {name: place for place, node in enumerate(self.model.graph.node) for name in node.input}
        wanted = {output.name for output in self.model.graph.output}
        for place, node in enumerate(self.model.graph.node):
            rule = _RULES.get(node.op_type)
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise InputError(f"node {node.name!r} must be an operator that the reference knows, got {node.op_type}")
            given = [values[name] if name else None for name in node.input]
            values[node.output[0]] = rule(self, node, given)
            if keep and node.op_type == "QuantizeLinear":
                codes[node.output[0]] = _array(values[node.output[0]])
            for name in node.input:
                if last[name] == place and name not in self._stored and name not in wanted:
                    values.pop(name, None)
        outputs = [_as_floats(values[output.name]) for output in self.model.graph.output]
        return outputs, codes


def stored_array(tensor: TensorProto) -> Array:
    """A stored tensor; integers of four bits as int64."""
    array: Array = numpy_helper.to_array(tensor)
    return array.astype(np.int64) if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else array


Rule = Callable[[Reference, NodeProto, list[Value | None]], Value]
_RULES: dict[str, Rule] = {}


def _handles(*operators: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def _array(value: Value | None) -> Array:
    if not isinstance(value, np.ndarray):
        raise InputError(f"operands must be plain numbers here, got {type(value).__name__}")
    return value


def _as_floats(value: Value) -> Array:
    if isinstance(value, Scaled):
        return value.rounded()
    return value.numbers.astype(np.float32) if isinstance(value, Exact) else value.astype(np.float32)


def _exact(value: Value | None) -> Array:
    if isinstance(value, Scaled | Exact):
        return value.exact() if isinstance(value, Scaled) else value.numbers
    return _array(value).astype(np.float64)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _along(values: Array, axis: int, ndim: int) -> Array:
    """One number per entry of an axis, shaped to line up."""
    return values.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)]) if values.ndim else values


@_handles("QuantizeLinear")
def _quantize(reference: Reference, _: NodeProto, given: list[Value | None]) -> Value:
    """``saturate(round(x / step) + zero point)``, half to even."""
    value, step, zero = given[0], _array(given[1]), _array(given[2])
    if isinstance(value, Scaled) and value.is_sum:
        rounded = np.rint(value.numbers.astype(np.float32) * (value.step / step))
    elif isinstance(value, Scaled | Exact):
        ratio = _exact(value) / step.astype(np.float64)
        limits = np.iinfo(zero.dtype)
        inside = (ratio + zero > limits.min - 1) & (ratio + zero < limits.max + 1)
        reference.near_ties += int((np.abs(ratio - np.floor(ratio) - 0.5)[inside] < NEAR_TIE).sum())
        rounded = np.rint(ratio)
    else:
        rounded = np.rint(_array(value) / step)
    limits = np.iinfo(zero.dtype)
    return np.clip(rounded.astype(np.float64) + zero, limits.min, limits.max).astype(zero.dtype)


@_handles("DequantizeLinear")
def _dequantize(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    codes, step, zero = _array(given[0]), _array(given[1]), _array(given[2])
    axis = _attribute(node, "axis", 1)
    offset = _along(zero.astype(np.int64), axis, codes.ndim)
    return Scaled(codes.astype(np.int64) - offset, _along(step, axis, codes.ndim), codes)


@_handles("Conv", "Gemm")
def _multiply(reference: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    """Exact sums of products, times the product of both steps in float32."""
    values, weights, bias = given[0], given[1], given[2] if len(given) > 2 else None
    if not isinstance(values, Scaled) or not isinstance(weights, Scaled):
        return _float_product(node, _array(values), _array(weights), None if bias is None else _array(bias))
    window = _Window.of(node, weights.numbers)
    sums = _sums(values.numbers, weights.numbers, window)
    if reference.saturating and values.bytes_ is not None and values.bytes_.dtype == np.uint8:
        sums = sums + _lost_by_saturation(values.bytes_, weights.numbers, window, zero=_zero_byte(values))
    step = values.step * weights.step.reshape(-1)
    if isinstance(bias, Scaled):
        sums = sums + _along(bias.numbers, 1, sums.ndim)
    elif bias is not None:
        sums = sums + _along(_in_steps(_array(bias), step), 1, sums.ndim)
    return Scaled(sums, _along(step, 1, sums.ndim) if step.size > 1 else step.reshape(()), is_sum=True)


def _in_steps(bias: Array, step: Array) -> Array:
    """Real numbers as multiples of a step: whole where float32 has no number nearer to the whole one."""
    ratio = bias.astype(np.float64) / step.astype(np.float64)
    whole = np.rint(ratio)
    near: Array = np.abs(ratio - whole) <= 2.0**-21 * np.maximum(np.abs(whole), 1)
    return np.where(near, whole, ratio)


def _zero_byte(values: Scaled) -> int:
    assert values.bytes_ is not None
    return int(values.bytes_.reshape(-1)[0]) - int(values.numbers.reshape(-1)[0])


@_handles("ConvInteger")
def _multiply_integers(reference: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    codes, weights, zero = _array(given[0]), _array(given[1]).astype(np.int64), _array(given[2])
    window = _Window.of(node, weights)
    sums = _sums(codes.astype(np.int64) - int(zero), weights, window)
    if reference.saturating:
        sums = sums + _lost_by_saturation(codes, weights, window, zero=int(zero))
    return sums


@_handles("ConvTranspose")
def _multiply_transposed(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    values, weights = given[0], given[1]
    if isinstance(values, Scaled) and isinstance(weights, Scaled):
        sums = _spread_sums(values.numbers, weights.numbers, node)
        return Scaled(sums, (values.step * weights.step).reshape(()), is_sum=True)
    sums = _spread_sums(_array(values).astype(np.float64), _array(weights).astype(np.float64), node)
    bias = 0.0 if len(given) < 3 else _along(_array(given[2]).astype(np.float64), 1, sums.ndim)
    return (sums + bias).astype(np.float32)


def _float_product(node: NodeProto, values: Array, weights: Array, bias: Array | None) -> Array:
    sums = _sums(values.astype(np.float64), weights.astype(np.float64), _Window.of(node, weights))
    return (sums if bias is None else sums + _along(bias, 1, sums.ndim)).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """Geometry of a convolution; a product has no kernel."""

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, node: NodeProto, weights: Array) -> "_Window":
        dims = weights.ndim - 2
        if node.op_type == "Gemm":
            if not _attribute(node, "transB", 0) or _attribute(node, "transA", 0):
                raise InputError(f"product {node.name!r} must have its weights transposed, got transB 0")
            return cls()
        pads = _attribute(node, "pads", [0] * (2 * dims))
        return cls(
            weights.shape[2:],
            tuple(_attribute(node, "strides", [1] * dims)),
            tuple(zip(pads[:dims], pads[dims:], strict=True)),
            tuple(_attribute(node, "dilations", [1] * dims)),
            _attribute(node, "group", 1),
        )

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Number of positions per dimension."""
        return tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                shape, self.pads, self.dilations, self.kernel, self.strides, strict=True
            )
        )

    def parts(self, values: Array, sizes: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """For each place in the kernel: what all positions read there."""
        for place in itertools.product(*map(range, self.kernel)):
            cut = tuple(
                slice(k * dilation, k * dilation + stride * (size - 1) + 1, stride)
                for k, dilation, stride, size in zip(place, self.dilations, self.strides, sizes, strict=True)
            )
            yield place, values[(slice(None), slice(None), *cut)]


EXACT = 1 << 53


def _sums(values: Array, weights: Array, window: _Window) -> Array:
    """``sums[n, f, p] = sum_{c, k} weights[f, c, k] * values[n, c, p + k]``; integers give integers."""
    integer = np.issubdtype(weights.dtype, np.integer)
    if integer and weights.size:
        bound = int(np.abs(weights).reshape(len(weights), -1).sum(axis=1).max()) * int(np.abs(values).max(initial=0))
        assert bound < EXACT  # float64 below holds every sum exactly
    wide, factors = values.astype(np.float64), weights.astype(np.float64)
    if not window.kernel:
        total = wide @ factors.T
        return total.astype(np.int64) if integer else total
    wide = np.pad(wide, ((0, 0), (0, 0), *window.pads))
    sizes = window.sizes(values.shape[2:])
    filters, inputs = len(weights) // window.groups, weights.shape[1]
    total = np.zeros((len(values), len(weights), *sizes))
    for place, part in window.parts(wide, sizes):
        for group in range(window.groups):
            rows, reads = (slice(group * n, (group + 1) * n) for n in (filters, inputs))
            read = part[:, reads].reshape(len(values), inputs, -1)
            index: tuple[Any, ...] = (rows, slice(None), *place)
            found = factors[index] @ read
            total[:, rows] += found.reshape(len(values), filters, *sizes)
    return total.astype(np.int64) if integer else total


def _spread_sums(values: Array, weights: Array, node: NodeProto) -> Array:
    """A transposed convolution: every input spreads over the positions that its kernel covers."""
    dims, groups = values.ndim - 2, _attribute(node, "group", 1)
    strides, dilations = (_attribute(node, key, [1] * dims) for key in ("strides", "dilations"))
    pads, extra = _attribute(node, "pads", [0] * 2 * dims), _attribute(node, "output_padding", [0] * dims)
    spans = [
        stride * (size - 1) + dilation * (kernel - 1) + 1 + more
        for stride, size, dilation, kernel, more in zip(
            strides, values.shape[2:], dilations, weights.shape[2:], extra, strict=True
        )
    ]
    inputs, filters = values.shape[1] // groups, weights.shape[1]
    total = np.zeros((len(values), filters * groups, *spans), np.float64)
    for place in itertools.product(*map(range, weights.shape[2:])):
        cut = tuple(
            slice(k * dilation, k * dilation + stride * (size - 1) + 1, stride)
            for k, dilation, stride, size in zip(place, dilations, strides, values.shape[2:], strict=True)
        )
        for group in range(groups):
            read = values[:, group * inputs : (group + 1) * inputs].astype(np.float64)
            index: tuple[Any, ...] = (slice(group * inputs, (group + 1) * inputs), slice(None), *place)
            factors = weights[index].astype(np.float64)
            rows = slice(group * filters, (group + 1) * filters)
            total[(slice(None), rows, *cut)] += np.einsum("nc...,cf->nf...", read, factors)
    kept = tuple(slice(pads[d], span - pads[dims + d]) for d, span in enumerate(spans))
    total = total[(slice(None), slice(None), *kept)]
    return total.astype(np.int64) if np.issubdtype(weights.dtype, np.integer) else total


def _lost_by_saturation(codes: Array, weights: Array, window: _Window, *, zero: int) -> Array:
    """What is missing from the sums where pairs of byte products are added in 16 bits, as AVX2 does.

    Neighbours are entries of a patch in the order positions, channels (images are stored channels last).
    Depthwise convolutions have kernels of their own, without pairs.
    """
    if window.groups > 1 and weights.shape[1] == 1:
        return np.zeros((), np.int64)
    raw, shape = codes.astype(np.int64), codes.shape
    if not window.kernel:
        return _pair_loss(raw[:, None, :], weights)[:, 0]
    raw = np.pad(raw, ((0, 0), (0, 0), *window.pads), constant_values=zero)
    sizes = window.sizes(shape[2:])
    filters, inputs = len(weights) // window.groups, weights.shape[1]
    lost = np.zeros((shape[0], len(weights), math.prod(sizes)), np.int64)
    for group in range(window.groups):
        rows, reads = (slice(group * n, (group + 1) * n) for n in (filters, inputs))
        patches = np.stack(
            [part[:, reads].reshape(shape[0], inputs, -1) for _, part in window.parts(raw, sizes)], axis=1
        )  # images, places, channels, positions
        rows_of = patches.transpose(0, 3, 1, 2).reshape(shape[0], -1, patches.shape[1] * inputs)
        flat = np.moveaxis(weights[rows], 1, -1).reshape(filters, -1)
        lost[:, rows] = _pair_loss(rows_of, flat).transpose(0, 2, 1)
    return lost.reshape(shape[0], len(weights), *sizes)


def _pair_loss(rows: Array, weights: Array) -> Array:
    """``sum over pairs of (saturated - exact)``; rows (images, positions, features), weights (filters, features)."""
    odd = rows.shape[-1] % 2
    rows, weights = (np.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, odd),)) for x in (rows, weights))
    lost = np.zeros((*rows.shape[:2], len(weights)), np.int64)
    for k in range(0, rows.shape[-1], 2):
        pair = rows[..., k, None] * weights[:, k] + rows[..., k + 1, None] * weights[:, k + 1]
        lost += np.clip(pair, -(1 << 15), (1 << 15) - 1) - pair
    return lost


@_handles("Add", "Mul")
def _arithmetic(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
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
    return Exact(_exact(left) + _exact(right) if plus else _exact(left) * _exact(right))


@_handles("GlobalAveragePool", "AveragePool")
def _average(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    values = _exact(given[0])
    if node.op_type == "GlobalAveragePool":
        return Exact(values.mean(axis=tuple(range(2, values.ndim)), keepdims=True))
    window = _pool_window(node, values.ndim - 2)
    sizes = window.sizes(values.shape[2:])
    padded = np.pad(values, ((0, 0), (0, 0), *window.pads))
    if any(map(any, window.pads)) and not _attribute(node, "count_include_pad", 0):
        raise InputError(f"average pooling {node.name!r} must count its padding, got count_include_pad 0")
    parts = [part for _, part in window.parts(padded, sizes)]
    return Exact(sum(parts[1:], parts[0].copy()) / len(parts))


def _pool_window(node: NodeProto, dims: int) -> _Window:
    kernel = tuple(_attribute(node, "kernel_shape", ()))
    pads = _attribute(node, "pads", [0] * (2 * dims))
    strides, dilations = (tuple(_attribute(node, key, [1] * dims)) for key in ("strides", "dilations"))
    return _Window(kernel, strides, tuple(zip(pads[:dims], pads[dims:], strict=True)), dilations)


@_handles("MaxPool")
def _maximum(reference: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    if isinstance(given[0], Scaled) and given[0].step.size == 1:  # the order of integers is that of real numbers
        largest_ = _maximum(reference, node, [given[0].numbers])
        return replace(given[0], numbers=_array(largest_), bytes_=None)
    values = _array(given[0])
    window = _pool_window(node, values.ndim - 2)
    sizes = window.sizes(values.shape[2:])
    if _attribute(node, "ceil_mode", 0):
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


def _ceiled(window: _Window, dim: int, size: int) -> int:
    """Positions where the last window may hang over; it must begin inside."""
    low, high = window.pads[dim]
    span = window.dilations[dim] * (window.kernel[dim] - 1) + 1
    count = -(-(size + low + high - span) // window.strides[dim]) + 1
    return count - ((count - 1) * window.strides[dim] >= size + low)


@_handles("Relu", "Clip")
def _clamp(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    value = given[0]
    if node.op_type == "Relu" and isinstance(value, Scaled):
        return replace(value, numbers=np.maximum(value.numbers, 0))
    bounds = [None if x is None else _array(x) for x in (*given[1:], None, None)[:2]]
    low, high = (np.zeros(()), None) if node.op_type == "Relu" else bounds
    if isinstance(value, np.ndarray):
        return np.clip(value, low, high).astype(value.dtype) if bounds != [None, None] or low is not None else value
    return Exact(np.clip(_exact(value), low, high))


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


@_handles(*_FUNCTIONS, "HardSigmoid", "LeakyRelu", "Elu")
def _function(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    values, alpha = _exact(given[0]), _attribute(node, "alpha", None)
    if node.op_type == "HardSigmoid":
        result = np.clip(values * float(np.float32(alpha)) + _attribute(node, "beta", 0.5), 0, 1)
    elif node.op_type == "LeakyRelu":
        result = np.where(values < 0, values * alpha, values)
    elif node.op_type == "Elu":
        result = np.where(values < 0, alpha * np.expm1(np.minimum(values, 0)), values)
    else:
        result = _FUNCTIONS[node.op_type](values)
    return result.astype(np.float32) if isinstance(given[0], np.ndarray) else Exact(result)


@_handles("Softmax", "LogSoftmax")
def _softmax(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    values, axis = _as_floats_of(given[0]).astype(np.float64), _attribute(node, "axis", -1)
    shifted = values - values.max(axis=axis, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
    result: Array = logs if node.op_type == "LogSoftmax" else np.exp(logs)
    return result.astype(np.float32)


def _as_floats_of(value: Value | None) -> Array:
    assert value is not None
    return _as_floats(value)


@_handles("Identity", "Reshape", "Transpose", "Slice", "Pad", "DepthToSpace", "Resize", "Concat")
def _move(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
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
    axis = _attribute(node, "axis", 0)
    alike = [x for x in given if isinstance(x, Scaled) and not x.is_sum and np.array_equal(x.step, first.step)]
    if len(alike) < len(given):
        return Exact(np.concatenate([_exact(x) for x in given], axis=axis))
    return Scaled(np.concatenate([x.numbers for x in alike], axis=axis), first.step)


def _moved(node: NodeProto, values: Array, given: list[Value | None]) -> Array:  # noqa: PLR0911 - one per operator
    rest = [None if x is None else x for x in given[1:]]
    match node.op_type:
        case "Reshape":
            return values.reshape([int(n) for n in _array(rest[0])])
        case "Transpose":
            return values.transpose(_attribute(node, "perm", None))
        case "Slice":
            starts, stops, axes, steps = (_array(x).tolist() for x in rest)
            index = [slice(None)] * values.ndim
            for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
                index[axis] = slice(start, stop, step)
            return values[tuple(index)]
        case "Pad":
            pads = _array(rest[0]).tolist()
            fill = int(_array(rest[1])) if len(rest) > 1 else 0
            return np.pad(
                values, list(zip(pads[: values.ndim], pads[values.ndim :], strict=True)), constant_values=fill
            )
        case "DepthToSpace":
            block = _attribute(node, "blocksize", 1)
            n, c, h, w = values.shape
            split = values.reshape(n, c // block**2, block, block, h, w)
            return split.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // block**2, h * block, w * block)
        case "Resize":
            for axis, factor in enumerate(_array(rest[1]).tolist()):
                values = values.repeat(int(factor), axis=axis)
            return values
        case "Concat":
            return np.concatenate([values, *(_array(x) for x in rest)], axis=_attribute(node, "axis", 0))
        case _:
            return values


@_handles("Cast")
def _cast(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    """To float32 one rounding; among integers none."""
    return _array(given[0]).astype(helper.tensor_dtype_to_np_dtype(_attribute(node, "to", 0)))
