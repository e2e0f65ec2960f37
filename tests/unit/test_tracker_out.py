"""A tracker, or the callback that makes one, keeps its records where `out` says."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import slimbit
from slimbit.cli import app
from slimbit.training.writers import CsvWriter, JsonLinesWriter, TensorBoardWriter, writer_for


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


@pytest.mark.parametrize("name", ["signal.jsonl", "signal.csv"])
def test_a_training_that_begins_does_not_replace_the_file_of_another(name, tmp_path):
    trained(tmp_path / name, 2)
    before = (tmp_path / name).read_bytes()
    net = nn.Linear(3, 2)
    tracker = slimbit.SignalTracker(net, torch.zeros(1, 3), out=tmp_path / name)
    with pytest.raises(slimbit.InputError, match=r"out must be a new file .*, got \S+ with the epochs of another"):
        tracker.update()
    assert (tmp_path / name).read_bytes() == before
    with pytest.raises(slimbit.InputError, match="out must be a new file"):  # as callbacks use it
        writer_for(tmp_path / name)(trained(None, 1)[0])
    assert (tmp_path / name).read_bytes() == before


def test_a_tracker_that_was_continued_goes_on_in_its_file(tmp_path):
    file, net = tmp_path / "signal.jsonl", nn.Linear(3, 2)
    first = slimbit.SignalTracker(net, torch.zeros(1, 3), out=file)
    first.update()
    records = [first.end_epoch()]
    second = slimbit.SignalTracker(net, torch.zeros(1, 3), out=file)
    second.load_state_dict(first.state_dict())
    second.update()
    records.append(second.end_epoch())
    assert list(slimbit.read_training_run(file).signal) == records


def test_the_page_of_a_file_has_its_name(tmp_path):
    trained(tmp_path / "mine.jsonl", 1)
    (tmp_path / "signal.html").write_text("of another run")
    result = CliRunner().invoke(app, ["signal", str(tmp_path / "mine.jsonl")], catch_exceptions=False)
    assert f"page written: {tmp_path / 'mine.html'}" in result.output
    assert (tmp_path / "mine.html").stat().st_size > 1000
    assert (tmp_path / "signal.html").read_text() == "of another run"


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
