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
from slimbit.measure.hardware_models import UnfitError
from slimbit.measure.named_cost import NamedCost
from slimbit.measure.value_sensitivity import measure_value_losses
from slimbit.plan.widths import ActivationChoice, WidthCosts, equal_widths, weight_widths
from slimbit.records.activations import FEWEST_BITS
from slimbit.records.config import QuantConfig
from slimbit.records.cost import LayerCost
from slimbit.records.dataflow import Dataflow
from slimbit.records.network import NetworkSpec

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
    return WidthCosts(costs=tables, activation_bits=columns, activations=choices)


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
    losses = prepared.value_losses(config)
    order = [layer.name for layer in prepared.spec.layers]
    return tuple(
        ActivationChoice(
            points=tuple(sorted(points)),
            layers=tuple(sorted(layers, key=order.index)),
            loss=tuple(math.fsum(losses[point][place] for point in points) for place in range(len(columns))),
        )
        for points, layers in groups
    )


def value_losses(
    prepared: "PreparedNetwork", samples: ActivationSamples, config: QuantConfig
) -> dict[str, tuple[float, ...]]:
    """Predicted loss of rounding the values of each quantizer to 2 bits, 3 bits, ... up to those of the settings."""
    assert config.activation_bits is not None
    columns = range(FEWEST_BITS, config.activation_bits + 1)
    points = {point.value: point for point in quantization_points(samples.flow, config.activation_bits)}
    made = made_values(samples.flow, points.values())
    found = measure_value_losses(
        lambda watch: watched_network(prepared.model, samples.flow, watch),
        {
            value: tuple(samples.quantizer(points[name], bits, config.activation_range) for bits in columns)
            for value, name in made.items()
        },
        prepared.batches,
        generator=torch.Generator().manual_seed(prepared.seed),
        likelihood=prepared.likelihood,
    )
    return {
        name: tuple(
            math.fsum(found[value][place] for value in made if made[value] == name) for place in range(len(columns))
        )
        for name in points
    }
