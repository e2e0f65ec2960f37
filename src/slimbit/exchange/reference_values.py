"""Values of the integer reference: integers with a step, exact real numbers, floats; and attributes of nodes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from slimbit.records.errors import InputError

Array = NDArray[Any]


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


def stored_array(tensor: TensorProto) -> Array:
    """A stored tensor; integers of four bits as int64."""
    array: Array = numpy_helper.to_array(tensor)
    return array.astype(np.int64) if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4) else array


def array_of(value: Value | None) -> Array:
    """Plain numbers.

    Raises:
        InputError: Something else.
    """
    if not isinstance(value, np.ndarray):
        raise InputError(f"operands must be plain numbers here, got {type(value).__name__}")
    return value


def floats_of(value: Value | None) -> Array:
    """As float32, by one rounding."""
    if isinstance(value, Scaled):
        return value.rounded()
    return (value.numbers if isinstance(value, Exact) else array_of(value)).astype(np.float32)


def exact_of(value: Value | None) -> Array:
    """The real numbers in float64, nothing rounded."""
    if isinstance(value, Scaled | Exact):
        return value.exact() if isinstance(value, Scaled) else value.numbers
    return array_of(value).astype(np.float64)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute of a node, text as text."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def along(values: Array, axis: int, ndim: int) -> Array:
    """One number per entry of an axis, shaped to line up."""
    return values.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)]) if values.ndim else values
