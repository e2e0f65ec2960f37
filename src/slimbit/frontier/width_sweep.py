"""The points of one keep ratio of a run: of the network as it was given, or of a pruned one."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from slimbit.compress.learning import Learning, network_of
from slimbit.compress.prepared import PreparedNetwork, prepare
from slimbit.compress.prune import Pruner
from slimbit.compress.prune_stage import packed_state, pruned_from_state
from slimbit.frontier.price_range import find_price_range, first_prices
from slimbit.frontier.spacing import (
    bisection_order,
    even_targets,
    nearby_prices,
    price_for,
    refinement_prices,
    without_nearest,
)
from slimbit.frontier.store import RunStore
from slimbit.frontier.sweep_plan import BASELINE_BITS, SweepPlan, key_of, near_stage, sweep_size
from slimbit.measure.named_cost import NamedCost
from slimbit.records.codec import canonical, from_json
from slimbit.records.codec import record as stored_record
from slimbit.records.config import ACIQ, PAPER
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.plan import CompressionPlan
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.setting import LEARNED
from slimbit.records.signal import EpochSignal

ANALYTIC = ("aciq_laplace", "aciq_gauss")
"""Ranges of activations that the baseline ``aciq`` takes over from the run; any other becomes the first."""
PRUNED = "pruned"
"""Under this name a run notes how a pruned network is kept."""
ENOUGH_POINTS = 10
"""Where a network gets at least so many, three of them are measured before the range of prices is looked for."""
LEAST_SHARE = 1e-6
LOST = 0.005
"""Share of the float accuracy by which a point must be worse to have lost something: where training has a use."""
FEWEST_PRICES = 2
Report = Callable[[str], None]


@stored_record
class _PrunedNote:
    """How the pruned network of a keep ratio is kept: digests of its plan and weights."""

    keep: str
    network: str
    residuals: tuple[float, ...] = ()


class WidthSweep:
    """The network of one keep ratio, ready to be swept; other processes' results are used where there are any.

    Attributes:
        plan: What is decided about its points.
        prepared: The network.
        keep_object: Digest of the plan that leads to it from the network's form; "" where nothing was pruned.
    """

    def __init__(
        self,
        plan: SweepPlan,
        root: PreparedNetwork,
        *,
        pruner: Pruner | None,
        stages: Path,
        report: Report,
    ) -> None:
        self.plan, self._stages = plan, stages
        self.prepared = root if plan.keep_ratio == 1 or pruner is None else self._pruned(pruner, stages, report)
        keep = self.prepared.keep
        self.keep_object = "" if keep is None else plan.store.write(canonical(keep), "json")
        self._share_sensitivity(report)

    def _pruned(self, pruner: Pruner, stages: Path, report: Report) -> PreparedNetwork:
        """Prune and tune, or take what the run has of it."""
        store, name, root = self.plan.store, self.plan.key(PRUNED), pruner.prepared
        noted = store.noted(name, _PrunedNote)
        if noted is None:
            made = pruner.stage(pruner.plan(self.plan.keep_ratio), stages, report)
            own = _PrunedNote(
                keep=store.write(canonical(made.plan), "json"),
                network=store.write(packed_state(made.network), "safetensors"),
                residuals=tuple(value for value in made.residuals if math.isfinite(value)),
            )
            store.note(name, own)
            noted = store.noted(name, _PrunedNote) or own  # that of another worker, where it was first
        keep = from_json(KeepPlan, store.read(noted.keep, "json"), where=f"keep plan {noted.keep}")
        network = pruned_from_state(root.model, keep, store.read(noted.network, "safetensors"))
        return self._prepared(network, root, keep if root.keep is None else root.keep.compose(keep))

    @staticmethod
    def _prepared(network: nn.Module, like: PreparedNetwork, keep: KeepPlan | None) -> PreparedNetwork:
        """Another network, prepared as the given one was."""
        return prepare(
            network,
            like.example_input,
            like.batches or None,
            name=like.name,
            seed=like.seed,
            likelihood=like.likelihood,
            origin=like.origin,
            keep=keep,
            batch_size=like.batch_size,
            memory_gib=like.memory_gib,
        )

    def _share_sensitivity(self, report: Report) -> None:
        """Measure it once for all processes and starts of the run."""
        store, name = self.plan.store, self.plan.key("sensitivity")
        stored = store.noted(name, Sensitivity)
        if stored is None:
            report("measuring how much each filter matters")
            store.note(name, self.prepared.sensitivity)
            stored = store.noted(name, Sensitivity)
        assert stored is not None
        self.prepared.sensitivity = stored

    def plan_first(self) -> None:
        """Keep the plans of the points that are measured before the range of prices is known, if there are any."""
        if self.plan.begun_with < ENOUGH_POINTS:
            return
        metric, quant = self.plan.cost, self.plan.config.quant
        plans = [self.prepared.plan_at(price, metric, quant) for price in first_prices(self.prepared, metric, quant)]
        self._keep_points("first", self._different("first", plans))

    def plan_sweep(self, signal: Sequence[EpochSignal], report: Report) -> None:
        """Find the range of prices and keep the plans: of the sweep, evenly spread over log cost, and of comparisons.

        Args:
            signal: Training epochs that give further points.
            report: Called while the range is looked for.

        Raises:
            InputError: A network whose cost is nothing.
        """
        config, prepared = self.plan.config, self.prepared
        metric, quant = self.plan.cost, config.quant
        span = find_price_range(prepared, metric, quant, report)
        costs: dict[float, float] = {}

        def cost_of(price: float) -> float:
            if price not in costs:
                report = prepared.predicted(prepared.plan_at(price, metric, quant))
                costs[price] = priced_cost(report, metric, quant.skip)
            return costs[price]

        def price_of(target: float) -> float:
            above = [price for price, cost in costs.items() if cost >= target]
            below = [price for price, cost in costs.items() if cost < target]
            return price_for(cost_of, target, max(above, default=span.low), min(below, default=span.high))

        dearest = cost_of(span.low)
        if dearest <= 0:
            raise InputError(f"{metric.name} of {prepared.name} must be above 0 to be saved, got 0")
        first = self.plan.planned("first") or ()
        known = [cost_of(point.price) for point in first if point.price is not None]
        cheapest = max(cost_of(span.high), LEAST_SHARE * dearest)
        inside = [cost for cost in known if cheapest <= cost <= dearest]
        targets = even_targets(dearest, cheapest, sweep_size(self.plan.begun_with) - len(known) + len(inside))
        prices = [price_of(target) for target in without_nearest(targets, inside)]
        plans = [prepared.plan_at(prices[i], metric, quant) for i in bisection_order(len(prices))]
        shared = {name: getattr(quant, name) for name in ("skip", "per", "activation_bits", "activation_codes")}
        plain = PAPER.model_copy(update={**shared, "activation_range": quant.activation_range})
        analytic = {"activation_range": quant.activation_range} if quant.activation_range in ANALYTIC else {}
        settings = {"max_abs": plain, "aciq": ACIQ.model_copy(update={**shared, **analytic})}
        if config.baselines:
            pairs = [(name, bits) for name in config.baselines for bits in BASELINE_BITS]
            found = [(f"{name}-{bits}", prepared.plan_bits(bits, settings[name])) for name, bits in pairs]
            self._keep_points("baselines", found)
        if len(config.keep_ratios) > 1:
            self._keep_points("prune_only", [("prune_only", prepared.plan_pruned_only(quant.skip))])
        if signal and self.plan.keep_ratio == 1:
            self._keep_points(
                "signal", [(f"signal-{epoch.epoch}", prepared.plan_signal(epoch, plain)) for epoch in signal]
            )
        earlier = {_decided(self._read(point)) for point in first}
        chosen = self._different("sweep", [plan for plan in plans if _decided(plan) not in earlier])
        self._keep_points("sweep", chosen, span=asdict(span))

    def _read(self, point: PlannedPoint) -> CompressionPlan:
        return from_json(CompressionPlan, self.plan.store.read(point.plan, "json"), where=f"plan of point {point.key}")

    def plan_learned(self, learning: Learning, measured: Sequence[FrontierPoint], report: Report) -> int:
        """Learn the frontier and keep the plans of the points that were taken; how many there are.

        Args:
            learning: The training.
            measured: The finished points of the sweep. Learning begins where they begin to lose.
            report: Called with every epoch and point.
        """
        store, metric, quant = self.plan.store, self.plan.cost, self.plan.config.quant
        assert store.info is not None, "a run is planned once its float network was scored"
        least = store.info.float_accuracy - LOST * abs(store.info.float_accuracy)
        swept = [(p.price, p.accuracy) for p in measured if p.price is not None and p.accuracy is not None]
        stage, goal = self.plan.learned_stage, self.plan.goal
        if not swept:  # every point failed: there is no range to learn in
            self._keep_points(stage, [])
            return 0
        lossless = [price for price, accuracy in swept if accuracy >= least]
        begin = max(lossless, default=min(price for price, _ in swept))
        prices = sorted(price for price, _ in swept if price >= begin)
        if goal is not None or len(prices) < FEWEST_PRICES:
            prices = sorted(price for price, _ in swept)
        points = learning.points(
            self.prepared,
            metric,
            quant,
            prices,
            end=min(cost for p in measured if (cost := p.costs.get(metric.name)) is not None),
            goals=() if goal is None else (goal,),
            stages=self._stages,
            progress=report,
        )
        self.plan.note_learning(learning.name)
        planned = []
        for number, point in enumerate(points):
            plan = point.plan(self.prepared.name, metric.name, learning.config.epochs, quant)
            if quant.activation_bits is not None:
                plan = replace(plan, activations=self._with_weights(point.network).activations(plan.config))
            planned.append((f"{stage}-{number:02d}", plan, store.write(point.network, "safetensors")))
        self._keep_points(stage, planned)
        if goal is not None:
            self._note_added(stage)
        return len(planned)

    def network_for(self, point: PlannedPoint) -> PreparedNetwork:
        """The network that a point's plan is for."""
        if not point.network:
            return self.prepared
        return self._with_weights(self.plan.store.read(point.network, "safetensors"))

    def _with_weights(self, content: bytes) -> PreparedNetwork:
        return self._prepared(network_of(self.prepared, content), self.prepared, self.prepared.keep)

    def plan_refinement(self, measured: Sequence[FrontierPoint]) -> int:
        """Keep the plans of further points where the measured curve bends; how many there are.

        Args:
            measured: The finished points of the sweep; the order does not matter.
        """
        places = self._places(measured, self.plan.config.metric)
        return self._plan_at("refine", refinement_prices(places, self.plan.refinement), measured)

    def plan_added(self, stage: str, count: int, measured: Sequence[FrontierPoint]) -> int:
        """Keep the plans of points that were asked for after the run began; how many there are.

        Args:
            stage: ``more-24``, ``near-accuracy-91`` or ``near-esn_digital-1e+07``.
            count: How many.
            measured: All finished points with a price.
        """
        config = self.plan.config
        near = next(((name, x) for name, x in config.near.items() if near_stage(name, x) == stage), None)
        if near is None:
            prices = refinement_prices(self._places(measured, config.metric), count)
        else:
            name, amount = near
            metric = config.metric if name == "accuracy" else name
            prices = nearby_prices(self._places(measured, metric), count, amount, by_cost=name != "accuracy")
        found = self._plan_at(stage, prices, measured)
        self._note_added(stage)
        return found

    def _note_added(self, stage: str) -> None:
        self.plan.store.note(self.plan.key("added"), [*self.plan.added(), stage], grows=True)

    def _places(self, measured: Sequence[FrontierPoint], metric: str) -> list[tuple[float, float, float]]:
        """Cost, accuracy and price of each point."""
        return [
            (cost, p.accuracy, p.price)
            for p in measured
            if p.accuracy is not None and p.price is not None and (cost := p.costs.get(metric)) is not None
        ]

    def _plan_at(self, stage: str, prices: Iterable[float], measured: Sequence[FrontierPoint]) -> int:
        """Keep the plans of prices, but for those that a point has already."""
        config, read = self.plan.config, self.plan.store.read
        known = {_decided(from_json(CompressionPlan, read(p.plan, "json"), where=p.key)) for p in measured}
        plans = [self.prepared.plan_at(price, self.plan.cost, config.quant) for price in prices]
        chosen = self._different(stage, [plan for plan in plans if _decided(plan) not in known])
        self._keep_points(stage, chosen)
        return len(chosen)

    def _different(self, stage: str, plans: Iterable[CompressionPlan]) -> list[tuple[str, CompressionPlan]]:
        """Prices that differ too little to lead to another plan make one point."""
        decided: dict[tuple[object, ...], CompressionPlan] = {}
        for plan in plans:
            decided.setdefault(_decided(plan), plan)
        return [(f"{stage}-{i:02d}", plan) for i, plan in enumerate(decided.values())]

    def _keep_points(self, stage: str, named: Iterable[tuple[Any, ...]], **about: Any) -> None:
        """Keep points of a stage: name and plan of each, and the digest of the weights that it is for."""
        points = [
            PlannedPoint(
                key=self.plan.key(name),
                plan=self.plan.store.write(canonical(plan), "json"),
                policy=plan.policy,
                setting=plan.setting,
                baseline=plan.price is None and plan.policy != LEARNED,
                keep_ratio=self.plan.keep_ratio,
                network=network[0] if network else "",
            )
            for name, plan, *network in named
        ]
        self.plan.store.plan_points(self.plan.key(stage), points, **about)


def is_pruned(plan: SweepPlan) -> bool:
    """Whether the pruned network of a keep ratio was made, by any process."""
    return plan.store.is_noted(plan.key(PRUNED))


def pruned_objects(store: RunStore, points: Sequence[FrontierPoint], keep_ratio: float) -> tuple[KeepPlan, bytes]:
    """What leads from the original's form to the pruned network of a keep ratio, and its weights.

    Raises:
        InputError: The run has no such network, or an object is missing or damaged.
    """
    note = store.noted(key_of(keep_ratio, PRUNED), _PrunedNote)
    keep = next((p.objects["keep"] for p in points if p.keep_ratio == keep_ratio and "keep" in p.objects), None)
    if note is None or keep is None:
        there = ", ".join(f"{ratio:g}" for ratio in sorted({p.keep_ratio for p in points} - {1.0}, reverse=True))
        raise InputError(f"keep_ratio must be one that the run has pruned to ({there or 'none'}), got {keep_ratio!r}")
    plan = from_json(KeepPlan, store.read(keep, "json"), where=f"keep plan {keep}")
    return plan, store.read(note.network, "safetensors")


def _decided(plan: CompressionPlan) -> tuple[object, ...]:
    """What tells plans of one run apart."""
    return plan.layers, plan.activations


def priced_cost(report: CostReport, cost: NamedCost, skip: tuple[str, ...]) -> float:
    """Cost of the layers that a price decides on: a skipped layer has no analog cost, and its digital one is fixed."""
    values = [cost.of_layer(layer) for layer in report.layers if layer.name not in skip]
    return math.fsum(value for value in values if value is not None)
