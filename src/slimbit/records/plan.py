"""What compression decided: which step each layer gets, how it is rounded, which statistics follow."""

import math
from typing import get_args

from slimbit.records.activations import ActivationQuantizer
from slimbit.records.codec import digest, record
from slimbit.records.config import Grid, QuantConfig
from slimbit.records.errors import InputError, check_choice
from slimbit.records.setting import Price, Setting

SCHEMA = 2


@record
class LayerPlan:
    """What happens to one layer.

    Attributes:
        name: As in `LayerSpec`.
        steps: The step Delta_l, or one per filter.
        grid: Grid of the levels.
        limits: Largest level, one for the layer or one per filter; empty = no clip.
        kept: Filters that stay; None = all. The others become zero and cost nothing.
        rate: Weight of the cost in rate-aware rounding, in squared weights; one, or one per filter; empty = 0.
    """

    name: str
    steps: tuple[float, ...]
    grid: Grid = "midrise_zero"
    limits: tuple[float, ...] = ()
    kept: tuple[int, ...] | None = None
    rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"of layer {self.name!r}"
        check_choice(f"grid {where}", self.grid, get_args(Grid))
        if not self.steps:
            raise InputError(f"steps {where} must hold one number or one per filter, got none")
        _check_numbers(f"steps {where}", self.steps, above=True)
        _check_numbers(f"limits {where}", self.limits, above=False)
        _check_numbers(f"rate {where}", self.rate, above=False)
        if self.kept is not None and list(self.kept) != sorted({int(i) for i in self.kept if i >= 0}):
            raise InputError(f"kept filters {where} must be rising filter numbers, got {self.kept}")


@record
class CompressionPlan:
    """The whole decision for a network; `slimbit.apply.compress.compress` carries it out.

    Attributes:
        network: Name of the network, for people.
        policy: What chose the steps: "max_abs", "sigma", "signal", "optimal", or a name of the user's.
        layers: One entry per layer that is quantized; a layer without an entry stays float.
        setting: What turned the knob; None where nothing did.
        config: How it is carried out: rounding, compensation, statistics.
        clamped: Layers that could not get the step which the policy asked for, and got the nearest possible one.
        activations: Quantizers of all values between layers; empty = activations stay float.
    """

    network: str
    policy: str
    layers: tuple[LayerPlan, ...]
    setting: Setting | None = None
    config: QuantConfig = QuantConfig()
    clamped: tuple[str, ...] = ()
    activations: tuple[ActivationQuantizer, ...] = ()

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"layers of a plan must be named once, got {', '.join(twice)} twice")
        unknown = [name for name in self.clamped if name not in names]
        if unknown:
            raise InputError(f"clamped must name layers of the plan, got {', '.join(map(repr, unknown))}")
        values = [quantizer.value for quantizer in self.activations]
        if len({*values}) != len(values):
            raise InputError(f"activations of a plan must be named once, got {len(values) - len({*values})} twice")

    @property
    def price(self) -> Price | None:
        """The price that the steps are optimal for, where there is one."""
        return self.setting if isinstance(self.setting, Price) else None

    def layer(self, name: str) -> LayerPlan:
        """The entry of that layer; ``KeyError`` if it stays float."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, hexadecimal: equal plans, equal digests."""
        return digest(self)


def _check_numbers(what: str, values: tuple[float, ...], *, above: bool) -> None:
    rule = "positive" if above else "zero or positive"
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (above and value == 0):
            raise InputError(f"{what} must be {rule}, got {value!r}")
