"""The one entry: a float network and a plan in, a compressed network and its levels out."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slimbit.apply.calibration import Calibration, calibrate
from slimbit.apply.layers import bind
from slimbit.apply.layerwise import LayerwisePass
from slimbit.apply.quantize import quantize_layer
from slimbit.numerics.copies import copied
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError, closest
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan


@dataclass(frozen=True)
class Compressed:
    """What `compress` made.

    Attributes:
        model: A new network in evaluation mode; its weights are ``step * levels``.
        plan: What was carried out.
        layers: Levels and steps by layer name, in the plan's order.
    """

    model: nn.Module
    plan: CompressionPlan
    layers: dict[str, LayerLevels]

    def digest(self) -> str:
        """SHA-256 over the plan, every level and every step: equal results, equal digests."""
        total = hashlib.sha256(self.plan.digest().encode())
        for name in sorted(self.layers):
            total.update(name.encode())
            doubled = (self.layers[name].levels * 2).to(torch.int32).cpu().contiguous()
            total.update(doubled.numpy().tobytes())
            total.update(self.layers[name].steps.double().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()


def compress(
    model: nn.Module, plan: CompressionPlan, spec: NetworkSpec, calibration: Calibration | Iterable[Any] | None = None
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

    Raises:
        InputError: A plan for another network, missing calibration, or values that are not finite.
    """
    needs = plan.config.compensation or plan.config.statistics != "stored"
    if calibration is None and needs:
        raise InputError("calibration must be given for compensation or new statistics, got none")
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = calibrate(model, spec, calibration)
    names = tuple(layer.name for layer in spec.layers)
    for layer in plan.layers:
        if layer.name not in names:
            raise InputError(f"plan must name layers of the network, got {layer.name!r}{closest(layer.name, names)}")
    network = copied(model).eval()
    return Compressed(network, plan, _carry_out(network, plan, spec, calibration))


def _carry_out(
    network: nn.Module, plan: CompressionPlan, spec: NetworkSpec, calibration: Calibration | None
) -> dict[str, LayerLevels]:
    """Quantize ``network`` in place and return its layers in the plan's order."""
    bounds = bind(network, spec)
    planned = {layer.name: bounds[layer.name] for layer in plan.layers}
    reached = calibration.reached if calibration is not None and plan.config.compensation else ()
    plain: dict[str, LayerLevels] = {}
    for name, bound in planned.items():
        if bound.window is None or name not in reached:
            plain[name] = quantize_layer(bound.weight(), plan.layer(name), plan, mask=bound.mask())
            bound.store(plain[name].weights())
    if calibration is None:
        return plain
    layerwise = LayerwisePass(network, plan, planned, calibration)
    layerwise.done.update(plain)
    if plan.config.compensation or plan.config.statistics == "paired_layerwise":
        layerwise.quantize()
    if plan.config.statistics in ("absolute", "paired"):
        layerwise.correct()
    return {name: layerwise.done[name] for name in planned}
