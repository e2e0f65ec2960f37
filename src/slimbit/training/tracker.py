"""Signal and noise of the weights while a network trains, in anyone's training loop: Prune or quantize?, Eq. (5)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from slimbit.numerics.copies import unwrapped
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.records.signal import EpochSignal, LayerSignal
from slimbit.survey.by_type import layers_by_type
from slimbit.survey.module import survey_network
from slimbit.survey.trace import Inputs
from slimbit.training.positions import PositionsWatch
from slimbit.training.sharding import (
    broadcast,
    is_sharded,
    local_part,
    part_of,
    process_group,
    refuse_flat_parameters,
    whole,
)
from slimbit.training.sums import WeightSums, sum_type
from slimbit.training.tracker_state import check_counters, check_weights
from slimbit.training.weights import TrackedWeight, tracked_weights
from slimbit.training.writers import CsvWriter, JsonLinesWriter, writer_for

if TYPE_CHECKING:
    from slimbit.training import lightning, transformers


class SignalTracker:
    """Measures the random walk of every layer's weights, epoch by epoch.

    Over the iterations i = 1..I of an epoch that begins at weights ``W_start``, per filter and per layer:
    ``signal = mean_i ||W_i||^2`` and ``noise = mean_i ||W_i - W_start||^2``: Prune or quantize? (2019), Eq. (5), as
    this project reads it. From their ratio the record computes the cost that the epoch's weights stand for, Eq. (4).

    Tracked are the layers that `slimbit.cost` counts. A weight that layers share is held once and recorded for each
    of them. A parametrized weight is followed as the network computes with it. A layer that was frozen for
    the whole epoch (nothing of it requires gradients, and it did not move) is not in that epoch's record.

    Held: one copy of the tracked weights in their own type, and two float64 sums per filter (float32 on devices
    without float64). `update` adds squares taken in float32 at least, in a few large operations, and never waits for
    the device.

    Several processes: under DistributedDataParallel the first process measures and `end_epoch` sends its sums to the
    others, so that every record is the same; give the wrapped network. Of a network sharded by ``fully_shard`` each
    process measures its own shards, and `end_epoch` adds them up; make the tracker after sharding. Both make
    `end_epoch` a collective call, and sharding also `state_dict`.

    Args:
        model: The network that trains, plain, compiled or wrapped; it is not run and not changed.
        example_input: One example with its batch dimension, as for `slimbit.cost`, which then finds layers
            and output positions. Without it layers are found by module type, and positions are learned from the first
            forward pass in training mode by hooks that are gone after the first `update`; in a network that is
            compiled already they stay unknown, and with them ESN_a.
        start_epoch: Number of the epoch that begins now.
        out: Where the first process keeps each record: a file ``.jsonl`` (which `slimbit.read_training_run` and
            ``slimbit signal`` read) or ``.csv``, or a folder of TensorBoard events; None = nowhere. A training that is
            continued goes on in its file; one that begins needs a new file.

    Attributes:
        history: Records of the epochs that ended in this process.

    Raises:
        InputError: The network has no layers that count, a weight of it cannot be followed, or the example does not
            fit.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.ones_(model.weight)
    >>> tracker = SignalTracker(model, torch.zeros(1, 1))
    >>> for _ in range(2):
    ...     _ = model.weight.data.add_(1)  # an optimizer's step
    ...     tracker.update()
    >>> record = tracker.end_epoch()
    >>> record.layers[0].signal, record.layers[0].noise  # (4 + 9) / 2, (1 + 4) / 2
    (6.5, 2.5)
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Inputs | None = None,
        *,
        start_epoch: int = 1,
        out: str | Path | None = None,
    ) -> None:
        if not isinstance(start_epoch, int) or start_epoch < 1:
            raise InputError(f"start_epoch must be a whole number from 1, got {start_epoch!r}")
        if not isinstance(model, nn.Module):
            raise InputError(f"the network must be a torch.nn.Module, got {type(model).__name__}")
        self._network = unwrapped(model)
        refuse_flat_parameters(self._network)
        self._layers = _layers(self._network, example_input)
        self._weights = tracked_weights(self._network, self._layers)
        self._positions = {} if example_input is None else {layer.name: layer.positions for layer in self._layers}
        self._watch = PositionsWatch(self._network) if example_input is None and not _compiled(model) else None
        self._group = process_group(model)
        self._first = self._group is None or self._group.rank() == 0
        writes = not distributed.is_available() or not distributed.is_initialized() or distributed.get_rank() == 0
        self._writer = writer_for(out) if out is not None and writes else None
        self._epoch = start_epoch
        self._iterations = 0
        self._history: list[EpochSignal] = []
        with torch.no_grad():
            values = self._read()
        depths = [weight.depth for weight in self._weights]
        self._sums = WeightSums(values, depths) if self._first else WeightSums((), ())

    @property
    def epoch(self) -> int:
        """Number of the epoch under way."""
        return self._epoch

    @property
    def iterations(self) -> int:
        """Number of updates in it so far."""
        return self._iterations

    @property
    def history(self) -> tuple[EpochSignal, ...]:
        """Records of the epochs that ended in this process, oldest first."""
        return tuple(self._history)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as one more iteration; call it after each step of the optimizer.

        Raises:
            InputError: A weight has another shape than before, or can no longer be followed; or a training begins, and
                ``out`` is the file of another.
        """
        if not self._iterations and not self._history and isinstance(self._writer, JsonLinesWriter | CsvWriter):
            self._writer.check_begin(self._epoch)  # before an epoch is trained in vain
        if self._watch is not None:
            self._positions = self._known_positions()
            self._watch.stop()
            self._watch = None
        if self._first:
            values = self._settled()
            self._sums.add(values)
        self._iterations += 1

    @torch.no_grad()
    def end_epoch(self) -> EpochSignal:
        """Close the epoch, and begin the next one at the weights as they are. Waits for the device.

        Returns:
            Signal and noise of every layer and filter, the same on every process.

        Raises:
            InputError: There was no `update` in this epoch, or a module was exchanged for another.
        """
        if not self._iterations:
            raise InputError(f"end_epoch must follow at least one update in the epoch, got none in epoch {self._epoch}")
        self._refuse_exchanged_modules()
        totals = dict(zip(self._weights, self._totals(), strict=True))
        rows = {
            layer.name: self._layer_signal(layer, weight, total)
            for weight, total in totals.items()
            for layer in weight.layers
            if weight.trainable or bool(total[1].any())
        }
        record = EpochSignal(
            epoch=self._epoch,
            iterations=self._iterations,
            layers=tuple(rows[layer.name] for layer in self._layers if layer.name in rows),
        )
        self._history.append(record)
        self._epoch += 1
        self._iterations = 0
        if self._first:
            values = self._settled()
            self._sums.begin(values)
        if self._writer is not None:
            self._writer(record)
        return record

    @staticmethod
    def lightning_callback(
        example_input: Inputs | None = None, *, out: str | Path | None = None
    ) -> "lightning.SignalCallback":
        """A callback that makes a tracker and calls it, for ``lightning.Trainer(callbacks=[...])``.

        Args:
            example_input: As for the tracker.
            out: As for the tracker.

        Raises:
            MissingExtraError: Lightning is not installed.
        """
        from slimbit.training.lightning import SignalCallback

        return SignalCallback(example_input, () if out is None else (writer_for(out),))

    @staticmethod
    def transformers_callback(
        example_input: Inputs | None = None, *, out: str | Path | None = None
    ) -> "transformers.SignalCallback":
        """A callback that makes a tracker and calls it, for ``transformers.Trainer(callbacks=[...])``.

        Args:
            example_input: As for the tracker.
            out: As for the tracker.

        Raises:
            MissingExtraError: Transformers is not installed.
        """
        from slimbit.training.transformers import SignalCallback

        return SignalCallback(example_input, () if out is None else (writer_for(out),))

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """All that is needed to go on exactly from here: copies on the CPU, flat, fit for safetensors.

        Of a sharded network every process gets the whole state (a collective call). Under DistributedDataParallel the
        first process's state is the one to keep: the others hold no weights and no sums.
        """
        state = {
            "epoch": torch.tensor(self._epoch),
            "iterations": torch.tensor(self._iterations),
            "positions": self._positions_of_layers(),
        }
        for index, weight in enumerate(self._weights if self._first else ()):
            value = weight.read()
            start = whole(self._sums.start(index), value)
            sums = whole(self._sums.sums(index), value, depth=weight.depth)
            state |= {f"start.{weight.key}": _kept(start), f"sums.{weight.key}": _kept(sums)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, also in the middle of an epoch.

        Args:
            state: Of a tracker of the same network. On several processes each gives the first one's. Not kept.

        Raises:
            InputError: The state is of another network, or not of a tracker; nothing was changed.
        """
        check_counters(state, layers=len(self._layers))
        if self._first:
            check_weights(state, self._weights)
        self._epoch, self._iterations = int(state["epoch"]), int(state["iterations"])
        self._positions = self._named(state["positions"]) | self._positions
        if not self._first:
            return
        self._settled()
        for index, weight in enumerate(self._weights):
            value = weight.read()
            self._sums.start(index).copy_(part_of(state[f"start.{weight.key}"], value))
            self._sums.sums(index).copy_(part_of(state[f"sums.{weight.key}"], value, depth=weight.depth))

    def _known_positions(self) -> dict[str, int]:
        return self._positions if self._watch is None else self._positions | self._watch.positions

    def _positions_of_layers(self) -> Tensor:
        """In order of the layers, -1 where they are not known."""
        known = self._known_positions()
        return torch.tensor([known.get(layer.name, -1) for layer in self._layers])

    def _named(self, positions: Tensor) -> dict[str, int]:
        values = zip(self._layers, positions.tolist(), strict=True)
        return {layer.name: int(value) for layer, value in values if value >= 0}

    def _read(self) -> list[Tensor]:
        """What this process holds of each weight."""
        return [local_part(weight.read()) for weight in self._weights]

    def _settled(self) -> list[Tensor]:
        """The weights now; where they went to another device, type or memory format, start and sums go there too."""
        now, before = self._read(), self._sums
        if before.fit(now):
            return now
        for index, (weight, value) in enumerate(zip(self._weights, now, strict=True)):
            shape = before.start(index).shape
            if value.shape != shape:
                raise InputError(
                    f"weight {weight.key} must keep its shape {tuple(shape)}, got {tuple(value.shape)}: "
                    "make a new tracker after a network was changed or sharded"
                )
        self._sums = WeightSums(now, [weight.depth for weight in self._weights])
        for index in range(len(now)):
            self._sums.start(index).copy_(before.start(index))
            self._sums.sums(index).copy_(before.sums(index))
        return now

    def _totals(self) -> list[Tensor]:
        """Per weight, of shape ``(3, *segments)``: sums of signal and noise, and the number of non-zero weights."""
        values = [weight.read() for weight in self._weights]
        depths = [weight.depth for weight in self._weights]
        if self._first:
            counts = self._sums.nonzero(self._settled())
            parts = [torch.cat([self._sums.sums(i), count[None]]) for i, count in enumerate(counts)]
            totals = [whole(p, v, depth=d) for p, v, d in zip(parts, values, depths, strict=True)]
        else:
            wide = sum_type(values[0].device)
            totals = [v.new_empty(3, *v.shape[:d], dtype=wide) for v, d in zip(values, depths, strict=True)]
        if self._group is not None:
            places = self._positions_of_layers().to(totals[0])
            broadcast([*totals, places], self._group)
            self._positions = self._named(places)
        return [total.cpu() for total in totals]

    def _layer_signal(self, layer: LayerSpec, weight: TrackedWeight, total: Tensor) -> LayerSignal:
        signal, noise, nonzero = (weight.of_filters(values, layer) for values in total)
        return LayerSignal(
            name=layer.name,
            epoch=self._epoch,
            nonzero_weights=int(nonzero.sum()),
            positions=self._positions.get(layer.name),
            filter_signal=tuple((signal / self._iterations).tolist()),
            filter_noise=tuple((noise / self._iterations).tolist()),
        )

    def _refuse_exchanged_modules(self) -> None:
        modules = dict(self._network.named_modules())
        for weight in self._weights:
            if modules.get(weight.key.rpartition(".")[0]) is not weight.owner:
                raise InputError(
                    f"the module of weight {weight.key} must stay the one that the tracker was made with, "
                    "got another: make a new tracker after a network was changed"
                )


def _layers(network: nn.Module, example_input: Inputs | None) -> tuple[LayerSpec, ...]:
    if example_input is None:
        layers = layers_by_type(network)
    elif any(is_sharded(parameter) for parameter in network.parameters()):
        raise InputError("example_input must be left out for a sharded network: positions are learned as it trains")
    else:
        layers = survey_network(network, example_input).spec.layers
    if not layers:
        raise InputError(f"the network must have layers with weights, got none in {type(network).__name__}")
    return layers


def _compiled(model: nn.Module) -> bool:
    """Whether hooks would be compiled in, or end up in copies on several devices."""
    return isinstance(model, nn.DataParallel) or any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()
    )


def _kept(values: Tensor) -> Tensor:
    return values.detach().to("cpu", copy=True).contiguous()
