"""Weights that are levels while they are learned: straight-through rounding, learned steps, and the price of both.

The forward pass computes with ``step * q``, the exact levels of the grid; the backward pass takes rounding for the
identity, so that the weights behind the levels move, and steps get the gradient of learned step size quantization,
``d(step q) / d log step = step q - w`` (Esser et al. 2020, arXiv 1902.08153, without clipping: levels are as many as
weights ask for), and its scale: of one over the root of the number of weights that share a step. What levels cost is
counted exactly forward and has a smooth slope backward.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimbit.numerics.energy import level_bits
from slimbit.numerics.grid import along_filters, filters_stored, layer_weight, to_levels, to_weights, within_cells
from slimbit.numerics.levels import LayerLevels
from slimbit.records.config import Grid
from slimbit.records.cost_names import Allocation
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec


class _Rounded(torch.autograd.Function):
    """``step * q`` of weights; see the top of the file for the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_step: Tensor, grid: Grid) -> Tensor:
        step = log_step.exp()
        rounded = to_weights(to_levels(weight, step, grid=grid), step)
        ctx.save_for_backward(rounded - weight)
        ctx.per_filter = log_step.ndim > 0
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (error,), (gradient,) = ctx.saved_tensors, gradients
        slope = gradient * error
        return gradient, slope.flatten(1).sum(1) if ctx.per_filter else slope.sum(), None


class LearnedLevels(nn.Module):
    """Parametrization of one stored tensor: the weights of its layers become levels times learned steps.

    ``log_steps`` holds ``log(step) n^(1/4)``, where ``n`` weights share a step.

    Args:
        layers: Whose weights the tensor holds, in the order of their rows; one layer, or those of an attention
            projection. Rows of other layers stay as they are.
        start: Steps to begin with, by layer name: scalar, or shape ``(filters,)``.
        grid: Grid of the levels.
        masks: By layer name, False where a weight was pruned and stays zero.

    >>> spec = LayerSpec(name="fc", kind="linear", weight_key="weight", shape=(1, 2))
    >>> LearnedLevels([spec], {"fc": torch.tensor(0.5)}, "midtread")(torch.tensor([[0.6, 0.1]])).tolist()
    [[0.5, 0.0]]
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        start: Mapping[str, Tensor],
        grid: Grid,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.grid = tuple(layers), grid
        begin = [start[layer.name].detach().clone().float().log() for layer in layers]
        sharing = [layer.weights / max(1, steps.numel()) for layer, steps in zip(layers, begin, strict=True)]
        # the gradient is multiplied once on its way to what is learned, and once on the way back to the step
        self.scales: list[float] = [count**-0.25 for count in sharing]
        self.log_steps = nn.ParameterList([value / s for value, s in zip(begin, self.scales, strict=True)])
        for place, layer in enumerate(layers):
            mask = (masks or {}).get(layer.name)
            self.register_buffer(f"mask{place}", None if mask is None else mask.float(), persistent=False)
            self.register_buffer(f"shift{place}", torch.zeros_like(self.log_steps[place]))

    def shift(self, name: str, value: Tensor) -> None:
        """Set what is added to the log steps of a layer beside what is learned."""
        place = next(place for place, layer in enumerate(self.layers) if layer.name == name)
        getattr(self, f"shift{place}").copy_(value)

    def steps(self) -> list[Tensor]:
        """Steps of each layer."""
        return [self._log_step(place).exp() for place in range(len(self.layers))]

    def _log_step(self, place: int) -> Tensor:
        learned: Tensor = self.log_steps[place]
        shift: Tensor = getattr(self, f"shift{place}")
        return learned * self.scales[place] + shift

    def weights(self, stored: Tensor) -> list[Tensor]:
        """The weights behind the levels, filters first, of each layer."""
        found = []
        for place, layer in enumerate(self.layers):
            mask = getattr(self, f"mask{place}")
            weight = layer_weight(stored, layer)
            found.append(weight if mask is None else weight * mask)
        return found

    def forward(self, stored: Tensor) -> Tensor:
        """What the network computes with, as the module stores it."""
        parts = []
        for place, (layer, weight) in enumerate(zip(self.layers, self.weights(stored), strict=True)):
            log_step = self._log_step(place)
            rounded: Tensor = _Rounded.apply(weight, log_step, self.grid)  # type: ignore[no-untyped-call] # of torch
            mask = getattr(self, f"mask{place}")
            if mask is not None:  # a grid without zero has none for them
                rounded = rounded * mask
            parts.append(filters_stored(rounded, transposed=layer.transposed, groups=layer.groups))
        if self.layers[0].rows is None:
            return parts[0]
        whole, position = [], 0
        for layer, part in zip(self.layers, parts, strict=True):
            assert layer.rows is not None, "layers of one tensor have rows each"
            whole += [stored[position : layer.rows[0]], part]
            position = layer.rows[1]
        return torch.cat([*whole, stored[position:]])

    @torch.no_grad()
    def levels(self, stored: Tensor) -> dict[str, LayerLevels]:
        """Levels and steps of each layer, from a stored tensor."""
        found, steps = {}, self.steps()
        for place, (layer, weight) in enumerate(zip(self.layers, self.weights(stored), strict=True)):
            step = steps[place]
            q = to_levels(weight, step, grid=self.grid)
            mask = getattr(self, f"mask{place}")
            found[layer.name] = LayerLevels(q if mask is None else q * mask, step, self.grid)
        return found


def learn_levels(
    network: nn.Module,
    layers: Iterable[LayerSpec],
    start: Mapping[str, LayerLevels],
    *,
    weights: Mapping[str, Tensor] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> None:
    """Make a network compute with learned levels, in place; it begins with exactly the levels of ``start``.

    Args:
        network: Its weights, plain parameters, become those behind the levels; they train from there.
        layers: Of its survey.
        start: Levels by layer name; layers without any stay as they are.
        weights: Float weights by layer name, filters first: what is behind the levels is as near to them as can be, so
            that levels do not all change at once when steps grow. None: the levels themselves.
        masks: By layer name, False where a weight was pruned.

    Raises:
        InputError: A weight that is no parameter.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> spec = LayerSpec(name="", kind="linear", weight_key="weight", shape=(1, 2))
    >>> levels = LayerLevels(torch.tensor([[1.5, 0.0]]), torch.tensor(0.5), "midrise_zero")
    >>> learn_levels(net, [spec], {"": levels})
    >>> net.weight.tolist()
    [[0.75, 0.0]]
    """
    tensors: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        if layer.name in start and not layer.shared_with:
            tensors.setdefault(layer.weight_key, []).append(layer)
    for key, owners in tensors.items():
        path, _, name = key.rpartition(".")
        module = network.get_submodule(path)
        stored = module._parameters.get(name)
        if stored is None:
            raise InputError(f"weight {key} must be a parameter to learn its levels, got none")
        owners.sort(key=lambda layer: layer.rows or (0, 0))
        for layer in owners:
            value = _behind(start[layer.name], None if weights is None else weights[layer.name])
            value = filters_stored(value, transposed=layer.transposed, groups=layer.groups)
            with torch.no_grad():
                stored[slice(*(layer.rows or (None,)))].copy_(value)
        steps = {layer.name: start[layer.name].steps.to(stored.device) for layer in owners}
        levels = LearnedLevels(owners, steps, start[owners[0].name].grid, masks)
        parametrize.register_parametrization(module, name, levels)


def learned_parts(network: nn.Module) -> list[tuple[LearnedLevels, Tensor]]:
    """Every parametrization of `learn_levels` in a network, with the tensor behind it."""
    found: list[tuple[LearnedLevels, Tensor]] = []
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], LearnedLevels):
            original = module.original
            assert isinstance(original, Tensor)
            found.append((module[0], original))
    return found


def levels_of(network: nn.Module) -> dict[str, LayerLevels]:
    """Levels and steps of a network of `learn_levels`, by layer name."""
    found: dict[str, LayerLevels] = {}
    for part, stored in learned_parts(network):
        found |= part.levels(stored)
    return found


def _behind(levels: LayerLevels, weights: Tensor | None) -> Tensor:
    if weights is None:
        return levels.weights()
    steps = along_filters(levels.steps, weights)
    return within_cells(weights / steps, levels.levels, grid=levels.grid) * steps


def state_behind(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that a network of `learn_levels` would have without parametrizations: the weights behind levels.

    (Removing them from a copy would take them from the original, too: both have one class.)
    """
    owners = [path for path, module in network.named_modules() if parametrize.is_parametrized(module)]
    inside = {f"{path}.parametrizations." if path else "parametrizations.": path for path in owners}
    found = {}
    for name, value in network.state_dict().items():
        within = next((prefix for prefix in inside if name.startswith(prefix)), None)
        if within is None:
            found[name] = value
        elif name.endswith(".original"):
            tensor = name.removeprefix(within).removesuffix(".original")
            found[f"{inside[within]}.{tensor}" if inside[within] else tensor] = value
    return found


@dataclass(frozen=True, kw_only=True)
class LevelCost:
    """What levels cost, with a slope.

    ====================  =====================================  ==================================================
    form                  counted                                slope that of
    ====================  =====================================  ==================================================
    ``analog`` (ESN_a)    ``c q^2`` of every level               ``(w / step)^2``
    ``digital`` (ESN_d)   ``c bits(q)`` of every level           ``log2(2 |w| / step + 1)``: the bits of the largest
                                                                 level of every width, exactly
    ``filterwise``        ``c bits(max q)`` of all weights of    ``log2(2 max|w| / step + 1)``
    (ESN'_d)              a filter
    ``table``             of a layer, from what it costs at      the straight line between the two widths around that
                          every width                            of its largest weight
    ====================  =====================================  ==================================================

    Attributes:
        form: As in the table above.
        units: Units of the metric that one bit (or squared level) of one weight of a layer costs, by layer name.
        tables: For ``table``: what a layer costs at widths of 1, 2, 3, ... bits, by layer name.
    """

    form: Allocation
    units: Mapping[str, float]
    tables: Mapping[str, Tensor] | None = None

    def slope(self, network: nn.Module) -> Tensor:
        """A smooth cost of the weights and steps as they are, to be differentiated."""
        parts = []
        for part, stored in learned_parts(network):
            for layer, weight, step in zip(part.layers, part.weights(stored), part.steps(), strict=True):
                parts.append(self._smooth(layer, weight.abs() / along_filters(step, weight), part.grid))
        return torch.stack(parts).sum()

    def _smooth(self, layer: LayerSpec, ratio: Tensor, grid: Grid) -> Tensor:
        units, offset = self.units.get(layer.name, 0.0), 2.0 if grid == "midtread" else 1.0
        if self.form == "analog":
            return units * ratio.square().sum()
        if self.form == "digital":
            return units * torch.log2(2 * ratio + 1).sum()
        if self.form == "filterwise":
            widest = ratio.flatten(1).amax(1)
            return units * ratio[0].numel() * torch.log2(2 * widest + offset).sum()
        assert self.tables is not None, "a table is given with this form"
        table = self.tables[layer.name].to(ratio.device)
        width = torch.log2(2 * ratio.amax() + offset).clamp(1.0, float(len(table)))
        below = int(width.detach().floor().clamp(max=len(table) - 1))
        return table[below - 1] + (width - below) * (table[below] - table[below - 1])

    @torch.no_grad()
    def exact(self, levels: Mapping[str, LayerLevels]) -> float:
        """What levels cost."""
        total = 0.0
        for name, found in levels.items():
            q, units = found.levels, self.units.get(name, 0.0)
            if self.form == "analog":
                total += units * float(q.double().square().sum())
            elif self.form == "digital":
                total += units * float(level_bits(q).sum())
            elif self.form == "filterwise":
                total += units * q[0].numel() * float(level_bits(q).flatten(1).amax(1).sum())
            else:
                assert self.tables is not None, "a table is given with this form"
                widest = int(level_bits(q).max())
                total += float(self.tables[name][widest - 1]) if widest else 0.0
        return total
