"""The oracle: an ONNX file of quantized operations, computed in plain integers, slowly.

Written from the meaning of the ONNX operators and of nothing else of this project, so that it can prove the rest
right. DequantizeLinear does not make floats here: its result stays integers with a step. What is made of them stays
exact until a QuantizeLinear rounds it:

* sums of a convolution or product are integers times ``step_in * step_weight``; they become codes by one float32
  multiplication and one rounding, ``round(float32(sum) * ((step_in * step_weight) / step_out))``;
* sums, products, means and functions of integers are worked out in float64, and must not lie near a rounding tie.

Floats appear only where the file itself makes some: its inputs, its logits, and what is behind them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto

from slimbit.exchange.reference_operators import OPERATORS
from slimbit.exchange.reference_sums import Window, lost_by_saturation, spread_sums, sums_of
from slimbit.exchange.reference_values import (
    Array,
    Exact,
    Scaled,
    Value,
    along,
    array_of,
    attribute,
    exact_of,
    floats_of,
    stored_array,
)
from slimbit.records.errors import InputError

NEAR_TIE = 2e-5
"""Exact results so close to a tie, in output steps, are counted: float arithmetic in another order may differ there."""


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
            if node.op_type not in {**_RULES, **OPERATORS} or node.domain not in ("", "ai.onnx"):
                raise InputError(f"node {node.name!r} must be an operator that the reference knows, got {node.op_type}")
            given = [values[name] if name else None for name in node.input]
            rule = _RULES.get(node.op_type)
            values[node.output[0]] = OPERATORS[node.op_type](node, given) if rule is None else rule(self, node, given)
            if keep and node.op_type == "QuantizeLinear":
                codes[node.output[0]] = array_of(values[node.output[0]])
            for name in node.input:
                if last[name] == place and name not in self._stored and name not in wanted:
                    values.pop(name, None)
        outputs = [floats_of(values[output.name]) for output in self.model.graph.output]
        return outputs, codes


def _quantize(reference: Reference, _: NodeProto, given: list[Value | None]) -> Value:
    """``saturate(round(x / step) + zero point)``, half to even."""
    value, step, zero = given[0], array_of(given[1]), array_of(given[2])
    if isinstance(value, Scaled) and value.is_sum:
        rounded = np.rint(value.numbers.astype(np.float32) * (value.step / step))
    elif isinstance(value, Scaled | Exact):
        ratio = exact_of(value) / step.astype(np.float64)
        limits = np.iinfo(zero.dtype)
        inside = (ratio + zero > limits.min - 1) & (ratio + zero < limits.max + 1)
        reference.near_ties += int((np.abs(ratio - np.floor(ratio) - 0.5)[inside] < NEAR_TIE).sum())
        rounded = np.rint(ratio)
    else:
        rounded = np.rint(array_of(value) / step)
    limits = np.iinfo(zero.dtype)
    return np.clip(rounded.astype(np.float64) + zero, limits.min, limits.max).astype(zero.dtype)


def _dequantize(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    codes, step, zero = array_of(given[0]), array_of(given[1]), array_of(given[2])
    axis = attribute(node, "axis", 1)
    offset = along(zero.astype(np.int64), axis, codes.ndim)
    return Scaled(codes.astype(np.int64) - offset, along(step, axis, codes.ndim), codes)


def _multiply(reference: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    """Exact sums of products, times the product of both steps in float32."""
    values, weights, bias = given[0], given[1], given[2] if len(given) > 2 else None
    if not isinstance(values, Scaled) or not isinstance(weights, Scaled):
        return _float_product(node, array_of(values), array_of(weights), None if bias is None else array_of(bias))
    window = Window.of(node, weights.numbers)
    sums = sums_of(values.numbers, weights.numbers, window)
    if reference.saturating and values.bytes_ is not None and values.bytes_.dtype == np.uint8:
        sums = sums + lost_by_saturation(values.bytes_, weights.numbers, window, zero=_zero_byte(values))
    step = values.step * weights.step.reshape(-1)
    if isinstance(bias, Scaled):
        sums = sums + along(bias.numbers, 1, sums.ndim)
    elif bias is not None:
        sums = sums + along(_in_steps(array_of(bias), step), 1, sums.ndim)
    return Scaled(sums, along(step, 1, sums.ndim) if step.size > 1 else step.reshape(()), is_sum=True)


def _in_steps(bias: Array, step: Array) -> Array:
    """Real numbers as multiples of a step: whole where float32 has no number nearer to the whole one."""
    ratio = bias.astype(np.float64) / step.astype(np.float64)
    whole = np.rint(ratio)
    near: Array = np.abs(ratio - whole) <= 2.0**-21 * np.maximum(np.abs(whole), 1)
    return np.where(near, whole, ratio)


def _zero_byte(values: Scaled) -> int:
    assert values.bytes_ is not None
    return int(values.bytes_.reshape(-1)[0]) - int(values.numbers.reshape(-1)[0])


def _multiply_integers(reference: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    codes, weights, zero = array_of(given[0]), array_of(given[1]).astype(np.int64), array_of(given[2])
    window = Window.of(node, weights)
    sums = sums_of(codes.astype(np.int64) - int(zero), weights, window)
    if reference.saturating:
        sums = sums + lost_by_saturation(codes, weights, window, zero=int(zero))
    return sums


def _multiply_transposed(_: Reference, node: NodeProto, given: list[Value | None]) -> Value:
    values, weights = given[0], given[1]
    if isinstance(values, Scaled) and isinstance(weights, Scaled):
        sums = spread_sums(values.numbers, weights.numbers, node)
        return Scaled(sums, (values.step * weights.step).reshape(()), is_sum=True)
    sums = spread_sums(array_of(values).astype(np.float64), array_of(weights).astype(np.float64), node)
    bias = 0.0 if len(given) < 3 else along(array_of(given[2]).astype(np.float64), 1, sums.ndim)
    return (sums + bias).astype(np.float32)


def _float_product(node: NodeProto, values: Array, weights: Array, bias: Array | None) -> Array:
    sums = sums_of(values.astype(np.float64), weights.astype(np.float64), Window.of(node, weights))
    return (sums if bias is None else sums + along(bias, 1, sums.ndim)).astype(np.float32)


_RULES: Mapping[str, Callable[[Reference, NodeProto, list[Value | None]], Value]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _multiply,
    "Gemm": _multiply,
    "ConvInteger": _multiply_integers,
    "ConvTranspose": _multiply_transposed,
}
"""Operators that round, or that know how sums are formed; `OPERATORS` has the others."""
