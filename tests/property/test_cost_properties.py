"""Orderings that hold for any weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import slimbit
from slimbit.numerics.energy import level_bits, level_sums
from slimbit.numerics.grid import GRIDS, filters_first, filters_stored, largest_level, to_levels, to_weights
from slimbit.numerics.steps import gaussian_step, max_abs_step, sigma_step

weights = st.integers(0, 2**31).map(lambda seed: torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)))


def _layer(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    return layer, torch.zeros(1, weight.shape[1])


@given(weights, st.integers(1, 10))
def test_digital_is_below_filterwise_is_below_width_times_macs(weight, bits):
    total = slimbit.cost(*_layer(weight), bits=bits).total
    assert total.nonzero_macs <= total.esn_digital <= total.esn_filterwise <= bits * total.macs
    assert total.esn_analog <= total.esn_analog_class_a
    assert total.esn_analog >= total.nonzero_macs / 4


@given(weights, st.floats(0.01, 2), st.floats(1.01, 4))
def test_costs_fall_when_a_step_grows(weight, step, factor):
    fine = slimbit.cost(*_layer(weight), steps=step).total
    # whole multiples of a step keep the order of every level; in between a level may only shrink
    coarse = slimbit.cost(*_layer(weight), steps=step * factor).total
    assert coarse.esn_analog <= fine.esn_analog
    assert coarse.esn_digital <= fine.esn_digital


@given(weights, st.floats(0.01, 2), st.sampled_from(GRIDS))
def test_levels_are_fixed_points(weight, step, grid):
    scale = torch.tensor(step)
    levels = to_levels(weight, scale, grid=grid)
    # half a step away from every decision boundary, so rounding of the product cannot move it
    assert torch.equal(to_levels(to_weights(levels, scale), scale, grid=grid), levels)


@given(weights, st.floats(0.05, 2), st.sampled_from(GRIDS))
def test_every_level_is_the_nearest_one(weight, step, grid):
    levels = to_levels(weight, torch.tensor(step), grid=grid)
    reach = int(weight.abs().max() / step) + 2
    candidates = torch.arange(-reach, reach + 1).float()
    if grid != "midtread":
        candidates = torch.cat([candidates + 0.5, torch.zeros(1)]) if grid == "midrise_zero" else candidates + 0.5
    nearest = (weight[..., None] / step - candidates).abs().min(dim=-1).values
    assert torch.allclose((weight / step - levels).abs(), nearest, atol=1e-4)


@given(weights, st.integers(1, 12), st.sampled_from(GRIDS))
def test_a_width_clips_to_its_codes(weight, bits, grid):
    levels = to_levels(weight, max_abs_step(weight, bits), grid=grid, limit=largest_level(bits, grid))
    assert level_bits(levels).max() <= bits


@given(weights)
def test_total_is_the_sum_of_the_layers(weight):
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data = weight
    report = slimbit.cost(model, torch.zeros(1, 7), bits=3)
    for metric in ("parameters", "macs", "esn_analog", "esn_digital", "esn_filterwise", "weight_bytes"):
        assert report.total[metric] == pytest.approx(sum(layer[metric] for layer in report.layers))


@given(weights, st.floats(1, 8))
def test_fractional_widths_move_max_abs_smoothly(weight, bits):
    total = slimbit.cost(*_layer(weight), bits=bits).total
    below = slimbit.cost(*_layer(weight), bits=int(bits)).total
    above = slimbit.cost(*_layer(weight), bits=int(bits) + 1).total
    assert below.esn_filterwise <= total.esn_filterwise <= above.esn_filterwise


@given(weights, st.floats(0.1, 1))
def test_level_sums_of_given_levels_equal_those_of_weights(weight, step):
    levels = to_levels(weight, torch.tensor(step))
    sums = level_sums(levels)
    total = slimbit.cost(*_layer(weight), steps=step).total
    assert (sums.squares, sums.bits) == (total.esn_analog, total.esn_digital)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20)
def test_filters_first_of_a_transposed_convolution_is_its_own_gradient_layout(groups, inputs, outputs):
    layer = nn.ConvTranspose2d(groups * inputs, groups * outputs, 2, groups=groups, bias=False)
    first = filters_first(layer.weight.detach(), transposed=True, groups=groups)
    assert first.shape == (groups * outputs, inputs, 2, 2)
    assert torch.equal(filters_stored(first, transposed=True, groups=groups), layer.weight)
    x = torch.zeros(1, groups * inputs, 1, 1)
    x[0, 0] = 1  # only the first group's first input speaks: filter 0 of group 0 answers with its own weights
    assert torch.equal(layer(x)[0, :outputs], first[:outputs, 0])


@pytest.mark.parametrize("bits", range(1, 8))
def test_gaussian_step_is_where_the_sampled_error_is_least(bits):
    sample = torch.randn(400_000, generator=torch.Generator().manual_seed(bits))
    limit = largest_level(bits)

    def error(step):
        scale = torch.tensor(step)
        return (sample - to_weights(to_levels(sample, scale, limit=limit), scale)).square().mean().item()

    best = gaussian_step(bits)
    assert error(best) < error(0.9 * best)
    assert error(best) < error(1.1 * best)
    assert sigma_step(sample, bits).item() == pytest.approx(best, rel=0.01)
