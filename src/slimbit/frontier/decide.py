"""Decide which points a run has. Each decision is made once and kept; see `slimbit.frontier.workspace`."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from slimbit.frontier.branch import Branch
from slimbit.frontier.span import find_span
from slimbit.frontier.spread import bend_places, coarse_first, even_targets, price_for
from slimbit.frontier.subject import BASELINE_BITS
from slimbit.frontier.workspace import PlannedPoint, canonical
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
from slimbit.records.point import FrontierPoint

REFINED_SHARE = 4
"""One point in so many is placed where the curve bends."""
LEAST_SHARE = 1e-6


def swept(points: int) -> int:
    """How many of so many points the even sweep gets; the others refine it.

    >>> swept(16), swept(3)
    (12, 3)
    """
    return points - points // REFINED_SHARE


def plan_sweep(branch: Branch, count: int, *, baselines: bool, pruned_only: bool, tell: Callable[[str], None]) -> None:
    """Find the range of prices and keep the plans: of the sweep, evenly spread over log cost, and of comparisons.

    Args:
        branch: The network, opened; its decisions are kept there.
        count: Points of the sweep.
        baselines: Whether to add the quantize-only baselines; the subject's training epochs are always added.
        pruned_only: Whether to add the network at 8 bits, to show what its width alone is worth.
        tell: Called while the range is looked for.
    """
    subject = branch.subject
    span = find_span(subject, tell)

    def cost_of(price: float) -> float:
        cost = subject.predicted(price)[subject.metric]
        assert cost is not None, "a layer is quantized, so every metric of a sweep exists"
        return float(cost)

    dearest = cost_of(span.low)
    if dearest <= 0:
        raise InputError(f"{subject.metric} of {subject.survey.spec.name} must be above 0 to be saved, got {dearest:g}")
    targets = even_targets(dearest, max(cost_of(span.high), LEAST_SHARE * dearest), count)
    prices = [price_for(cost_of, target, span.low, span.high) for target in targets]
    plans = [subject.plan_at(prices[i]) for i in coarse_first(len(prices))]
    if baselines:
        found = zip(BASELINE_BITS, subject.baselines(), strict=True)
        branch.plan_points("baselines", [_kept(branch, f"max_abs-{bits}", plan) for bits, plan in found])
    if pruned_only:
        branch.plan_points("prune_only", [_kept(branch, "prune_only", subject.pruned_only())])
    if subject.signal:
        named = [
            (f"signal-{epoch.epoch}", plan) for epoch, plan in zip(subject.signal, subject.signal_plans(), strict=True)
        ]
        branch.plan_points("signal", [_kept(branch, key, plan) for key, plan in named])
    branch.plan_points("sweep", _different(branch, "sweep", plans), span=asdict(span))


def plan_refinement(branch: Branch, count: int, *, measured: Sequence[FrontierPoint]) -> tuple[PlannedPoint, ...]:
    """Keep the plans of further points where the measured curve bends.

    Args:
        branch: The network, opened; its decisions are kept there.
        count: How many.
        measured: The finished points of the sweep; the order does not matter.
    """
    places = [
        (cost, point.accuracy, point.price)
        for point in measured
        if (cost := cost_of(point)) is not None and point.accuracy is not None and point.price is not None
    ]
    known = {_plan(branch, point).layers for point in measured}
    plans = [branch.subject.plan_at(price) for price in bend_places(places, count)]
    chosen = _different(branch, "refine", [plan for plan in plans if plan.layers not in known])
    branch.plan_points("refine", chosen)
    return chosen


def cost_of(point: FrontierPoint) -> float | None:
    """Cost of a point by the metric of its own price; None where it has none."""
    return None if point.metric is None else point.costs.get(point.metric)


def _plan(branch: Branch, point: FrontierPoint) -> CompressionPlan:
    return CompressionPlan.from_dict(json.loads(branch.workspace.read(point.plan, "json")))


def _different(branch: Branch, stage: str, plans: Iterable[CompressionPlan]) -> tuple[PlannedPoint, ...]:
    """Plans as points; prices that differ too little to lead to another plan make one point."""
    decided: dict[tuple[object, ...], CompressionPlan] = {}
    for plan in plans:
        decided.setdefault(plan.layers, plan)
    return tuple(_kept(branch, f"{stage}-{i:02d}", plan) for i, plan in enumerate(decided.values()))


def _kept(branch: Branch, name: str, plan: CompressionPlan) -> PlannedPoint:
    digest = branch.workspace.write(canonical(plan.to_dict()), "json")
    assert digest == plan.digest(), "a plan's object is its canonical JSON"
    return PlannedPoint(
        key=branch.key(name),
        plan=digest,
        policy=plan.policy,
        setting=plan.setting or f"price {plan.price:.3g}",
        baseline=plan.price is None,
        metric=plan.metric,
        price=plan.price,
        width=branch.width,
    )
