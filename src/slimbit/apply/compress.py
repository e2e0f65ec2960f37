"""The one entry: a float network and a plan in, a compressed network and its levels out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slimbit.apply.activations import with_quantized_values
from slimbit.apply.attention import opened_attention
from slimbit.apply.calibration import Calibration, calibrate
from slimbit.apply.integers import IntegerNetwork, IntegerProgram, integer_program
from slimbit.apply.layers import bind
from slimbit.apply.layerwise import LayerwisePass
from slimbit.apply.quantize import quantize_layer
from slimbit.apply.refine import Refinement, refine
from slimbit.numerics.batches import inputs_of
from slimbit.numerics.copies import copied
from slimbit.numerics.levels import LayerLevels
from slimbit.records.codec import sha256
from slimbit.records.dataflow import Dataflow
from slimbit.records.errors import InputError, closest
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan
from slimbit.survey.dataflow import read_dataflow


@dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    Attributes:
        model: A new network in evaluation mode; it computes in integers where the plan quantizes activations.
        network: The new network as modules; its weights are ``step * levels``. The model itself where activations stay
            float.
        plan: What was carried out.
        layers: Levels and steps by layer name, in the plan's order.
        program: The integers of every operation; None where activations stay float.
        refinement: What refinement gave, where it was asked for.
    """

    model: nn.Module
    network: nn.Module
    plan: CompressionPlan
    layers: dict[str, LayerLevels]
    program: IntegerProgram | None = None
    refinement: Refinement | None = None

    def digest(self) -> str:
        """SHA-256 over the plan, every level and every step: equal results, equal digests."""
        parts = [self.plan.digest().encode()]
        for name, layer in sorted(self.layers.items()):
            doubled = (layer.levels * 2).to(torch.int32).cpu().contiguous().numpy().tobytes()
            parts += [name.encode(), doubled, layer.steps.double().cpu().contiguous().numpy().tobytes()]
        return sha256(parts)


def compress(
    model: nn.Module,
    plan: CompressionPlan,
    spec: NetworkSpec,
    calibration: Calibration | Iterable[Any] | None = None,
    *,
    flow: Dataflow | None = None,
) -> Compressed:
    """Carry out a plan on a copy of the network, while the calibration images pass through it once.

    Each layer is quantized when its input arrives; the statistics behind it are corrected before the next one.
    The given network is not changed.

    Args:
        model: The float network.
        plan: Steps and how to round.
        spec: The network's survey.
        calibration: From `slimbit.apply.calibration.calibrate` (shared by all points), or batches of unlabelled
            images. None is enough for a plan without compensation that leaves statistics as stored.
        flow: What the network computes, for a plan that quantizes activations; None = read from the network on the
            first calibration batch.

    Raises:
        InputError: A plan for another network, missing calibration, values that are not finite, or quantized
            activations of a network with operations that have no integer form.
    """
    if calibration is None and plan.config.needs_images:
        raise InputError("calibration must be given for compensation, bias correction or new statistics, got none")
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = calibrate(model, spec, calibration)
    names = tuple(layer.name for layer in spec.layers)
    for layer in plan.layers:
        if layer.name not in names:
            raise InputError(f"plan must name layers of the network, got {layer.name!r}{closest(layer.name, names)}")
    network = copied(model).eval()
    if plan.activations:
        flow = flow or _flow_of(model, calibration)
        # what later layers are calibrated on has passed through the integers of the earlier ones
        with_quantized_values(network, flow, plan.activations)
    with opened_attention(network):
        done = _carry_out(network, plan, spec, calibration)
    if plan.activations:
        del network.forward
    refinement = None
    if plan.config.refine:
        assert calibration is not None, "refinement needs images"
        weights = [layer.weight_key for layer in spec.layers]
        passes = plan.config.refine
        refinement = refine(network, model, calibration.batches, passes, weights=weights, forward=calibration.forward)
    program = None
    if plan.activations:
        assert flow is not None
        levels, steps = ({name: getattr(x, key) for name, x in done.items()} for key in ("levels", "steps"))
        program = integer_program(network, flow, plan.activations, spec=spec, levels=levels, steps=steps)
    return Compressed(network if program is None else IntegerNetwork(program), network, plan, done, program, refinement)


def _flow_of(model: nn.Module, calibration: Calibration | None) -> Dataflow:
    if calibration is None:
        raise InputError("flow or calibration must be given for quantized activations, got none")
    batch = inputs_of(calibration.batches[0])
    return read_dataflow(model, batch)


def _carry_out(
    network: nn.Module, plan: CompressionPlan, spec: NetworkSpec, calibration: Calibration | None
) -> dict[str, LayerLevels]:
    """Quantize ``network`` in place and return its layers in the plan's order."""
    bounds = bind(network, spec)
    planned = {layer.name: bounds[layer.name] for layer in plan.layers}
    reads = plan.config.compensation or plan.config.bias_correction
    reached = calibration.reached if calibration is not None and reads else ()
    plain: dict[str, LayerLevels] = {}
    for name, bound in planned.items():
        if bound.window is None or name not in reached:
            plain[name] = quantize_layer(bound.weight(), plan.layer(name), plan, mask=bound.mask())
            bound.store(plain[name].weights())
    if calibration is None:
        return plain
    layerwise = LayerwisePass(network, plan, planned, calibration)
    layerwise.done.update(plain)
    if reads or plan.config.statistics == "paired_layerwise":
        layerwise.quantize()
    if plan.config.statistics in ("absolute", "paired"):
        layerwise.correct()
    return {name: layerwise.done[name] for name in planned}
