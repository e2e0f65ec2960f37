"""Activations as integers: which values are quantized, at which width, and with which step.

Values are tensors between modules, so residual sums, concatenations and functional ReLUs are found whatever module
they stand in. Quantized are: the network's inputs (8 bits); what comes out of every layer with its BatchNorm and
ReLU, of every sum, product, pooling and activation function, at the width that was asked for where a layer reads
it, else at 8 bits (the summands of a residual sum: no multiplier reads them). What only moves entries
(concatenation, max pooling, reshaping) keeps the codes, so it shares one step with what it reads. Logits, the
outputs of layers that nothing else reads, stay float.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.dataflow import FlowForward
from slimbit.numerics.activation_range import activation_step, affine_step, rounded
from slimbit.numerics.batches import Forward, call_network, checked_batches
from slimbit.numerics.copies import copied, plain_network
from slimbit.numerics.operations import NEVER_NEGATIVE
from slimbit.numerics.requantize import untied
from slimbit.records.activations import MOST_BITS, ActivationQuantizer, Codes, RangeMethod, check_activation_bits
from slimbit.records.dataflow import Dataflow, Operation, Stage, stages_of
from slimbit.records.errors import InputError
from slimbit.records.network import NetworkSpec

SAMPLED_ENTRIES = 1 << 16
"""Entries of each value that ranges are chosen from; the largest ones are always among them."""
TAIL = ("clamp", "sigmoid", "hardsigmoid", "tanh", "softmax", "log_softmax")
"""Functions that stay float behind the logits."""


@dataclass(frozen=True, kw_only=True)
class QuantizationPoint:
    """Values that share one step.

    Attributes:
        value: The first of them in order of execution; it names the quantizer.
        members: All of them.
        bits: Width of their codes.
        signed: Whether they can be negative; None = as the data says (inputs of the network).
        most: A number that they never exceed, where a clamp says so.
    """

    value: str
    members: tuple[str, ...]
    bits: int
    signed: bool | None
    most: float | None = None


def quantization_points(flow: Dataflow, bits: int) -> tuple[QuantizationPoint, ...]:
    """Which values become integers, and how wide.

    Args:
        flow: The network.
        bits: Width of what layers read; 2 to 8.

    Raises:
        InputError: A width out of range, or a softmax before the last layer.
    """
    check_activation_bits(bits)
    stages = stages_of(flow)
    floats = float_values(flow, stages)
    roots: dict[str, str] = {}

    def root(value: str) -> str:
        while roots.get(value, value) != value:
            value = roots[value]
        return value

    signed: dict[str, bool | None] = dict.fromkeys(flow.inputs)
    order = list(flow.inputs)
    for stage in stages:
        if stage.value in floats:
            continue
        _refuse_wide_functions(stage)
        order.append(stage.value)
        signed[stage.value] = _sign(stage, signed)
        if stage.is_transparent:
            for value in stage.head.inputs:
                first, second = sorted((root(value), root(stage.value)), key=order.index)
                roots[second] = first
    groups: dict[str, list[str]] = {}
    for value in order:
        groups.setdefault(root(value), []).append(value)
    read = {value for stage in stages if stage.head.kind == "layer" for value in stage.head.inputs}
    bounds = {stage.value: stage.high for stage in stages}
    points = []
    for name, members in groups.items():
        signs = [signed[value] for value in members]
        sign = None if None in signs and True not in signs else any(signs)
        made = [value for value in members if value in bounds and not _is_transparent(flow, value)]
        limits = [bounds[value] for value in made] or [None]
        most = max(x for x in limits if x is not None) if None not in limits and not sign else None
        narrow = bits if any(value in read for value in members) and name not in flow.inputs else MOST_BITS
        points.append(
            QuantizationPoint(value=name, members=tuple(members), bits=narrow, signed=sign, most=most or None)
        )
    return tuple(points)


def _is_transparent(flow: Dataflow, value: str) -> bool:
    return flow[value].kind in ("concat", "maximum", "move")


def _sign(stage: Stage, signed: Mapping[str, bool | None]) -> bool | None:
    """Whether what a stage makes can be negative; None where that is up to the network's inputs."""
    if stage.low is not None and stage.low >= 0:
        return False
    if stage.head.kind in ("layer", "norm"):
        return True
    if stage.head.kind == "function":
        return stage.head["function"] not in NEVER_NEGATIVE
    signs = [signed[value] for value in stage.head.inputs]
    return None if None in signs and True not in signs else any(signs)


def _refuse_wide_functions(stage: Stage) -> None:
    if stage.head.kind == "function" and stage.head["function"] in ("softmax", "log_softmax"):
        raise InputError(
            f"activations must be found between operations that integers can do, got {stage.head['function']} at "
            f"{stage.value!r}; without activation bits its weights can be quantized"
        )


def float_values(flow: Dataflow, stages: Iterable[Stage]) -> frozenset[str]:
    """Values that stay float: logits, and what only moves them or applies a function before they are returned."""
    floats: set[str] = set()
    for stage in reversed(tuple(stages)):
        readers = flow.readers(stage.value)
        returned = stage.value in flow.outputs
        behind = all(reader.name in floats and reader.kind != "layer" for reader in readers)
        if stage.head.kind == "layer":
            is_float = behind and not (returned and readers)
        else:
            is_float = behind and (returned or bool(readers)) and _is_tail(stage.head) and _follows_layer(flow, stage)
        if is_float:
            floats.update((stage.value, stage.head.name, *(norm.name for norm in stage.norms)))
    return frozenset(floats)


def _is_tail(operation: Operation) -> bool:
    return operation.kind == "move" or (operation.kind == "function" and operation["function"] in TAIL)


def _follows_layer(flow: Dataflow, stage: Stage) -> bool:
    """Whether a value comes from a layer through nothing but its norms, and moves and functions that stay float."""
    value = stage.head.inputs[0]
    while value not in flow.inputs and len(flow.readers(value)) == 1 and value not in flow.outputs:
        operation = flow[value]
        if operation.kind == "layer":
            return True
        if operation.kind != "norm" and not _is_tail(operation):
            return False
        value = operation.inputs[0]
    return False


def measure_activations(
    model: nn.Module,
    flow: Dataflow,
    batches: Iterable[Any],
    *,
    bits: int,
    method: RangeMethod = "mse",
    codes: Codes = "unsigned",
    forward: Forward = call_network,
) -> tuple[ActivationQuantizer, ...]:
    """Steps of every quantized value, from unlabelled images that pass through the float network.

    Steps of sums, products, poolings and functions are moved by less than 0.1 % where otherwise some combination of
    codes lay so close to a rounding tie that the order of float operations decided: every runtime gets the same
    integers.

    Args:
        model: The float network; not changed.
        flow: Its dataflow.
        batches: Unlabelled images.
        bits: Width of what layers read.
        method: How ranges are chosen.
        codes: Which codes, see `slimbit.records.config.QuantConfig`.
        forward: How the network is called on a batch.

    Raises:
        InputError: No images, or values that are not finite.
    """
    points = quantization_points(flow, bits)
    samples = _sampled(model, flow, points, checked_batches(batches), forward)
    quantizers: dict[str, ActivationQuantizer] = {}
    for point in points:
        sample = samples[point.value]
        signed = bool((sample < 0).any()) if point.signed is None else point.signed
        zero = 0
        if signed and codes == "affine":
            step, zero = affine_step(sample, bits=point.bits, method=method)
            signed = False
        else:
            signed = signed or codes == "signed"
            step = activation_step(sample, bits=point.bits, signed=signed, method=method, most=point.most)
        quantizers[point.value] = ActivationQuantizer(
            value=point.value, bits=point.bits, step=step, zero_point=zero, signed=signed
        )
    return without_ties(flow, quantizers)


def without_ties(flow: Dataflow, quantizers: Mapping[str, ActivationQuantizer]) -> tuple[ActivationQuantizer, ...]:
    """Quantizers whose steps leave no combination of codes near a rounding tie, in order of execution."""
    found = dict(quantizers)
    table = by_value(flow, found.values())
    stages = [
        stage for stage in stages_of(flow)
        if not stage.is_transparent and stage.head.kind not in ("layer", "norm") and stage.value in table
    ]  # fmt: skip
    for _ in range(ROUNDS):
        before = dict(found)
        for stage in stages:
            inputs = [found[table[value].value] for value in stage.head.inputs]
            owner = table[stage.value].value
            found[owner] = untied(stage, inputs, found[owner])
        if found == before:
            break  # nearly always the second round: only values that share a step can disturb each other
    return tuple(found.values())


ROUNDS = 8


def by_value(flow: Dataflow, quantizers: Iterable[ActivationQuantizer]) -> dict[str, ActivationQuantizer]:
    """The quantizer of each quantized value; those that only move entries have that of what they read.

    Raises:
        InputError: Quantizers of another network.
    """
    given = {quantizer.value: quantizer for quantizer in quantizers}
    points = quantization_points(flow, MOST_BITS)
    names = [point.value for point in points]
    if sorted(given) != sorted(names):
        odd = sorted({*given} ^ {*names})
        raise InputError(f"activation quantizers must be those of {flow.network}, got a difference at {odd[0]!r}")
    return {value: given[point.value] for point in points for value in point.members}


def read_widths(flow: Dataflow, quantizers: Iterable[ActivationQuantizer], spec: NetworkSpec) -> dict[str, int]:
    """Width of what each layer of a survey reads, by layer name; the widest where it is called several times."""
    table = by_value(flow, quantizers)
    names = {layer.weight_key: layer.name for layer in spec.layers}
    widths: dict[str, int] = {}
    for operation in flow:
        if operation.kind == "layer" and operation["weight"] in names:
            name = names[operation["weight"]]
            widths[name] = max(widths.get(name, 0), table[operation.inputs[0]].bits)
    return widths


def with_quantized_values(network: nn.Module, flow: Dataflow, quantizers: Iterable[ActivationQuantizer]) -> nn.Module:
    """The very network, which from now on rounds its values as integers will; hooks of its modules see them rounded.

    Args:
        network: A copy of the one that the dataflow was read from; it is changed.
        flow: What it computes.
        quantizers: Of all its quantized values.
    """
    table = by_value(flow, quantizers)

    def watch(name: str, value: Tensor) -> Tensor:
        quantizer = table.get(name)
        if quantizer is None:
            return value
        low, high = (code - quantizer.zero_point for code in (quantizer.low, quantizer.high))
        return rounded(value, quantizer.step, low=low, high=high)

    network.forward = FlowForward(network, flow, watch)
    return network


def _sampled(
    model: nn.Module, flow: Dataflow, points: Iterable[QuantizationPoint], batches: tuple[Any, ...], forward: Forward
) -> dict[str, Tensor]:
    """Entries of the values of each point: evenly spaced ones, and the largest and smallest of every batch."""
    network = plain_network(copied(model)).eval()
    owner = {value: point.value for point in points for value in point.members if _is_made(flow, value)}
    found: dict[str, list[Tensor]] = {point.value: [] for point in points}
    shares = {point.value: sum(x == point.value for x in owner.values()) for point in points}

    def watch(name: str, value: Tensor) -> Tensor:
        point = owner.get(name)
        if point is not None and value.numel():
            if not bool(value.isfinite().all()):
                raise InputError(f"value {name!r} must be finite on the calibration images, got NaN or infinity")
            entries = value.detach().reshape(-1)
            stride = max(1, entries.numel() * len(batches) * shares[point] // SAMPLED_ENTRIES)
            found[point] += [entries[::stride].float().cpu(), torch.stack([entries.min(), entries.max()]).float().cpu()]
        return value

    network.forward = FlowForward(network, flow, watch)
    with torch.no_grad():
        for batch in batches:
            forward(network, batch)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _is_made(flow: Dataflow, value: str) -> bool:
    """Whether a value is computed, not only moved."""
    return value in flow.inputs or not _is_transparent(flow, value)
