"""Writers of signal records, and the reader of what they wrote."""

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.files import StoreError
from slimbit.records.signal import EpochSignal, LayerSignal
from slimbit.records.signal_file import read_signal, signal_line
from slimbit.training.writers import CsvWriter, JsonLinesWriter, TensorBoardWriter


def record(epoch: int, *, scale: float = 1.0, positions: int | None = 9) -> EpochSignal:
    signals = {"stem, 3x3": (8.0 * scale, 2.0, 0.001), "head": (1.0,)}
    layers = tuple(
        LayerSignal(
            name=name, epoch=epoch, nonzero_weights=6, positions=positions, filter_signal=values,
            filter_noise=tuple(0.25 * epoch for _ in values),
        )
        for name, values in signals.items()
    )  # fmt: skip
    return EpochSignal(epoch=epoch, iterations=3, layers=layers)


def epochs_of_csv(path: Path) -> list[int]:
    with path.open(newline="") as stream:
        return [int(row["epoch"]) for row in csv.DictReader(stream)]


def test_json_lines_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "signal.jsonl"
    writer = JsonLinesWriter(path)
    for epoch in (1, 2, 3):
        writer(record(epoch))
    assert read_signal(path) == tuple(map(record, (1, 2, 3)))


def test_numbers_that_are_not_finite_come_back_as_nan(tmp_path: Path) -> None:
    path = tmp_path / "signal.jsonl"
    layer = replace(record(1).layers[0], filter_signal=(math.nan, math.inf, 1.0), filter_noise=(math.nan, 1.0, 1.0))
    JsonLinesWriter(path)(EpochSignal(epoch=1, iterations=1, layers=(layer,)))
    assert "NaN" not in path.read_text()
    back = read_signal(path)[0]
    assert math.isnan(back.signal_to_noise)
    assert math.isnan(back.layers[0].noise)
    assert back.layers[0].filter_signal[2] == 1.0


def test_csv_has_one_row_per_layer_and_epoch(tmp_path: Path) -> None:
    path = tmp_path / "signal.csv"
    writer = CsvWriter(path)
    writer(record(1))
    writer(record(2, positions=None))
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "layer", "epoch", "signal", "noise", "signal_to_noise", "esn_analog", "esn_analog_corrected", "filters",
        "dead_0.1", "dead_0.05", "dead_0.01", "dead_0.001",
    ]  # fmt: skip
    # noise 3 * 0.25; S/N 10.001 / 0.75; norms 2.83, 1.41, 0.032 with 90 % of them below 2.55: 0.032 is 1.2 % of that
    first = rows[0]
    assert (first["layer"], first["epoch"], first["filters"]) == ("stem, 3x3", "1", "3")
    assert float(first["signal_to_noise"]) == pytest.approx(10.001 / 0.75)
    assert float(first["esn_analog"]) == pytest.approx(9 * 6 * 10.001 / 0.75 / 12)
    assert float(first["esn_analog_corrected"]) == pytest.approx(9 * 6 * (10.001 / 0.75 + 1) / 12)
    assert [first[name] for name in ("dead_0.1", "dead_0.05", "dead_0.01", "dead_0.001")] == ["1", "1", "0", "0"]
    assert [(row["epoch"], row["esn_analog"] == "") for row in rows] == [
        ("1", False), ("1", False), ("2", True), ("2", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "epochs"),
    [
        (JsonLinesWriter, lambda path: [r.epoch for r in read_signal(path)]),
        (CsvWriter, lambda path: epochs_of_csv(path)[::2]),
    ],
)
@pytest.mark.parametrize("tail", ["", '{"epoch": 4, "iterat', "stem,4,1.0"])
def test_a_run_that_continues_leaves_no_epoch_twice(
    make: Callable[[Path], Callable[[EpochSignal], None]],
    epochs: Callable[[Path], list[int]],
    tail: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "signal"
    writer = make(path)
    for epoch in (1, 2, 3):
        writer(record(epoch))
    before = path.read_text()
    path.write_text(before + tail)  # killed while it wrote
    again = make(path)
    again(record(2))
    assert epochs(path) == [1, 2]
    again(record(3))
    assert path.read_text() == before
    again(record(1))  # the same process goes back
    assert epochs(path) == [1]


def test_appending_does_not_touch_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "signal.jsonl"
    writer = JsonLinesWriter(path)
    writer(record(1))
    inode = path.stat().st_ino
    writer(record(2))
    assert path.stat().st_ino == inode
    assert path.read_text().startswith(signal_line(record(1)))


def test_a_writer_refuses_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"must have the columns layer, epoch, .*, got a, b"):
        CsvWriter(path)(record(1))
    with pytest.raises(InputError, match=r"line 1 of .* must be complete JSON"):
        JsonLinesWriter(path)(record(1))
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(StoreError, match="could not be written"):
        CsvWriter(path / "below")(record(1))


def test_tensorboard_shows_each_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    for epoch in (1, 2, 3):
        writer(record(epoch, scale=1.0))
    writer.close()
    again = TensorBoardWriter(tmp_path)
    again(record(2, scale=100.0))
    again.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("signal_to_noise")] == [1, 2]
    assert events.Scalars("signal_to_noise/head")[0].value == pytest.approx(4.0)
    assert events.Scalars("dead_filters/0.05")[0].value == 1.0
    assert events.Scalars("esn_analog")[1].value == pytest.approx(record(2, scale=100.0).esn_analog_estimate)


def test_a_missing_tensorboard_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'slimbit\[tensorboard\]'"):
        TensorBoardWriter(tmp_path)


def test_records_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "signal.jsonl"
    JsonLinesWriter(path)(record(1))
    code = (
        "import sys; from slimbit.records.signal_file import read_signal; read_signal(sys.argv[1]); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "torch" not in ran.stdout.split()


def test_files_keep_the_keys_that_earlier_runs_have(tmp_path: Path) -> None:
    """``layer`` and ``weights`` in files are ``name`` and ``nonzero_weights`` in Python."""
    row = '{"layer": "a", "epoch": 1, "weights": 6, "positions": 9, "filter_signal": [8.0], "filter_noise": [1.0]}'
    text = f'{{"epoch": 1, "iterations": 5, "layers": [{row}]}}\n'
    (tmp_path / "signal.jsonl").write_text(text)
    (epoch,) = read_signal(tmp_path / "signal.jsonl")
    assert (epoch.layers[0].name, epoch.layers[0].nonzero_weights) == ("a", 6)
    assert epoch.esn_analog_estimate == 9 * 6 * 8.0 / 12
    assert signal_line(epoch) == text
