"""How the values between layers become integers."""

import math
import struct
from typing import Any, Literal

from slimbit.records.codec import record
from slimbit.records.errors import InputError

RangeMethod = Literal["mse", "max", "percentile", "aciq_laplace", "aciq_gauss"]
"""How the range of a value is chosen, see `slimbit.numerics.activation_range`."""
RANGE_METHODS: tuple[RangeMethod, ...] = ("mse", "max", "percentile", "aciq_laplace", "aciq_gauss")
Codes = Literal["unsigned", "signed", "affine"]
"""Codes of activations: unsigned where values are never negative, else signed around zero; always signed around zero
(what TensorRT takes); or unsigned with a zero point wherever values can be negative."""
FEWEST_BITS, MOST_BITS = 2, 8


@record
class ActivationQuantizer:
    """One value of the network as integers: ``real = step * (code - zero_point)``, codes from ``low`` to ``high``.

    Attributes:
        value: Name of the value, as in `slimbit.records.dataflow.Operation`.
        bits: Width of the codes.
        step: Positive and exact in float32, as files for runtimes store it.
        zero_point: Code of zero.
        signed: Whether codes run from ``-2^(bits-1)`` to ``2^(bits-1) - 1`` instead of from 0 to ``2^bits - 1``.

    >>> relu = ActivationQuantizer(value="relu", bits=4, step=0.5, signed=False)
    >>> relu.low, relu.high, relu.limits
    (0, 15, (0.0, 7.5))
    """

    value: str
    bits: int
    step: float
    zero_point: int = 0
    signed: bool = False

    def __post_init__(self) -> None:
        where = f"of the value {self.value!r}"
        if not isinstance(self.value, str) or not self.value:
            raise InputError(f"value of an activation quantizer must be a name, got {self.value!r}")
        check_activation_bits(self.bits, f"activation bits {where}")
        number = isinstance(self.step, int | float) and not isinstance(self.step, bool)
        if not number or not math.isfinite(self.step) or self.step <= 0:
            raise InputError(f"step {where} must be a positive number, got {self.step!r}")
        if to_float32(self.step) != self.step:
            raise InputError(f"step {where} must be exact in float32, got {self.step!r}")
        if not isinstance(self.signed, bool):
            raise InputError(f"signed {where} must be true or false, got {self.signed!r}")
        whole = isinstance(self.zero_point, int) and not isinstance(self.zero_point, bool)
        if not whole or not self.low <= self.zero_point <= self.high:
            raise InputError(f"zero point {where} must be from {self.low} to {self.high}, got {self.zero_point!r}")

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Largest code."""
        return self.low + (1 << self.bits) - 1

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest number that has a code of its own."""
        return self.step * (self.low - self.zero_point), self.step * (self.high - self.zero_point)


def check_activation_bits(bits: Any, what: str = "activation bits") -> None:
    """Raise `InputError` unless it is a whole number from 2 to 8."""
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not whole or not FEWEST_BITS <= bits <= MOST_BITS:
        raise InputError(f"{what} must be a whole number from {FEWEST_BITS} to {MOST_BITS}, got {bits!r}")


def to_float32(number: float) -> float:
    """The nearest float32.

    >>> to_float32(0.1)
    0.10000000149011612
    """
    try:
        return float(struct.unpack("<f", struct.pack("<f", number))[0])
    except OverflowError:
        return math.copysign(math.inf, number)
