"""What `signal_step` guarantees for any weights, target and grid, against the sum written out weight by weight."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from slimbit.numerics.grid import GRIDS, Grid
from slimbit.numerics.steps import FINEST, signal_step

WEIGHTS = st.lists(st.floats(-2, 2, width=32).filter(lambda w: w == 0 or abs(w) > 1e-6), min_size=1, max_size=30)


def spent(weights: list[float], step: float, grid: Grid) -> float:
    """Sum of squared levels by the table of `slimbit.numerics.grid`, in the arithmetic of float32."""
    total = 0.0
    for weight in weights:
        ratio = float(torch.tensor(weight) / torch.tensor(step))
        if grid == "midtread":
            level = float(round(ratio))
        elif grid == "midrise_zero" and abs(ratio) <= 0.25:
            level = 0.0
        else:
            level = math.floor(ratio) + 0.5
        total += level * level
    return total


def finer(step: float) -> float:
    return float(torch.nextafter(torch.tensor(step), torch.tensor(0.0)))


@given(WEIGHTS, st.floats(0, 1e4), st.sampled_from(GRIDS))
def test_the_smallest_step_whose_sum_is_at_most_the_target(weights: list[float], target: float, grid: Grid) -> None:
    assume(any(weights))
    step, reached = signal_step(torch.tensor(weights), target, grid=grid)
    least = len(weights) / 4 if grid == "midrise" else 0.0
    finest = float(torch.tensor(max(map(abs, weights)) / FINEST))
    if step == finest:  # as fine as steps get
        assert spent(weights, step, grid) <= target
        assert reached == (spent(weights, step, grid) == target)
        return
    assert reached == (target >= least)
    assert spent(weights, step, grid) <= max(target, least) < spent(weights, finer(step), grid)


@given(WEIGHTS, st.floats(0, 1e4), st.floats(1, 10), st.sampled_from(GRIDS))
def test_a_higher_target_never_gets_a_coarser_step(
    weights: list[float], target: float, more: float, grid: Grid
) -> None:
    tensor = torch.tensor(weights)
    assert signal_step(tensor, more * target, grid=grid)[0] <= signal_step(tensor, target, grid=grid)[0]


@given(WEIGHTS, st.floats(0, 1e4), st.integers(-8, 8))
def test_steps_scale_with_the_weights(weights: list[float], target: float, power: int) -> None:
    assume(any(weights))
    scaled = signal_step(torch.tensor(weights) * 2.0**power, target)
    step, reached = signal_step(torch.tensor(weights), target)
    assert scaled == (step * 2.0**power, reached)
