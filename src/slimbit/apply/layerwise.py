"""Calibration images pass through the network; each layer is quantized when its input arrives.

All images make one pass together, in batches that wait for each other at every layer, at its output where a bias is
corrected, and at every BatchNorm: see `slimbit.apply.lockstep`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from slimbit.apply.calibration import Calibration, TensorState, are_same, batchnorms, state_of
from slimbit.apply.layers import Bound, first_input
from slimbit.apply.lockstep import Lockstep
from slimbit.apply.quantize import mean_shift, quantize_layer
from slimbit.apply.statistics import correct_batchnorm, correct_bias
from slimbit.numerics.levels import LayerLevels
from slimbit.numerics.moments import PatchSums, channel_moments, check_finite
from slimbit.records.plan import CompressionPlan

Kind = Literal["layer", "bias", "batchnorm"]
Event = tuple[Kind, str]


class LayerwisePass:
    """A pass of the calibration images through a network that is compressed on the way.

    Attributes:
        network: The copy that is being compressed.
        done: Finished layers by name.
    """

    def __init__(
        self, network: nn.Module, plan: CompressionPlan, bounds: dict[str, Bound], calibration: Calibration
    ) -> None:
        self.network, self.plan, self.bounds, self.calibration = network, plan, bounds, calibration
        self.done: dict[str, LayerLevels] = {}
        self._norms = batchnorms(network)
        self._finished: set[Event] = set()
        self._shared: tuple[str, dict[int, TensorState], PatchSums] | None = None

    def quantize(self) -> None:
        """Quantize every layer that hooks reach; with ``paired_layerwise``, correct statistics on the way."""
        self._run(
            self._events("layer", *(("bias", "batchnorm") if self.plan.config.statistics == "paired_layerwise" else ()))
        )
        for name in [name for name in self.bounds if name not in self.done]:
            # reached by the float network, but not by the compressed one, whose data took another path
            self._quantize(name, None)

    def correct(self) -> None:
        """Correct statistics of a network that is quantized already."""
        self._run(self._events("bias", "batchnorm"))

    def _events(self, *kinds: Kind) -> list[Event]:
        found: list[Event] = []
        for kind, name in self.calibration.events:
            if kind == "batchnorm":
                found.append(("batchnorm", name))
            elif name in self.bounds:
                found.append(("layer", name))
                if self.bounds[name].bias() is not None and name not in self.calibration.normalized:
                    found.append(("bias", name))
        return [event for event in found if event[0] in kinds and not (event[0] == "layer" and event[1] in self.done)]

    def _run(self, events: list[Event]) -> None:
        if not events:
            return
        calibration = self.calibration
        lockstep = Lockstep(
            self.network, calibration.batches, calibration.forward, self._act, halved=calibration.halved
        )
        handles = [self._hook(event, lockstep) for event in events]
        order = {event: place for place, event in enumerate(events)}
        try:
            lockstep.run(order.__getitem__)
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, event: Event, lockstep: Lockstep) -> Any:
        kind, name = event

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = first_input(args, kwargs)
            if values.numel():
                lockstep.wait(event, values)

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
            shift: Tensor | None = lockstep.wait(event, output) if output.numel() else None
            if shift is None:
                return None
            window = self.bounds[name].window
            return output + shift.reshape(-1, *[1] * (len(window.kernel) if window is not None else 0))

        module = self._norms[name] if kind == "batchnorm" else self.bounds[name].module
        if kind == "bias":
            return module.register_forward_hook(after)
        return module.register_forward_pre_hook(before, with_kwargs=True)

    def _act(self, event: Event, values: dict[int, Tensor]) -> Tensor | None:
        """What is done once all batches have come to an event; the shift of outputs that have been made already."""
        kind, name = event
        if event in self._finished:
            return None  # a batch whose data took another path comes late: what is decided stays
        self._finished.add(event)
        what = f"{'output' if kind == 'bias' else 'input'} of {name!r} while calibrating"
        if kind == "layer":
            for value in values.values():
                check_finite(value, what)
            self._quantize(name, self._patch_sums(name, values))
        elif kind == "bias":
            bound = self.bounds[name]
            bias = bound.bias()
            assert bias is not None
            outputs = [bound.batched(value) for value in values.values()]
            found = channel_moments(outputs, axis=bound.channel_axis, what=what)
            return correct_bias(bias, original=self.calibration.outputs[name], quantized=found)
        else:
            # one set of statistics for several calls: what the first call sees is only a part of it
            absolute = self.plan.config.statistics == "absolute" and name not in self.calibration.reused
            correct_batchnorm(
                self._norms[name],
                original=self.calibration.batchnorms[name],
                quantized=channel_moments([*values.values()], what=what),
                form="absolute" if absolute else "paired",
            )
        return None

    def _patch_sums(self, name: str, values: dict[int, Tensor]) -> PatchSums:
        """Sums over what a layer reads; layers that read the same tensors share them."""
        found, states = self.calibration, {number: state_of(value) for number, value in values.items()}
        first = found.same_input.get(name, name)
        known = self._shared is not None and self._shared[0] == first and are_same(self._shared[1], states)
        shared = self._shared[2] if self._shared is not None and known else None
        sums = found.patch_sums(self.bounds[name], values, outputs=self.plan.config.target == "outputs", shared=shared)
        if name in found.same_input.values():
            self._shared = name, states, sums
        return sums

    def _quantize(self, name: str, sums: PatchSums | None) -> None:
        bound = self.bounds[name]
        moments = None if sums is None else sums.moments(centred=self._mean_is_free(name))
        layer = self.plan.layer(name)
        self.done[name] = quantize_layer(bound.weight(), layer, self.plan, moments=moments, mask=bound.mask())
        if self.plan.config.bias_correction and sums is not None:
            self._add_to_outputs(name, mean_shift(bound.weight(), self.done[name], layer), sums.mean())
        bound.store(self.done[name].weights())

    def _add_to_outputs(self, name: str, shift: Tensor, inputs: Tensor) -> None:
        """Move a bias, or the mean of the BatchNorm behind, by what a shift of all weights adds to the mean output.

        Args:
            name: Of the layer; one that has neither stays as it is.
            shift: Of every weight, shape ``(filters,)``.
            inputs: Mean of what it reads, ``(groups, features)``.
        """
        added = (shift.reshape(len(inputs), -1) * inputs.sum(dim=1, keepdim=True)).flatten()
        bias, norm = self.bounds[name].bias(), self.calibration.normalized.get(name, "")
        with torch.no_grad():
            if bias is not None:
                bias.add_(added.to(bias))
            elif norm and norm not in self.calibration.reused:
                mean = self._norms[norm].running_mean
                assert mean is not None
                mean.sub_(added.to(mean))

    def _mean_is_free(self, name: str) -> bool:
        """Whether statistics or a bias will be moved to absorb a shift of this layer's mean output."""
        absorbs = name in self.calibration.normalized or self.bounds[name].bias() is not None
        return absorbs and self.plan.config.statistics != "stored"
