"""Widths for a price of any cost: what every layer costs at every width, and what rounding its inputs loses."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slimbit.apply.activations import (
    ActivationSamples,
    QuantizationPoint,
    made_values,
    quantization_points,
    watched_network,
)
from slimbit.apply.compress import compress
from slimbit.apply.quantize import plain_levels
from slimbit.measure.hardware_models import UnfitError
from slimbit.measure.named_cost import NamedCost
from slimbit.measure.sensitivity import divergence
from slimbit.numerics.activation_range import rounded
from slimbit.numerics.batches import call_network, count_of
from slimbit.numerics.requantize import codes_of
from slimbit.plan.widths import ActivationChoice, WidthCosts, equal_widths, weight_widths
from slimbit.records.activations import FEWEST_BITS, ActivationQuantizer
from slimbit.records.config import QuantConfig
from slimbit.records.cost import LayerCost
from slimbit.records.dataflow import Dataflow
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan

if TYPE_CHECKING:
    from slimbit.compress.prepared import PreparedNetwork


def width_costs(prepared: "PreparedNetwork", cost: NamedCost, config: QuantConfig) -> WidthCosts:
    """What every layer costs at every width, as the cost function itself says of layers quantized that way.

    So whatever a machine pads, slices or refuses is in the table. Where activations are quantized, values that layers
    read may take every width up to that of the settings.

    Raises:
        InputError: A layer that the machine runs at no width, or a cost function that fails.
    """
    bits = config.activation_bits
    columns = () if bits is None else tuple(range(FEWEST_BITS, bits + 1))
    readers = (
        {} if bits is None else read_points(prepared.flow, quantization_points(prepared.flow, bits), prepared.spec)
    )
    inputs = prepared.inputs(config, priced=True)
    rows = [prepared.predicted(equal_widths(inputs, width, config)).layers for width in weight_widths(config)]
    owner = {layer.name: layer.shared_with or layer.name for layer in prepared.spec.layers}
    decided = [layer.name for layer in inputs.layers(config)]
    free = (
        {name for name in decided if all(readers.get(x) for x, own in owner.items() if own == name)}
        if columns
        else set()
    )
    tables: dict[str, Tensor] = {}
    for place, layer in enumerate(prepared.spec.layers):
        name = owner[layer.name]
        if name not in decided:
            continue
        widths = columns if name in free else (rows[0][place].activation_bits,)
        found = [[_cost_at(cost, row[place], width) for width in widths] for row in rows]
        if all(isinstance(entry, UnfitError) for entries in found for entry in entries):
            raise next(entry for entries in found for entry in entries if isinstance(entry, UnfitError))
        part = torch.tensor(
            [[math.inf if isinstance(x, UnfitError) else x for x in entries] for entries in found], dtype=torch.float64
        )
        tables[name] = tables[name] + part if name in tables else part
    choices = _choices(
        prepared, config, columns, {name: readers[name] for name in readers if owner[name] in free}, owner
    )
    return WidthCosts(
        weight_bits=weight_widths(config),
        costs=tables,
        activation_bits=columns,
        activations=choices,
        drop_factor=max(1.0, prepared.overstatement(config)),
    )


def _cost_at(cost: NamedCost, layer: LayerCost, bits: int) -> float | UnfitError:
    """Cost of a layer whose inputs have another width."""
    operations = layer.macs * layer.weight_bits * bits
    try:
        value = cost.of_layer(replace(layer, activation_bits=bits, bit_operations=operations))
    except UnfitError as error:
        return error
    assert value is not None, "quantized layers have levels"
    return float(value)


def read_points(flow: Dataflow, points: Iterable[QuantizationPoint], spec: NetworkSpec) -> dict[str, frozenset[str]]:
    """Names of the quantizers that each layer reads; none for a layer that reads one of fixed width.

    Inputs of the network have 8 bits, whatever reads them.
    """
    owner = {value: point.value for point in points for value in point.members}
    names = {layer.weight_key: layer.name for layer in spec.layers}
    found: dict[str, frozenset[str]] = {}
    for operation in flow:
        if operation.kind == "layer" and operation["weight"] in names:
            name = names[operation["weight"]]
            found[name] = found.get(name, frozenset()) | {owner[operation.inputs[0]]}
    return {name: read if read.isdisjoint(flow.inputs) else frozenset() for name, read in found.items()}


def _choices(
    prepared: "PreparedNetwork",
    config: QuantConfig,
    columns: tuple[int, ...],
    readers: dict[str, frozenset[str]],
    owner: dict[str, str],
) -> tuple[ActivationChoice, ...]:
    """Values that one layer reads, or layers of one weight, are decided on together."""
    groups: list[tuple[set[str], set[str]]] = []
    for layer, read in readers.items():
        points, layers = set(read), {owner[layer]}
        apart = []
        for other in groups:
            if other[0].isdisjoint(points) and other[1].isdisjoint(layers):
                apart.append(other)
            else:
                points |= other[0]
                layers |= other[1]
        groups = [*apart, (points, layers)]
    if not groups:
        return ()
    losses, unit = prepared.value_losses(config), prepared.overstatement(config)
    order = [layer.name for layer in prepared.spec.layers]
    return tuple(
        ActivationChoice(
            points=tuple(sorted(points)),
            layers=tuple(sorted(layers, key=order.index)),
            loss=tuple(unit * math.fsum(losses[point][place] for point in points) for place in range(len(columns))),
        )
        for points, layers in groups
    )


def value_losses(
    prepared: "PreparedNetwork", samples: ActivationSamples, config: QuantConfig
) -> dict[str, tuple[float, ...]]:
    """What rounding the values of each quantizer loses, to 2 bits, 3 bits, ... up to those of the settings.

    Measured, not predicted: one pass with these values alone at `MEASURED_BITS` gives the divergence from the float
    outputs, on images that weights are not fitted to; other widths follow their squared error. (The losses of several
    values add up to within 3 % on a ResNet-20. Gradients told a third to an eleventh of them, differently for each
    value, and a sixth of them all together, where those of weights told half: widths chosen by gradients starved
    activations.)

    Returns:
        Divergence in nats per image, by quantizer and width.
    """
    assert config.activation_bits is not None
    points = quantization_points(samples.flow, config.activation_bits)
    made = made_values(samples.flow, points)
    _, judged = prepared.probe
    likelihood = _likelihood(prepared)
    rounding: list[ActivationQuantizer] = []

    def watch(name: str, value: Tensor) -> Tensor:
        if not rounding or made.get(name) != rounding[0].value:
            return value
        low, high = codes_of(rounding[0])
        return rounded(value, rounding[0].step, low=low, high=high)

    network = watched_network(prepared.model, samples.flow, watch)
    with torch.no_grad():
        wanted = call_network(network, judged)
        losses = {}
        for point in points:
            candidates = [
                samples.quantizer(point, bits, config.activation_range, config.activation_codes)
                for bits in range(FEWEST_BITS, config.activation_bits + 1)
            ]
            rounding[:] = [samples.quantizer(point, MEASURED_BITS, config.activation_range, config.activation_codes)]
            lost = divergence(call_network(network, judged), wanted, likelihood) / count_of(judged)
            whole, *errors = (_squared_error(samples.entries[point.value], x) for x in (*rounding, *candidates))
            losses[point.value] = tuple(lost * error / whole if whole > 0 else 0.0 for error in errors)
    return losses


MEASURED_BITS = 4


def overstatement(prepared: "PreparedNetwork", config: QuantConfig) -> float:
    """Predicted loss over measured divergence of weights of equal width, on images that they are not fitted to.

    Predictions of rounding are in a unit of their own: they know nothing of what corrected biases and statistics
    repair. On a digits network they were 7 to 21 times what was measured, on a ResNet-20 half of it. What is weighed
    against rounding (values that are rounded, filters that are gone) is brought to that unit.
    """
    plan = equal_widths(prepared.inputs(config, priced=True), MEASURED_BITS, config)
    calibration, judged = prepared.probe
    network = compress(prepared.model, plan, prepared.spec, calibration).model
    with torch.no_grad():
        found, wanted = call_network(network, judged), call_network(prepared.model, judged)
    measured = divergence(found, wanted, _likelihood(prepared)) / count_of(judged)
    predicted = predicted_loss(prepared, plan)
    return predicted / measured if measured > 0 and predicted > 0 else 1.0


def _likelihood(prepared: "PreparedNetwork") -> str:
    return prepared.likelihood if isinstance(prepared.likelihood, str) else "custom"


def _squared_error(entries: Tensor, quantizer: ActivationQuantizer) -> float:
    low, high = codes_of(quantizer)
    return float((rounded(entries, quantizer.step, low=low, high=high) - entries).double().square().mean())


def predicted_loss(prepared: "PreparedNetwork", plan: CompressionPlan) -> float:
    """``1/2 sum s ||w - step q||^2`` over the filters, times what compensation leaves: the predicted loss."""
    inputs = prepared.inputs(plan.config, priced=True)
    sensitivity, total = inputs.checked_sensitivity(), 0.0
    for layer in plan.layers:
        weights = inputs.weights[layer.name].float()
        levels = plain_levels(weights, layer, mask=prepared.masks.get(layer.name))
        gap = (weights - levels.weights()).double().square().flatten(1).sum(1)
        s = gap.new_tensor(sensitivity.filters[layer.name])
        total += 0.5 * float((s * gap).sum()) * inputs.compensation_factors.get(layer.name, 1.0)
    return total
