"""The one entry: a float network and a plan in, a compressed network and its levels out."""

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.apply.calibration import Calibration, batchnorms, calibrate
from slimbit.apply.layers import Bound, bind, unhooked
from slimbit.apply.quantize import QuantizedLayer, moments_of, quantize_layer
from slimbit.apply.statistics import correct_batchnorm, correct_bias
from slimbit.numerics.moments import channel_moments, check_finite, patches
from slimbit.records.errors import InputError, closest
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan


@dataclass(frozen=True)
class Compressed:
    """A compressed network.

    Attributes:
        model: A new network in evaluation mode; its weights are ``step * levels``.
        plan: What was carried out.
        levels: By layer name, filters first, whole or half numbers.
        scales: Step of each layer after refitting: scalar, or one per filter.
        signal_to_noise: Power ratio of each layer over its kept filters.
        errors: Relative output error of each layer on its own inputs; None where it saw no calibration.
    """

    model: nn.Module
    plan: CompressionPlan
    levels: dict[str, Tensor]
    scales: dict[str, Tensor]
    signal_to_noise: dict[str, float]
    errors: dict[str, float | None]

    def digest(self) -> str:
        """SHA-256 over the plan, every level and every step: equal results, equal digests."""
        total = hashlib.sha256(self.plan.digest().encode())
        for name in sorted(self.levels):
            total.update(name.encode())
            doubled = (self.levels[name] * 2).to(torch.int32).cpu().contiguous()
            total.update(doubled.numpy().tobytes())
            total.update(self.scales[name].double().cpu().contiguous().numpy().tobytes())
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
    needs = plan.compensation or plan.statistics != "stored" or plan.target == "outputs"
    if calibration is None and needs:
        raise InputError("calibration must be given for compensation or new statistics, got none")
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = calibrate(model, spec, calibration)
    names = tuple(layer.name for layer in spec.layers)
    for layer in plan.layers:
        if layer.name not in names:
            raise InputError(f"plan must name layers of the network, got {layer.name!r}{closest(layer.name, names)}")
    flight = _Flight(copy.deepcopy(model).eval(), plan, spec, calibration)
    flight.run()
    done = flight.done
    return Compressed(
        flight.network,
        plan,
        {name: layer.levels for name, layer in done.items()},
        {name: layer.step for name, layer in done.items()},
        {name: layer.signal_to_noise for name, layer in done.items()},
        {name: layer.error for name, layer in done.items()},
    )


class _Flight:
    """State of one point while the calibration images are under way."""

    def __init__(
        self, network: nn.Module, plan: CompressionPlan, spec: NetworkSpec, calibration: Calibration | None
    ) -> None:
        self.network, self.plan, self.calibration = network, plan, calibration
        bounds = bind(network, spec)
        self.bounds = {layer.name: bounds[layer.name] for layer in plan.layers}
        self.done: dict[str, QuantizedLayer] = {}
        self.corrected: set[str] = set()

    def run(self) -> None:
        reached = self.calibration.reached if self.calibration and self.plan.compensation else []
        for bound in unhooked(self.bounds.values(), reached):
            self._quantize(bound, None)
        if self.calibration is None:
            return
        if self.plan.compensation or self.plan.statistics == "paired_layerwise":
            self._pass(quantize=True, correct=self.plan.statistics == "paired_layerwise")
        if self.plan.statistics in ("absolute", "paired"):
            self._pass(quantize=False, correct=True)

    def _quantize(self, bound: Bound, inputs: Tensor | None) -> None:
        name = bound.spec.name
        moments = None
        if inputs is not None:
            check_finite(inputs, f"input of layer {name!r}")
            moments = self._moments(bound, inputs)
        result = quantize_layer(bound.weight(), self.plan.layer(name), self.plan, moments=moments)
        bound.store(result.weight())
        self.done[name] = result

    def _moments(self, bound: Bound, inputs: Tensor) -> Any:
        found, name = self.calibration, bound.spec.name
        assert found is not None
        assert bound.window is not None
        rows = patches(
            inputs.float(), bound.window, samples=found.samples_per_batch, generator=found.generator(name, 0)
        )
        shifts = self.plan.statistics != "stored" and (name in found.normalized or bound.bias() is not None)
        targets = found.rows[name][0] if self.plan.target == "outputs" else None
        if targets is not None and not shifts and bound.bias() is not None:
            targets = targets - bound.bias().detach()
        return moments_of(rows, targets, centred=shifts and CENTRED)

    def _pass(self, *, quantize: bool, correct: bool) -> None:
        found = self.calibration
        assert found is not None
        handles = []
        for name, bound in self.bounds.items():
            if name not in found.reached:
                continue
            if quantize and name not in self.done:
                handles.append(bound.module.register_forward_pre_hook(self._on_input(bound)))
            if correct and bound.bias() is not None and name not in found.normalized:
                handles.append(bound.module.register_forward_hook(self._on_output(bound)))
        if correct:
            for name, module in batchnorms(self.network).items():
                handles.append(module.register_forward_pre_hook(self._on_batchnorm(name, module)))
        try:
            with torch.no_grad():
                found.forward(self.network, found.batches[0])
        finally:
            for handle in handles:
                handle.remove()

    def _on_input(self, bound: Bound) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if bound.spec.name not in self.done:
                self._quantize(bound, inputs[0])

        return hook

    def _on_output(self, bound: Bound) -> Callable[..., Tensor | None]:
        name = bound.spec.name

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if name in self.corrected:
                return None
            self.corrected.add(name)
            quantized = channel_moments(output, axis=bound.channel_axis)
            shift = correct_bias(bound.bias(), original=self.calibration.outputs[name], quantized=quantized)
            return output + (shift.reshape(-1, *[1] * (output.ndim - 2)) if bound.channel_axis == 1 else shift)

        return hook

    def _on_batchnorm(self, name: str, module: _BatchNorm) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name in self.corrected:
                return
            self.corrected.add(name)
            correct_batchnorm(
                module,
                (module.running_mean.clone(), module.running_var.clone()),
                original=self.calibration.batchnorms[name],
                quantized=channel_moments(inputs[0]),
                kind="absolute" if self.plan.statistics == "absolute" else "paired",
            )

        return hook


CENTRED = True
