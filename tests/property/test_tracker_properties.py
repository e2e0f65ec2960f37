"""What holds for every walk of every network."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slimbit.records.signal import DEAD_THRESHOLDS, EpochSignal, LayerSignal
from slimbit.training.tracker import SignalTracker

seeds = st.integers(0, 2**31)
steps = st.integers(1, 5)


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Not run, so that their layers need not fit to each other."""
    torch.manual_seed(draw(seeds))
    size = st.integers(1, 5)
    kinds = {
        "linear": lambda: nn.Linear(draw(size), draw(size)),
        "conv": lambda: nn.Conv2d(draw(size), draw(size), draw(st.integers(1, 3))),
        "grouped": lambda: nn.Conv1d(6, 6, 2, groups=draw(st.sampled_from([1, 2, 3, 6]))),
        "transposed": lambda: nn.ConvTranspose2d(6, 6, 2, groups=draw(st.sampled_from([1, 2, 3]))),
        "attention": lambda: nn.MultiheadAttention(4, 2),
        "bfloat16": lambda: nn.Linear(draw(size), draw(size)).bfloat16(),
        "last": lambda: nn.Conv2d(3, draw(size), 3).to(memory_format=torch.channels_last),
    }
    return nn.Sequential(*(kinds[draw(st.sampled_from(sorted(kinds)))]() for _ in range(draw(st.integers(1, 4)))))


def walk(net: nn.Module, tracker: SignalTracker, count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    places = []
    for _ in range(count):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        tracker.update()
        places.append({name: p.detach().double() for name, p in net.named_parameters()})
    return places


@settings(deadline=None, max_examples=40)
@given(networks(), steps, seeds)
def test_filters_add_up_to_the_weights(net: nn.Sequential, count: int, seed: int) -> None:
    start = {name: p.detach().double() for name, p in net.named_parameters()}
    tracker = SignalTracker(net)
    places = walk(net, tracker, count, seed)
    record = tracker.end_epoch()
    keys = [name for name in start if name.endswith("weight")]
    signal = sum(float(place[key].square().sum()) for place in places for key in keys) / count
    noise = sum(float((place[key] - start[key]).square().sum()) for place in places for key in keys) / count
    assert math.fsum(row.signal for row in record.layers) == pytest.approx(signal, rel=1e-6)
    assert math.fsum(row.noise for row in record.layers) == pytest.approx(noise, rel=1e-6)
    # ||W||_0 at the end; in float32 a walk does land on exactly zero now and then
    assert sum(row.nonzero_weights for row in record.layers) == sum(
        int(places[-1][key].count_nonzero()) for key in keys
    )
    assert record.signal_to_noise == pytest.approx(signal / noise, rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(networks(), steps, steps, seeds)
def test_a_state_carries_on_exactly(net: nn.Sequential, before: int, after: int, seed: int) -> None:
    tracker = SignalTracker(net)
    walk(net, tracker, before, seed)
    resumed = SignalTracker(net)
    resumed.load_state_dict(tracker.state_dict())
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(after):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        tracker.update()
        resumed.update()
    assert resumed.end_epoch() == tracker.end_epoch()


@settings(deadline=None, max_examples=25)
@given(st.integers(-8, 8), steps, seeds)
def test_signal_to_noise_does_not_depend_on_the_scale(power: int, count: int, seed: int) -> None:
    def record(scale: float) -> EpochSignal:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        for parameter in net.parameters():
            parameter.data *= scale
        tracker = SignalTracker(net, torch.zeros(1, 4))
        for _ in range(count):
            for parameter in net.parameters():
                parameter.data += scale * torch.randn(parameter.shape)
            tracker.update()
        return tracker.end_epoch()

    one, other = record(1.0), record(2.0**power)  # a power of two, which rounds nothing
    assert other.signal_to_noise == pytest.approx(one.signal_to_noise, rel=1e-12)
    assert other.esn_analog_estimate == pytest.approx(one.esn_analog_estimate, rel=1e-12)
    assert other.dead_filters == one.dead_filters


signals = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


@given(signals)
def test_dead_filters_are_counted_as_written(values: list[float]) -> None:
    layer = LayerSignal(
        name="a", epoch=1, nonzero_weights=1, positions=1, filter_signal=tuple(values), filter_noise=tuple(values)
    )  # fmt: skip
    norms = torch.tensor(values, dtype=torch.float64).sqrt()
    high = float(torch.quantile(norms, 0.9))
    for threshold in DEAD_THRESHOLDS:
        near = [abs(float(norm) - threshold * high) <= 1e-12 * high for norm in norms]
        wanted = sum(float(norm) < threshold * high for norm in norms) if high > 0 else len(values)
        assert abs(layer.dead_filters[threshold] - wanted) <= sum(near)
    counts = list(layer.dead_filters.values())
    assert counts == sorted(counts, reverse=True)


@given(signals, st.integers(1, 100), st.integers(0, 100))
def test_a_record_survives_its_plain_data(values: list[float], epoch: int, positions: int) -> None:
    layer = LayerSignal(
        name="a", epoch=epoch, nonzero_weights=1, positions=positions or None,
        filter_signal=tuple(values), filter_noise=tuple(reversed(values)),
    )  # fmt: skip
    record = EpochSignal(epoch=epoch, iterations=1, layers=(layer,))
    assert EpochSignal.from_dict(record.to_dict()) == record
