"""The tracker against a slow loop over saved snapshots of the weights, and against a walk worked out by hand."""

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from slimbit.records.signal import EpochSignal
from slimbit.survey.module import read_weight, survey_network
from slimbit.training import sums
from slimbit.training.tracker import SignalTracker

IMAGE = torch.zeros(1, 2, 6, 6)


class Mixed(nn.Module):
    """Every way in which filters lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied_too = nn.Linear(4, 4, bias=False)
        self.tied_too.weight = self.tied.weight
        self.volume = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.relu(self.grouped(F.relu(self.conv(x)))))
        tokens = self.attention(*[y.flatten(2).transpose(1, 2)] * 3)[0]
        z = self.tied_too(F.relu(self.tied(tokens))).transpose(1, 2)
        return self.volume(z[..., None, None]).mean((2, 3, 4))


def expected(snapshots: list[nn.Module]) -> dict[str, tuple[list[float], list[float], int]]:
    """Eq. (5) as it stands, filter by filter, from a copy of the network at the start and after each iteration."""
    dtype = next(snapshots[0].parameters()).dtype
    spec = survey_network(snapshots[0], IMAGE.to(dtype)).spec
    found = {}
    for layer in spec.layers:
        start, *walk = (read_weight(net, layer).double() for net in snapshots)
        signal = [sum(float((w[m] ** 2).sum()) for w in walk) / len(walk) for m in range(layer.filters)]
        noise = [sum(float(((w[m] - start[m]) ** 2).sum()) for w in walk) / len(walk) for m in range(layer.filters)]
        found[layer.name] = signal, noise, int(walk[-1].count_nonzero())
    return found


def step(net: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(4, *IMAGE.shape[1:], generator=generator).to(next(net.parameters()).dtype)
    net(x).float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def compare(net: nn.Module, tracker: SignalTracker, *, tolerance: float = 1e-6, steps: int = 3) -> EpochSignal:
    """Two epochs with the tracker, beside snapshots."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in (1, 2):
        snapshots = [copy.deepcopy(net)]
        for number in range(steps):
            step(net, optimizer, 10 * epoch + number)
            tracker.update()
            snapshots.append(copy.deepcopy(net))
        record = tracker.end_epoch()
        wanted = expected(snapshots)
        assert (record.epoch, record.iterations) == (epoch, steps)
        assert {row.name for row in record.layers} == set(wanted)
        for row in record.layers:
            signal, noise, weights = wanted[row.name]
            assert row.filter_signal == pytest.approx(signal, rel=tolerance), row.name
            assert row.filter_noise == pytest.approx(noise, rel=tolerance, abs=1e-12), row.name
            assert row.nonzero_weights == weights
    return record


@pytest.mark.parametrize("bucket", [1, 7, 50, 1 << 22])
@pytest.mark.parametrize("example", [IMAGE, None])
def test_every_kind_of_layer_is_summed_as_by_a_plain_loop(
    bucket: int, example: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "BUCKET", bucket)
    torch.manual_seed(0)
    net = Mixed()
    record = compare(net, SignalTracker(net, example))
    positions = {layer.name: layer.positions for layer in survey_network(net, IMAGE).spec.layers}
    assert {row.name: row.positions for row in record.layers} == positions


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types_of_weights(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)).to(dtype)
    compare(net, SignalTracker(net))


def test_the_gpu_way_of_summing_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_at_once", lambda _values: True)
    monkeypatch.setattr(sums, "BUCKET", 100)
    torch.manual_seed(0)
    net = Mixed()
    compare(net, SignalTracker(net, IMAGE))


def test_channels_last_from_the_start_and_from_the_second_step_on() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.Flatten(), nn.Linear(80, 3))
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    compare(last, SignalTracker(last))
    tracker = SignalTracker(net)
    snapshots = [copy.deepcopy(net)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for number in range(3):
        step(net, optimizer, number)
        tracker.update()
        snapshots.append(copy.deepcopy(net))
        net.to(memory_format=torch.channels_last)
    for row in tracker.end_epoch().layers:
        signal, noise, _ = expected(snapshots)[row.name]
        assert (row.filter_signal, row.filter_noise) == (pytest.approx(signal), pytest.approx(noise))


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(layer)


def twice_pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.3)
    return prune.ln_structured(layer, "weight", 0.4, n=2, dim=0)


@pytest.mark.parametrize(
    "change",
    [parametrizations.weight_norm, parametrizations.orthogonal, old_weight_norm, twice_pruned],
)
def test_a_computed_weight_is_followed_as_the_network_uses_it(change: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), change(nn.Linear(80, 4)))
    tracker = SignalTracker(net, IMAGE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)

    def used() -> Tensor:
        net(IMAGE)  # hooks compute the weight as it will be used
        return net[3].weight.detach().double().clone()

    start, walk = used(), []
    for number in range(3):
        step(net, optimizer, number)
        tracker.update()
        walk.append(used())
    row = tracker.end_epoch().layers[1]
    assert row.signal == pytest.approx(sum(float(w.square().sum()) for w in walk) / 3, rel=1e-6)
    assert row.noise == pytest.approx(sum(float((w - start).square().sum()) for w in walk) / 3, rel=1e-5)
    assert row.nonzero_weights == int(walk[-1].count_nonzero())


@pytest.mark.parametrize("change", [parametrizations.spectral_norm, spectral_norm])
def test_looking_at_a_spectral_norm_does_not_iterate_it(change: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), change(nn.Linear(72, 4))).train()
    alone = copy.deepcopy(net)
    tracker = SignalTracker(net)
    runs = [(n, torch.optim.SGD(n.parameters(), lr=0.05)) for n in (net, alone)]
    for number in range(3):
        for model, optimizer in runs:
            step(model, optimizer, number)
        tracker.update()
    assert math.isfinite(tracker.end_epoch().signal_to_noise)
    assert all(torch.equal(value, alone.state_dict()[key]) for key, value in net.state_dict().items())
    assert net[1].training


def test_a_walk_worked_out_by_hand() -> None:
    # Two filters of two weights from (1, 1), (2, 0). Each iteration adds (1, 0) to the first, nothing to the second.
    # W_1: (2, 1), (2, 0): squares 5, 4; way 1, 0.   W_2: (3, 1), (2, 0): squares 10, 4; way 4, 0.
    # signal 15/2, 4; noise 5/2, 0; layer 11.5 / 2.5 = 4.6; 3 weights of 4 are not zero.
    net = nn.Linear(2, 2, bias=False)
    net.weight.data.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    tracker = SignalTracker(net, torch.zeros(1, 2), start_epoch=7)
    for _ in range(2):
        net.weight.data[0, 0] += 1
        tracker.update()
    record = tracker.end_epoch()
    row = record.layers[0]
    assert (row.epoch, row.nonzero_weights, row.positions) == (7, 3, 1)
    assert row.filter_signal == pytest.approx((7.5, 4.0))
    assert row.filter_noise == pytest.approx((2.5, 0.0))
    assert row.filter_signal_to_noise == pytest.approx((3.0, math.inf))
    assert row.signal_to_noise == pytest.approx(4.6)
    assert record.esn_analog_estimate == pytest.approx(3 * 4.6 / 12)  # Eq. (4)
    assert record.esn_analog_estimate_plus == pytest.approx(3 * 5.6 / 12)


def test_a_random_walk_has_the_expected_noise() -> None:
    # n weights, I independent steps of variance s^2: E noise = n s^2 mean_i i = n s^2 (I + 1) / 2
    torch.manual_seed(0)
    net = nn.Linear(200, 200, bias=False)
    tracker = SignalTracker(net, torch.zeros(1, 200))
    for _ in range(9):
        net.weight.data.add_(0.1 * torch.randn(200, 200))
        tracker.update()
    assert tracker.end_epoch().layers[0].noise == pytest.approx(200 * 200 * 0.01 * 5, rel=0.05)
