"""Fast rounding and moments against slow loops written from the formulas."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimbit.apply.layers import window_of
from slimbit.numerics import rounding
from slimbit.numerics.allocate import analog_step, best_widths, digital_step, width_table
from slimbit.numerics.energy import level_bits
from slimbit.numerics.grid import GRIDS, filters_first, largest_level, to_levels
from slimbit.numerics.moments import (
    ChannelMoments,
    PatchSums,
    channel_moments,
    merge_moments,
    output_sizes,
    paired_statistics,
    patches,
    sampled_positions,
    sampled_rows,
)
from slimbit.numerics.rounding import (
    Quantizer,
    cholesky,
    column_order,
    compensate,
    compensation_factor,
    coordinate_descent,
    damped,
    refit_step,
    round_levels,
    weighted_error,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(features, groups=1, seed=0):
    rows = torch.randn(groups, 4 * features, features, generator=generator(seed), dtype=torch.float64)
    mix = torch.randn(groups, features, features, generator=generator(seed + 1), dtype=torch.float64)
    rows = rows @ mix
    return damped(rows.transpose(1, 2) @ rows / rows.shape[1])


def naive_obq(weights, h, step, grid):
    """OBQ as Frantar et al. write it: invert what is left of H anew for every column, strongest input first."""
    order = h.diagonal().argsort(descending=True, stable=True).tolist()
    w, levels = weights.clone(), torch.zeros_like(weights)
    left = list(order)
    for j in order:
        inverse = torch.linalg.inv(h[left][:, left])
        at = left.index(j)
        levels[:, j] = to_levels(w[:, j], step, grid=grid)
        error = (w[:, j] - step * levels[:, j]) / inverse[at, at]
        for k, column in enumerate(left):
            w[:, column] -= error * inverse[at, k]
        left.remove(j)
    return levels


@pytest.mark.parametrize("grid", GRIDS)
def test_compensation_equals_naive_obq(grid):
    h = moment(9)
    weights = torch.randn(5, 9, generator=generator(3), dtype=torch.float64)
    step = torch.tensor(0.7, dtype=torch.float64)
    fast = compensate(weights, h, Quantizer(step, grid))
    assert torch.equal(fast, naive_obq(weights, h[0], step, grid))


@pytest.mark.parametrize("groups", [1, 2])
def test_blocks_of_columns_give_the_levels_of_single_columns(groups, monkeypatch):
    """The blocked loops against the same loops with a block of one column: every update goes to all columns at once."""
    h = moment(150, groups)
    weights = torch.randn(3 * groups, 150, generator=generator(3), dtype=torch.float64)
    steps = torch.rand(3 * groups, generator=generator(4), dtype=torch.float64) + 0.2
    rate = torch.rand(3 * groups, generator=generator(5), dtype=torch.float64) / 10
    mask = torch.rand(weights.shape, generator=generator(6)) > 0.2
    for quantizer in (Quantizer(steps), Quantizer(steps[0], "midtread", 3.0), Quantizer(steps, rate=rate, mask=mask)):
        found = []
        for block in (1, 64, 128, 1000):
            monkeypatch.setattr(rounding, "BLOCK", block)
            levels = compensate(weights, h, quantizer)
            found.append((levels, coordinate_descent(weights, levels, h, quantizer)))
        assert all(torch.equal(a, found[0][0]) and torch.equal(b, found[0][1]) for a, b in found)
        assert not torch.equal(*found[0])


def test_coordinate_descent_equals_a_slow_loop_that_computes_every_loss():
    h = moment(12)
    weights = torch.randn(4, 12, generator=generator(3), dtype=torch.float64)
    step = torch.tensor(0.6, dtype=torch.float64)
    start = to_levels(weights, step)
    slow = start.clone()
    choices = torch.arange(-12, 12, dtype=torch.float64) + 0.5
    for f, j in itertools.product(range(4), range(12)):
        trials = slow[f].repeat(len(choices), 1)
        trials[:, j] = choices
        delta = weights[f] - step * trials
        slow[f] = trials[((delta @ h[0]) * delta).sum(1).argmin()]
    assert torch.equal(coordinate_descent(weights, start, h, Quantizer(step), sweeps=1), slow)
    assert not torch.equal(start, slow)


def test_compensation_factor_is_what_the_inverse_says():
    """``mean 1 / U_jj^2`` with ``H^-1 = U^T U``, of which optimal brain quantization speaks."""
    h = moment(20)
    order = column_order(h)[0]
    upper = torch.linalg.cholesky(torch.linalg.inv(h[0][order][:, order])).T
    # the last pivot of H^-1 = L L^T belongs to the last column: U = L^T
    assert compensation_factor(h) == pytest.approx(float((1 / upper.diagonal().square()).mean()))


def test_what_float32_cannot_factor_is_tried_in_float64():
    bad = torch.tensor([[[1.0, 1.0], [1.0, 1.0 - 6e-8]]])  # below positive definite by one rounding
    assert int(torch.linalg.cholesky_ex(bad)[1]) > 0
    factor = cholesky(bad)
    torch.testing.assert_close(factor @ factor.transpose(1, 2), bad, rtol=1e-5, atol=1e-5)


def test_compensation_of_groups_is_compensation_of_each_group():
    h = moment(6, groups=3)
    weights = torch.randn(12, 2, 3, generator=generator(3), dtype=torch.float64)
    steps = torch.rand(12, generator=generator(4), dtype=torch.float64) + 0.2
    whole = compensate(weights, h, Quantizer(steps))
    parts = [
        compensate(weights[4 * g : 4 * g + 4], h[g : g + 1], Quantizer(steps[4 * g : 4 * g + 4])) for g in range(3)
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
def test_rate_aware_rounding_finds_the_best_level(grid, metric, rate):
    weights = torch.linspace(-3, 3, 121, dtype=torch.float64) + 1e-4
    step = torch.tensor(0.4, dtype=torch.float64)
    offset = 0.0 if grid == "midtread" else 0.5
    levels = [s * (k + offset) for k in range(12) for s in (-1, 1)] + ([0.0] if grid == "midrise_zero" else [])
    chosen = round_levels(weights, Quantizer(step, grid, None, rate, metric))
    cost = {q: q * q if metric == "esn_analog" else int(level_bits(torch.tensor(q))) for q in levels}
    for w, q in zip(weights.tolist(), chosen.tolist(), strict=True):
        losses = {v: (w - 0.4 * v) ** 2 + rate * cost[v] for v in levels}
        assert losses[q] == pytest.approx(min(losses.values()), abs=1e-12), (w, q)


def test_refitted_step_is_the_minimum_of_the_weighted_error():
    h = moment(7)
    weights = torch.randn(4, 7, generator=generator(5), dtype=torch.float64)
    levels = to_levels(weights, torch.tensor(0.9, dtype=torch.float64), grid="midrise")
    best = refit_step(weights, levels, h)

    def error(step):
        return weighted_error(weights, levels * step[:, None], h)

    for nudge in (0.999, 1.001):
        assert bool((error(best) < error(best * nudge)).all())


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), groups=2),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, padding_mode="reflect"),
        nn.Conv3d(2, 3, 2, padding=1),
        nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=2),
        nn.ConvTranspose2d(4, 6, 2, stride=3, padding=1),
        nn.Linear(5, 3),
    ],
    ids=lambda m: f"{type(m).__name__}",
)
def test_patches_times_weights_are_the_outputs(module):
    size = {nn.Linear: (2, 7, 5)}.get(
        type(module),
        (
            2,
            module.weight.shape[0 if "Transpose" in type(module).__name__ else 1]
            * (1 if "Transpose" in type(module).__name__ else getattr(module, "groups", 1)),
            *[6] * (module.weight.ndim - 2),
        ),
    )
    inputs = torch.randn(size, generator=generator(), dtype=torch.float64)
    module = module.double()
    window = window_of(module)
    weight = filters_first(module.weight.detach(), transposed=window.transposed, groups=window.groups)
    axis = 1 if window.kernel else -1
    expected = (module(inputs) - 0).detach()
    for samples in (0, 5):
        total = expected.numel() // expected.shape[axis]
        assert math.prod(output_sizes(inputs, window)) == total
        at = sampled_positions(total, samples, generator(1))
        rows = patches(inputs, window, at=at if samples else None)
        by_group = weight.reshape(window.groups, -1, rows.shape[2])
        computed = torch.einsum("pgd,gfd->pgf", rows, by_group).flatten(1) + module.bias.detach()
        wanted = sampled_rows(expected, channel_axis=axis, at=at)
        torch.testing.assert_close(computed, wanted)


def test_patch_sums_over_batches_are_those_of_all_patches():
    rows = torch.randn(30, 2, 4, generator=generator(), dtype=torch.float64) + 1
    outputs = torch.randn(30, 6, generator=generator(2), dtype=torch.float64) + 2
    sums = PatchSums()
    for part in (slice(0, 7), slice(7, 30)):
        sums.add(rows[part], outputs[part])
    found = sums.moments(centred=True)
    for g in range(2):
        x = rows[:, g] - rows[:, g].mean(0)
        y = outputs[:, 3 * g : 3 * g + 3]
        torch.testing.assert_close(found.inputs[g], sum(torch.outer(v, v) for v in x) / 30)
        torch.testing.assert_close(found.outputs[g], sum(torch.outer(a, b) for a, b in zip(y, x, strict=True)) / 30)


def test_paired_statistics_equal_the_formula_channel_by_channel():
    a, b = torch.randn(2, 9, 3, 5, 5, generator=generator())
    b = 1.7 * b + torch.tensor([0.1, -2.0, 3.0])[:, None, None]
    mean, variance = torch.tensor([0.5, 1.0, -1.0]).double(), torch.tensor([2.0, 0.3, 1.0]).double()
    new_mean, new_variance = paired_statistics(
        mean, variance, original=channel_moments(a), quantized=channel_moments(b)
    )
    for c in range(3):
        before, after = a[:, c].flatten().tolist(), b[:, c].flatten().tolist()
        mf, mq = sum(before) / len(before), sum(after) / len(after)
        vf = sum((v - mf) ** 2 for v in before) / len(before)
        vq = sum((v - mq) ** 2 for v in after) / len(after)
        assert float(new_mean[c]) == pytest.approx(
            float(mean[c]) + (mq - mf) * math.sqrt(float(variance[c]) / vf), rel=1e-4
        )
        assert float(new_variance[c]) == pytest.approx(float(variance[c]) * vq / vf, rel=1e-4)


def test_a_constant_channel_keeps_its_variance():
    dead = ChannelMoments(torch.tensor([2.0]).double(), torch.tensor([0.0]).double(), 10)
    live = ChannelMoments(torch.tensor([1.0]).double(), torch.tensor([1.0]).double(), 10)
    stored = torch.tensor([1.0]).double(), torch.tensor([4.0]).double()
    mean, variance = paired_statistics(*stored, original=live, quantized=dead)
    # the mean moves by 2 - 1 as it is, the variance stays 4
    assert (mean.item(), variance.item()) == (2.0, 4.0)
    mean, variance = paired_statistics(*stored, original=dead, quantized=live)
    assert (mean.item(), variance.item()) == (0.0, 4.0)


def test_merged_moments_are_those_of_everything():
    values = torch.randn(20, 4, 3, generator=generator())
    whole = channel_moments(values)
    parts = merge_moments(channel_moments(values[:6]), channel_moments(values[6:]))
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(parts.variance, whole.variance, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(20, 4, 3, 3), (20, 4), (20, 3, 5, 2), (20, 1, 1, 1)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_channel_moments_do_not_depend_on_how_images_are_divided(shape, offset):
    values = torch.randn(shape, generator=generator()) + offset
    for axis in (1, -1):
        whole = channel_moments(values, axis=axis)
        for sizes in ([3, 17], [1] * 20, [20]):
            parts = channel_moments(values.split(sizes), axis=axis)
            assert torch.equal(parts.mean, whole.mean)
            assert torch.equal(parts.variance, whole.variance)
            assert parts.count == whole.count == values.numel() // values.shape[axis]
        rows = values.double().movedim(axis, -1).reshape(-1, values.shape[axis])
        torch.testing.assert_close(whole.mean, rows.mean(0), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(whole.variance, rows.var(0, correction=0), rtol=2e-5, atol=0)


def test_patch_sums_of_many_features_are_those_of_the_formula():
    """The triangle in blocks, and sums that another layer has made."""
    rows = torch.randn(200, 1, 300, generator=generator(), dtype=torch.float64) + 1
    outputs = torch.randn(200, 5, generator=generator(1), dtype=torch.float64)
    first = PatchSums()
    first.add(rows)
    second = PatchSums(first)
    second.add(rows, outputs)
    for sums in (first, second):
        moments = sums.moments(centred=False)
        torch.testing.assert_close(moments.inputs[0], rows[:, 0].T @ rows[:, 0] / 200)
    torch.testing.assert_close(moments.outputs[0], outputs.T @ rows[:, 0] / 200)


def test_closed_forms_minimize_loss_plus_price_times_cost():
    price, c, variance, s = 1e-5, 64, 0.03, 5.0
    steps = torch.logspace(-4, 1, 200001, dtype=torch.float64)
    error = 0.5 * s * steps**2 / 12
    analog = error + price * c * variance / steps**2
    digital = error - price * c * torch.log2(steps)
    assert float(steps[analog.argmin()]) == pytest.approx(
        analog_step(price, positions=c, variance=variance, sensitivity=s), rel=1e-4
    )
    assert float(steps[digital.argmin()]) == pytest.approx(digital_step(price, positions=c, sensitivity=s), rel=1e-4)


@pytest.mark.parametrize("left", [1.0, 0.2])
def test_widths_per_filter_equal_brute_force(left):
    weights = torch.randn(3, 8, generator=generator(), dtype=torch.float64)
    table = width_table(weights, widths=4)
    s = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)

    def loss(f: int, b: int) -> float:
        repaired = left if b else 1.0  # nothing repairs a filter that is gone
        return 0.5 * float(s[f]) * repaired * float(table.error[f, b])

    dropped = 0
    for price in (1e-3, 1e-2, 0.1, 1.0):
        total = {
            widths: sum(loss(f, b) + price * 6 * b for f, b in enumerate(widths))
            for widths in itertools.product(range(5), repeat=3)
        }
        found = best_widths(table, price, sensitivity=s, macs_per_filter=6, compensation_factor=left)
        chosen = tuple(found.tolist())
        dropped += chosen.count(0)
        assert total[chosen] == pytest.approx(min(total.values()), rel=1e-12)
    assert dropped


@pytest.mark.parametrize("grid", ["midrise", "midtread"])
def test_width_table_is_close_to_an_exhaustive_search_of_the_step(grid):
    weights = torch.randn(2, 50, generator=generator(), dtype=torch.float64)
    table = width_table(weights, grid=grid, widths=5)
    for f in range(2):
        for bits in range(2, 6):
            limit = largest_level(bits, grid)
            best = min(
                float((weights[f] - t * to_levels(weights[f], t, grid=grid, limit=limit)).square().sum())
                for t in torch.linspace(0.01, 4, 4000, dtype=torch.float64)
            )
            # steps of the ladder are 4 % apart, and 50 weights make a jagged error
            assert float(table.error[f, bits]) <= 1.1 * best
    torch.testing.assert_close(table.error[:, 0], weights.square().sum(1))


def test_padding_modes_follow_the_module():
    conv = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
    x = torch.randn(1, 1, 4, 4, generator=generator())
    rows = patches(x, window_of(conv))[:, 0]
    torch.testing.assert_close(
        rows @ conv.weight.flatten() + conv.bias,
        F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), conv.weight, conv.bias).flatten(),
    )


def naive_coordinate_descent(weights, levels, h, step, grid, rate, metric):
    """For every column of every filter, the best level by trying them all in the whole loss."""
    offset = 0.0 if grid == "midtread" else 0.5
    known = sorted({s * (k + offset) for k in range(9) for s in (-1, 1)} | ({0.0} if grid == "midrise_zero" else set()))
    q = levels.clone()

    def loss(row, filter_):
        delta = weights[filter_] - step * row
        cost = row.square() if metric == "esn_analog" else level_bits(row)
        return float(delta @ h @ delta + rate * cost.sum())

    for j in range(q.shape[1]):
        for f in range(len(q)):
            trials = []
            for level in known:
                row = q[f].clone()
                row[j] = level
                trials.append((loss(row, f), level))
            q[f, j] = min(trials)[1]
    return q


@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital"])
@pytest.mark.parametrize("grid", GRIDS)
def test_coordinate_descent_equals_trying_every_level_in_the_whole_loss(grid, metric):
    h = moment(6)
    weights = torch.randn(4, 6, generator=generator(8), dtype=torch.float64)
    quantizer = Quantizer(torch.tensor(0.6, dtype=torch.float64), grid, None, 0.05, metric)
    start = compensate(weights, h, quantizer)
    fast = coordinate_descent(weights, start, h, quantizer, sweeps=1)
    assert torch.equal(fast, naive_coordinate_descent(weights, start, h[0], 0.6, grid, 0.05, metric))


@given(st.integers(0, 2**31), st.sampled_from(GRIDS), st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_coordinate_descent_never_makes_the_outputs_worse(seed, grid, size):
    h = moment(8, groups=2, seed=seed)
    weights = torch.randn(6, 8, generator=generator(seed), dtype=torch.float64)
    steps = size * (0.5 + torch.rand(6, generator=generator(seed + 1), dtype=torch.float64))
    start = compensate(weights, h, Quantizer(steps, grid))
    end = coordinate_descent(weights, start, h, Quantizer(steps, grid))
    before, after = (weighted_error(weights, q * steps[:, None], h) for q in (start, end))
    assert bool((after <= before * (1 + 1e-9)).all())


def test_compensation_factor_is_the_mean_schur_complement_in_the_order_of_compensation():
    h = moment(7)[0]
    order = sorted(range(7), key=lambda j: -float(h[j, j]))
    assert order != list(range(7))
    assert column_order(h[None])[0].tolist() == order
    # the error of column j after the best change of the columns behind it: H_jj - H_jF H_FF^-1 H_Fj
    parts = []
    for place, j in enumerate(order):
        behind = order[place + 1 :]
        parts.append(h[j, j] - h[j, behind] @ torch.linalg.solve(h[behind][:, behind], h[behind, j]))
    assert compensation_factor(h[None]) == pytest.approx(float(sum(parts)) / 7)


@pytest.mark.parametrize("seed", range(4))
def test_compensation_leaves_the_share_that_its_factor_predicts(seed):
    """Fine steps, 6,000 filters, very uneven inputs: the output error over that of rounding without compensation."""
    scale = 10 ** torch.linspace(-1, 1, 12, dtype=torch.float64)  # the weakest first: stored order is the worst order
    h = moment(12, seed=seed) * scale[:, None] * scale
    h = h / h[0].diagonal().mean()
    weights = torch.randn(6000, 12, generator=generator(seed), dtype=torch.float64)
    step = torch.tensor(0.05, dtype=torch.float64)
    levels = compensate(weights, h, Quantizer(step, "midtread"))
    left = float(weighted_error(weights, levels * step, h).mean())
    plain = 12 * 0.05**2 / 12 * 1.0  # 12 columns, each step^2 / 12 at a mean diagonal of 1
    assert left / plain == pytest.approx(compensation_factor(h), rel=0.03)


def test_a_refitted_step_is_never_negative():
    """Levels against their weights would fit best with a negative step: the caller keeps the old one instead."""
    weights, levels = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]), torch.tensor([[-1.0, 0], [1, 1], [0, 0]])
    assert refit_step(weights, levels, torch.eye(2)[None]).tolist() == [0.0, 1.5, 0.0]


def test_sampled_positions_reach_the_last_one():
    """Ten positions, four samples: the middles of four stretches of 2.5 are 1.25, 3.75, 6.25 and 8.75."""
    assert sampled_positions(10, 4).tolist() == [1, 3, 6, 8]
    jittered = torch.stack([sampled_positions(10, 4, generator(seed)) for seed in range(200)])
    assert jittered.unique().tolist() == list(range(10))
