"""Places of points: whatever the curve, prices stay in range and costs hit their targets."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbit.frontier.spacing import bisection_order, even_targets, price_for, refinement_prices


@given(st.floats(0.1, 3.0), st.floats(-6, 6), st.floats(0.01, 0.99))
def test_price_for_smooth_costs_hits_within_a_percent(slope: float, offset: float, share: float) -> None:
    def cost_of(price: float) -> float:
        return math.exp(offset - slope * math.log(price) - 0.02 * math.log(price) ** 2 * (price > 1))

    low, high = 1e-3, 1e3
    target = cost_of(low) ** (1 - share) * cost_of(high) ** share
    assert cost_of(price_for(cost_of, target, low, high)) == pytest.approx(target, rel=0.0101)


@given(st.floats(1.1, 900.0), st.floats(0.1, 0.9))
def test_price_for_a_jump_ends_beside_it(edge: float, share: float) -> None:
    def cost_of(price: float) -> float:
        return 100.0 if price < edge else 1.0

    found = price_for(cost_of, 100.0 ** (1 - share), 1.0, 1000.0)
    # twenty steps, a third of them halvings of three decades: 6.9 / 2^6 < 0.11 in log
    assert abs(math.log(found / edge)) < 0.11 or found in (1.0, 1000.0)


@given(st.integers(1, 40))
def test_bisection_is_an_order_of_all(count: int) -> None:
    assert sorted(bisection_order(count)) == list(range(count))


@given(st.integers(2, 20), st.floats(1e-3, 0.9))
def test_targets_are_even_in_log(count: int, ratio: float) -> None:
    targets = even_targets(8.0, 8.0 * ratio, count)
    steps = [b / a for a, b in pairwise(targets)]
    assert targets[0] == 8.0
    assert targets[-1] == pytest.approx(8.0 * ratio)
    assert max(steps) == pytest.approx(min(steps))


POINTS = st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 100), st.floats(1e-9, 1)), min_size=2, max_size=12)


@given(POINTS, st.integers(0, 5), st.randoms())
def test_refinement_prices_do_not_depend_on_the_order_of_arrival(points: list, count: int, random) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    places = refinement_prices(points, count)
    assert places == refinement_prices(shuffled, count)
    prices = [price for _, _, price in points]
    assert all(min(prices) * (1 - 1e-9) <= place <= max(prices) * (1 + 1e-9) for place in places)
    assert len(places) in (0, count)


def test_a_wide_gap_is_cut_before_a_narrow_one_that_bends_more() -> None:
    """A line is off by h^2 |f''| / 8: in log cost 0, 1, 5, 7, 8 that is most over the gap of 4.

    Slopes are 3 (0.375 once the start is lifted to a quarter of the way down), 0, 0 and 0.5; the bends between them
    2 * 0.375 / 5 = 0.15, 0 and 2 * 0.5 / 3 = 0.33. The gaps are off by 0.019, 4^2 * 0.15 / 8 = 0.3,
    2^2 * 0.33 / 8 = 0.17 and 0.04.
    """
    curve = [(0, 90.0), (1, 93.0), (5, 93.0), (7, 93.0), (8, 93.5)]
    points = [(math.exp(cost), accuracy, math.exp(-cost)) for cost, accuracy in curve]
    assert refinement_prices(points, 1) == [pytest.approx(math.exp(-3))]
