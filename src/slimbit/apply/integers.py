"""A compressed network in integers: weights, biases and multipliers of every stage, and a module that computes them.

A layer, its BatchNorm and its ReLU are one integer sum and one rounding:
``code_f = clamp(round(m_f * (sum_i w_fi x_i + bias_f)))``. Levels stay what they are: a mid-rise level q becomes the
integer 2q at half the step. BatchNorm's ``scale_f * y + shift_f`` goes into the step of filter f,
``step_f * |scale_f|``, and into its bias; where ``scale_f < 0`` all integers of the filter change sign.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.activations import by_value, float_values
from slimbit.apply.dataflow import named_inputs, scale_and_shift, tensor_at
from slimbit.numerics.grid import filters_stored
from slimbit.numerics.operations import function_of, largest, moved, multiply_weights, per_channel, window_sums
from slimbit.numerics.requantize import clamped_codes, multiplier, requantized, results
from slimbit.records.activations import ActivationQuantizer
from slimbit.records.config import Grid
from slimbit.records.dataflow import Dataflow, Operation, Stage, stages_of
from slimbit.records.errors import InputError
from slimbit.records.network import NetworkSpec

NORM_WEIGHT = 64
"""Integer of a norm that stands alone, a layer with one weight per channel: leaves its bias six bits of fraction."""
MOST_BIAS = 1 << 30
"""Largest bias: sums stay within 32 bits."""
BIAS_BITS = 16
"""Resolution of the bias of a filter that is nothing but its bias."""
EXACT = 1 << 24
"""Integers below are exact in float32, and so are their sums in any order."""


@dataclass(frozen=True)
class IntegerLayer:
    """What a layer, or a norm that stands alone, multiplies and adds.

    Attributes:
        weights: Integers, filters first, int32; a lone norm has one per channel, shape ``(channels, 1)``.
        steps: Step of each filter's integers, float32.
        bias: Integers at ``input step * filter step``, int64, within 31 bits.
        multiplier: From a sum to output codes, or to real numbers where the output stays float; float32.
        grid: Grid of the levels; the integers of mid-rise ones are twice as large as they.
        constant: Filters whose output does not depend on their input.
    """

    weights: Tensor
    steps: Tensor
    bias: Tensor
    multiplier: Tensor
    grid: Grid = "midtread"
    constant: tuple[int, ...] = ()

    @property
    def largest(self) -> int:
        """Largest magnitude of a weight."""
        return int(self.weights.abs().max())


@dataclass(frozen=True)
class IntegerStage:
    """One stage with everything that computing it in integers needs.

    Attributes:
        stage: What it does.
        inputs: Quantizers of what it reads; None where it reads floats, behind the logits.
        output: Quantizer of what it makes; None = stays float.
        layer: Integers of a layer or a lone norm.
    """

    stage: Stage
    inputs: tuple[ActivationQuantizer | None, ...]
    output: ActivationQuantizer | None
    layer: IntegerLayer | None = None


@dataclass(frozen=True)
class IntegerProgram:
    """A whole network in integers.

    Attributes:
        flow: What it computes.
        quantizers: By value.
        stages: In order of execution.
    """

    flow: Dataflow
    quantizers: Mapping[str, ActivationQuantizer]
    stages: tuple[IntegerStage, ...]


def integer_program(
    network: nn.Module,
    flow: Dataflow,
    quantizers: tuple[ActivationQuantizer, ...],
    *,
    spec: NetworkSpec,
    levels: Mapping[str, Tensor],
    steps: Mapping[str, Tensor],
) -> IntegerProgram:
    """The integers of a compressed network.

    Args:
        network: Compressed; its biases and BatchNorms are used, its weights are taken from levels and steps.
        flow: Of the float network.
        quantizers: Of its values.
        spec: Its survey.
        levels: By layer name, filters first, whole or half numbers.
        steps: By layer name, one number or one per filter.

    Raises:
        InputError: A layer without levels.
    """
    table = by_value(flow, quantizers)
    floats = float_values(flow, stages_of(flow))
    keys = {layer.weight_key: layer.shared_with or layer.name for layer in spec.layers if layer.rows is None}
    found = []
    for stage in stages_of(flow):
        head = stage.head
        inputs = tuple(None if value in floats else table[value] for value in head.inputs)
        output = None if stage.value in floats else table[stage.value]
        layer = None
        grid: Grid = "midtread"
        if head.kind in ("layer", "norm"):
            assert inputs[0] is not None
            if head.kind == "layer":
                name = keys.get(head["weight"], "")
                if name not in levels:
                    raise InputError(
                        f"layer {head.name!r} must have levels beside quantized activations, got float weights"
                    )
                integers, unit, grid = integers_of(levels[name], steps[name])
            else:
                channels = head.shape[0]
                integers, unit = (
                    torch.full((channels, 1), NORM_WEIGHT, dtype=torch.int32),
                    torch.tensor(1.0 / NORM_WEIGHT),
                )
            layer = replace(_folded(network, stage, integers, unit, inputs[0], output), grid=grid)
        found.append(IntegerStage(stage, inputs, output, layer))
    return IntegerProgram(flow, table, tuple(found))


def integers_of(levels: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Grid]:
    """Levels as integers, the step of these, and their grid: ``2q`` at half the step where they are mid-rise.

    >>> integers_of(torch.tensor([[0.5, -1.5]]), torch.tensor(1.0))
    (tensor([[ 1, -3]], dtype=torch.int32), tensor(0.5000), 'midrise')
    """
    doubled = (levels.double() * 2).round().to(torch.int32)
    odd = doubled % 2 != 0
    if not bool(odd.any()):
        return doubled // 2, steps, "midtread"
    return doubled, steps / 2, "midrise" if bool(odd.all()) else "midrise_zero"


def _folded(
    network: nn.Module,
    stage: Stage,
    integers: Tensor,
    unit: Tensor,
    source: ActivationQuantizer,
    output: ActivationQuantizer | None,
) -> IntegerLayer:
    """Norms folded into steps and signs, everything added folded into the bias."""
    head, filters = stage.head, len(integers)
    scale, shift = torch.ones(filters).double(), torch.zeros(filters).double()
    if head.kind == "layer" and head["bias"]:
        shift = tensor_at(network, head["bias"]).detach().cpu().double().clone()
    for norm in (*([head] if head.kind == "norm" else ()), *stage.norms):
        factor, offset = (x.cpu() for x in scale_and_shift(network, norm))
        scale, shift = scale * factor, shift * factor + offset
    rows = (-1, *[1] * (integers.ndim - 1))
    weights = torch.where((scale < 0).reshape(rows), -integers.cpu(), integers.cpu())
    steps = (unit.detach().cpu().double() * scale.abs()).float().expand(filters).clone()
    source_step = torch.tensor(source.step, dtype=torch.float32)
    # a filter without weights, or behind a BatchNorm of scale zero, is its bias: it takes a step that resolves it
    dead = (weights == 0).flatten(1).all(dim=1) | (source_step * steps < TINY)
    weights = weights.masked_fill(dead.reshape(rows), 0)
    usual = steps[~dead].median() if bool((~dead).any()) else torch.tensor(1.0)
    fine = (shift.abs() / source.step / 2.0**BIAS_BITS).float()
    steps = torch.where(dead, torch.where(fine * source_step >= TINY, fine, usual), steps)
    bias = (shift / (source_step * steps).double()).round()
    weights, steps, bias = _within_31_bits(weights, steps, bias, shift, source_step)
    factor_ = source_step * steps if output is None else multiplier(source.step, steps, output.step)
    constant = tuple(int(i) for i in dead.nonzero().flatten())
    return IntegerLayer(weights, steps, bias.long(), factor_, constant=constant)


TINY = 1e-30
"""Products of steps below are left to the bias: float32 has no precise numbers much smaller."""


def _within_31_bits(
    weights: Tensor, steps: Tensor, bias: Tensor, shift: Tensor, source_step: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Filters whose bias is too large for their tiny step get a larger one: beside such a bias they hardly count."""
    shifts = (bias.abs() / MOST_BIAS).clamp(min=1).log2().ceil()
    if not bool(shifts.any()):
        return weights, steps, bias
    rows = (-1, *[1] * (weights.ndim - 1))
    steps = steps * (2.0**shifts).float()
    weights = (weights / (2.0**shifts).reshape(rows)).round().to(torch.int32)
    return weights, steps, (shift / (source_step * steps).double()).round()


class IntegerNetwork(nn.Module):
    """A compressed network that computes what integer hardware computes, bit for bit, whatever order that adds in.

    Integers are carried in float32 where all sums stay exact in it, else in float64. Inputs and outputs are those of
    the float network.

    Args:
        program: Its integers.
    """

    def __init__(self, program: IntegerProgram) -> None:
        super().__init__()
        self.flow = program.flow
        self.quantizers = program.quantizers
        self.stages = nn.ModuleList(_Step(stage) for stage in program.stages)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs in the form that the float network returns them in."""
        return self.run(named_inputs(self.flow, args, kwargs))[0]

    def run(self, inputs: Mapping[str, Tensor], *, keep: bool = False) -> tuple[Any, dict[str, Tensor]]:
        """Outputs, and with ``keep`` the codes of every value, counted from the zero point."""
        values: dict[str, Tensor] = {}
        for name, value in inputs.items():
            quantizer = self.quantizers[name]
            low, high = quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point
            values[name] = (value.float() / quantizer.step).round_().clamp_(low, high)
        left = self._uses()
        for step in self.stages:
            assert isinstance(step, _Step)
            values[step.value] = step(*(values[name] for name in step.inputs))
            for name in dict.fromkeys(step.inputs):
                left[name] -= 1
                if not left[name] and not keep:
                    del values[name]
        outputs = tuple(self._real(name, values[name]) for name in self.flow.outputs)
        return self.flow.structured(outputs), values if keep else {}

    def _uses(self) -> dict[str, int]:
        left = dict.fromkeys(self.flow.outputs, 1)
        for step in self.stages:
            assert isinstance(step, _Step)
            for name in dict.fromkeys(step.inputs):
                left[name] = left.get(name, 0) + 1
        return left

    def _real(self, name: str, value: Tensor) -> Tensor:
        quantizer = self.quantizers.get(name)
        return value if quantizer is None else value * quantizer.step


class _Step(nn.Module):
    """One stage on tensors of codes."""

    weight: Tensor
    bias: Tensor
    factor: Tensor
    table: Tensor

    def __init__(self, integer: IntegerStage) -> None:
        super().__init__()
        self.integer, self.value, self.inputs = integer, integer.stage.value, integer.stage.head.inputs
        head, output = integer.stage.head, integer.output
        self.low, self.high = clamped_codes(integer.stage, output) if output is not None else (0, 0)
        if integer.layer is not None:
            self._take(integer.layer, head)
        elif not integer.stage.is_transparent and output is not None:
            assert all(x is not None for x in integer.inputs)
            self._take_results(head)

    def _take(self, layer: IntegerLayer, head: Operation) -> None:
        source = self.integer.inputs[0]
        assert source is not None
        reach = max(abs(source.low - source.zero_point), abs(source.high - source.zero_point))
        bound = int((layer.weights.abs().flatten(1).sum(dim=1) * reach).max())
        narrow = bound < EXACT and int(layer.bias.abs().max()) < EXACT
        weights = layer.weights
        if head.kind == "layer":
            weights = filters_stored(weights, transposed=head["form"] == "conv_transpose", groups=head["groups"])
        self._keep("weight", weights.to(torch.float32 if narrow else torch.float64))
        self._keep("bias", layer.bias.to(torch.float32 if narrow else torch.float64))
        self._keep("factor", layer.multiplier)

    def _take_results(self, head: Operation) -> None:
        """Every result there can be, rounded: a table of one or two codes, or of a window's sum."""
        inputs = [x for x in self.integer.inputs if x is not None]
        assert self.integer.output is not None
        exact, _ = results(self.integer.stage, inputs, self.integer.output)
        table = exact.round().clamp(self.low, self.high).float()
        count = int(torch.tensor(head["kernel"]).prod()) if head.kind == "average" else 1
        self.lows = [(x.low - x.zero_point) * count for x in inputs]
        self.width = inputs[-1].high - inputs[-1].low + 1
        self._keep("table", table)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:  # noqa: PLR0911 - one per kind
        """Codes, counted from the zero point; real numbers behind the logits."""
        head, first = self.integer.stage.head, inputs[0]
        match head.kind:
            case "concat":
                return torch.cat(inputs, dim=head["axis"])
            case "maximum":
                return largest(first, head)
            case "move":
                return moved(first, head)
            case "layer" | "norm":
                return self._multiplied(first, head)
        if self.integer.output is None:
            return self._bounded(function_of(first, head))
        if head.kind == "average":
            return self._looked_up(window_sums(first, head) - self.lows[0])
        if head.kind == "function":
            return self._looked_up(first - self.lows[0])
        left, right = torch.broadcast_tensors(*inputs)  # type: ignore[no-untyped-call] # torch leaves it untyped
        return self._looked_up((left - self.lows[0]) * self.width + (right - self.lows[1]))

    def _multiplied(self, codes: Tensor, head: Operation) -> Tensor:
        values = codes.to(self.weight.dtype)
        if head.kind == "norm":
            sums = values * per_channel(self.weight[:, 0], values.ndim)
        else:
            sums = multiply_weights(values, self.weight, head)
        last = head.kind == "layer" and head["form"] == "linear"
        bias, factor = ((x if last else per_channel(x, sums.ndim)) for x in (self.bias, self.factor))
        sums = (sums + bias).float()
        if self.integer.output is not None:
            return requantized(sums, factor, low=self.low, high=self.high)
        return self._bounded(sums * factor)

    def _bounded(self, real: Tensor) -> Tensor:
        """Real numbers behind the stage's own clamp."""
        stage = self.integer.stage
        return real if (stage.low, stage.high) == (None, None) else real.clamp(stage.low, stage.high)

    def _looked_up(self, index: Tensor) -> Tensor:
        return self.table[index.long()]
