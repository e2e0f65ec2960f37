"""A network that is measured once and compressed often: its survey, its statistics, its sensitivity."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.activations import ActivationSamples, quantizers_of, read_widths, sample_activations
from slimbit.apply.calibration import Calibration, calibrate
from slimbit.apply.compensation import compensation_factors
from slimbit.apply.layers import bind, weights_of
from slimbit.apply.quantize import plain_levels
from slimbit.compress.widths import overstatement, value_losses, width_costs
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.measure.named_cost import CostLike, NamedCost, load_cost
from slimbit.measure.sensitivity import DIVERGENCES, Likelihood, measure_sensitivity
from slimbit.numerics.batches import Regrouped, as_called, checked_batches, count_of, inputs_of, pieces
from slimbit.numerics.copies import plain_network, unwrapped
from slimbit.numerics.levels import LayerLevels
from slimbit.numerics.memory import GIB
from slimbit.plan.aciq import step_by_aciq
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.signal import step_by_signal
from slimbit.plan.steps import step_by_price, step_by_range
from slimbit.plan.widths import WidthCosts, widths_by_price
from slimbit.records.activations import ActivationQuantizer
from slimbit.records.codec import canonical, sha256
from slimbit.records.config import PAPER, QuantConfig, check_positive
from slimbit.records.cost import CostReport
from slimbit.records.cost_names import allocation_of
from slimbit.records.dataflow import Dataflow
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.origin import NetworkOrigin
from slimbit.records.plan import CompressionPlan
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.signal import EpochSignal
from slimbit.survey.dataflow import read_dataflow
from slimbit.survey.module import read_weight, survey_network
from slimbit.survey.result import Survey
from slimbit.survey.trace import Inputs

PROBE_IMAGES, PROBE_SAMPLES = 128, 4096
JUDGED_IMAGES = 128
PRUNED_ONLY_BITS = 8


def prepare(
    model: nn.Module,
    example_input: Inputs,
    calibration: Iterable[Any] | Tensor | None,
    *,
    name: str = "",
    seed: int = 0,
    likelihood: Likelihood | str = "categorical",
    origin: NetworkOrigin | str | None = None,
    keep: KeepPlan | None = None,
    batch_size: int | None = None,
    memory_gib: float | None = None,
) -> "PreparedNetwork":
    """Survey a network and get it ready to be compressed many times.

    What is expensive (statistics of the calibration images, sensitivity) is measured when it is needed first, and once.
    `slimbit.quantize`, `slimbit.prune` and `slimbit.trace_frontier` take the result in place of model, example input
    and calibration images.

    Args:
        model: The trained network; not changed.
        example_input: One example with its batch dimension, e.g. ``torch.zeros(1, 3, 32, 32)``; a tuple or dict for
            several arguments.
        calibration: Some hundred unlabelled images: a tensor, or batches (a ``DataLoader`` included: labels beside the
            images are left out). None is enough for what needs no data: plain rounding, ranking by norm.
        name: For reports; default: the network's name in the zoo, or its type.
        seed: Of sampled labels and positions.
        likelihood: What the sensitivity samples labels from: "categorical" for classifiers, "gaussian" for regression
            and other heads, or a function, see `slimbit.measure.sensitivity`.
        origin: How the network is built again, for what is saved: a name of the zoo, ``timm:NAME``,
            ``package.module:callable``, or a whole record; default: its name in the zoo, else the name of its class.
        keep: What pruning has left of the network of ``origin``, where ``model`` is a pruned one.
        batch_size: Calibration images whose activations are worked on at once; results do not depend on it. Default:
            as many as have activations of 128 MiB.
        memory_gib: What the activations of all calibration images may take, in GiB; default: half of what is free. If
            they need more, they are kept in half precision, then fewer images are used; notes of the results say so.

    Raises:
        InputError: A network without layers, or with complex weights; batches that are empty or not finite.

    >>> import slimbit, torch
    >>> prepared = slimbit.prepare(slimbit.network("digits_resnet"), torch.zeros(1, 1, 8, 8), torch.randn(16, 1, 8, 8))
    >>> len(prepared.spec.layers), slimbit.quantize(prepared, bits=4).cost.total.esn_digital > 0
    (11, True)
    """
    if not callable(likelihood) and likelihood not in DIVERGENCES:
        raise InputError(f"likelihood must be {', '.join(DIVERGENCES)} or a function, got {likelihood!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise InputError(f"seed must be a whole number of 0 or more, got {seed!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}")
    if memory_gib is not None:
        check_positive("memory_gib", memory_gib)
    named = str(getattr(unwrapped(model), "zoo_name", ""))
    survey = survey_network(model, example_input, name=name or named)
    if not survey.spec.layers:
        found = " ".join(("got none.", *survey.spec.notes)) if survey.spec.notes else "got none"
        raise InputError(f"{survey.spec.name} must have a layer to compress (convolution, linear, ...), {found}")
    network = plain_network(model)
    bind(network, survey.spec)  # raises for weights that are no plain floating-point ones
    digest = digest_of(model.state_dict())
    known = origin if isinstance(origin, NetworkOrigin) else _origin_of(unwrapped(model), example_input, origin)
    if keep is None and not known.weights_digest:
        known = replace(known, weights_digest=digest)
    given = () if calibration is None else checked_batches(as_called(calibration, unwrapped(model), example_input))
    return PreparedNetwork(
        model=network,
        example_input=example_input,
        survey=Survey(survey.spec, lambda layer: read_weight(network, layer)),
        batches=given,
        digest=digest,
        seed=seed,
        likelihood=likelihood,
        origin=known,
        keep=keep,
        batch_size=batch_size,
        memory_gib=memory_gib,
    )


def _origin_of(model: nn.Module, example_input: Inputs, named: str | None) -> NetworkOrigin:
    shape = tuple(example_input.shape[1:]) if isinstance(example_input, Tensor) else ()
    kind = type(model)
    source = named or getattr(model, "zoo_name", "") or f"{kind.__module__}:{kind.__qualname__}"
    return NetworkOrigin(source=source, classes=getattr(model, "zoo_classes", None), input_shape=shape)


@dataclass(eq=False)
class PreparedNetwork:
    """A network and everything that is measured of it once; made by `slimbit.prepare`. State only caches.

    Attributes:
        model: The float network, every weight a plain parameter, in evaluation mode; never changed.
        example_input: One example with its batch dimension.
        survey: Its survey.
        batches: Calibration batches; none where none were given.
        digest: Of the network as it was given: its state dict.
        seed: Seed of sampled labels and positions.
        likelihood: What the sensitivity samples labels from.
        origin: Where network and data came from.
        keep: What pruning has left of the network of ``origin``; None: all of it.
        batch_size: Calibration images that are worked on at once; None: chosen by size.
        memory_gib: What their activations may take; None: half of what is free.

    >>> import slimbit, torch
    >>> prepared = slimbit.prepare(slimbit.network("digits_resnet"), torch.zeros(1, 1, 8, 8), torch.randn(16, 1, 8, 8))
    >>> prepared.name, prepared.images, slimbit.cost(prepared, bits=1).total.esn_digital
    ('digits_resnet', 16, 197440)
    """

    model: nn.Module
    example_input: Inputs
    survey: Survey
    batches: tuple[Any, ...]
    digest: str = ""
    seed: int = 0
    likelihood: Likelihood | str = "categorical"
    origin: NetworkOrigin = field(default_factory=NetworkOrigin)
    keep: KeepPlan | None = None
    batch_size: int | None = None
    memory_gib: float | None = None
    _sensitivity: Sensitivity | None = field(default=None, repr=False)
    _predicted: dict[str, CostReport] = field(default_factory=dict, repr=False)
    _activations: dict[tuple[Any, ...], tuple[ActivationQuantizer, ...]] = field(default_factory=dict, repr=False)
    _overstatement: dict[QuantConfig, float] = field(default_factory=dict, repr=False)
    _value_losses: dict[tuple[int, str, str], dict[str, tuple[float, ...]]] = field(default_factory=dict, repr=False)
    _width_costs: dict[tuple[NamedCost, QuantConfig], WidthCosts] = field(default_factory=dict, repr=False)

    @property
    def spec(self) -> NetworkSpec:
        """Its layers."""
        return self.survey.spec

    @property
    def name(self) -> str:
        """For people."""
        return self.survey.spec.name

    @property
    def images(self) -> int:
        """Number of calibration images."""
        return sum(map(count_of, self.batches))

    @cached_property
    def calibration_digest(self) -> str:
        """SHA-256 of the calibration images, in whatever order and batches they come (a `DataLoader` may shuffle)."""
        return sha256(canonical(sorted(map(digest_of, pieces(map(inputs_of, self.batches), 1)))))

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Float weight of every layer by name, filters first."""
        return weights_of(self.model, self.spec)

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Which weights a pruning mask keeps, filters first, of the layers that have one."""
        found = {name: bound.mask() for name, bound in bind(self.model, self.spec).items()}
        return {name: mask for name, mask in found.items() if mask is not None}

    @property
    def sensitivity(self) -> Sensitivity:
        """How much the loss cares for each filter; measured once."""
        if self._sensitivity is None:
            self._needs_images("the sensitivity")
            self._sensitivity = measure_sensitivity(
                self.model,
                self.spec,
                self.batches,
                generator=torch.Generator().manual_seed(self.seed),
                likelihood=self.likelihood,
            )
        return self._sensitivity

    @sensitivity.setter
    def sensitivity(self, known: Sensitivity) -> None:
        self._sensitivity = known

    @cached_property
    def calibration(self) -> Calibration:
        """The float network's statistics on all calibration images."""
        self._needs_images("compensation and new statistics")
        return self._calibrated(self.batches)

    def _calibrated(self, batches: tuple[Any, ...], **settings: Any) -> Calibration:
        memory = None if self.memory_gib is None else int(self.memory_gib * GIB)
        return calibrate(
            self.model,
            self.spec,
            batches,
            seed=self.seed,
            batch_size=self.batch_size,
            memory_bytes=memory,
            **settings,
        )

    @property
    def division(self) -> str:
        """How many calibration images are worked on at once, in words; "" before there were any."""
        found: Calibration | None = self.__dict__.get("calibration")
        return "" if found is None else found.division

    @property
    def calibration_notes(self) -> tuple[str, ...]:
        """What calibration and sensitivity found that users should know; () before there was any."""
        found: Calibration | None = self.__dict__.get("calibration")
        measured = () if self._sensitivity is None else self._sensitivity.notes
        return (*(() if found is None else found.notes), *measured)

    @cached_property
    def probe(self) -> tuple[Calibration, Sequence[Any]]:
        """Few images to compress with, and others, in batches, to judge the result by: on its own it looks too good."""
        fitting = min(PROBE_IMAGES, self.images - max(1, self.images // 3)) or 1
        fitted, *rest = Regrouped(self.batches, fitting, fitting + JUDGED_IMAGES)
        found = self._calibrated((fitted,), samples=PROBE_SAMPLES)
        size = max(map(count_of, found.batches))
        return found, [*pieces((rest[0] if rest else fitted,), size)]

    @cached_property
    def compensation_factors(self) -> Mapping[str, float]:
        """Share of each layer's sensitivity that compensation leaves."""
        return compensation_factors(self.model, self.spec, self.calibration)

    @cached_property
    def flow(self) -> Dataflow:
        """What it computes between input and output, operation by operation; needed for quantized activations."""
        return read_dataflow(self.model, self.example_input, name=self.name)

    @cached_property
    def activation_samples(self) -> ActivationSamples:
        """Entries of the values between layers."""
        self._needs_images("the ranges of activations")
        return sample_activations(self.model, self.flow, self.batches)

    def activations(
        self, config: QuantConfig, widths: Mapping[str, int] | None = None
    ) -> tuple[ActivationQuantizer, ...]:
        """How the values between layers become integers, measured once per width; none where they stay float.

        Args:
            config: Width of what layers read, and how ranges are chosen.
            widths: Other widths of some of them, by the quantizer's name.
        """
        if config.activation_bits is None:
            return ()
        codes = config.activation_codes
        key = config.activation_bits, config.activation_range, codes, tuple(sorted((widths or {}).items()))
        if key not in self._activations:
            self._activations[key] = quantizers_of(
                self.activation_samples, config.activation_bits, config.activation_range, codes, widths=widths
            )
        return self._activations[key]

    def value_losses(self, config: QuantConfig) -> dict[str, tuple[float, ...]]:
        """Divergence that rounding the values of each quantizer to 2, 3, ... bits causes; measured once."""
        assert config.activation_bits is not None
        key = config.activation_bits, config.activation_range, config.activation_codes
        if key not in self._value_losses:
            self._value_losses[key] = value_losses(self, self.activation_samples, config)
        return self._value_losses[key]

    def overstatement(self, config: QuantConfig) -> float:
        """Predicted loss over measured divergence of rounded weights; measured once."""
        if config not in self._overstatement:
            self._overstatement[config] = overstatement(self, config)
        return self._overstatement[config]

    def width_costs(self, cost: NamedCost, config: QuantConfig) -> WidthCosts:
        """What every layer costs at every width; worked out once."""
        if (cost, config) not in self._width_costs:
            self._width_costs[cost, config] = width_costs(self, cost, config)
        return self._width_costs[cost, config]

    def inputs(self, config: QuantConfig, *, priced: bool) -> PlanInputs:
        """What policies look at: of bit widths the weights alone, of prices the sensitivity as well."""
        if not priced:
            return PlanInputs(spec=self.spec, weights=self.weights)
        return self._repaired if config.compensation else self._unrepaired

    @cached_property
    def _repaired(self) -> PlanInputs:
        factors = self.compensation_factors
        return PlanInputs(
            spec=self.spec, weights=self.weights, sensitivity=self.sensitivity, compensation_factors=factors
        )

    @cached_property
    def _unrepaired(self) -> PlanInputs:
        return PlanInputs(spec=self.spec, weights=self.weights, sensitivity=self.sensitivity)

    def _needs_images(self, what: str) -> None:
        if not self.batches:
            raise InputError(f"calibration images must be given for {what}, got none")

    def __repr__(self) -> str:
        """What it is, and what is known of it."""
        images = f"{self.images} calibration images" if self.batches else "no calibration images"
        pruned = "" if self.keep is None else f", pruned by {self.keep.policy}, {self.keep.setting}"
        return f"PreparedNetwork({self.name}, {len(self.spec.layers)} layers, {images}{pruned})"

    # --- plans ---

    def plan_at(self, price: float, metric: CostLike | NamedCost, config: QuantConfig) -> CompressionPlan:
        """The plan of a price for any cost."""
        cost = load_cost(metric)
        cost.check_priceable()
        config = config.for_metric(cost.name)
        inputs = self.inputs(config, priced=True)
        if allocation_of(cost.name) != "table":
            return self._complete(step_by_price(inputs, price, cost.name, config))
        plan, widths = widths_by_price(inputs, price, cost.name, config, self.width_costs(cost, config))
        return replace(plan, activations=self.activations(config, widths))

    def plan_bits(self, bits: float, config: QuantConfig = PAPER) -> CompressionPlan:
        """The plan of a bit width: policy ``aciq`` where it is a mean of filters, else of all layers alike."""
        policy = step_by_aciq if config.bit_allocation else step_by_range
        return self._complete(policy(self.inputs(config, priced=False), bits, config))

    def plan_pruned_only(self, skip: tuple[str, ...]) -> CompressionPlan:
        """8 bits and nothing else: what pruning alone reaches."""
        config = PAPER.model_copy(update={"statistics": "stored", "skip": skip})
        return replace(self.plan_bits(PRUNED_ONLY_BITS, config), policy="prune_only")

    def plan_signal(self, epoch: EpochSignal, config: QuantConfig = PAPER) -> CompressionPlan:
        """Steps from a training epoch; by default carried out as plainly as the baselines are."""
        return self._complete(step_by_signal(self.inputs(config, priced=False), epoch, config))

    def _complete(self, plan: CompressionPlan) -> CompressionPlan:
        """The plan with what it says of activations."""
        return replace(plan, activations=self.activations(plan.config))

    # --- costs ---

    def predicted(self, plan: CompressionPlan) -> CostReport:
        """What a plan costs when weights are simply rounded: no data, no pass, within a few percent."""
        key = plan.digest()
        if key not in self._predicted:
            self._predicted[key] = self.cost(plan, self.rounded(plan))
        return self._predicted[key]

    def rounded(self, plan: CompressionPlan) -> dict[str, LayerLevels]:
        """Levels of a plan where weights are simply rounded."""
        return {x.name: plain_levels(self.weights[x.name].float(), x, mask=self.masks.get(x.name)) for x in plan.layers}

    def cost(self, plan: CompressionPlan, layers: Mapping[str, LayerLevels]) -> CostReport:
        """Exact cost of levels; layers without any are counted as the float layers they stay."""

        def weight(layer: LayerSpec) -> Tensor | LayerLevels:
            found = layers.get(layer.shared_with or layer.name)
            if found is None:
                return self.survey.weight(layer)
            ratio = found.signal_to_noise
            return found if ratio is None or math.isfinite(ratio) else replace(found, signal_to_noise=None)

        widths = read_widths(self.flow, plan.activations, self.spec) if plan.activations else {}
        survey = Survey(self.spec, weight, widths)
        report = cost_of_survey(survey, CostConfig(per=plan.config.per), keep=lambda layer: self.masks.get(layer.name))
        said = plan.policy if plan.setting is None else f"{plan.policy}, {plan.setting}"
        return replace(report, setting=said)

    def forget(self) -> None:
        """Let go of what was measured for the plans; it is measured again where it is asked for again."""
        for name in ("calibration", "probe", "compensation_factors", "activation_samples", "_repaired", "_unrepaired"):
            self.__dict__.pop(name, None)
        for known in (self._predicted, self._width_costs):
            known.clear()


def digest_of(values: Any) -> str:
    """SHA-256 of tensors in any nesting of lists and mappings, with their names, shapes and types."""
    return sha256(_parts("", values))


def _parts(name: str, value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield canonical([name, str(value.dtype), list(value.shape)])
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _parts(f"{name}/{key}", value[key])
    elif isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _parts(f"{name}/{place}", part)
    else:
        yield canonical([name, type(value).__name__])
