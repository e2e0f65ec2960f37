"""Dominance in two dimensions: gain up, cost down. Plain numbers, no torch."""

from collections.abc import Sequence


def pareto_mask(gains: Sequence[float], costs: Sequence[float]) -> list[bool]:
    """Which points no other point dominates.

    A point is dominated when another has at least its gain at no more than its cost, and is better in one of the
    two. Points equal in both do not dominate each other: all of them stay, or none.

    Args:
        gains: Higher is better; finite.
        costs: Lower is better; finite, same length.

    Returns:
        One truth value per point, in the given order.

    >>> pareto_mask([90.0, 91.0, 89.0, 91.0], [1.0, 2.0, 3.0, 2.0])
    [True, True, False, True]
    """
    order = sorted(range(len(gains)), key=lambda i: (costs[i], -gains[i]))
    mask = [False] * len(gains)
    best: tuple[float, float] | None = None  # gain and cost of the last point that was kept
    for i in order:
        here = (gains[i], costs[i])
        if best is None or here[0] > best[0]:
            best = here
        mask[i] = here == best
    return mask
