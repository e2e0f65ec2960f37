"""How costs are counted: widths, policies, grids; from those to the step of a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimbit.numerics.energy import Formula
from slimbit.numerics.grid import GRIDS, largest_level
from slimbit.numerics.steps import POLICIES, Policy, max_abs_step, sigma_step
from slimbit.records.config import Grid
from slimbit.records.errors import InputError, closest
from slimbit.records.network import LayerSpec, NetworkSpec, Per
from slimbit.records.text import clipped

MAX_BITS = 16

Steps = float | Tensor | Sequence[float] | Mapping[str, float | Tensor | Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """How costs are counted.

    Attributes:
        bits: Clip to this width and derive the step from it; None = float, or the given ``steps``.
        steps: Steps instead of bits: one number, or by layer name a number or one per filter.
        policy: How ``bits`` become a step.
        grid: Grid of the levels.
        formula: "standard", or "literal" for the bit formula as printed in the paper.
        per: "mac" or "parameter".
        activation_bits: Width of the activations; None = 8 beside quantized weights, 32 beside float ones.
    """

    bits: float | None = None
    steps: Steps | None = None
    policy: Policy = "max_abs"
    grid: Grid = "midrise"
    formula: Formula = "standard"
    per: Per = "mac"
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and self.steps is not None:
            raise InputError("bits and steps must not both be given: the step decides the bits")
        if self.bits is not None and not _is_width(self.bits):
            raise InputError(f"bits must be a number from 1 to {MAX_BITS}, got {self.bits}")
        if self.bits is not None and self.policy == "sigma" and self.bits != int(self.bits):
            raise InputError(f"bits must be a whole number for the policy sigma, got {self.bits}")
        if self.activation_bits is not None and self.activation_bits not in range(1, 33):
            raise InputError(f"activation bits must be a whole number from 1 to 32, got {self.activation_bits}")
        _one_of("policy", self.policy, POLICIES)
        _one_of("grid", self.grid, GRIDS)
        _one_of("formula", self.formula, ("standard", "literal"))
        _one_of("per", self.per, ("mac", "parameter"))

    @property
    def setting(self) -> str:
        """For the title of a report."""
        if self.steps is not None:
            return f"given steps, {self.grid}"
        return "as stored" if self.bits is None else f"{self.bits:g} bits, {self.policy}, {self.grid}"

    def check_names(self, network: NetworkSpec) -> None:
        """Refuse steps for layers that do not exist, and layers without a step."""
        if not isinstance(self.steps, Mapping):
            return
        names = [layer.name for layer in network.layers]
        for name in self.steps:
            if name not in names:
                raise InputError(f"steps must be for layers of {network.name}, got {name}{closest(name, names)}")
        missing = [name for name in names if name not in self.steps]
        if missing:
            raise InputError(f"steps must be given for every layer, got none for {', '.join(missing[:5])}")


def cost_config_from(**settings: Any) -> CostConfig:
    """A `CostConfig`, with a sentence instead of a ``TypeError`` for a name that does not exist."""
    for name in settings:
        if name not in CostConfig.__dataclass_fields__:
            raise InputError(
                f"options of cost must be {', '.join(CostConfig.__dataclass_fields__)} or hardware, "
                f"got {name}{closest(name, list(CostConfig.__dataclass_fields__))}"
            )
    return CostConfig(**settings)


def step_of(layer: LayerSpec, weight: Tensor, counting: CostConfig) -> tuple[Tensor, float | None]:
    """Step of a layer and the level at which it is clipped."""
    if counting.bits is None:
        steps = counting.steps
        return _given_step(layer, steps[layer.name] if isinstance(steps, Mapping) else steps, weight), None
    if counting.policy == "max_abs":
        step = max_abs_step(weight, counting.bits)
    else:
        step = sigma_step(weight, int(counting.bits))
    # a layer of zeros has no scale: the smallest step keeps its weights as near 0 as the grid allows
    return step.clamp(min=torch.finfo(weight.dtype).tiny), largest_level(counting.bits, counting.grid)


def _given_step(layer: LayerSpec, step: Any, weight: Tensor) -> Tensor:
    try:
        tensor = torch.as_tensor(step, dtype=weight.dtype, device=weight.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"steps of layer {layer.name} must be numbers, got {step!r}") from error
    if tensor.ndim > 0 and tensor.shape != (layer.filters,):
        raise InputError(
            f"steps of layer {layer.name} must be one number or one for each of its {layer.filters} filters, "
            f"got shape {tuple(tensor.shape)}"
        )
    if not bool((tensor.isfinite() & (tensor > 0)).all()):
        raise InputError(f"steps of layer {layer.name} must be positive numbers, got {float(tensor.min())}")
    return tensor


def _is_width(bits: Any) -> bool:
    return isinstance(bits, int | float) and not isinstance(bits, bool) and 1 <= bits <= MAX_BITS


def _one_of(what: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        got = clipped(repr(value)) + closest(str(value), known)
        raise InputError(f"{what} must be one of {', '.join(known)}, got {got}")
