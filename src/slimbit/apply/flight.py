"""Calibration images pass through the network; each layer is quantized when its input arrives.

With one batch everything happens in a single forward pass. With several, the same events (a layer is quantized,
a statistic corrected) are worked off in order, each with its own pass up to that point: the same result, in the
memory of one batch.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from slimbit.apply.calibration import Calibration, batchnorms
from slimbit.apply.layers import Bound, first_input
from slimbit.apply.quantize import quantize_layer
from slimbit.apply.statistics import correct_batchnorm, correct_bias
from slimbit.numerics.levels import LayerLevels
from slimbit.numerics.moments import ChannelMoments, PatchSums, channel_moments, check_finite, merge_moments, patches
from slimbit.records.plan import CompressionPlan

Kind = Literal["layer", "bias", "batchnorm"]
Event = tuple[Kind, str]


class Flight:
    """State of one compressed network while the calibration images are under way.

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
        self._sums: dict[str, PatchSums] = {}
        self._moments: dict[Event, ChannelMoments] = {}
        self._finished: set[Event] = set()
        self._batch = 0

    def quantize(self) -> None:
        """Quantize every layer that hooks reach; with ``paired_layerwise``, correct statistics on the way."""
        self._fly(
            self._events("layer", *(("bias", "batchnorm") if self.plan.config.statistics == "paired_layerwise" else ()))
        )
        for name in [name for name in self.bounds if name not in self.done]:
            # reached by the float network, but not by the compressed one, whose data took another path
            self._quantize(name)

    def correct(self) -> None:
        """Correct statistics of a network that is quantized already."""
        self._fly(self._events("bias", "batchnorm"))

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

    def _fly(self, events: list[Event]) -> None:
        if not events:
            return
        if len(self.calibration.batches) == 1:
            self._pass(events, self.calibration.batches[0], at_once=True)
            return
        for event in events:
            for number, batch in enumerate(self.calibration.batches):
                self._batch = number
                self._pass([event], batch, at_once=False)
            self._finish(event)

    def _pass(self, events: list[Event], batch: Any, *, at_once: bool) -> None:
        self._seen: set[Event] = set()
        handles = [self._hook(event, at_once=at_once) for event in events]
        try:
            with torch.no_grad():
                self.calibration.forward(self.network, batch)
        except _EnoughError:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, event: Event, *, at_once: bool) -> Any:
        kind, name = event
        if kind == "batchnorm":
            return self._norms[name].register_forward_pre_hook(self._before(event, at_once=at_once), with_kwargs=True)
        module = self.bounds[name].module
        if kind == "layer":
            return module.register_forward_pre_hook(self._before(event, at_once=at_once), with_kwargs=True)
        return module.register_forward_hook(self._after(event, at_once=at_once))

    def _before(self, event: Event, *, at_once: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._meet(event, first_input(args, kwargs), at_once=at_once)

        return hook

    def _after(self, event: Event, *, at_once: bool) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
            shift = self._meet(event, output, at_once=at_once)
            if shift is None:
                return None
            window = self.bounds[event[1]].window
            return output + shift.reshape(-1, *[1] * len(window.kernel if window is not None else ()))

        return hook

    def _meet(self, event: Event, values: Tensor, *, at_once: bool) -> Tensor | None:
        """First meeting of a batch with an event: note what is needed; act, or end the pass."""
        if event in self._seen or not values.numel():
            return None
        self._seen.add(event)
        self._note(event, values)
        if not at_once:
            raise _EnoughError
        return self._finish(event)

    def _note(self, event: Event, values: Tensor) -> None:
        kind, name = event
        check_finite(values, f"{'output' if kind == 'bias' else 'input'} of {name!r} while calibrating")
        if kind == "layer":
            self._note_patches(name, values)
            return
        bound = self.bounds[name] if kind == "bias" else None
        part = (
            channel_moments(values)
            if bound is None
            else channel_moments(bound.batched(values), axis=bound.channel_axis)
        )
        self._moments[event] = merge_moments(self._moments[event], part) if event in self._moments else part

    def _note_patches(self, name: str, values: Tensor) -> None:
        found, window = self.calibration, self.bounds[name].window
        assert window is not None
        values = self.bounds[name].batched(values)
        rows = patches(
            values if values.dtype == torch.float64 else values.float(),
            window,
            samples=found.samples_per_batch,
            generator=found.generator(name, self._batch),
        )
        targets = found.rows[name].get(self._batch) if self.plan.config.target == "outputs" else None
        if targets is not None and len(targets) != len(rows):
            targets = None  # other positions than in the float network: the data took another path
        self._sums.setdefault(name, PatchSums()).add(rows, targets)

    def _finish(self, event: Event) -> Tensor | None:
        kind, name = event
        if kind == "layer":
            self._quantize(name)
        elif event not in self._moments:
            return None  # the compressed network never came here
        elif kind == "bias":
            bias = self.bounds[name].bias()
            assert bias is not None
            return correct_bias(bias, original=self.calibration.outputs[name], quantized=self._moments.pop(event))
        else:
            # one set of statistics for several calls: what the first call sees is only a part of it
            absolute = self.plan.config.statistics == "absolute" and name not in self.calibration.reused
            form: Literal["absolute", "paired"] = "absolute" if absolute else "paired"
            correct_batchnorm(
                self._norms[name],
                original=self.calibration.batchnorms[name],
                quantized=self._moments.pop(event),
                form=form,
            )
        return None

    def _quantize(self, name: str) -> None:
        bound = self.bounds[name]
        sums = self._sums.pop(name, None)
        moments = None if sums is None else sums.moments(centred=self._mean_is_free(name))
        self.done[name] = quantize_layer(
            bound.weight(), self.plan.layer(name), self.plan, moments=moments, mask=bound.mask()
        )
        bound.store(self.done[name].weights())

    def _mean_is_free(self, name: str) -> bool:
        """Whether statistics or a bias will be moved to absorb a shift of this layer's mean output."""
        absorbs = name in self.calibration.normalized or self.bounds[name].bias() is not None
        return absorbs and self.plan.config.statistics != "stored"


class _EnoughError(Exception):
    """Ends a pass early; never leaves this file."""
