"""Data behind the figures of a report: plain numbers and texts from records; `figures` draws, `page` composes."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

from slimbit.numerics.pareto import pareto_mask
from slimbit.records.cost import SCHEMA
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint, point_label
from slimbit.records.terminal import MISSING, UNITS, quantity
from slimbit.report.answer import Answer, answer
from slimbit.report.assumptions import assumptions
from slimbit.report.headline import Headline, eight_bits, float_costs, headlines
from slimbit.report.machines import MachineFrame, machine_frames

CostData = Mapping[str, Any]
"""JSON of one `CostReport`."""

PREFERRED = ("esn_digital", "esn_analog", "esn_filterwise", "bit_operations", "weight_bytes", "nonzero_macs")
OPENS_WITH = 1.0
"""Points below the float accuracy of the headline that a report opens with."""
LABELS = {
    "parameters": ("Parameters", "weights and biases"),
    "macs": ("MACs", "multiply-accumulates per image"),
    "nonzero_macs": ("Non-zero MACs", "multiply-accumulates per image with a weight that is not zero"),
    "esn_analog": ("ESN analog", "squared levels, summed over every MAC of an image"),
    "esn_digital": ("ESN digital", "bits of every level, summed over every MAC of an image"),
    "esn_filterwise": ("ESN filter-wise", "like ESN digital, every weight at the width of its filter's widest level"),
    "esn_analog_class_a": ("ESN class A", "like ESN analog, every weight at the square of its layer's largest level"),
    "bit_operations": ("Bit operations", "MACs x weight bits of the layer x activation bits"),
    "weight_bytes": ("Weight bytes", "memory of the weights, one bit width per filter"),
    "mean_bits": ("Mean bits", "bits per weight, pruned weights included as 0"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What a report says of the run itself.

    Attributes:
        run: Its folder, as commands name it.
        network: Name of the network.
        metric: Cost metric that the sweep was for.
        float_accuracy: Accuracy before compression.
        score_name: What the accuracy is called.
        unit: Unit of accuracy: "%" or "".
        scoring: How accuracy was scored, by name: data, images, interval.
        provenance: Versions, seed, hardware and settings, by name.
        activation_bits: Width that activations are quantized to; None where they stay float.
        code_network: Name of the network where building it runs code, which a command has to name; "" elsewhere.
        missing: What a run that is not finished still lacks, in a sentence; "" for a finished one.
        trained: How long pruned networks were trained, e.g. ``4 epochs``; "" where they were not.
        statistics: Where BatchNorm statistics of a baseline come from, by its policy.
    """

    run: str
    network: str
    metric: str
    float_accuracy: float
    score_name: str = "accuracy"
    unit: str = ""
    scoring: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    activation_bits: int | None = None
    code_network: str = ""
    missing: str = ""
    trained: str = ""
    statistics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PointFrame:
    """One point as tables and figures show it; ``texts`` are the costs for people."""

    number: int
    name: str
    """A letter for points of the sweep, "A" the cheapest by the run's metric; policy and setting for others."""
    kind: str
    """"ours", "baseline", "signal" (steps from a training epoch), "pruned" (pruned to 8 bits only) or "failed"."""
    policy: str
    setting: str
    grid: str
    accuracy: float | None
    accuracy_text: str
    low: float | None
    high: float | None
    costs: dict[str, float | None]
    texts: dict[str, str]
    plan: str
    seconds: str
    error: str
    clamped: tuple[str, ...] = ()
    """Layers that could not get the step which the policy asked for."""
    keep_ratio: float = 1.0
    """Share of the filters that was kept."""

    @property
    def label(self) -> str:
        """Width, policy and setting."""
        return point_label(self.keep_ratio, self.policy, self.setting)


@dataclass(frozen=True, kw_only=True)
class MetricFrame:
    """One cost metric: its names, its unit, and the numbers of the points on its Pareto front, cheapest first.

    ``title`` is label and unit, unless the label says the unit already. ``float_cost`` is that of float32 weights and
    activations, None where a float network has no such cost.
    """

    name: str
    label: str
    title: str
    unit: str
    text: str
    front: tuple[int, ...]
    float_cost: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayersFrame:
    """The layers of one point, in the network's order.

    Attributes:
        mean_bits: Bits per weight.
        widest: Bits of the widest level.
        decibels: S/N in dB, None where nothing was rounded.
        sensitivity: Mean squared gradient of each layer's weights; empty where it was not measured.
        shares: Share of the network's cost by metric, 0 to 1.
        filters: Number of filters by bit width, from 0 (pruned, those of a pruned network included).
    """

    mean_bits: tuple[float, ...]
    widest: tuple[int, ...]
    decibels: tuple[float | None, ...]
    sensitivity: tuple[float | None, ...]
    shares: dict[str, tuple[float, ...]]
    filters: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows; ``start`` is the number of the point it opens with.

    ``headlines`` say how many times cheaper it is, one per accuracy that people ask for. ``answers`` tell which keep
    ratio is best at which cost, one per metric, where a run has several. ``reference`` is the number of the 8-bit
    network that factors compare with, None where the run has none.
    """

    about: ReportFacts
    headlines: tuple[Headline, ...]
    answers: tuple[Answer, ...]
    start: int
    reference: int | None
    metrics: tuple[MetricFrame, ...]
    points: tuple[PointFrame, ...]
    layer_names: tuple[str, ...]
    layers: dict[int, LayersFrame]
    machines: tuple[MachineFrame, ...]
    assumptions: tuple[str, ...]

    def metric(self, name: str) -> MetricFrame:
        """The metric of that name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def point(self, number: int) -> PointFrame:
        """The point of that number."""
        return next(point for point in self.points if point.number == number)


def report_data(
    about: ReportFacts,
    points: Sequence[FrontierPoint],
    read_cost: Callable[[FrontierPoint], CostData],
    sensitivity: Mapping[float, Mapping[str, float]] | None = None,
) -> ReportData:
    """What a report shows, from records.

    Args:
        about: What to say of the run.
        points: Every point, failed ones included.
        read_cost: Gives the JSON data of a finished point's `CostReport`.
        sensitivity: By keep ratio, the mean squared gradient of each layer's weights, by its name.

    Raises:
        InputError: No finished point; a cost report of another schema, or with other layers than the rest.
    """
    done = [point for point in points if point.state == "done" and point.accuracy is not None]
    if not done:
        raise InputError(f"a report must have at least one finished point, got none in {about.run}")
    reports = {point.number: _checked(point, read_cost(point)) for point in done}
    names = _layer_names(reports)
    names_of_metrics = _metric_names(about.metric, done)
    machines = {HARDWARE + name: found for report in reports.values() for name, found in report["hardware"].items()}
    reference = eight_bits(done, reports)
    floats = {} if reference is None else float_costs(reports[reference.number])
    metrics = tuple(
        _metric_frame(name, done, machines.get(name, {}), float_cost=floats.get(name)) for name in names_of_metrics
    )
    letters = _letters(done, about.metric)
    whole = max(map(_filters, reports.values()))
    score: dict[str, Any] = {
        "float_accuracy": about.float_accuracy, "unit": about.unit, "score_name": about.score_name
    }  # fmt: skip
    found = headlines(done, reports, names_of_metrics, letters=letters, **score)
    return ReportData(
        about=about,
        headlines=found,
        answers=tuple(
            said for name in names_of_metrics if (said := answer(done, name, trained=about.trained, **score))
        ),
        start=_start(found, done),
        reference=None if reference is None else reference.number,
        metrics=metrics,
        points=tuple(
            _point_frame(point, reports.get(point.number), about.unit, letters.get(point.number)) for point in points
        ),
        layer_names=names,
        layers={
            point.number: _layers_frame(
                reports[point.number], names_of_metrics, whole, (sensitivity or {}).get(point.keep_ratio, {})
            )
            for point in done
        },
        machines=machine_frames(reports),
        assumptions=assumptions(
            list(reports.values()),
            activation_bits=about.activation_bits,
            score_name=about.score_name,
            trained=about.trained,
            statistics=about.statistics,
        ),
    )


def _checked(point: FrontierPoint, report: CostData) -> CostData:
    if report.get("schema") != SCHEMA:
        raise InputError(f"cost report of point {point.number} must have schema {SCHEMA}, got {report.get('schema')!r}")
    return report


def _layer_names(reports: Mapping[int, CostData]) -> tuple[str, ...]:
    (first, names), *others = [(n, tuple(layer["name"] for layer in r["layers"])) for n, r in reports.items()]
    for number, other in others:
        if other != names:
            raise InputError(
                f"cost report of point {number} must list the same layers as that of point {first}, got "
                f"{len(other)} layers beside {len(names)}"
            )
    return names


def _metric_names(first: str, points: Sequence[FrontierPoint]) -> list[str]:
    """Metrics that tell points apart, that of the sweep first: what compression cannot change needs no axis."""
    known = dict.fromkeys((first, *PREFERRED, *LABELS, *(name for point in points for name in point.costs)))
    values = {name: {point.costs.get(name) for point in points} - {None, 0} for name in known}
    chosen = [name for name in known if len(values[name]) > 1]
    return chosen or [name for name in known if values[name]][:1]


def _letters(points: Sequence[FrontierPoint], metric: str) -> dict[int, str]:
    """Letters of the points of the sweep by number, A for the cheapest, then Z, AA, AB."""
    ours = sorted((p for p in points if not p.baseline), key=lambda p: (p.costs.get(metric) or 0.0, p.number))
    return {point.number: letters(place) for place, point in enumerate(ours)}


def letters(place: int) -> str:
    """The letters of a place, as columns of spreadsheets are named.

    >>> letters(0), letters(25), letters(26), letters(701), letters(702)
    ('A', 'Z', 'AA', 'ZZ', 'AAA')
    """
    text = ""
    place += 1
    while place:
        place, letter = divmod(place - 1, 26)
        text = chr(ord("A") + letter) + text
    return text


def _metric_frame(
    name: str, points: Sequence[FrontierPoint], machine: CostData, *, float_cost: float | None
) -> MetricFrame:
    label, text = LABELS.get(
        name, (name.removeprefix(HARDWARE), ", ".join(filter(None, ("machine", machine.get("source")))))
    )
    rows = [
        (cost, point.number, point.accuracy)
        for point in points
        if point.accuracy is not None and (cost := point.costs.get(name)) is not None
    ]
    mask = pareto_mask([accuracy for _, _, accuracy in rows], [cost for cost, _, _ in rows])
    front = sorted(row for row, stays in zip(rows, mask, strict=True) if stays)
    unit: str = UNITS.get(name) or machine.get("unit", "")
    return MetricFrame(
        name=name,
        label=label,
        title=f"{label} ({unit})" if unit and unit not in label else label,
        unit=unit,
        text=text,
        front=tuple(number for _, number, _ in front),
        float_cost=float_cost,
    )


def _start(found: Sequence[Headline], points: Sequence[FrontierPoint]) -> int:
    """The point of the headline that the report opens with; in a run without a sweep its most accurate one."""
    opening = next(headline for headline in found if headline.drop == OPENS_WITH)
    if opening.point is not None:
        return opening.point
    return max(points, key=lambda point: point.accuracy or 0.0).number


def _point_frame(point: FrontierPoint, report: CostData | None, unit: str, letter: str | None) -> PointFrame:
    kind = "failed" if report is None else _kind(point)
    grids = () if report is None else dict.fromkeys(layer["grid"] for layer in report["layers"])
    return PointFrame(
        number=point.number,
        name=letter or point_label(point.keep_ratio, point.policy, point.setting),
        kind=kind,
        policy=point.policy,
        setting="" if point.setting is None else str(point.setting),
        grid=", ".join(grids),
        accuracy=point.accuracy,
        accuracy_text=MISSING if point.accuracy is None else f"{point.accuracy:.2f}{unit and ' ' + unit}",
        low=point.accuracy_low,
        high=point.accuracy_high,
        costs=dict(point.costs),
        texts={name: quantity(value) for name, value in point.costs.items()},
        plan=point.plan,
        seconds=f"{sum(point.seconds.values()):.1f} s" if point.seconds else MISSING,
        error=point.error,
        clamped=point.clamped,
        keep_ratio=point.keep_ratio,
    )


def _kind(point: FrontierPoint) -> str:
    kinds = {"signal": "signal", "prune_only": "pruned"}
    return kinds.get(point.policy, "baseline") if point.baseline else "ours"


def _filters(report: CostData) -> int:
    return sum(len(layer["filter_bits"]) for layer in report["layers"])


def _layers_frame(
    report: CostData, metrics: Iterable[str], whole: int, sensitivity: Mapping[str, float]
) -> LayersFrame:
    """``whole`` is the number of filters before anything was pruned."""
    layers = report["layers"]
    ratios = [layer["signal_to_noise"] for layer in layers]
    return LayersFrame(
        mean_bits=tuple(_short(layer["mean_bits"]) for layer in layers),
        widest=tuple(layer["weight_bits"] for layer in layers),
        decibels=tuple(_short(10 * math.log10(ratio)) if ratio else None for ratio in ratios),
        sensitivity=tuple(
            None if (value := sensitivity.get(layer["name"])) is None else _short(value) for layer in layers
        )
        if sensitivity
        else (),
        shares={metric: shares for metric in metrics if (shares := _shares(report, metric))},
        filters=_histogram(
            chain((bits for x in layers for bits in x["filter_bits"]), repeat(0, whole - _filters(report)))
        ),
    )


def _shares(report: CostData, metric: str) -> tuple[float, ...]:
    """Share of each layer in the sum of a metric; empty where the layers do not have it."""
    layers = report["layers"]
    machine = report["hardware"].get(metric.removeprefix(HARDWARE), {}) if metric.startswith(HARDWARE) else {}
    values = machine.get("layers") or [layer.get(metric) for layer in layers]
    if metric == "mean_bits":  # a mean adds up only when weighted
        values = [layer["mean_bits"] * layer["weights"] for layer in layers]
    if any(value is None for value in values):
        return ()
    total = math.fsum(value for value in values if value is not None)
    return tuple(_short(value / total) if total and value else 0.0 for value in values)


def _histogram(bits: Iterable[int]) -> tuple[int, ...]:
    counts = Counter(bits)
    return tuple(counts[width] for width in range(max(counts, default=0) + 1))


def _short(value: float) -> float:
    """Four digits: a bar cannot show more, and the file stays small."""
    return float(f"{value:.4g}")
