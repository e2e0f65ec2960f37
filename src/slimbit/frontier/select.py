"""Choose among measured points: the Pareto front, the cheapest that is good enough, the best within budgets."""

import math
from collections.abc import Iterable, Mapping, Sequence

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.cost_names import check_cost_name
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint


def measured(points: Iterable[FrontierPoint], *metrics: str) -> tuple[FrontierPoint, ...]:
    """The points that have an accuracy and costs of those names; failed ones are left out.

    Raises:
        InputError: No such cost.
    """
    for metric in metrics:
        check_cost_name(metric, "metric")
    return tuple(
        p for p in points if p.state == "done" and p.accuracy is not None and all(_has(p, metric) for metric in metrics)
    )


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
    ...     return FrontierPoint(number=number, state="done", policy="optimal", accuracy=accuracy,
    ...                          costs={"esn_digital": bits})
    >>> front = pareto_front([point(0, 90, 10), point(1, 80, 20), point(2, 95, 30)], "esn_digital")
    >>> [p.number for p in front]
    [0, 2]
    """
    found = measured(points, metric)
    mask = pareto_mask([_accuracy(p) for p in found], [_cost(p, metric) for p in found])
    front = [p for p, stays in zip(found, mask, strict=True) if stays]
    return tuple(sorted(front, key=lambda p: (_cost(p, metric), p.number)))


def cheapest_at_accuracy(
    points: Iterable[FrontierPoint], metric: str, accuracy: float, *, score_name: str = "accuracy"
) -> FrontierPoint:
    """The cheapest point of at least that accuracy; of equally cheap ones the most accurate.

    Args:
        points: Any, baselines included.
        metric: Cost metric.
        accuracy: The least.
        score_name: What is called accuracy here, for the message.

    Raises:
        InputError: No point is that accurate; the message names the most accurate one.
    """
    found = _some(measured(points, metric), (metric,))
    good = [p for p in found if _accuracy(p) >= accuracy]
    if not good:
        best = max(found, key=lambda p: (_accuracy(p), -_cost(p, metric), -p.number))
        raise InputError(
            f"{score_name} must be one that a point reaches, got {accuracy:g}: the most accurate is "
            f"{_named(best, metric, score_name=score_name)}"
        )
    return min(good, key=lambda p: (_cost(p, metric), -_accuracy(p), p.number))


def best_within(
    points: Iterable[FrontierPoint], within: Mapping[str, float], *, score_name: str = "accuracy"
) -> FrontierPoint:
    """The most accurate point that costs at most so much in every metric; of equally accurate ones the cheapest.

    Args:
        points: Any, baselines included.
        within: Largest cost by metric.
        score_name: What is called accuracy here, for the message.

    Raises:
        InputError: No metric, or no point that is so cheap; the message names the cheapest one.
    """
    if not isinstance(within, Mapping) or not within:
        raise InputError(f"within must map cost metrics to amounts, like {{'esn_digital': 20e6}}, got {within!r}")
    first = next(iter(within))
    found = _some(measured(points, *within), tuple(within))
    fitting = [p for p in found if all(_cost(p, metric) <= amount for metric, amount in within.items())]
    if fitting:
        return min(fitting, key=lambda p: (-_accuracy(p), _cost(p, first), p.number))
    asked = ", ".join(f"{metric} {amount:g}" for metric, amount in within.items())
    least = min(found, key=lambda p: (_excess(p, within), -_accuracy(p), p.number))
    named = _named(least, *within, score_name=score_name)
    raise InputError(f"budget must be one that a point fits, got {asked}: the cheapest is {named}")


def _excess(point: FrontierPoint, within: Mapping[str, float]) -> float:
    """By how many times a point exceeds the budget that it exceeds most."""
    return max(_cost(point, metric) / amount if amount > 0 else math.inf for metric, amount in within.items())


def _some(points: Sequence[FrontierPoint], metrics: tuple[str, ...]) -> Sequence[FrontierPoint]:
    if not points:
        raise InputError(f"run must hold a measured point with a cost {' and '.join(metrics)}, got none")
    return points


def _named(point: FrontierPoint, *metrics: str, score_name: str) -> str:
    costs = ", ".join(f"{metric} {_cost(point, metric):g}" for metric in metrics)
    return f"point {point.number} ({point.label}) with {costs} at {score_name} {_accuracy(point):g}"


def _has(point: FrontierPoint, metric: str) -> bool:
    value = point.costs.get(metric)
    return value is not None and math.isfinite(value)


def _cost(point: FrontierPoint, metric: str) -> float:
    value = point.costs[metric]
    assert value is not None, "measured leaves others out"
    return value


def _accuracy(point: FrontierPoint) -> float:
    assert point.accuracy is not None
    return point.accuracy
