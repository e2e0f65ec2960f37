"""The baseline of Banner et al. (arXiv 1810.05723) against plain loops written from its formulas."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import slimbit
from slimbit.compress.prepared import prepare
from slimbit.compress.quantize import quantized
from slimbit.numerics.aciq import allocated_widths, bias_corrected, norm_ratio
from slimbit.records.config import ACIQ
from slimbit.records.errors import InputError


def rounded_by_formula(row: list[float], width: int) -> list[float]:
    """2^M cells over [-alpha, alpha], each weight in the middle of its cell."""
    alpha = max(abs(w) for w in row)
    step = 2 * alpha / 2**width
    cells = [min(max(math.floor((w + alpha) / step), 0), 2**width - 1) for w in row]
    return [-alpha + (2 * cell + 1) * step / 2 for cell in cells]


def corrected_by_formula(row: list[float], quantized_row: list[float]) -> list[float]:
    """Equations 12 and 13: mu = E(W) - E(Wq), xi = ||W - E(W)|| / ||Wq - E(Wq)||, w = xi (wq + mu)."""
    mean, mean_q = sum(row) / len(row), sum(quantized_row) / len(row)
    spread = math.sqrt(sum((w - mean) ** 2 for w in row))
    spread_q = math.sqrt(sum((w - mean_q) ** 2 for w in quantized_row))
    return [spread / spread_q * (w + mean - mean_q) for w in quantized_row]


def test_weights_of_a_network_are_those_of_the_formulas() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()
    with torch.no_grad():
        net[1].weight[2] *= 6.0
    images = torch.rand(8, 1, 7, 7)
    plan = prepare(net, images[:1], images).plan_bits(3, ACIQ)
    small = quantized(prepare(net, images[:1], images), plan)
    ends, middle = (plan.layers[0], plan.layers[2]), plan.layers[1]
    assert {(layer.grid, *layer.limits) for layer in ends} == {
        ("midtread", 127.0, 127.0),
        ("midtread", 127.0, 127.0, 127.0),
    }
    assert middle.grid == "midrise"
    widths = [1 + round(math.log2(limit + 0.5)) for limit in middle.limits]
    assert sum(widths) <= 18
    assert widths[2] == max(widths) > min(widths)
    rows = net[1].weight.detach().flatten(1).tolist()
    for row, width, levels, step in zip(
        rows, widths, small.layers["1"].levels.flatten(1), small.layers["1"].steps, strict=True
    ):
        plain = rounded_by_formula(row, width)
        planned = 2 * max(map(abs, row)) / 2**width
        assert (levels * planned).tolist() == pytest.approx(plain, rel=1e-5)
        mean = sum(row) / len(row) - sum(plain) / len(row)
        xi = corrected_by_formula(row, plain)[0] / (plain[0] + mean)
        assert float(step) == pytest.approx(planned * xi, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("norm", [False, True])
def test_mean_outputs_are_those_of_exactly_corrected_weights(norm: bool, groups: int) -> None:
    torch.manual_seed(groups)
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=not norm)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), conv, nn.BatchNorm2d(4) if norm else nn.Identity(), nn.Conv2d(4, 2, 1))
    images = torch.rand(8, 2, 6, 6) + 0.5
    small = quantized(prepare(net.eval(), images[:1], images), prepare(net, images[:1], images).plan_bits(2, ACIQ))
    network = small.network
    assert isinstance(network, nn.Sequential)
    plan = small.plan
    assert plan is not None
    steps = torch.tensor(plan.layer("1").steps)
    exact = bias_corrected(conv.weight.detach(), small.layers["1"].levels * steps[:, None, None, None])
    with torch.no_grad():
        read = network[0](images)
        ours = network[2](network[1](read)).mean((0, 2, 3))
        wanted = net[2](nn.functional.conv2d(read, exact, conv.bias, padding=1, groups=groups)).mean((0, 2, 3))
        unmoved = net[2](nn.functional.conv2d(read, network[1].weight, conv.bias, padding=1, groups=groups))
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert (unmoved.mean((0, 2, 3)) - wanted).abs().max() > 1e-3


def test_widths_are_the_published_formula() -> None:
    ranges = torch.tensor([0.5, 1.0, 2.0, 4.0, 0.7, 3.0, 1.5, 0.9])
    found = allocated_widths(ranges, 4)
    quota = 2.0 ** (found - ranges.log2() * 2 / 3)  # B / sum_j alpha_j^(2/3), but for rounding: alike in all filters
    assert quota.max() / quota.min() <= 2.0
    assert found.float().mean() <= 4 < allocated_widths(ranges, 4.5).float().mean() + 0.5


def test_widths_have_the_least_error_of_all_with_their_bins() -> None:
    """Brute force over all widths: minimize sum alpha_i^2 / (3 4^M_i) with sum 2^M_i of the quota."""
    ranges = [0.4, 1.0, 3.2]
    found = allocated_widths(torch.tensor(ranges), 3).tolist()
    bins = sum(2**m for m in found)

    def error(widths: tuple[int, ...]) -> float:
        return sum(a**2 / (3 * 4**m) for a, m in zip(ranges, widths, strict=True))

    best = min((w for w in product(range(9), repeat=3) if sum(2**m for m in w) <= bins), key=error)
    assert error(tuple(found)) == pytest.approx(error(best))


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.sampled_from([2, 3, 4, 5.5]))
def test_the_quota_holds_and_wider_ranges_have_no_fewer_bits(ranges: list[float], bits: float) -> None:
    found = allocated_widths(torch.tensor(ranges), bits).tolist()
    assert sum(found) <= bits * len(ranges) + 1e-6
    assert all(
        a <= b for (x, a) in zip(ranges, found, strict=True) for (y, b) in zip(ranges, found, strict=True) if x < y
    )


def test_correction_restores_spread_and_leaves_what_is_all_alike() -> None:
    weights = torch.tensor([[1.0, 2.0, 6.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    rounded = torch.tensor([[2.0, 2.0, 6.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    exact = bias_corrected(weights, rounded)
    assert exact[0].tolist() == pytest.approx(corrected_by_formula(weights[0].tolist(), rounded[0].tolist()))
    assert norm_ratio(weights, rounded).tolist()[1:] == [1.0, 1.0]
    assert exact[1].tolist() == [1.0, 1.0, 1.0]


def test_what_does_not_go_together() -> None:
    with pytest.raises(InputError, match="refit must be false with bias_correction"):
        slimbit.QuantConfig(refit=True, bias_correction=True)
    net = nn.Linear(2, 2)
    with pytest.raises(InputError, match="bits must be from 2 to 8, got 9"):
        prepare(net, torch.zeros(1, 2), None).plan_bits(9, ACIQ)
