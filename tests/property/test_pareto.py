"""The Pareto front equals brute force, whatever the points."""

from hypothesis import given
from hypothesis import strategies as st

from slimbit.frontier.select import best_within, cheapest_at_accuracy, pareto_front
from slimbit.numerics.pareto import pareto_mask
from slimbit.records.point import FrontierPoint

# few different values, so that ties in one or both coordinates are common
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


def dominated(i: int, pairs: list[tuple[int, int]]) -> bool:
    """The definition, word by word."""
    gain, cost = pairs[i]
    return any(g >= gain and c <= cost and (g > gain or c < cost) for g, c in pairs)


@given(PAIRS)
def test_mask_equals_brute_force(pairs: list[tuple[int, int]]) -> None:
    mask = pareto_mask([float(g) for g, _ in pairs], [float(c) for _, c in pairs])
    assert mask == [not dominated(i, pairs) for i in range(len(pairs))]


def point(number: int, accuracy: float, cost: float) -> FrontierPoint:
    return FrontierPoint(number=number, state="done", policy="optimal", accuracy=accuracy, costs={"esn_digital": cost})


@given(PAIRS)
def test_front_rises_in_accuracy_and_cost(pairs: list[tuple[int, int]]) -> None:
    front = pareto_front([point(i, g, c) for i, (g, c) in enumerate(pairs)], "esn_digital")
    steps = [(p.costs["esn_digital"], p.accuracy) for p in front]
    assert steps == sorted(steps)
    assert {p.number for p in front} == {i for i in range(len(pairs)) if not dominated(i, pairs)}


@given(PAIRS.filter(bool), st.integers(0, 5))
def test_choices_are_optimal(pairs: list[tuple[int, int]], limit: int) -> None:
    points = [point(i, g, c) for i, (g, c) in enumerate(pairs)]
    within = [(g, -c) for g, c in pairs if c <= limit]
    if within:
        best = best_within(points, {"esn_digital": limit})
        assert (best.accuracy, -best.costs["esn_digital"]) == max(within)
    good = [(c, -g) for g, c in pairs if g >= limit]
    if good:
        least = cheapest_at_accuracy(points, "esn_digital", limit)
        assert (least.costs["esn_digital"], -least.accuracy) == min(good)
