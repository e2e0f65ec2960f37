"""The hardware cost models that come with Slimbit: one formula each, on one layer's cost record.

They answer Fig. 1 of Prune or quantize? (2019): the same compression is worth nothing on one machine and much on
another.
Symbols: D = `LayerCost.macs` (whole pruned filters and channels already gone), nnz * c =
`LayerCost.nonzero_macs`, P_w and P_a = `LayerCost.weight_bits` and `LayerCost.activation_bits`.
A float layer counts with the width of its type, although no integer machine runs it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from slimbit.records.cost import LayerCost
from slimbit.records.errors import InputError

CostFunction = Callable[[LayerCost], float]
EnergyFunction = Callable[[LayerCost], float | None]


class UnfitError(InputError):
    """A machine cannot run a layer at these widths."""


@dataclass(frozen=True)
class HardwareModel:
    """What one machine pays for a layer.

    Attributes:
        name: How reports call it.
        unit: What the cost counts, e.g. "float32 MAC cycles" or "bits".
        function: Cost per image of one layer, in ``unit``; finite and never negative.
        energy: Energy per image of one layer in picojoules, or None for a layer it cannot tell.
        source: Where the formula comes from.
        description: One line on the machine.
        definition: What a file says of the machine, as JSON; "" where code does.
        depends_on_widths: Whether bit widths or dropped filters change the cost of a layer; where its shape alone does,
            no price can be for it.

    >>> HardwareModel("one cycle per weight", "cycles", lambda layer: layer.weights).unit
    'cycles'
    """

    name: str
    unit: str
    function: CostFunction
    energy: EnergyFunction | None = None
    source: str = ""
    description: str = ""
    definition: str = ""
    depends_on_widths: bool = True


HOROWITZ = "Horowitz, ISSCC 2014 (45 nm, 0.9 V)"

PICOJOULES: Mapping[str, float] = MappingProxyType({
    "int8_add": 0.03, "int32_add": 0.1, "fp16_add": 0.4, "fp32_add": 0.9,
    "int8_multiply": 0.2, "int32_multiply": 3.1, "fp16_multiply": 1.1, "fp32_multiply": 3.7,
})  # fmt: skip
"""Energy of one operation in picojoules, from Horowitz: arithmetic alone, no memory, no instruction fetch."""

MAC_PICOJOULES: Mapping[int, float] = MappingProxyType({
    32: PICOJOULES["fp32_multiply"] + PICOJOULES["fp32_add"],
    16: PICOJOULES["fp16_multiply"] + PICOJOULES["fp16_add"],
    # The sum of many 8-bit products needs a wide accumulator, so the add is the 32-bit one.
    8: PICOJOULES["int8_multiply"] + PICOJOULES["int32_add"],
})  # fmt: skip
"""Energy of one multiply and one accumulating add by operand width, in picojoules."""

SIMD_COST: Mapping[int, float] = MappingProxyType({8: 1 / 4, 16: 1 / 2, 32: 1.0})
"""Cost of one MAC by lane width: a register holds four 8-bit, two 16-bit or one 32-bit lane."""


def skipping_cost(layer: LayerCost, overhead: float) -> float:
    """MACs paid by a machine that skips zero weights at a price: ``min(D, nnz c (1 + overhead))``."""
    return min(layer.macs, layer.nonzero_macs * (1 + overhead))


def slices(bits: int, width: int) -> int:
    """How many ``width``-bit slices hold ``bits`` bits: ``ceil(bits / width)``.

    >>> slices(9, 8), slices(8, 8), slices(0, 8)
    (2, 1, 0)
    """
    return -(-bits // width)


def next_power_of_two(number: int) -> int:
    """p2: the smallest power of two that is at least ``number``, and 0 for 0.

    >>> [next_power_of_two(number) for number in range(6)]
    [0, 1, 2, 4, 4, 8]
    """
    return 1 << (number - 1).bit_length() if number else 0


def _simd_lane(layer: LayerCost) -> int:
    bits = max(layer.weight_bits, layer.activation_bits)
    for lane in SIMD_COST:
        if bits <= lane:
            return lane
    raise UnfitError(f"layer {layer.name!r} must have at most 32 bits for hardware model 'simd', got {bits}")


def _simd(layer: LayerCost) -> float:
    return layer.macs * SIMD_COST[_simd_lane(layer)]


def _simd_energy(layer: LayerCost) -> float:
    return layer.macs * MAC_PICOJOULES[_simd_lane(layer)]


def _int8_array(layer: LayerCost) -> int:
    return layer.macs * slices(layer.weight_bits, 8) * slices(layer.activation_bits, 8)


def _bit_fusion(layer: LayerCost) -> float:
    bricks = [next_power_of_two(slices(bits, 2)) for bits in (layer.weight_bits, layer.activation_bits)]
    return layer.macs * bricks[0] * bricks[1] / 16


def _analog(metric: Literal["esn_analog", "esn_analog_class_a"], model: str) -> CostFunction:
    def cost(layer: LayerCost) -> float:
        value = layer[metric]
        if value is None:
            raise InputError(
                f"layer {layer.name!r} must be quantized for hardware model {model!r}, got {layer.grid}:"
                " a float weight has no levels, so give bits (--bits 8)"
            )
        return value

    return cost


def sparse_model(overhead: float = 0.5) -> HardwareModel:
    """Accelerator that skips zero weights at a price: ``min(D, nnz c (1 + overhead))``.

    Args:
        overhead: Extra work per non-zero MAC for indices and uneven load, as a share of a MAC. 0.5, the
            default, is the friendly end of 0.5 to 1: zeros pay below a density of 2/3 (0.5) or 1/2 (1).

    Raises:
        InputError: If ``overhead`` is negative or not finite.

    >>> sparse_model(1.0).description
    'skips zero weights at 1 MAC of overhead per non-zero MAC; never above dense'
    """
    if not 0 <= overhead < float("inf"):
        raise InputError(f"overhead of the sparse accelerator must be 0 or more and finite, got {overhead}")
    return HardwareModel(
        "sparse",
        "MAC cycles",
        lambda layer: skipping_cost(layer, overhead),
        source="min(D, nnz c (1 + overhead)), derived",
        description=f"skips zero weights at {overhead:g} MAC of overhead per non-zero MAC; never above dense",
    )


_MODELS = (
    HardwareModel(
        "scalar_cpu",
        "MAC cycles",
        lambda layer: layer.nonzero_macs,
        lambda layer: layer.nonzero_macs * MAC_PICOJOULES[32],
        f"nnz c; energy: fp32 multiply + fp32 add, {HOROWITZ}",
        "one float32 MAC after another, zero weights skipped; bits do not matter",
    ),
    HardwareModel(
        "simd",
        "float32 MAC cycles",
        _simd,
        _simd_energy,
        f"D x {{32: 1, 16: 1/2, 8: 1/4}}; energy: fp32 + fp32, fp16 + fp16, int8 + int32 add, {HOROWITZ}",
        "SIMD processor or GPU: the narrowest of 8, 16 and 32 bits that holds weight and activation",
    ),
    HardwareModel(
        "int8_array",
        "8x8-bit MAC cycles",
        _int8_array,
        lambda layer: _int8_array(layer) * MAC_PICOJOULES[8],
        f"D x ceil(P_w/8) x ceil(P_a/8); energy: int8 multiply + int32 add per pass, {HOROWITZ}",
        "array of 8x8-bit multipliers; wider operands take several passes",
    ),
    HardwareModel(
        "stripes",
        "16-bit MAC cycles",
        lambda layer: layer.macs * layer.activation_bits / 16,
        source="D x P_a / 16; Judd et al., Stripes, MICRO 2016",
        description="activations bit by bit; weight bits do not matter",
    ),
    HardwareModel(
        "loom",
        "16x16-bit MAC cycles",
        lambda layer: layer.macs * layer.activation_bits * layer.weight_bits / 256,
        source="D x P_a x P_w / 256; Sharify et al., Loom, DAC 2018",
        description="activations and weights bit by bit",
    ),
    HardwareModel(
        "bit_fusion",
        "8x8-bit MAC cycles",
        _bit_fusion,
        source="D x p2(ceil(P_w/2)) x p2(ceil(P_a/2)) / 16; Sharma et al., Bit Fusion, ISCA 2018",
        description="2-bit multipliers that join to powers of two",
    ),
    HardwareModel(
        "filterwise",
        "bits",
        lambda layer: layer.esn_filterwise,
        source="ESN'_d, section 3 of Prune or quantize? (2019); Maki et al., A-SSCC 2018",
        description="MAC array with one weight width per filter",
    ),
    sparse_model(),
    HardwareModel(
        "analog_class_a",
        "squared steps",
        _analog("esn_analog_class_a", "analog_class_a"),
        source="sum of c x weights x max q^2, derived",
        description="analog, class-A amplifier: every weight pays for the layer's peak",
    ),
    HardwareModel(
        "analog_class_b",
        "squared steps",
        _analog("esn_analog", "analog_class_b"),
        source="ESN_a, Eq. (2) of Prune or quantize? (2019)",
        description="analog, class-B amplifier: every weight pays for its own square",
    ),
    HardwareModel(
        "ideal_digital",
        "bits",
        lambda layer: layer.esn_digital,
        source="ESN_d, Eq. (3) of Prune or quantize? (2019)",
        description="ideal digital: every weight pays for its own bits, zeros for none",
    ),
)

MODELS: Mapping[str, HardwareModel] = MappingProxyType({model.name: model for model in _MODELS})
"""Every built-in model by name, in the order of tables."""
