"""Reading an accuracy off a frontier."""

import itertools
import math


def read_off(curve: list[tuple[float, float]], budget: float) -> float | None:
    """Accuracy at a cost, linear in log cost between the two points around it; None outside the curve."""
    for (low, a), (high, b) in itertools.pairwise(sorted(curve)):
        if low <= budget <= high:
            return a + (b - a) * math.log(budget / low) / math.log(high / low)
    return None
