"""Reading accuracies and costs off frontiers."""

import itertools
import math
from collections.abc import Iterable


def read_off(curve: list[tuple[float, float]], budget: float) -> float | None:
    """Accuracy at a cost, linear in log cost between the two points around it; None outside the curve."""
    for (low, a), (high, b) in itertools.pairwise(sorted(curve)):
        if low <= budget <= high:
            return a + (b - a) * math.log(budget / low) / math.log(high / low)
    return None


def hull(curve: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one reaches, cheapest first."""
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(curve, key=lambda pair: (pair[0], -pair[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def cost_at(curve: Iterable[tuple[float, float]], accuracy: float) -> float:
    """Cost at which a curve's hull reaches an accuracy, linear in log cost between its points; NaN where it does not.

    A curve that begins above the accuracy gives its cheapest cost: an upper bound.
    """
    points = hull(curve)
    if not points or points[-1][1] < accuracy:
        return math.nan
    if points[0][1] >= accuracy:
        return points[0][0]
    for (low, a), (high, b) in itertools.pairwise(points):
        if b >= accuracy:
            return low * (high / low) ** ((accuracy - a) / (b - a))
    raise AssertionError("the last point is accurate enough")
