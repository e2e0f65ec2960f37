"""The headline: how many times cheaper within so many points of the float accuracy, for each cost metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.accuracy import mcnemar
from slimbit.records.config import Grid
from slimbit.records.point import FrontierPoint
from slimbit.records.terminal import UNITS, quantity

CostData = Mapping[str, Any]
REFERENCE_BITS = 8
DROPS = (0.5, 1.0, 2.0, 3.0, 5.0)
"""Points below the float accuracy that people ask for; the page opens with 1."""
FLOAT_BITS = 32

Reached = Literal["exact", "at_least", "not_reached", "no_cost"]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """How many times cheaper the front is than the reference, for one metric.

    Attributes:
        metric: Cost metric.
        reached: "exact": between two points of the front. "at_least": every point of the front is more accurate than
            asked for, so the cheapest one gives a lower bound. "not_reached": no point is as accurate.
            "no_cost": the metric does not exist on one side.
        factor: Reference's cost over the front's; None where there is none.
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
    """One sentence and a factor per metric, at one accuracy.

    Attributes:
        drop: Points below the float accuracy.
        text: What is compared with what, in a sentence.
        least: The accuracy that is asked for, for people.
        smaller: How many times fewer bytes the weights take than as float32, e.g. ``15.6x``; "" where unknown.
        factors: One per metric, the sweep's own first; empty where nothing is there to compare with.
        point: Number of the cheapest point of the sweep that is as accurate; of the most accurate one where none is;
            None where the sweep has none.
        notes: What a reader must know before quoting the factors.
    """

    drop: float
    text: str
    least: str
    smaller: str = ""
    factors: tuple[Factor, ...] = ()
    point: int | None = None
    notes: tuple[str, ...] = ()


def headlines(
    points: Sequence[FrontierPoint],
    reports: Mapping[int, CostData],
    metrics: Sequence[str],
    *,
    float_accuracy: float,
    letters: Mapping[int, str],
    unit: str = "",
    score_name: str = "accuracy",
) -> tuple[Headline, ...]:
    """How many times cheaper than 8 bits the run's own points are, at accuracies a little below that of the network.

    ``factor = cost of the 8-bit network / exp(interpolate(accuracy; log cost along the Pareto front))``.

    Args:
        points: Finished points.
        reports: JSON data of their cost reports, by point number.
        metrics: Cost metrics.
        float_accuracy: Of the network before compression.
        letters: How points are named, by number.
        unit: Unit of accuracy; without one a "point" is a hundredth of the float accuracy.
        score_name: What is called accuracy here.
    """
    reference = eight_bits(points, reports)
    ours = [point for point in points if not point.baseline]
    scale = 1.0 if unit else abs(float_accuracy) / 100
    name = score_name
    return tuple(
        _headline(
            drop,
            float_accuracy - drop * scale,
            ours,
            reference,
            reports,
            metrics=metrics,
            letters=letters,
            unit=unit,
            name=name,
        )
        for drop in DROPS
    )


def _headline(
    drop: float,
    target: float,
    ours: Sequence[FrontierPoint],
    reference: FrontierPoint | None,
    reports: Mapping[int, CostData],
    *,
    metrics: Sequence[str],
    letters: Mapping[int, str],
    unit: str,
    name: str,
) -> Headline:
    space = f" {unit}" if unit else ""
    what = f"{drop:g} point{'' if drop == 1 else 's'}" if unit else f"{drop:g} % of the float score"
    least = f"{target:.2f}{space} or more"
    begin = f"Within {what} of float ({least})"
    first = metrics[0] if metrics else ""
    chosen = _cheapest(ours, first, target)
    best = max((p for p in ours if p.accuracy is not None), key=lambda p: p.accuracy or 0.0, default=None)
    point = next((one.number for one in (chosen, best) if one is not None), None)
    if reference is None:
        text = f"{begin}: this run has no 8-bit network to compare with."
        return Headline(drop=drop, least=least, point=point, text=text)
    factors = tuple(_factor(metric, reference.costs.get(metric), target, ours) for metric in metrics)
    notes = [] if chosen is None else [_measured(chosen, reference, first, letters[chosen.number], space)]
    notes.append(
        f"The factors are interpolated on log cost along the Pareto front; each {name} is an estimate with an interval."
    )
    parts, smaller = [], ""
    if factors and factors[0].factor is not None:
        parts.append(f"{factors[0].text} cheaper than {REFERENCE_BITS} bits")
    if chosen is not None:
        size = chosen.costs.get("weight_bytes")
        if size:
            whole = float_costs(reports[reference.number])["weight_bytes"]
            smaller = f"{times(whole / size)}\N{MULTIPLICATION SIGN}"
            parts.append(f"weights {smaller} smaller than float32")
        notes += _pairwise(chosen, reference, letters[chosen.number])
    if not parts:
        reached = "none was measured"
        if best is not None:
            reached = f"the best one, {letters[best.number]}, has {best.accuracy:.2f}{space}"
        text = f"{begin}: no point of the sweep reaches that; {reached}."
        return Headline(drop=drop, least=least, point=point, text=text)
    return Headline(
        drop=drop,
        text=f"{begin}: {', '.join(parts)}",
        least=least,
        smaller=smaller,
        factors=factors,
        point=point,
        notes=tuple(notes),
    )


def _measured(chosen: FrontierPoint, reference: FrontierPoint, metric: str, letter: str, space: str) -> str:
    """The point to take, in its own numbers: the factors lie between it and the next cheaper one."""
    cost, theirs = chosen.costs.get(metric), reference.costs.get(metric)
    amount = f"{quantity(cost)} {UNITS.get(metric, '')}".strip()
    cheaper = (
        f", {times(theirs / cost)}\N{MULTIPLICATION SIGN} cheaper than {REFERENCE_BITS} bits" if cost and theirs else ""
    )
    return f"The cheapest point that was measured there is {letter}: {chosen.accuracy:.2f}{space} at {amount}{cheaper}."


def _pairwise(chosen: FrontierPoint, reference: FrontierPoint, letter: str) -> list[str]:
    """How the cheapest point that is accurate enough and the 8-bit network differ on the very same images."""
    if not chosen.hits or not reference.hits or chosen.images != reference.images:
        return []
    first, second = chosen.measured(), reference.measured()
    pairs = list(zip(first.right(), second.right(), strict=True))
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    text = (
        f"Pairwise on {chosen.images:,} images: point {letter} is right on {won} that the {REFERENCE_BITS}-bit "
        f"network gets wrong, and wrong on {lost} that it gets right (McNemar p = {mcnemar(first, second):.2g})."
    )
    return [text]


def _cheapest(ours: Sequence[FrontierPoint], metric: str, target: float) -> FrontierPoint | None:
    good = [p for p in ours if p.accuracy is not None and p.accuracy >= target and p.costs.get(metric)]
    return min(good, key=lambda p: (p.costs[metric] or 0.0, p.number), default=None)


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


def eight_bits(points: Sequence[FrontierPoint], reports: Mapping[int, CostData]) -> FrontierPoint | None:
    """The baseline whose widest level is nearest to 8 bits; of several, `max_abs`, then the more accurate.

    None where there are no baselines. Policy ``signal`` is none: its steps are the paper's proposal, beside the sweep
    for comparison. Neither is what was pruned.
    """
    candidates = [p for p in points if p.baseline and p.policy not in ("signal", "prune_only") and p.keep_ratio == 1]

    def rank(point: FrontierPoint) -> tuple[int, bool, float]:
        off = abs(_widest(reports[point.number]) - REFERENCE_BITS)
        return off, point.policy != "max_abs", -(point.accuracy or 0.0)

    return min(candidates, key=rank, default=None)


def float_costs(report: CostData) -> dict[str, float]:
    """Costs of the network with float32 weights and activations, no weight of it zero, as `slimbit.cost` counts them.

    Args:
        report: Cost report of the network with the same layers at any width, none of its filters removed.
    """
    layers, bits = report["layers"], FLOAT_BITS
    macs = sum(layer["positions"] * layer["weights"] for layer in layers)
    return {
        "nonzero_macs": macs,
        "macs": macs,
        "esn_digital": bits * macs,
        "esn_filterwise": bits * macs,
        "bit_operations": bits * bits * macs,
        "weight_bytes": bits
        / 8
        * sum(layer["weights"] for layer in layers if layer["weight_bytes"]),  # shared ones once
        "mean_bits": bits,
    }


def _widest(report: CostData) -> int:
    """Width of the widest level; layers that stay float have none."""
    widths = [int(layer["weight_bits"]) for layer in report["layers"] if layer["grid"] in get_args(Grid)]
    return max(widths, default=0)


def _factor(metric: str, theirs: float | None, target: float, ours: Sequence[FrontierPoint]) -> Factor:
    pairs = [(cost, p.accuracy) for p in ours if p.accuracy is not None and (cost := p.costs.get(metric))]
    reached, cost = cost_at_accuracy(pairs, target)
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
