"""Names of costs: metrics of a cost report and hardware cost models; and how a price for each is turned into widths."""

from typing import Literal

from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError, closest

HARDWARE = "hardware:"
"""Before the name of a hardware cost model."""
Allocation = Literal["analog", "digital", "filterwise", "table"]
"""How a price decides: by a closed form for a layer's step ("analog", "digital"), by a width for every filter
("filterwise"), or by a table of what each layer costs at each width."""
ALLOCATIONS: dict[str, Allocation] = {
    "esn_analog": "analog",
    "esn_digital": "digital",
    "mean_bits": "digital",
    "esn_filterwise": "filterwise",
    "weight_bytes": "filterwise",
    "hardware:analog_class_b": "analog",
    "hardware:ideal_digital": "digital",
    "hardware:filterwise": "filterwise",
}
FIXED = ("parameters",)
"""Costs that neither bit widths nor dropped filters change: no price can be for them."""


def allocation_of(metric: str) -> Allocation:
    """How a price for a cost decides.

    >>> allocation_of("esn_digital"), allocation_of("hardware:loom")
    ('digital', 'table')
    """
    return ALLOCATIONS.get(metric, "table")


def is_hardware(name: str) -> bool:
    """Whether a name is that of a hardware cost model: marked so, a ``.toml`` file, or ``package.module:function``.

    >>> [is_hardware(name) for name in ("macs", "hardware:loom", "npu.toml", "chips:edge")]
    [False, True, True, True]
    """
    return ":" in name or name.lower().endswith(".toml")


def check_cost_name(name: object, what: str, *, more: tuple[str, ...] = ()) -> None:
    """Raise `InputError` unless a text may name a cost; whether a machine exists is known when it is loaded.

    Args:
        name: E.g. ``weight_bytes``, ``hardware:loom``, ``npu.toml`` or ``package.module:function``.
        what: What it is for, at the beginning of the sentence.
        more: Other names that will do.

    >>> check_cost_name("bit_operation", "metric")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: metric must be one of parameters, macs, nonzero_macs, esn_analog, esn_digital, \
esn_filterwise, esn_analog_class_a, bit_operations, weight_bytes, mean_bits, hardware:NAME, a .toml file or \
package.module:function, got 'bit_operation'; did you mean bit_operations?
    """
    known = (*more, *METRICS)
    if not isinstance(name, str) or not (name in known or is_hardware(name)):
        raise InputError(
            f"{what} must be one of {', '.join(known)}, {HARDWARE}NAME, a .toml file or package.module:function, "
            f"got {name!r}{closest(str(name), known)}"
        )


def check_priceable(metric: str) -> None:
    """Raise `InputError` for a cost that no width changes."""
    if metric in FIXED:
        raise InputError(f"metric must be a cost that bit widths or dropped filters change, got {metric!r}")
