"""Fast costs against a plain loop written from the formulas; MACs against torch's own FLOP counter."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import slimbit
from slimbit.zoo import default_input, names


def _loop(weight, step, limit, positions, formula="standard"):
    """Every metric of one dense layer, weight by weight."""
    squares = bits_sum = 0.0
    filterwise = peak = 0.0
    for row in weight.flatten(1).tolist():
        widest = 0
        for w in row:
            q = math.floor(w / step) + 0.5
            q = max(-limit, min(limit, q))
            bits = math.ceil(math.log2(2 * abs(q) + 1)) if formula == "standard" else math.ceil(math.log2(abs(q)) + 1)
            squares += q * q
            bits_sum += bits
            widest = max(widest, bits)
            peak = max(peak, abs(q))
        filterwise += len(row) * widest
    n = weight.numel()
    return {
        "esn_analog": positions * squares,
        "esn_digital": positions * bits_sum,
        "esn_filterwise": positions * filterwise,
        "esn_analog_class_a": positions * n * peak**2,
        "weight_bytes": filterwise / 8,
    }


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("formula", ["standard", "literal"])
def test_convolution_equals_the_loop(bits, formula):
    layer = nn.Conv2d(5, 7, 3, padding=1, bias=False)
    report = slimbit.cost(layer, torch.zeros(1, 5, 6, 4), bits=bits, formula=formula)
    step = layer.weight.abs().max().item() / 2 ** (bits - 1)
    expected = _loop(layer.weight.detach().double(), step, 2 ** (bits - 1) - 0.5, 24, formula)
    for metric, value in expected.items():
        assert report.total[metric] == pytest.approx(value, rel=1e-9), metric


def test_chunks_give_what_the_whole_gives(monkeypatch):
    layer = nn.Linear(33, 65)
    whole = slimbit.cost(layer, torch.zeros(1, 33), bits=4, grid="midrise_zero")
    monkeypatch.setattr("slimbit.numerics.energy.CHUNK", 50)
    parts = slimbit.cost(layer, torch.zeros(1, 33), bits=4, grid="midrise_zero")
    assert parts.layers[0].filter_bits == whole.layers[0].filter_bits
    for metric in ("esn_analog", "esn_digital", "esn_filterwise", "nonzero_macs", "macs"):
        assert parts.total[metric] == whole.total[metric]
    assert parts.layers[0].signal_to_noise == pytest.approx(whole.layers[0].signal_to_noise, rel=1e-5)


def test_steps_per_filter_and_per_layer():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    steps = {"0": [0.1, 0.2, 0.3, 0.4], "1": 0.05}
    report = slimbit.cost(model, torch.zeros(1, 6), steps=steps)
    expected = sum(
        (math.floor(w / step) + 0.5) ** 2
        for row, step in zip(model[0].weight.tolist(), torch.tensor(steps["0"]).tolist(), strict=True)
        for w in row
    )
    assert report.layers[0].esn_analog == pytest.approx(expected)
    assert report.layers[0].steps == pytest.approx((0.1, 0.2, 0.3, 0.4))


class Attention(nn.Module):
    """Self-attention whose scores no layer explains."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        h = self.norm(x)
        return self.head(self.attention(h, h, h)[0].mean(1))


class Functional(nn.Module):
    """A functional convolution with a free parameter."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(F.conv2d(x, self.kernel))


class Shared(nn.Module):
    """One block for two stages, and a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6), nn.ReLU())
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2)

    def forward(self, x):
        return self.up(self.block(self.block(x)))


FOREIGN = [
    (Attention(), torch.randn(1, 10, 32)),
    (Functional(), torch.randn(1, 3, 9, 9)),
    (Shared(), torch.randn(1, 6, 8, 8)),
    (nn.Sequential(nn.Conv1d(4, 8, 5, stride=2), nn.Conv1d(8, 8, 3, groups=8)), torch.randn(1, 4, 40)),
    (nn.Sequential(nn.Conv3d(2, 4, 3), nn.ConvTranspose3d(4, 2, 2, stride=2)), torch.randn(1, 2, 6, 6, 6)),
    (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.randn(1, 7, 16)),
]


def _independent_macs(model, example):
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            model.to("meta").eval()(example.to("meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [n for n in names() if "@" not in n])
def test_macs_of_every_zoo_network_against_torch(name):
    model = slimbit.network(name)
    example = torch.zeros(1, *default_input(name))
    report = slimbit.cost(model, example)
    assert not report.other_work
    assert report.total.macs == _independent_macs(model, example)
    assert report.total.parameters == sum(p.numel() for p in slimbit.network(name).parameters())


@pytest.mark.parametrize(("model", "example"), FOREIGN, ids=lambda value: type(value).__name__)
def test_macs_of_foreign_networks_against_torch(model, example):
    report = slimbit.cost(model, example)
    explained = report.total.macs + sum(work.macs for work in report.other_work)
    assert explained == _independent_macs(model, example)


def test_batches_count_per_image():
    model = slimbit.network("resnet8")
    assert (
        slimbit.cost(model, torch.zeros(4, 3, 32, 32)).total.macs
        == slimbit.cost(model, torch.zeros(1, 3, 32, 32)).total.macs
    )


def test_what_no_layer_explains_is_listed():
    report = slimbit.cost(Functional(), torch.randn(1, 3, 9, 9))
    (work,) = report.other_work
    assert work.operation == "convolution"
    assert work.macs == 7 * 7 * 8 * 27
    assert work.parameters == ("kernel",)
    assert [other.name for other in report.other_parameters] == ["kernel"]
    scores = slimbit.cost(Attention(), torch.randn(1, 10, 32)).other_work
    # 4 heads x 10 x 10 scores x 8 wide, twice (scores and weighted values)
    assert sum(work.macs for work in scores) == 2 * 4 * 100 * 8
