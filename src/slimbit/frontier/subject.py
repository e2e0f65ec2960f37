"""The network whose frontier is traced: its survey, what policies look at, and what a plan or a result costs."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimbit.apply.calibration import Calibration, calibrate
from slimbit.apply.compress import Compressed
from slimbit.apply.layers import weights_of
from slimbit.apply.quantize import plain_levels
from slimbit.apply.repair import remaining_shares
from slimbit.frontier.levels import StoredPoint
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.counting import Counting
from slimbit.numerics.batches import Regrouped, as_called, checked_batches, count_of
from slimbit.numerics.copies import plain_network, unwrapped
from slimbit.plan.evidence import Evidence, Layout
from slimbit.plan.signal import PAPER_LAYOUT, PLAIN, step_by_signal
from slimbit.plan.steps import step_by_price, step_by_range
from slimbit.records.cost import CostReport, TotalCost
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.records.plan import CompressionPlan, Recipe
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.signal import EpochSignal
from slimbit.survey.module import read_weight, survey_network
from slimbit.survey.result import StoredLevels, Survey

PROBE_IMAGES, PROBE_SAMPLES = 192, 4096
JUDGED_IMAGES = 128
BASELINE_BITS = (8, 7, 6, 5, 4, 3, 2)
PRUNED_ONLY_BITS = 8


@dataclass
class Subject:
    """One network under one recipe. State only caches what is expensive.

    Attributes:
        model: The float network, every weight a plain parameter; never changed.
        survey: Its survey.
        batches: Calibration batches.
        metric: Cost metric of the sweep.
        recipe: How plans are carried out.
        layout: What is asked of every policy.
        seed: Seed of sampled positions.
        signal: Training epochs to take steps from.
        digest: Of the network as it was given: its state dict.
        sensitivity: Once it was measured.
    """

    model: nn.Module
    survey: Survey
    batches: tuple[Any, ...]
    metric: str
    recipe: Recipe
    layout: Layout
    seed: int
    signal: tuple[EpochSignal, ...] = ()
    digest: str = ""
    sensitivity: Sensitivity | None = None
    _reports: dict[float, CostReport] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: nn.Module, example_input: Any, calibration: Any, *, name: str, **settings: Any) -> "Subject":
        """Survey a network and collect its calibration batches; weights become plain parameters of a copy."""
        survey = survey_network(model, example_input, name=name)
        if not survey.spec.layers:
            raise InputError(f"{survey.spec.name} must have a layer to compress (convolution, linear, ...), got none")
        network = plain_network(model)
        batches = checked_batches(as_called(calibration, unwrapped(model), example_input))
        plain = Survey(survey.spec, lambda layer: read_weight(network, layer))
        return cls(network, plain, batches, digest=digest_of(model.state_dict()), **settings)

    @cached_property
    def evidence(self) -> Evidence:
        """What policies look at; the sensitivity must be known."""
        spec = self.survey.spec
        weights = weights_of(self.model, spec)
        remaining = remaining_shares(self.model, spec, self.calibration) if self.recipe.compensation else {}
        return Evidence(spec=spec, weights=weights, sensitivity=self.sensitivity, remaining=remaining)

    @cached_property
    def calibration(self) -> Calibration:
        """The float network's statistics on all calibration images."""
        return calibrate(self.model, self.survey.spec, self.batches, seed=self.seed)

    @cached_property
    def probe(self) -> tuple[Calibration, Any]:
        """Few images to compress with, and others to judge the result by: on its own it looks too good."""
        images = self.images()
        fitting = min(PROBE_IMAGES, images - max(1, images // 3)) or 1
        fitted, *rest = Regrouped(self.batches, fitting, fitting + JUDGED_IMAGES)
        judged = rest[0] if rest else fitted
        spec = self.survey.spec
        return calibrate(self.model, spec, (fitted,), seed=self.seed, samples=PROBE_SAMPLES), judged

    def images(self) -> int:
        """Number of calibration images."""
        return sum(map(count_of, self.batches))

    def plan_at(self, price: float) -> CompressionPlan:
        """The plan of a price."""
        return step_by_price(self.evidence, price, metric=self.metric, layout=self.layout, recipe=self.recipe)

    def baselines(self) -> Iterator[CompressionPlan]:
        """The paper's quantize-only: ``max_abs`` steps on the mid-rise grid, absolute statistics, nothing else."""
        for bits in BASELINE_BITS:
            yield step_by_range(self.evidence, bits, layout=self.paper_layout, recipe=PLAIN)

    def pruned_only(self) -> CompressionPlan:
        """8 bits and nothing else: what pruning alone reaches."""
        recipe = replace(PLAIN, statistics="stored")
        plan = step_by_range(self.evidence, PRUNED_ONLY_BITS, layout=self.paper_layout, recipe=recipe)
        return replace(plan, policy="prune_only")

    def signal_plans(self) -> Iterator[CompressionPlan]:
        """Steps from training epochs, carried out as plainly as the baselines are."""
        for epoch in self.signal:
            yield step_by_signal(self.evidence, epoch, layout=self.paper_layout, recipe=PLAIN)

    def forget(self) -> None:
        """Let go of what was measured for the plans; it is measured again where it is asked for again."""
        for name in ("calibration", "probe", "evidence"):
            self.__dict__.pop(name, None)
        self._reports.clear()

    @property
    def paper_layout(self) -> Layout:
        """The layers asked for, on the paper's grid."""
        return replace(self.layout, grid=PAPER_LAYOUT.grid, granularity=PAPER_LAYOUT.granularity)

    def predicted(self, price: float) -> TotalCost:
        """What the plan of a price costs when weights are simply rounded: no data, no pass, within a few percent."""
        return self._predicted(price).total

    def predicted_bits(self, price: float) -> float:
        """Mean bits per weight of the layers that the price decides on: not of look-ups, not of skipped layers."""
        spec = self.survey.spec
        free = {*self.layout.skip} | {x.name for x in spec.layers if not self.evidence.positions(x, self.layout.per)}
        counted = [x for x in self._predicted(price).layers if x.name not in free]
        return sum(x.mean_bits * x.weights for x in counted) / max(1, sum(x.weights for x in counted))

    def _predicted(self, price: float) -> CostReport:
        if price not in self._reports:
            plan = self.plan_at(price)
            levels, steps = {}, {}
            for layer in plan.layers:
                weights = self.evidence.weights[layer.name].float()
                levels[layer.name], steps[layer.name] = plain_levels(weights, layer)
            self._reports[price] = self.cost(plan, levels, steps)
        return self._reports[price]

    def cost(
        self,
        plan: CompressionPlan,
        levels: Mapping[str, Tensor],
        steps: Mapping[str, Tensor],
        ratios: Mapping[str, float] = MappingProxyType({}),
    ) -> CostReport:
        """Cost of given levels; layers without any are counted as the float layers they stay."""
        grids = {layer.name: layer.grid for layer in plan.layers}

        def weight(layer: LayerSpec) -> Tensor | StoredLevels:
            name = layer.shared_with or layer.name
            if name not in levels:
                return self.survey.weight(layer)
            ratio = ratios.get(name, math.nan)
            known = ratio if math.isfinite(ratio) else None
            return StoredLevels(levels[name], steps[name], grids[name], signal_to_noise=known)

        return cost_of_survey(Survey(self.survey.spec, weight), Counting(per=self.layout.per))

    def cost_of(self, result: Compressed) -> CostReport:
        """Exact cost of a compressed network, with the signal-to-noise ratio of each layer."""
        report = self.cost(result.plan, result.levels, result.scales, result.signal_to_noise)
        setting = f"{result.plan.policy}, {result.plan.setting}" if result.plan.setting else result.plan.policy
        return replace(report, setting=setting)

    def stored(self, result: Compressed) -> StoredPoint:
        """Levels, steps, and every other state entry that compression changed, as arrays."""
        grids = {layer.name: str(layer.grid) for layer in result.plan.layers}
        return StoredPoint(
            {name: result.levels[name].cpu().numpy() for name in grids},
            {name: result.scales[name].cpu().numpy() for name in grids},
            grids,
            dict(self._changed_state(result.model)),
        )

    def _changed_state(self, network: nn.Module) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        before, after = self.model.state_dict(), network.state_dict()
        weights = {after[layer.weight_key].data_ptr() for layer in self.survey.spec.layers if layer.weight_key in after}
        for key, value in after.items():
            if not isinstance(value, Tensor) or value.data_ptr() in weights:
                continue
            if key not in before or not torch.equal(value.cpu(), before[key].cpu()):
                # numpy has no bfloat16, but float32 holds all of it
                yield key, (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()


def digest_of(values: Any) -> str:
    """SHA-256 of tensors in any nesting of lists and mappings, with their names, shapes and types."""
    total = hashlib.sha256()
    _feed(total.update, "", values)
    return total.hexdigest()


def _feed(update: Callable[[bytes], None], name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _feed(update, f"{name}/{key}", value[key])
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            _feed(update, f"{name}/{place}", part)
    else:
        update(json.dumps([name, type(value).__name__]).encode())
