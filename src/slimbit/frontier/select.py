"""Choose among measured points: the Pareto front, the cheapest that is good enough, the best within a budget."""

import math
from collections.abc import Iterable, Sequence

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError, closest
from slimbit.records.point import FrontierPoint


def measured(points: Iterable[FrontierPoint], metric: str) -> tuple[FrontierPoint, ...]:
    """The points that have an accuracy and a cost of that name; failed ones are left out.

    Raises:
        InputError: No such metric.
    """
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}{closest(metric, METRICS)}")
    return tuple(p for p in points if p.state == "done" and p.accuracy is not None and _cost(p, metric) is not None)


def pareto_front(points: Iterable[FrontierPoint], metric: str) -> tuple[FrontierPoint, ...]:
    """The points that no other point dominates, from the cheapest to the dearest.

    A point is dominated when another is at least as accurate at no more cost and better in one of the two; points
    equal in both stay together.

    Args:
        points: Any, baselines included.
        metric: Cost metric.

    Raises:
        InputError: No such metric.

    >>> def point(number, accuracy, bits):
    ...     return FrontierPoint(number=number, state="done", policy="optimal", setting="", accuracy=accuracy,
    ...                          costs={"esn_digital": bits})
    >>> front = pareto_front([point(0, 90, 10), point(1, 80, 20), point(2, 95, 30)], "esn_digital")
    >>> [p.number for p in front]
    [0, 2]
    """
    found = measured(points, metric)
    mask = pareto_mask([_accuracy(p) for p in found], [_known_cost(p, metric) for p in found])
    front = [p for p, stays in zip(found, mask, strict=True) if stays]
    return tuple(sorted(front, key=lambda p: (_known_cost(p, metric), p.number)))


def cheapest_at_accuracy(points: Iterable[FrontierPoint], metric: str, accuracy: float) -> FrontierPoint:
    """The cheapest point of at least that accuracy; of equally cheap ones the most accurate.

    Raises:
        InputError: No point is that accurate; the message names the most accurate one.
    """
    found = _some(measured(points, metric), metric)
    good = [p for p in found if _accuracy(p) >= accuracy]
    if not good:
        best = max(found, key=lambda p: (_accuracy(p), -_known_cost(p, metric), -p.number))
        raise InputError(
            f"accuracy must be one that a point reaches, got {accuracy:g}: the most accurate is {_named(best, metric)}"
        )
    return min(good, key=lambda p: (_known_cost(p, metric), -_accuracy(p), p.number))


def best_within_budget(points: Iterable[FrontierPoint], metric: str, budget: float) -> FrontierPoint:
    """The most accurate point of at most that cost; of equally accurate ones the cheapest.

    Raises:
        InputError: No point is that cheap; the message names the cheapest one.
    """
    found = _some(measured(points, metric), metric)
    within = [p for p in found if _known_cost(p, metric) <= budget]
    if not within:
        least = min(found, key=lambda p: (_known_cost(p, metric), -_accuracy(p), p.number))
        raise InputError(
            f"budget must be one that a point fits, got {metric} {budget:g}: the cheapest is {_named(least, metric)}"
        )
    return min(within, key=lambda p: (-_accuracy(p), _known_cost(p, metric), p.number))


def _some(points: Sequence[FrontierPoint], metric: str) -> Sequence[FrontierPoint]:
    if not points:
        raise InputError(f"run must hold a measured point with a cost {metric}, got none")
    return points


def _named(point: FrontierPoint, metric: str) -> str:
    what = f"point {point.number} ({point.label})"
    return f"{what} with {metric} {_known_cost(point, metric):g} at accuracy {_accuracy(point):g}"


def _cost(point: FrontierPoint, metric: str) -> float | None:
    value = point.costs.get(metric)
    return None if value is None or not math.isfinite(value) else value


def _known_cost(point: FrontierPoint, metric: str) -> float:
    value = _cost(point, metric)
    assert value is not None
    return value


def _accuracy(point: FrontierPoint) -> float:
    assert point.accuracy is not None
    return point.accuracy
