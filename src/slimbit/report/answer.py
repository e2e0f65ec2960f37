"""Prune or quantize? The answer for one network in a sentence, from the points of a run with several keep ratios."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo
from slimbit.records.setting import LEARNED, Learned
from slimbit.records.terminal import UNITS, quantity
from slimbit.report.assumptions import trained_longer
from slimbit.report.headline import cost_at_accuracy, times

PLACES = 400
"""Costs at which the keep ratios are compared, evenly over log cost."""
BEYOND = 1.1
"""How far, so that the dearest point counts: beyond its cost it is still to be had."""
USEFUL = 0.75
"""Share of the float accuracy below which nobody looks for a model."""
PLURALS = {"bit": "bits"}
Curve = Sequence[tuple[float, float]]
"""Cost and accuracy along a front, both rising."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A range of costs in which one ratio is best.

    Attributes:
        keep_ratio: Share of the filters that is kept; 1 = quantize only.
        low: Its cheapest cost.
        high: Its dearest.
    """

    keep_ratio: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to do with this network, for one cost metric.

    Attributes:
        metric: Cost metric.
        text: For people.
        stretches: From cheap to dear, without gaps.
    """

    metric: str
    text: str
    stretches: tuple[Stretch, ...]


def answer(
    points: Sequence[FrontierPoint],
    metric: str,
    *,
    float_accuracy: float,
    unit: str = "",
    score_name: str = "accuracy",
    trained: str = "",
) -> Answer | None:
    """Which ratio is best at which cost, and what pruning alone, and learning, are worth.

    A pruned network counts as better where its front, interpolated on log cost, lies above that of the network as it
    was given by more than one standard error of an accuracy; where a ratio cannot reach a cost, any other is better.
    Costs at which no ratio keeps three quarters of the float accuracy are left out.

    Args:
        points: Finished points.
        metric: Cost metric.
        float_accuracy: Of the network before compression.
        unit: Unit of accuracy.
        score_name: What is called accuracy here.
        trained: How long pruned networks were trained, e.g. ``4 epochs``; "" where they were not.

    Returns:
        None for a run of one ratio that learns nothing, or without points of this metric.
    """
    learning = _learning(points, metric, float_accuracy=float_accuracy, unit=unit)
    fronts = {ratio: front_of(ours, metric) for ratio, ours in _by_keep_ratio(points).items()}
    fronts = {ratio: front for ratio, front in fronts.items() if front}
    if len(fronts) < 2:
        return Answer(metric=metric, text=learning, stretches=()) if learning else None
    useful = [cost for front in fronts.values() for cost, accuracy in front if accuracy >= USEFUL * float_accuracy]
    if not useful:
        return None
    low, high = min(useful), max(cost for front in fronts.values() for cost, _ in front)
    costs = [low * (high / low) ** (BEYOND * i / (PLACES - 1)) for i in range(PLACES)]
    error = _standard_error(points)
    best = [_best(fronts, cost, error) for cost in costs]
    stretches = tuple(_stretches(costs, best))
    space = f" {unit}" if unit else ""

    def brief(cost: float) -> str:
        return f"{quantity(float(f'{cost:.2g}'))} {_plural(metric)}".strip()

    gain = _gain(fronts, [(cost, _advised(stretches, cost)) for cost in costs], brief, space=space)
    sentences = [_advice(stretches, brief), *gain, *_alone(points, fronts, metric, score_name), learning]
    if trained and gain:
        sentences.append(trained_longer(trained))
    return Answer(metric=metric, text=" ".join(filter(None, sentences)), stretches=stretches)


def answer_of_run(info: RunInfo, points: Sequence[FrontierPoint], metric: str) -> str:
    """The answer for the points of a run as one text; "" where it has none."""
    found = answer(
        [point for point in points if point.state == "done"],
        metric,
        float_accuracy=info.float_accuracy,
        unit="" if info.float_low is None else "%",
        score_name=info.score_name,
        trained=epochs_after_pruning(info),
    )
    return "" if found is None else found.text


def epochs_after_pruning(info: RunInfo) -> str:
    """How long the pruned networks of a run were trained, e.g. ``4 epochs``; "" where they were not."""
    if info.prune is None or info.prune.tune is None or len(info.keep_ratios) < 2:
        return ""
    return epochs_text(info.prune.tune.epochs)


def epochs_text(count: int) -> str:
    """A number of epochs for people.

    >>> epochs_text(1), epochs_text(4)
    ('1 epoch', '4 epochs')
    """
    return f"{count} epoch{'' if count == 1 else 's'}"


def front_of(points: Sequence[FrontierPoint], metric: str) -> Curve:
    """Cost and accuracy of the points that no other dominates, cheapest first."""
    pairs = [(cost, p.accuracy) for p in points if p.accuracy is not None and (cost := p.costs.get(metric))]
    mask = pareto_mask([accuracy for _, accuracy in pairs], [cost for cost, _ in pairs])
    return sorted({pair for pair, stays in zip(pairs, mask, strict=True) if stays})


def accuracy_at(front: Curve, cost: float) -> float | None:
    """Accuracy of a front at a cost, linear in log cost; beyond its dearest point that one's; None below its cheapest.

    >>> accuracy_at([(1e6, 80.0), (1e8, 90.0)], 1e7), accuracy_at([(1e6, 80.0)], 2e6), accuracy_at([(1e6, 80.0)], 1e5)
    (85.0, 80.0, None)
    """
    if cost < front[0][0]:
        return None
    for (cheap, low), (dear, high) in pairwise(front):
        if cost <= dear:
            return low + (high - low) * math.log(cost / cheap) / math.log(dear / cheap)
    return front[-1][1]


def _by_keep_ratio(points: Sequence[FrontierPoint]) -> Mapping[float, Sequence[FrontierPoint]]:
    ours = sorted((p for p in points if not p.baseline and p.policy != LEARNED), key=lambda p: -p.keep_ratio)
    return {ratio: tuple(group) for ratio, group in groupby(ours, key=lambda p: p.keep_ratio)}


def _learning(points: Sequence[FrontierPoint], metric: str, *, float_accuracy: float, unit: str) -> str:
    """Where learning pays most against everything without it, and what it costs; "" where nothing was learned."""
    learned = [p for p in points if p.policy == LEARNED]
    before, after = (front_of([p for p in points if not p.baseline and (p.policy == LEARNED) == x], metric)
                     for x in (False, True))  # fmt: skip
    gains = []
    for point in learned:
        cost, there = point.costs.get(metric), point.accuracy
        reached = accuracy_at(before, cost) if before and cost else None
        if cost and there is not None and reached is not None and there >= USEFUL * float_accuracy:
            gains.append((there - reached, cost, there, reached, point))
    if not gains or not after:
        return ""
    gain, cost, there, reached, point = max(gains, key=lambda found: found[0])
    if not isinstance(point.setting, Learned):
        return ""
    space, name = f" {unit}" if unit else "", f"{quantity(float(f'{cost:.2g}'))} {_plural(metric)}".strip()
    epochs = epochs_text(point.setting.epochs)
    if gain <= _standard_error(points):
        return f"Learning for {epochs} gives no clearly better point than compression without training."
    return f"Learning for {epochs} gives {there:.2f}{space} instead of {reached:.2f}{space} at {name}."


def _plural(metric: str) -> str:
    unit = UNITS.get(metric, "")
    return PLURALS.get(unit, unit)


def _standard_error(points: Sequence[FrontierPoint]) -> float:
    """The median of what the 95 % intervals say; 0 where there are none."""
    errors = sorted(
        (p.accuracy_high - p.accuracy_low) / (2 * 1.96)
        for p in points
        if p.accuracy_low is not None and p.accuracy_high is not None
    )
    return errors[len(errors) // 2] if errors else 0.0


def _best(fronts: Mapping[float, Curve], cost: float, error: float) -> float:
    """The ratio that is best at a cost; a smaller one must be clearly better than the largest that reaches it."""
    reached = {ratio: found for ratio, front in fronts.items() if (found := accuracy_at(front, cost)) is not None}
    largest = max(reached)
    best = max(reached, key=lambda ratio: (reached[ratio], ratio))
    return best if reached[best] > reached[largest] + error else largest


def _stretches(costs: Sequence[float], best: Sequence[float]) -> list[Stretch]:
    """Runs of one ratio; one shorter than a twentieth of the whole is noise and goes to the run before it."""
    runs: list[Stretch] = []
    for ratio, group in groupby(zip(best, costs, strict=True), key=lambda pair: pair[0]):
        found = [cost for _, cost in group]
        if runs and (len(found) < PLACES / 20 or runs[-1].keep_ratio == ratio):
            runs[-1] = replace(runs[-1], high=found[-1])
        else:
            runs = [*runs[:-1], *(replace(run, high=found[0]) for run in runs[-1:])]
            runs.append(Stretch(keep_ratio=ratio, low=found[0], high=found[-1]))
    if len(runs) > 1 and math.log(runs[0].high / runs[0].low) < math.log(costs[-1] / costs[0]) / 20:
        first, second, *rest = runs
        runs = [replace(second, low=first.low), *rest]
    return runs


def _advice(stretches: Sequence[Stretch], brief: Callable[[float], str]) -> str:
    if len(stretches) == 1:
        return f"{_do(stretches[0].keep_ratio).capitalize()}, at every cost that was measured."
    parts = []
    for i, stretch in enumerate(stretches):
        last = i == len(stretches) - 1
        where = f"above {brief(stretch.low)}" if last else f"below {brief(stretch.high)}"
        if not last and i:
            where = f"from {brief(stretch.low)} to {brief(stretch.high)}"
        parts.append(f"{where}: {_do(stretch.keep_ratio)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _do(ratio: float) -> str:
    return "quantize only" if ratio == 1 else f"prune to {ratio:g} first, then quantize"


def _advised(stretches: Sequence[Stretch], cost: float) -> float:
    return next((stretch.keep_ratio for stretch in stretches if cost <= stretch.high), stretches[-1].keep_ratio)


def _gain(
    fronts: Mapping[float, Curve], advised: Iterable[tuple[float, float]], brief: Callable[[float], str], *, space: str
) -> list[str]:
    """Where pruning pays most, with numbers."""
    whole = fronts.get(1.0)
    gains = [(0.0, 0.0, 0.0, 0.0)]
    for cost, ratio in advised:
        before = accuracy_at(whole, cost) if whole else None
        after = accuracy_at(fronts[ratio], cost)
        if ratio != 1 and before is not None and after is not None:
            gains.append((after - before, cost, after, before))
    gain, cost, after, before = max(gains)
    return [f"At {brief(cost)} that gives {after:.2f}{space} instead of {before:.2f}{space}."] if gain > 0 else []


def _alone(points: Sequence[FrontierPoint], fronts: Mapping[float, Curve], metric: str, score_name: str) -> list[str]:
    """What pruning alone costs, against the front of everything else at the same accuracy."""
    everything = [pair for front in fronts.values() for pair in front]
    factors = []
    for point in points:
        if point.policy != "prune_only" or point.keep_ratio == 1 or point.accuracy is None:
            continue
        reached, cost = cost_at_accuracy(everything, point.accuracy)
        theirs = point.costs.get(metric)
        if cost and theirs and reached == "exact":
            factors.append((theirs / cost, point.keep_ratio))
    if not factors:
        return []
    (least, _), (most, _) = min(factors), max(factors)
    said = dict.fromkeys(map(times, (least, most)))
    return [f"Pruning alone, at 8 bits, costs {' to '.join(said)} times as much at equal {score_name}."]
