"""Signal and noise in a Lightning training: add `SignalCallback` to the trainer's callbacks."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import MissingExtraError
from slimbit.records.signal import EpochSignal
from slimbit.survey.trace import Inputs
from slimbit.training.tracker import SignalTracker

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:

    def _callback_class() -> type:
        """That of the package which the program uses: both have one."""
        names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
        for name in names:
            try:
                return importlib.import_module(name).Callback
            except ImportError:
                continue
        raise MissingExtraError("lightning", "lightning", "slimbit.training.lightning")

    Callback = _callback_class()


class SignalCallback(Callback):
    """Tracks signal and noise while a Lightning trainer fits, see `slimbit.training.tracker.SignalTracker`.

    Takes the weights after each step of an optimizer, ends the tracker's epoch with the trainer's, logs
    ``signal_to_noise`` and, where positions are known, ``esn_analog`` of the network, and goes into the trainer's
    checkpoints, from which it continues exactly.

    Args:
        example_input: As for the tracker.
        writers: Called with each epoch's record, on the first process only; see `slimbit.training.writers`.

    Attributes:
        tracker: Once training began.
    """

    def __init__(
        self, example_input: Inputs | None = None, writers: Sequence[Callable[[EpochSignal], None]] = ()
    ) -> None:
        super().__init__()
        self.tracker: SignalTracker | None = None
        self._example_input = example_input
        self._writers = tuple(writers)
        self._loaded: dict[str, Any] = {}
        self._steps = 0

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Begin at the weights as they are, or where the checkpoint was."""
        model = trainer.model or pl_module  # with its wrappers
        self.tracker = SignalTracker(model, self._example_input, start_epoch=trainer.current_epoch + 1)
        if self._loaded:
            self.tracker.load_state_dict(self._loaded)
            self._loaded = {}
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """End an epoch that a checkpoint was made at the very end of."""
        if self._running.iterations and self._running.epoch <= trainer.current_epoch:
            self._end_epoch(trainer, pl_module)

    def on_train_batch_end(self, trainer: "Trainer", *_: Any) -> None:
        """Take the weights if an optimizer stepped: not after each batch of an accumulated gradient."""
        if trainer.global_step > self._steps:
            self._running.update()
        self._steps = trainer.global_step

    def on_train_epoch_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Log and write the epoch's record."""
        if self._running.iterations:
            self._end_epoch(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For the trainer's checkpoint."""
        return dict(self._loaded) if self.tracker is None else dict(self.tracker.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the trainer's checkpoint; used when training starts."""
        self._loaded = dict(state_dict)

    @property
    def _running(self) -> SignalTracker:
        assert self.tracker is not None
        return self.tracker

    def _end_epoch(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        record = self._running.end_epoch()
        pl_module.log("signal_to_noise", record.signal_to_noise)
        if record.esn_analog_estimate is not None:
            pl_module.log("esn_analog", record.esn_analog_estimate)
        for writer in self._writers if trainer.is_global_zero else ():
            writer(record)
