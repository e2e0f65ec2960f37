"""What compression decided: which step each layer gets, how it is rounded, which statistics follow."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from slimbit.records.activations import ActivationQuantizer
from slimbit.records.errors import InputError, check_choice

PlanGrid = Literal["midrise", "midrise_zero", "midtread"]
Rounding = Literal["nearest", "rate_aware"]
Statistics = Literal["stored", "absolute", "paired", "paired_layerwise"]
Target = Literal["weights", "outputs"]

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a plan is carried out; the same for every layer.

    Attributes:
        rounding: "nearest", or "rate_aware": a cheaper level where that costs less accuracy than it saves.
        compensation: Whether the errors of rounded columns are spread over the others (GPTQ/OBQ family).
        target: What compensation stays close to: the float network's "outputs" on the same images, so that earlier
            layers' errors are repaired too (the divergence from the float network falls by a quarter on a
            ResNet-20), or the float "weights" on the inputs the compressed network gives, as GPTQ does.
        refit: Whether each filter's step is fitted again to its levels.
        statistics: What happens to BatchNorm statistics (and to biases of layers without BatchNorm):
            "stored" leaves them, "absolute" and "paired" re-estimate after all layers are quantized,
            "paired_layerwise" behind each layer before the next one is quantized.
    """

    rounding: Rounding = "nearest"
    compensation: bool = True
    target: Target = "outputs"
    refit: bool = False
    statistics: Statistics = "paired_layerwise"

    def __post_init__(self) -> None:
        check_choice("rounding", self.rounding, get_args(Rounding))
        check_choice("statistics", self.statistics, get_args(Statistics))
        check_choice("target", self.target, get_args(Target))
        for name in ("compensation", "refit"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
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
    grid: PlanGrid = "midrise_zero"
    limits: tuple[float, ...] = ()
    kept: tuple[int, ...] | None = None
    rate: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        where = f"of layer {self.name!r}"
        check_choice(f"grid {where}", self.grid, get_args(PlanGrid))
        if not self.steps:
            raise InputError(f"steps {where} must hold one number or one per filter, got none")
        _check_numbers(f"steps {where}", self.steps, above=True)
        _check_numbers(f"limits {where}", self.limits, above=False)
        _check_numbers(f"rate {where}", self.rate, above=False)
        if self.kept is not None and list(self.kept) != sorted({int(i) for i in self.kept if i >= 0}):
            raise InputError(f"kept filters {where} must be rising filter numbers, got {self.kept}")


@dataclass(frozen=True, kw_only=True)
class CompressionPlan(Recipe):
    """The whole decision for a network; `slimbit.apply.compress.compress` carries it out.

    Attributes:
        network: Name of the network, for people.
        policy: What chose the steps: "max_abs", "sigma", "signal", "optimal", or a name of the user's.
        layers: One entry per layer that is quantized; a layer without an entry stays float.
        metric: Cost metric that the price is for, None where no price was used.
        price: Accuracy loss (nats) one is willing to pay per unit of the metric.
        setting: What turned the knob, for people: ``4 bits``, ``k = 1``, ``epoch 10``.
        clamped: Layers that could not get the step which the policy asked for, and got the nearest possible one.
        activations: Quantizers of all values between layers; empty = activations stay float.
    """

    network: str
    policy: str
    layers: tuple[LayerPlan, ...]
    metric: str | None = None
    price: float | None = None
    setting: str = ""
    clamped: tuple[str, ...] = ()
    activations: tuple[ActivationQuantizer, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.price is not None and not (math.isfinite(self.price) and self.price > 0):
            raise InputError(f"price must be a positive number, got {self.price}")

    def layer(self, name: str) -> LayerPlan:
        """The entry of that layer; ``KeyError`` if it stays float."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {"schema": SCHEMA, **asdict(self), "layers": [asdict(layer) for layer in self.layers]}
        for name in ("clamped", "activations"):
            if not data[name]:
                del data[name]  # plans from before it was known keep their digest
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CompressionPlan":
        """The plan that `to_dict` wrote, checked.

        Raises:
            InputError: An unknown key, a missing one, or a value out of range.

        >>> plan = CompressionPlan(network="n", policy="max_abs", layers=(LayerPlan(name="fc", steps=(0.5,)),))
        >>> CompressionPlan.from_dict(plan.to_dict()) == plan
        True
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            got = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"plan must have schema {SCHEMA}, got {got!r}")
        rest = {key: value for key, value in data.items() if key not in ("schema", "layers", "activations")}
        _check_keys("plan", rest, {f.name for f in fields(cls)} - {"layers"})
        if "clamped" in rest:
            rest["clamped"] = _names("clamped", rest["clamped"])
        rows = data.get("layers")
        if not isinstance(rows, list | tuple):
            raise InputError(f"layers of a plan must be a list, got {type(rows).__name__}")
        activations = data.get("activations", ())
        if not isinstance(activations, list | tuple):
            raise InputError(f"activations of a plan must be a list, got {type(activations).__name__}")
        rest["activations"] = tuple(ActivationQuantizer.from_dict(row) for row in activations)
        try:
            return cls(layers=tuple(_layer_from(row) for row in rows), **rest)
        except TypeError as error:
            raise InputError(f"plan must have a network and a policy, got {sorted(rest)}") from error

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, hexadecimal: equal plans, equal digests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _names(what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise InputError(f"{what} of a plan must be a list of names, got {value!r}")
    return tuple(value)


def _layer_from(row: Any) -> LayerPlan:
    if not isinstance(row, Mapping):
        raise InputError(f"a layer of a plan must be a table, got {type(row).__name__}")
    _check_keys("layer of a plan", row, {f.name for f in fields(LayerPlan)})
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
    try:
        return LayerPlan(**values)
    except TypeError as error:
        raise InputError(f"a layer of a plan must have a name and steps, got {sorted(row)}") from error


def _check_keys(what: str, data: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(data) - known)
    if unknown:
        raise InputError(f"{what} must have only known keys, got {', '.join(map(str, unknown))}")


def _check_numbers(what: str, values: tuple[float, ...], *, above: bool) -> None:
    rule = "positive" if above else "zero or positive"
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (above and value == 0):
            raise InputError(f"{what} must be {rule}, got {value!r}")
