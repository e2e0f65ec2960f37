"""The headline: how many times cheaper at the accuracy of the 4-bit baseline, for each cost metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.config import Grid
from slimbit.records.point import FrontierPoint
from slimbit.records.terminal import quantity

CostData = Mapping[str, Any]
BASELINE_BITS = 4

Reached = Literal["exact", "at_least", "not_reached", "no_cost"]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """How many times cheaper the front is than the baseline, for one metric.

    Attributes:
        metric: Cost metric.
        reached: "exact": between two points of the front. "at_least": every point of the front is more accurate than
            the baseline, so the cheapest one gives a lower bound. "not_reached": no point is as accurate.
            "no_cost": the metric does not exist on one side.
        factor: Baseline's cost over the front's; None where there is none.
        text: The factor for people, e.g. ``5.2x``.
        detail: Both costs for people.
    """

    metric: str
    reached: Reached
    factor: float | None
    text: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One sentence and a factor per metric.

    Attributes:
        text: What is compared with what.
        baseline: Number of the baseline point; None where the run has none.
        factors: One per metric, the sweep's own first; empty without a baseline.
        notes: What a reader must know before quoting the factors.
    """

    text: str
    baseline: int | None
    factors: tuple[Factor, ...] = ()
    notes: tuple[str, ...] = ()


def headline(
    points: Sequence[FrontierPoint], reports: Mapping[int, CostData], metrics: Sequence[str], unit: str = ""
) -> Headline:
    """Compare the run's own points with its 4-bit baseline, at the accuracy of the baseline.

    ``factor = cost of baseline / exp(interpolate(accuracy; log cost along the Pareto front))``.

    Args:
        points: Finished points.
        reports: JSON data of their cost reports, by point number.
        metrics: Cost metrics.
        unit: Unit of accuracy.
    """
    baseline = _baseline(points, reports)
    if baseline is None:
        return Headline(text="This run has no baseline to compare with.", baseline=None)
    ours = [point for point in points if not point.baseline]
    notes = ("Interpolated on log cost along the Pareto front; both accuracies are estimates with an interval.",)
    space = f" {unit}" if unit else ""
    name = f"{_widest(reports[baseline.number])}-bit"
    return Headline(
        text=f"At the accuracy of the {name} baseline ({baseline.policy}, {baseline.accuracy:.2f}{space})",
        baseline=baseline.number,
        factors=tuple(_factor(metric, baseline, ours) for metric in metrics),
        notes=notes,
    )


def cost_at_accuracy(costs: Sequence[tuple[float, float]], accuracy: float) -> tuple[Reached, float | None]:
    """Cost at which the Pareto front of ``costs`` reaches an accuracy, linear in log cost between its points.

    >>> cost_at_accuracy([(1e6, 80.0), (1e8, 90.0)], 85.0)  # half way between 10^6 and 10^8
    ('exact', 10000000.0)
    >>> cost_at_accuracy([(1e6, 80.0), (1e8, 90.0)], 70.0)
    ('at_least', 1000000.0)
    """
    mask = pareto_mask([accuracy for _, accuracy in costs], [cost for cost, _ in costs])
    front = sorted({pair for pair, stays in zip(costs, mask, strict=True) if stays})
    if not front:
        return "no_cost", None
    if front[0][1] > accuracy:
        return "at_least", front[0][0]
    for (cheap, low), (dear, high) in pairwise(front):
        if low <= accuracy <= high:
            share = (accuracy - low) / (high - low)
            return "exact", 10 ** (math.log10(cheap) + share * math.log10(dear / cheap))
    return ("exact", front[-1][0]) if front[-1][1] == accuracy else ("not_reached", None)


def _baseline(points: Sequence[FrontierPoint], reports: Mapping[int, CostData]) -> FrontierPoint | None:
    """The baseline whose widest level is nearest to 4 bits; of several, `max_abs`, then the more accurate.

    Policy ``signal`` is no baseline: its steps are the paper's proposal, beside the sweep for comparison. Neither
    is what was pruned.
    """
    candidates = [p for p in points if p.baseline and p.policy not in ("signal", "prune_only") and p.keep_ratio == 1]

    def rank(point: FrontierPoint) -> tuple[int, bool, float]:
        off = abs(_widest(reports[point.number]) - BASELINE_BITS)
        return off, point.policy != "max_abs", -(point.accuracy or 0.0)

    return min(candidates, key=rank, default=None)


def _widest(report: CostData) -> int:
    """Width of the widest level; layers that stay float have none."""
    widths = [int(layer["weight_bits"]) for layer in report["layers"] if layer["grid"] in get_args(Grid)]
    return max(widths, default=0)


def _factor(metric: str, baseline: FrontierPoint, ours: Sequence[FrontierPoint]) -> Factor:
    theirs = baseline.costs.get(metric)
    pairs = [(cost, point.accuracy or 0.0) for point in ours if (cost := point.costs.get(metric))]
    reached, cost = cost_at_accuracy(pairs, baseline.accuracy or 0.0)
    if not theirs or reached == "no_cost":
        return Factor(metric=metric, reached="no_cost", factor=None, text="-", detail="not measured")
    if cost is None:
        best = max(accuracy for _, accuracy in pairs)
        return Factor(
            metric=metric, reached="not_reached", factor=None, text="not reached", detail=f"best point: {best:.2f}"
        )
    factor = theirs / cost
    text = f"{'≥ ' if reached == 'at_least' else ''}{times(factor)}\N{MULTIPLICATION SIGN}"
    return Factor(metric=metric, reached=reached, factor=factor, text=text, detail=f"{_brief(theirs)} → {_brief(cost)}")


def _brief(value: float) -> str:
    return quantity(float(f"{value:.3g}"))


def times(factor: float) -> str:
    """A factor for people.

    >>> times(1.234), times(12.34), times(123.4)
    ('1.23', '12.3', '123')
    """
    return f"{factor:.2f}" if factor < 2 else f"{factor:.1f}" if factor < 100 else f"{factor:.0f}"
