"""Writers of an `EpochSignal`: called with each record, for people, spreadsheets, and dashboards.

A run that continues from an earlier epoch writes some epochs again: the first record that a writer gets, and any that
goes back, replaces what the file has of its epoch and of later ones, in one step. A training that begins at epoch 1
does not replace the file of an earlier one where ``protects`` is true.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.files import append_whole, read_text, write_whole
from slimbit.records.signal import DEAD_THRESHOLDS, EpochSignal, LayerSignal
from slimbit.records.signal_file import read_signal, signal_line

Writer = Callable[[EpochSignal], None]

COLUMNS = (
    "layer",
    "epoch",
    "signal",
    "noise",
    "signal_to_noise",
    "esn_analog",
    "esn_analog_corrected",
    "filters",
    *(f"dead_{threshold:g}" for threshold in DEAD_THRESHOLDS),
)


def writer_for(out: str | Path) -> Writer:
    """The writer that a path asks for: a file ``.jsonl`` or ``.csv``, or a folder of TensorBoard events.

    Raises:
        InputError: A file of another kind.
        MissingExtraError: A folder, and TensorBoard is not installed.

    >>> writer_for("signal.txt")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: out must end in .jsonl or .csv, or be a folder for TensorBoard, got signal.txt
    """
    suffix = Path(out).suffix
    if suffix == ".jsonl":
        return JsonLinesWriter(out, protects=True)
    if suffix == ".csv":
        return CsvWriter(out, protects=True)
    if suffix and not Path(out).is_dir():
        raise InputError(f"out must end in .jsonl or .csv, or be a folder for TensorBoard, got {out}")
    return TensorBoardWriter(out)


class JsonLinesWriter:
    """Appends each epoch as one line, every filter included; read it with `slimbit.records.signal_file.read_signal`.

    Args:
        path: The file; made, with its folder, at the first record.
        protects: Whether a file of an earlier training is refused.

    Raises:
        InputError: When called: a protected file of another training, or what the file holds is damaged.
        StoreError: When called: the file cannot be written.
    """

    def __init__(self, path: str | Path, *, protects: bool = False) -> None:
        self._file = _Lines(Path(path), protects=protects)

    def check_begin(self, epoch: int) -> None:
        """Raise `InputError` where the file is of another training than the one that is in this epoch."""
        self._file.check_begin(epoch)

    def __call__(self, record: EpochSignal) -> None:
        """Write one epoch."""
        self._file.add(record.epoch, signal_line(record), self._before)

    def _before(self, epoch: int) -> str:
        path = self._file.path
        kept = [known for known in read_signal(path) if known.epoch < epoch] if path.exists() else []
        return "".join(map(signal_line, kept))


class CsvWriter:
    """Appends one row per layer and epoch, with the columns `COLUMNS`; what is not known is empty.

    Args:
        path: The file; made, with its folder, at the first record.
        protects: Whether a file of an earlier training is refused.

    Raises:
        InputError: When called: a protected file of another training, or the file has other columns, or a row is
            damaged.
        StoreError: When called: the file cannot be written.
    """

    def __init__(self, path: str | Path, *, protects: bool = False) -> None:
        self._file = _Lines(Path(path), protects=protects)

    def check_begin(self, epoch: int) -> None:
        """Raise `InputError` where the file is of another training than the one that is in this epoch."""
        self._file.check_begin(epoch)

    def __call__(self, record: EpochSignal) -> None:
        """Write the rows of one epoch."""
        self._file.add(record.epoch, _csv([_row(layer) for layer in record.layers]), self._before)

    def _before(self, epoch: int) -> str:
        path = self._file.path
        text = read_text(path, "signal file") if path.exists() else ""
        text = text[: text.rfind("\n") + 1]  # the last line may be unfinished
        header, *rows = list(csv.reader(io.StringIO(text))) or [list(COLUMNS)]
        if tuple(header) != COLUMNS:
            raise InputError(f"{path} must have the columns {', '.join(COLUMNS)}, got {', '.join(header)}")
        for number, row in enumerate(rows, 2):
            if len(row) != len(COLUMNS) or not row[1].isdecimal():
                raise InputError(f"row {number} of {path} must have {len(COLUMNS)} values, got {', '.join(row)}")
        return _csv([header, *(row for row in rows if int(row[1]) < epoch)])


class TensorBoardWriter:
    """Draws S/N, ESN_a and dead filters over epochs, of the network and of each layer.

    Args:
        folder: Folder of the event files.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard", "TensorBoardWriter") from error
        self._make: Callable[..., Any] = SummaryWriter
        self._folder = str(folder)
        self._events: Any = None
        self._last = 0

    def __call__(self, record: EpochSignal) -> None:
        """Draw one epoch."""
        if self._events is None or record.epoch <= self._last:
            self.close()
            self._events = self._make(self._folder, purge_step=record.epoch)  # the dashboard drops it and all later
        for name, value in _scalars(record).items():
            self._events.add_scalar(name, value, record.epoch)
        self._events.flush()
        self._last = record.epoch

    def close(self) -> None:
        """Close the event file; the next record opens another."""
        if self._events is not None:
            self._events.close()
            self._events = None


class _Lines:
    """A text file that grows, and is rewritten whole where it has to go back."""

    def __init__(self, path: Path, *, protects: bool) -> None:
        self.path = path
        self._protects = protects
        self._last: int | None = None

    def check_begin(self, epoch: int) -> None:
        """Raise `InputError` where a training that begins would replace the file of another."""
        if self._protects and self._last is None and epoch == 1 and self.path.is_file() and self.path.stat().st_size:
            raise InputError(
                f"out must be a new file where a training begins, got {self.path} with the epochs of another: give "
                "another file, or continue that training (load_state_dict, or start_epoch above 1)"
            )

    def add(self, epoch: int, text: str, before: Callable[[int], str]) -> None:
        """Append the text of an epoch; ``before`` gives all that belongs before it, where the file is not continued."""
        self.check_begin(epoch)
        if self._last is None or epoch <= self._last:
            write_whole(self.path, (before(epoch) + text).encode())
        else:
            append_whole(self.path, text.encode())
        self._last = epoch


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _row(row: LayerSignal) -> list[Any]:
    values = [row.signal, row.noise, row.signal_to_noise, row.esn_analog_estimate, row.esn_analog_estimate_plus]
    return [row.name, row.epoch, *values, len(row.filter_signal), *row.dead_filters.values()]


def _scalars(record: EpochSignal) -> dict[str, float]:
    found: dict[str, float | None] = {
        "signal_to_noise": record.signal_to_noise,
        "esn_analog": record.esn_analog_estimate,
        **{f"dead_filters/{threshold:g}": count for threshold, count in record.dead_filters.items()},
    }
    for layer in record.layers:
        found |= {f"signal_to_noise/{layer.name}": layer.signal_to_noise}
    return {name: value for name, value in found.items() if value is not None}
