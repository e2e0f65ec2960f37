"""Make a network narrower: decide what stays, press it there (ADMM), cut, measure statistics anew, tune.

`slimmed` keeps each result in a folder named after everything that it depends on, so that nothing is computed twice
and a run that was killed goes on where it stood.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, get_args

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from slimbit.apply.layers import weights_of
from slimbit.apply.mask import held_masks
from slimbit.apply.reestimate import reestimate
from slimbit.apply.surgery import prune, rebuild
from slimbit.frontier.subject import digest_of
from slimbit.frontier.workspace import canonical
from slimbit.measure.counting import Counting
from slimbit.measure.group_sensitivity import measure_group_sensitivity
from slimbit.measure.planned import budget_in
from slimbit.measure.sensitivity import Likelihood
from slimbit.numerics.batches import call_network, inputs_of
from slimbit.numerics.copies import copied, plain_network
from slimbit.numerics.grid import layer_weight
from slimbit.plan.keep import (
    Keeping,
    Scores,
    keep_by_fisher,
    keep_by_norm,
    keep_by_score,
    keep_live_filters,
    keep_within,
    match_counts,
)
from slimbit.records.config import By
from slimbit.records.errors import InputError, check_choice
from slimbit.records.files import not_written, write_whole
from slimbit.records.groups import Ties
from slimbit.records.keep import KeepPlan
from slimbit.records.plan import Statistics
from slimbit.records.signal import EpochSignal
from slimbit.survey.module import survey_network
from slimbit.survey.result import Survey
from slimbit.survey.ties import NEVER_CALLED, tied_filters

DONE, NETWORK, SCHEMA = "slim.json", "network.safetensors", 1
Tell = Callable[[str], None]


class Tuner(Protocol):
    """What a pruned network learns with; `slimbit.train.tune.Tuning` is the one that comes with Slimbit."""

    @property
    def name(self) -> str:
        """Everything that the result depends on, for people; a continued run must give the same."""

    def tune(self, network: nn.Module, *, original: nn.Module, content: str, folder: Path, tell: Tell) -> None:
        """Train ``network`` itself; a call that was stopped goes on in ``folder``, if ``content`` is the same."""

    def press(
        self, network: nn.Module, choose: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], *,
        original: nn.Module, content: str, folder: Path, tell: Tell,
    ) -> Sequence[float]:  # fmt: skip
        """Train ``network`` itself until what ``choose`` does not keep is nearly zero; returns residuals by epoch."""


@dataclass(frozen=True, kw_only=True)
class Slimming:
    """How a network is made narrower.

    Attributes:
        by: "norm", "signal" (of a training epoch), "fisher", "admm" (training that presses filters to zero first), or
            "dead" (what training has killed).
        keeping: Scope, protected layers, constants; its ratio is that of each width.
        statistics: BatchNorm statistics after the cut.
        signal: The training epoch that "signal" ranks by.
        tuner: What the narrower network learns with; None = it does not. "admm" needs one.
    """

    by: By = "norm"
    keeping: Keeping = field(default_factory=Keeping)
    statistics: Statistics = "paired"
    signal: EpochSignal | None = None
    tuner: Tuner | None = None

    def __post_init__(self) -> None:
        check_choice("by", self.by, get_args(By))
        check_choice("statistics", self.statistics, get_args(Statistics))
        if (self.by == "signal") != (self.signal is not None):
            raise InputError("signal must be given for pruning by signal, and only there, got one without the other")
        if self.by == "admm" and self.tuner is None:
            raise InputError("a tuner (training data) must be given for pruning by admm, got none")

    def settings(self) -> dict[str, Any]:
        """What results depend on, as plain data."""
        kept = {name: value for name, value in asdict(self.keeping).items() if name != "ratio"}
        signal = "" if self.signal is None else hashlib.sha256(canonical(self.signal.to_dict())).hexdigest()
        tuner = "" if self.tuner is None else self.tuner.name
        return {"by": self.by, **kept, "statistics": self.statistics, "signal": signal, "tuner": tuner}


@dataclass(frozen=True)
class Slim:
    """A narrower network.

    Attributes:
        network: In evaluation mode.
        plan: What stays.
        residuals: Of ADMM, by epoch.
    """

    network: nn.Module
    plan: KeepPlan
    residuals: tuple[float, ...] = ()


@dataclass
class Slimmer:
    """One network under one way of making it narrower. State only caches what is expensive.

    Attributes:
        model: The network; never changed.
        example: One example with its batch dimension.
        batches: Unlabelled calibration batches.
        slimming: How.
        name: Of the network, for plans and messages.
        seed: Of sampled labels.
        likelihood: What "fisher" samples labels from.
    """

    model: nn.Module
    example: Any
    batches: Sequence[Any]
    slimming: Slimming
    name: str = ""
    seed: int = 0
    likelihood: Likelihood | str = "categorical"

    def __post_init__(self) -> None:
        self.model = plain_network(self.model)

    @cached_property
    def survey(self) -> Survey:
        """Its layers."""
        return survey_network(self.model, self.example, name=self.name)

    @cached_property
    def ties(self) -> Ties:
        """Which filters live or die together."""
        return tied_filters(self.model, self.example, name=self.name)

    def plan(self, ratio: float | Mapping[str, float]) -> KeepPlan:
        """What stays at a keep ratio; by ADMM, how many stay: it finds out which."""
        keeping = replace(self.slimming.keeping, ratio=ratio)
        if self.slimming.by == "dead":
            return keep_live_filters(self.ties, self._weights, protect=keeping.protect, constants=keeping.constants)
        if self.slimming.by == "fisher":
            return keep_by_fisher(self.ties, self._fisher, keeping)
        return keep_by_norm(self.ties, self._weights, keeping, signal=self.slimming.signal)

    def check_width(self, width: float) -> None:
        """Raise `InputError` where a width below 1 removes nothing: its points would be those of the whole network."""
        if width == 1:
            return
        keeping = replace(self.slimming.keeping, ratio=width)
        alike = {group.name: [0.0] * group.units for group in self.ties.groups}  # how many stay depends on no score
        if not keep_by_score(self.ties, alike, keeping, policy=self.slimming.by).axes:
            raise InputError(
                f"width {width:g} must remove filters of {self.ties.network}, got a network that keeps all of them"
            )

    def plan_within(self, metric: str, amount: float, *, bits: float = 8) -> KeepPlan:
        """What stays within a budget; an amount of at most 1 is a share of the whole network's cost."""
        cost = budget_in(self.survey, metric, Counting(bits=bits) if metric.startswith("esn") else None)
        return keep_within(self.plan, cost, amount * cost(self.plan(1.0)) if amount <= 1 else amount)

    def slim(self, plan: KeepPlan, folder: Path, tell: Tell) -> Slim:
        """Carry a plan out: press, cut, measure statistics anew, tune.

        Args:
            plan: What stays, or by ADMM how many.
            folder: Where trainings are kept: one that was stopped goes on there.
            tell: Called with a line for people after every epoch.

        Raises:
            InputError: A network whose code cannot follow, or a folder of something else.
            StoreError: The folder cannot be written.
        """
        source, tuner, content = self.model, self.slimming.tuner, self.content(plan)
        residuals: tuple[float, ...] = ()
        if self.slimming.by == "admm" and plan.axes:
            source, plan, residuals = self._pressed(plan, content, folder / "admm", tell)
        small = self._reestimated(prune(source, plan, self.example), source, plan)
        if tuner is not None:
            self._check_trains(small)
            tuner.tune(small, original=self.model, content=content, folder=folder / "tune", tell=tell)
        return Slim(small.eval(), plan, residuals)

    def content(self, plan: KeepPlan) -> str:
        """Digest of everything that `slim` depends on."""
        weights, inputs, settings = self._given
        return hashlib.sha256(canonical([weights, plan.digest(), inputs, settings])).hexdigest()

    @cached_property
    def _given(self) -> tuple[str, str, dict[str, Any]]:
        """Digests of weights and calibration images, and the settings: the same for every plan."""
        inputs = digest_of([inputs_of(batch) for batch in self.batches])
        return digest_of(self.model.state_dict()), inputs, self.slimming.settings()

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        return weights_of(self.model, self.survey.spec)

    @cached_property
    def _fisher(self) -> Scores:
        return measure_group_sensitivity(
            self.model,
            self.ties,
            self.batches,
            generator=torch.Generator().manual_seed(self.seed),
            constants=self.slimming.keeping.constants,
            likelihood=self.likelihood,
        )

    def _pressed(
        self, plan: KeepPlan, content: str, folder: Path, tell: Tell
    ) -> tuple[nn.Module, KeepPlan, tuple[float, ...]]:
        """A copy whose filters training has pressed to zero, but for as many of each group as the plan keeps."""
        network, spec = copied(self.model), self.survey.spec

        def stays(weights: Mapping[str, Tensor]) -> KeepPlan:
            return match_counts(self.ties, weights, plan, policy="admm")

        def choose(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            stored = ((layer, values.get(layer.weight_key)) for layer in spec.layers)
            named = {layer.name: layer_weight(value, layer) for layer, value in stored if value is not None}
            return held_masks(stays(named), network)

        assert self.slimming.tuner is not None, "checked by the settings"
        residuals = self.slimming.tuner.press(
            network, choose, original=self.model, content=content, folder=folder, tell=tell
        )
        network.eval()
        return network, stays(weights_of(network, spec)), tuple(residuals)

    def _reestimated(self, small: nn.Module, source: nn.Module, plan: KeepPlan) -> nn.Module:
        with self._following():
            if self.slimming.statistics == "stored":
                return small
            if self.slimming.statistics == "absolute":
                return reestimate(small, self.batches)
            return reestimate(small, self.batches, original=source, plan=plan)

    def _check_trains(self, small: nn.Module) -> None:
        """Training takes ways through the code that the example did not."""
        network = copied(small).train()
        with self._following(), torch.no_grad(), torch.random.fork_rng(devices=()):
            for batch in self.batches[:1]:
                call_network(network, batch)

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Say in a sentence that the code takes a way on these images that it did not take on the example."""
        try:
            yield
        except RuntimeError as error:
            unseen = [name for name, reason in self.ties.fixed.items() if reason == NEVER_CALLED]
            hint = f"; layers that the example does not reach: {', '.join(unseen)}" if unseen else ""
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"pruned {self.name or type(self.model).__name__} must run on its images, got {reason}{hint}"
            ) from error


def slimmed(slimmer: Slimmer, plan: KeepPlan, stages: Path, tell: Tell) -> Slim:
    """`Slimmer.slim` in a folder of ``stages`` that is named after its content; one process at a time works there.

    Raises:
        InputError: What is in the folder is damaged, or as of `Slimmer.slim`.
        StoreError: The folder cannot be written.
    """
    folder = stages / slimmer.content(plan)[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
    except OSError as error:
        raise not_written(folder, error) from error
    with lock:
        result = _stored(folder, slimmer.model)
        if result is None:
            result = slimmer.slim(plan, folder, tell)
            _write(folder, result)
        return result


def _stored(folder: Path, model: nn.Module) -> Slim | None:
    """What an earlier call has finished."""
    file = folder / DONE
    if not file.exists():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        content = (folder / NETWORK).read_bytes()
        state, digest, residuals = load(content), data["network"], tuple(map(float, data["residuals"]))
        plan = KeepPlan.from_dict(data["plan"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder} must hold a whole pruned network, got {error!r}: delete it") from error
    if data.get("schema") != SCHEMA or hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"{file} must be of schema {SCHEMA} and name the network beside it: delete {folder}")
    return Slim(rebuild(model, plan, state).eval(), plan, residuals)


def packed_state(network: nn.Module) -> bytes:
    """A network's state dict as safetensors."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()})


def _write(folder: Path, result: Slim) -> None:
    content = packed_state(result.network)
    told = {
        "schema": SCHEMA,
        "network": hashlib.sha256(content).hexdigest(),
        "residuals": [value for value in result.residuals if math.isfinite(value)],
        "plan": result.plan.to_dict(),
    }
    write_whole(folder / NETWORK, content)
    write_whole(folder / DONE, json.dumps(told, allow_nan=False).encode())
