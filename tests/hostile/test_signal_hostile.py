"""Damaged signal files and tracker states, and weights that went wrong: one clear sentence each, nothing half done."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.records.signal import EpochSignal, LayerSignal
from slimbit.records.signal_file import read_signal, signal_line
from slimbit.training.tracker import SignalTracker


def line(epoch: int = 1) -> str:
    layer = LayerSignal(
        name="conv", epoch=epoch, nonzero_weights=6, positions=4, filter_signal=(1.0, 2.0), filter_noise=(0.5, 0.5)
    )
    return signal_line(EpochSignal(epoch=epoch, iterations=3, layers=(layer,)))


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(line())
    change(data)
    return json.dumps(data) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]\n", "must be a table"),
        ("null\n", "must be a table"),
        ("\x00\n", "must be complete JSON"),
        ("\n", "must be complete JSON"),
        ("[" * 100_000 + "\n", "must be nested at most"),
        (changed(lambda d: d.pop("layers")), "must hold layers, got none"),
        (changed(lambda d: d["layers"][0].pop("weights")), "must hold layers.0.weights, got none"),
        (changed(lambda d: d.update(epoch=0)), "epoch of line 1 .* must be greater than or equal to 1, got 0"),
        (changed(lambda d: d.update(iterations=0)), "iterations of line 1 .* must be greater"),
        (changed(lambda d: d.update(epoch="one")), "must be a valid integer, got 'one'"),
        (changed(lambda d: d.update(epoch=10**400)), "must be of one epoch"),
        (changed(lambda d: d.update(epoch=2)), "must be of one epoch, got 2 and 1 at layer conv"),
        (changed(lambda d: d["layers"].append(d["layers"][0])), "must hold each layer once"),
        (changed(lambda d: d["layers"][0].update(filter_noise=[1.0])), "as many signals as noises of layer conv"),
        (changed(lambda d: d["layers"][0].update(filter_signal=[], filter_noise=[])), "a list of at least 1"),
        (changed(lambda d: d["layers"][0].update(filter_signal="12")), "must be a list"),
        (changed(lambda d: d["layers"][0].update(filter_signal=[True, 1])), "must be a valid number, got True"),
        (
            changed(lambda d: d["layers"][0].update(filter_signal=[-1, 1])),
            "greater than or equal to 0, got -1",
        ),
        (changed(lambda d: d["layers"][0].update(positions=-1)), "greater than or equal to 0, got -1"),
        (line() + line(), "line 2 of .* must be of a later epoch than 1, got 1"),
        (line() + "x\n" + line(2), "line 2 of .* must be complete JSON"),
    ],
)
def test_a_damaged_signal_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "signal.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_signal(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_an_unfinished_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="signal file must exist, got none at"):
        read_signal(tmp_path / "none")
    with pytest.raises(InputError, match=r"signal file must be a file, got .* which is a folder"):
        read_signal(tmp_path)
    path = tmp_path / "signal.jsonl"
    path.write_text(line(1) + line(2)[:-1])
    assert [r.epoch for r in read_signal(path)] == [1]
    path.write_text("")
    assert read_signal(path) == ()


def test_random_damage_never_ends_in_anything_but_a_sentence(tmp_path: Path) -> None:
    path, rng, good = tmp_path / "signal.jsonl", random.Random(0), (line(1) + line(2)).encode()
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read_signal(path)
        except InputError:
            refused += 1
    assert refused > 100


def network(outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, outputs))


def state_of(net: nn.Module) -> dict[str, Tensor]:
    tracker = SignalTracker(net, torch.zeros(1, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    tracker.update()
    return tracker.state_dict()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.clear(), "must hold epoch, got nothing"),
        (lambda s: s.pop("positions"), "must hold positions"),
        (lambda s: s.pop("start.2.weight"), "of the same network, got one without start.2.weight"),
        (lambda s: s.pop("sums.0.weight"), "of the same network, got one without sums.0.weight"),
        (lambda s: s.update({"start.7.weight": torch.zeros(1)}), "of the same network, got one with start.7.weight"),
        (lambda s: s.update({"bias": torch.zeros(1)}), "of the same network, got one with bias"),
        (lambda s: s.update({"start.2.weight": torch.zeros(3, 5)}), "start.2.weight .* must be 4x5 .*, got 3x5"),
        (lambda s: s.update({"sums.2.weight": torch.zeros(2, 3)}), "sums.2.weight .* must be 2x4 .*, got 2x3"),
        (lambda s: s.update({"start.2.weight": torch.zeros(4, 5).half()}), "must be 4x5 torch.float32, got 4x5 .*16"),
        (lambda s: s.update({"positions": torch.zeros(3)}), "one whole number for each of 2 layers, got 3 torch.float"),
        (lambda s: s.update({"epoch": torch.tensor(0)}), "count epochs from 1 and iterations from 0, got epoch 0"),
        (lambda s: s.update({"iterations": torch.tensor(-1)}), "count epochs from 1 and iterations from 0"),
        (lambda s: s.update({"epoch": torch.zeros(2)}), "epoch .* must be one whole number, got 2 torch.float32"),
        (
            lambda s: s.update({"iterations": torch.tensor(0.5)}),
            "iterations .* must be one whole number, got one torch",
        ),
    ],
)
def test_a_state_of_another_network_changes_nothing(
    damage: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    net = network()
    tracker = SignalTracker(net, torch.zeros(1, 3))
    tracker.update()
    before = tracker.state_dict()
    state = state_of(network())
    damage(state)
    with pytest.raises(InputError, match=message):
        tracker.load_state_dict(state)
    after = tracker.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_state_of_a_wider_network_names_the_weight() -> None:
    with pytest.raises(InputError, match=r"start.2.weight of a tracker's state must be 4x5 torch.float32, got 6x5"):
        SignalTracker(network()).load_state_dict(state_of(network(6)))


def test_weights_that_are_not_finite_are_recorded_as_such() -> None:
    net = network()
    tracker = SignalTracker(net, torch.zeros(1, 3))
    net[0].weight.data[1, 0] = math.nan
    tracker.update()
    record = tracker.end_epoch()
    assert [math.isnan(value) for value in record.layers[0].filter_noise] == [False, True, False, False, False]
    assert math.isnan(record.layers[0].signal_to_noise)
    assert math.isnan(record.signal_to_noise)
    assert math.isfinite(record.layers[1].signal)


def test_networks_that_cannot_be_tracked_are_refused() -> None:
    with pytest.raises(InputError, match="must have a shape, got a lazy one"):
        SignalTracker(nn.LazyLinear(3))
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, got str"):
        SignalTracker("resnet20")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be one that Sequential can run on"):
        SignalTracker(network(), torch.zeros(1, 7))


def test_weights_of_any_size_down_to_one_and_names_of_any_kind() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("start\x1b[31m", nn.Linear(1, 1))
            self.add_module("sums", nn.Conv1d(1, 1, 1))

    net = Odd()
    tracker = SignalTracker(net)
    for parameter in net.parameters():
        parameter.data += 1
    tracker.update()
    again = SignalTracker(net)
    again.load_state_dict(tracker.state_dict())
    assert [row.noise for row in tracker.end_epoch().layers] == [1.0, 1.0]
    assert [row.noise for row in again.end_epoch().layers] == [1.0, 1.0]
