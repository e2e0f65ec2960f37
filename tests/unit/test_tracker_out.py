"""A tracker, or the callback that makes one, keeps its records where `out` says."""

import pytest
import torch
from torch import nn

import slimbit
from slimbit.training.writers import CsvWriter, JsonLinesWriter, TensorBoardWriter


def trained(out, epochs: int, *, start: int = 1) -> list[slimbit.EpochSignal]:
    net = nn.Linear(3, 2)
    tracker = slimbit.SignalTracker(net, torch.zeros(1, 3), start_epoch=start, out=out)
    found = []
    for _ in range(epochs):
        with torch.no_grad():
            net.weight.add_(0.125)
        tracker.update()
        found.append(tracker.end_epoch())
    return found


def test_records_are_read_back(tmp_path):
    file = tmp_path / "signal.jsonl"
    records = trained(file, 3)
    assert list(slimbit.read_training_run(file).signal) == records
    again = trained(file, 1, start=3)
    assert list(slimbit.read_training_run(file).signal) == [*records[:2], *again]


def test_a_csv_file_has_a_row_for_each_layer_and_epoch(tmp_path):
    trained(str(tmp_path / "signal.csv"), 2)
    rows = (tmp_path / "signal.csv").read_text().splitlines()
    assert len(rows) == 3
    assert rows[0].startswith("layer,epoch,signal,noise")


def test_nothing_is_written_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(None, 1)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused_before_training(tmp_path):
    with pytest.raises(slimbit.InputError, match=r"out must end in \.jsonl or \.csv, or be a folder"):
        trained(tmp_path / "signal.txt", 1)


@pytest.mark.parametrize(
    ("name", "kind"), [("s.jsonl", JsonLinesWriter), ("s.csv", CsvWriter), ("events", TensorBoardWriter)]
)
@pytest.mark.parametrize("trainer", ["lightning", "transformers"])
def test_callbacks_write_to_out(trainer, name, kind, tmp_path):
    pytest.importorskip(trainer)
    callback = getattr(slimbit.SignalTracker, f"{trainer}_callback")(torch.zeros(1, 3), out=tmp_path / name)
    assert [type(writer) for writer in callback._writers] == [kind]
    assert callback._example_input.shape == (1, 3)
