"""Signal and noise in a training with Transformers: add `SignalCallback` to the trainer's callbacks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save

from slimbit.records.containers import check_safetensors
from slimbit.records.errors import MissingExtraError
from slimbit.records.files import write_whole
from slimbit.records.signal import EpochSignal
from slimbit.survey.files import reading
from slimbit.survey.trace import Inputs
from slimbit.training.tracker import SignalTracker

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "transformers", "slimbit.training.transformers") from error

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

STATE_FILE = "slimbit_signal.safetensors"


class SignalCallback(TrainerCallback):
    """Tracks signal and noise while a `transformers.Trainer` trains, see `slimbit.training.tracker.SignalTracker`.

    Takes the weights after each step of the optimizer, ends the tracker's epoch with the trainer's, and puts
    ``signal_to_noise`` and, where positions are known, ``esn_analog`` of the network into the trainer's log history.
    Its state lies in each checkpoint's folder, from which it continues exactly where the trainer's output folder is
    the same; elsewhere it begins anew at the weights that the trainer loaded.

    Args:
        example_input: As for the tracker.
        writers: Called with each epoch's record, on the first process only; see `slimbit.training.writers`.

    Attributes:
        tracker: Once training began.
    """

    def __init__(
        self, example_input: Inputs | None = None, writers: Sequence[Callable[[EpochSignal], None]] = ()
    ) -> None:
        self.tracker: SignalTracker | None = None
        self._example_input = example_input
        self._writers = tuple(writers)

    def on_train_begin(self, args: "TrainingArguments", state: "TrainerState", *_: Any, **kwargs: Any) -> None:
        """Begin at the weights as they are, or where the checkpoint was."""
        start = int(state.epoch or 0) + 1
        self.tracker = SignalTracker(kwargs["model"], self._example_input, start_epoch=start)
        stored = _state_file(args, state)
        if state.global_step and stored.exists():
            check_safetensors(stored, "state of the tracker")
            with reading(stored, "safetensors"):
                tensors = load_file(stored)
            self.tracker.load_state_dict(tensors)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take the weights; the trainer calls this once for each step of the optimizer."""
        self._running.update()

    def on_epoch_end(self, *event: Any, **_: Any) -> None:
        """Log and write the epoch's record."""
        state: TrainerState = event[1]
        if not self._running.iterations:
            return
        record = self._running.end_epoch()
        entry: dict[str, Any] = {"epoch": state.epoch, "step": state.global_step}
        entry |= {"signal_to_noise": record.signal_to_noise, "esn_analog": record.esn_analog_estimate}
        state.log_history.append({name: value for name, value in entry.items() if value is not None})
        for writer in self._writers if state.is_world_process_zero else ():
            writer(record)

    def on_save(self, args: "TrainingArguments", state: "TrainerState", *_: Any, **__: Any) -> None:
        """Put the tracker's state beside the trainer's own."""
        tensors = self._running.state_dict()  # on every process: a collective call of a sharded network
        if state.is_world_process_zero:
            write_whole(_state_file(args, state), save(tensors))

    @property
    def _running(self) -> SignalTracker:
        assert self.tracker is not None
        return self.tracker


def _state_file(args: "TrainingArguments", state: "TrainerState") -> Path:
    assert args.output_dir is not None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
