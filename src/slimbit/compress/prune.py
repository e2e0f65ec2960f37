"""Prune one network: rank filters, train with ADMM where asked for, cut, measure statistics anew, tune.

`Pruner.stage` keeps each result in a folder named after everything that it depends on, so that nothing is
computed twice and a run that was killed goes on where it stood.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimbit.apply.layers import weights_of
from slimbit.apply.mask import held_masks
from slimbit.apply.reestimate import reestimate
from slimbit.apply.surgery import prune as cut
from slimbit.artifacts.manifest import NetworkReference
from slimbit.artifacts.rebuild import rebuild as build_network
from slimbit.compress.model import CompressedModel
from slimbit.compress.prepared import PreparedNetwork, digest_of
from slimbit.compress.prune_stage import PruneStage, held_stage, read_stage, write_stage
from slimbit.compress.quantize import as_prepared
from slimbit.compress.tuning import TrainingData, Tuning, tuning_for
from slimbit.measure.cost import cost
from slimbit.measure.cost_config import CostConfig
from slimbit.measure.group_sensitivity import measure_group_sensitivity
from slimbit.measure.named_cost import load_cost
from slimbit.measure.planned import budget_in
from slimbit.numerics.batches import call_network
from slimbit.numerics.copies import copied
from slimbit.numerics.grid import layer_weight
from slimbit.plan.keep import (
    Scores,
    keep_by_fisher,
    keep_by_norm,
    keep_by_score,
    keep_live_filters,
    keep_within,
    match_counts,
)
from slimbit.records.codec import digest
from slimbit.records.config import PruneConfig, check_config
from slimbit.records.errors import InputError
from slimbit.records.files import as_path
from slimbit.records.groups import FilterGroups
from slimbit.records.keep import KeepPlan
from slimbit.records.origin import runs_code
from slimbit.records.signal import EpochSignal
from slimbit.records.training_run import read_training_run
from slimbit.survey.filter_groups import NEVER_CALLED, find_filter_groups
from slimbit.survey.module import survey_network
from slimbit.survey.trace import Inputs

Progress = Callable[[str], None]


def prune(
    model: "nn.Module | PreparedNetwork | CompressedModel",
    example_input: Inputs | None = None,
    calibration: Iterable[Any] | Tensor | None = None,
    *,
    keep: float | Mapping[str, float] | None = None,
    by: str | None = None,
    protect: tuple[str, ...] | None = None,
    config: PruneConfig | None = None,
    data: TrainingData | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Remove filters, and with them everything that reads them: a really smaller network.

    Args:
        model: The trained network; or what `slimbit.prepare` or an earlier call returned. Not changed.
        example_input: One example with its batch dimension; not for a prepared network.
        calibration: Some hundred unlabelled images, for BatchNorm statistics and for ranking by "fisher"; None: the
            statistics stay as they are. Not for a prepared network.
        keep: Share of filters that stays, or shares by layer name or pattern; over that of ``config``.
        by: What ranks filters, see `slimbit.PruneConfig`; over that of ``config``.
        protect: Layers that lose no filter, by name or pattern; over those of ``config``.
        config: Everything else.
        data: What the smaller network learns from, where ``config.tune`` says that it does: a data set of
            `slimbit.open_data`, or a `slimbit.training.task.TrainTask`.
        out: Folder where its training is kept: one that was stopped goes on there. None: a temporary one.
        progress: Called with a line for people after every epoch.

    Returns:
        The smaller network; ``keep`` says what is left of the original.

    Raises:
        InputError: A network whose code cannot follow (the layer to protect is named), a pattern that names nothing,
            or training without data.
        StoreError: The folder cannot be written.

    >>> import slimbit, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(32, 1, 8, 8)
    >>> slim = slimbit.prune(net, images[:1], images, keep=0.5)
    >>> slim.cost.total.macs / slimbit.cost(net, images[:1]).total.macs < 0.3
    True
    """
    check_config(config, PruneConfig)
    over = {"keep": keep, "by": by, "protect": protect}
    given = config or PruneConfig()
    chosen = PruneConfig(
        **{
            **{name: getattr(given, name) for name in given.model_fields_set},
            **{name: value for name, value in over.items() if value is not None},
        }
    )
    prepared = as_prepared(model, example_input, calibration)
    tuning = tuning_for(chosen.tune, data, prepared) if chosen.tune is not None else None
    if not prepared.batches and chosen.statistics != "stored":
        chosen = chosen.model_copy(update={"statistics": "stored"})
    pruner = Pruner(prepared, chosen, tuning)
    with _folder(out) as folder:
        return pruner.prune(pruner.plan_of_config(), folder, progress or _silent)


def _silent(_: str) -> None:
    """Report nothing."""


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield as_path(out, "out")
        return
    with tempfile.TemporaryDirectory(prefix="slimbit-") as folder:
        yield Path(folder)


@dataclass(eq=False)
class Pruner:
    """One prepared network under one way of pruning. State only caches what is expensive.

    Attributes:
        prepared: The network.
        config: How filters are ranked and removed; its ``keep`` is that of a single call.
        tuning: What the smaller network learns with; None = it does not.
    """

    prepared: PreparedNetwork
    config: PruneConfig
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        if self.config.tune is not None and self.tuning is None:
            raise InputError("data must be given to tune the pruned network, got none")
        self._check_groups()

    def _check_groups(self) -> None:
        """Refuse what one plan for the form cannot say: a part of the only group that an earlier pruning has left."""
        source = self.prepared.origin.source
        if self.prepared.keep is None or not source or runs_code(source):
            return
        reference = NetworkReference(source=source, classes=self.prepared.origin.classes, input_shape=(1,))
        whole = dict(build_network(reference, without_memory=True).named_modules())
        for name, module in self.prepared.model.named_modules():
            before = whole.get(name)
            if not (isinstance(module, _ConvNd) and isinstance(before, _ConvNd)):
                continue
            if module.groups == 1 < before.groups and module.out_channels > 1:
                raise InputError(
                    f"grouped convolution {name} must have more than one group left to be pruned once more, got one: "
                    f"prune {source} anew"
                )

    @cached_property
    def groups(self) -> FilterGroups:
        """Which filters live or die together."""
        return find_filter_groups(self.prepared.model, self.prepared.example_input, name=self.prepared.name)

    @cached_property
    def signal(self) -> EpochSignal | None:
        """The epoch that filters are ranked by."""
        given = self.config.signal
        return read_training_run(given).signal[-1] if isinstance(given, str) else given

    def plan(self, keep: float | Mapping[str, float]) -> KeepPlan:
        """What stays at a keep ratio; by ADMM, how many stay: the training finds out which."""
        over = {"keep": keep, "budget": None}
        config = PruneConfig(**{**dict(self.config), **over})  # not a copy, which would not check it
        weights = self._weights_of(self.prepared.model)
        if config.by == "dead":
            return keep_live_filters(self.groups, weights, protect=config.protect, constants=config.constants)
        if config.by == "fisher":
            return keep_by_fisher(self.groups, self._fisher, config)
        return keep_by_norm(self.groups, weights, config, signal=self.signal)

    def check_ratio(self, ratio: float) -> None:
        """Raise `InputError` where a keep ratio below 1 removes nothing: its points would be the whole network's."""
        if ratio == 1 or self.config.by == "dead":
            return
        config = self.config.model_copy(update={"keep": ratio})
        alike = {group.name: [0.0] * group.units for group in self.groups.groups}  # how many stay depends on no score
        if not keep_by_score(self.groups, alike, config, policy=config.by).axes:
            raise InputError(
                f"keep ratio {ratio:g} must remove filters of {self.prepared.name}, got one that keeps all of them"
            )

    def plan_of_config(self) -> KeepPlan:
        """What stays by the settings: at their keep ratio, or within their budget."""
        return self.plan(self.config.keep) if self.config.budget is None else self._plan_within(self.config.budget)

    def _plan_within(self, budget: Mapping[str, float]) -> KeepPlan:
        found = []
        for name, amount in budget.items():
            cost = load_cost(name)
            needs_bits = name.startswith("esn") or cost.model is not None
            counted = CostConfig(bits=self.config.budget_bits) if needs_bits else None
            price = budget_in(self.prepared.survey, cost, counted)
            limit = amount * price(self.plan(1.0)) if amount <= 1 else amount
            found.append(keep_within(self.plan, price, limit))
        # all are of one share each, so the one that keeps least fits every budget
        return min(found, key=price)

    def prune(self, plan: KeepPlan, folder: Path, progress: Progress) -> CompressedModel:
        """Carry a plan out: train by ADMM, cut, measure statistics anew, tune.

        Args:
            plan: What stays, or by ADMM how many.
            folder: Where trainings are kept: one that was stopped goes on there.
            progress: Called with a line for people after every epoch.

        Raises:
            InputError: A network whose code cannot follow, or a folder of something else.
            StoreError: The folder cannot be written.
        """
        return self._result(self._carry_out(plan, folder, progress))

    def _carry_out(self, plan: KeepPlan, folder: Path, progress: Progress) -> PruneStage:
        source, content = self.prepared.model, self.content(plan)
        residuals: tuple[float, ...] = ()
        if self.config.by == "admm" and plan.axes:
            source, plan, residuals = self._trained_admm(plan, content, folder / "admm", progress)
        small = self._reestimated(cut(source, plan, self.prepared.example_input), source, plan)
        if self.tuning is not None:
            self._check_trains(small)
            self.tuning.tune_network(
                small, original=self.prepared.model, content=content, folder=folder / "tune", progress=progress
            )
        return PruneStage(small.eval(), plan, residuals)

    def stage(self, plan: KeepPlan, stages: Path, progress: Progress) -> PruneStage:
        """`prune` in a folder of ``stages`` that is named after its content; one process at a time works there.

        Raises:
            InputError: What is in the folder is damaged, or as of `prune`.
            StoreError: The folder cannot be written.
        """
        folder = stages / self.content(plan)[:24]
        with held_stage(folder):
            found = read_stage(self.prepared.model, folder)
            if found is None:
                found = self._carry_out(plan, folder, progress)
                write_stage(folder, found)
            return found

    def content(self, plan: KeepPlan) -> str:
        """Digest of everything that `prune` depends on."""
        return digest([self._weights_digest, plan.digest(), self.prepared.calibration_digest, self.settings()])

    def settings(self) -> dict[str, Any]:
        """What results depend on beside network, plan and calibration images, as plain data."""
        config = self.config.model_dump(mode="json", exclude={"keep", "budget", "budget_bits", "signal", "tune"})
        signal = "" if self.signal is None else digest(self.signal)
        return {**config, "signal": signal, "training": "" if self.tuning is None else self.tuning.name}

    @cached_property
    def _weights_digest(self) -> str:
        return digest_of(self.prepared.model.state_dict())

    @cached_property
    def _fisher(self) -> Scores:
        return measure_group_sensitivity(
            self.prepared.model,
            self.groups,
            self.prepared.batches,
            generator=torch.Generator().manual_seed(self.prepared.seed),
            constants=self.config.constants,
            likelihood=self.prepared.likelihood,
        )

    def _trained_admm(
        self, plan: KeepPlan, content: str, folder: Path, progress: Progress
    ) -> tuple[nn.Module, KeepPlan, tuple[float, ...]]:
        """A copy whose filters training has driven to zero, but for as many of each group as the plan keeps."""
        network, spec = copied(self.prepared.model), self.prepared.spec

        def stays(weights: Mapping[str, Tensor]) -> KeepPlan:
            return match_counts(self.groups, weights, plan, policy="admm")

        def choose(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            stored = ((layer, values.get(layer.weight_key)) for layer in spec.layers)
            named = {layer.name: layer_weight(value, layer) for layer, value in stored if value is not None}
            named |= {name: values[f"{name}.weight"] for name in self._uncounted}
            return held_masks(stays(named), network)

        assert self.tuning is not None, "checked by the settings"
        residuals = self.tuning.train_admm(
            network, choose, original=self.prepared.model, content=content, folder=folder, progress=progress
        )
        network.eval()
        return network, stays(self._weights_of(network)), tuple(residuals)

    @cached_property
    def _uncounted(self) -> list[str]:
        """Layers with filters of which the code uses blocks, one by one, so that no single layer is counted."""
        counted = {layer.name for layer in self.prepared.spec.layers}
        losing = dict.fromkeys(name for group in self.groups.groups for name in group.layers)
        return [name for name in losing if name not in counted]

    def _weights_of(self, network: nn.Module) -> dict[str, Tensor]:
        """Weights of all layers with filters that may be removed, filters first."""
        blocks = {name: network.get_parameter(f"{name}.weight").detach() for name in self._uncounted}
        return {**weights_of(network, self.prepared.spec), **blocks}

    def _reestimated(self, small: nn.Module, source: nn.Module, plan: KeepPlan) -> nn.Module:
        with self._following():
            if self.config.statistics == "stored":
                return small
            if self.config.statistics == "absolute":
                return reestimate(small, self.prepared.batches)
            return reestimate(small, self.prepared.batches, original=source, plan=plan)

    def _check_trains(self, small: nn.Module) -> None:
        """Training takes ways through the code that the example did not."""
        network = copied(small).train()
        with self._following(), torch.no_grad(), torch.random.fork_rng(devices=()):
            for batch in self.prepared.batches[:1]:
                call_network(network, batch)

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Say in a sentence that the code takes a way on these images that it did not take on the example."""
        try:
            yield
        except RuntimeError as error:
            unseen = [name for name, reason in self.groups.fixed.items() if reason == NEVER_CALLED]
            hint = f"; layers that the example does not reach: {', '.join(unseen)}" if unseen else ""
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"pruned {self.prepared.name} must run on its images, got {reason}{hint}") from error

    def _result(self, stage: PruneStage) -> CompressedModel:
        example, before = self.prepared.example_input, self.prepared.keep
        return CompressedModel(
            model=stage.network,
            network=stage.network,
            cost=cost(stage.network, example),
            spec=survey_network(stage.network, example, name=self.prepared.name).spec,
            keep=stage.plan if before is None else before.compose(stage.plan),
            origin=self.prepared.origin,
            residuals=stage.residuals,
        )
