"""Settings: the same frozen objects for Python, TOML files and the command line, validated in one place."""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from slimbit.records.activations import FEWEST_BITS, MOST_BITS, Codes, RangeMethod
from slimbit.records.codec import ConfigTable
from slimbit.records.cost_names import allocation_of, check_cost_name, check_priceable
from slimbit.records.errors import InputError, closest
from slimbit.records.learning import LearnConfig
from slimbit.records.network import NetworkSpec, Per
from slimbit.records.signal import EpochSignal
from slimbit.records.training import OwnSettings, TrainConfig, check_said_once, with_own_settings

Grid = Literal["midrise", "midrise_zero", "midtread"]
Granularity = Literal["layer", "filter"]
Rounding = Literal["nearest", "rate_aware"]
Target = Literal["weights", "outputs"]
Statistics = Literal["stored", "absolute", "paired", "paired_layerwise"]
Baseline = Literal["max_abs", "aciq"]
"""Plain quantization that a run is compared with: the paper's quantize-only, or Banner et al. (arXiv 1810.05723)."""
By = Literal["norm", "signal", "fisher", "admm", "dead"]
"""What ranks filters."""
Scope = Literal["layer", "global"]
Constants = Literal["fold", "zero"]

NEAR_POINTS = 4
"""Points that are added where the user looks."""
LONGEST_NAME = 40
"""Characters of the name of a score, which has to fit a column."""
LONGEST_TIMEOUT = 1e7
"""Seconds, some months."""
SHORT_TRAINING = 40
"""Up to so many epochs the learning rate falls in two steps, as in the paper's 4 epochs; beyond along a cosine."""


def _baselines(value: Any) -> Any:
    return (("max_abs",) if value else ()) if isinstance(value, bool) else value


Baselines = Annotated[tuple[Baseline, ...], Field(strict=False), BeforeValidator(_baselines)]
"""Names of baselines; true stands for the paper's, false for none."""
Ratio = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Strings = Annotated[tuple[str, ...], Field(strict=False)]


class QuantConfig(ConfigTable):
    """How weights, and activations where asked for, are quantized.

    Attributes:
        grid: Grid of the levels; None = the one that suits: ``midrise_zero`` where zeros cost nothing (a price for
            ESN_a or ESN_d), ``midrise`` at given bit widths and for ESN'_d, ``midtread`` for machines.
        granularity: One step per layer, or one per filter. ESN'_d always has one per filter.
        skip: Layers that stay float; none by default, first and last layer included.
        rounding: "nearest", or "rate_aware": a cheaper level where that costs less accuracy than it saves.
        compensation: Whether the errors of rounded columns are spread over the others (GPTQ/OBQ family).
        target: What compensation stays close to: the float network's "outputs" on the same images, so that earlier
            layers' errors are repaired too (the divergence from the float network falls by a quarter on a
            ResNet-20), or the float "weights" on the inputs the compressed network gives, as GPTQ does.
        refit: Whether each filter's step is fitted again to its levels.
        bit_allocation: Whether, at a given bit width, filters of a wide range get more bits than those of a narrow one,
            that width on average, as Banner et al. do (arXiv 1810.05723).
        bias_correction: Whether the mean and the spread of each filter's weights are repaired after rounding, as Banner
            et al. do: the spread by the filter's step, the mean by the bias or BatchNorm behind it, which gets what the
            shift of the weights adds to the mean output on the calibration images.
        statistics: What happens to BatchNorm statistics (and to biases of layers without BatchNorm):
            "stored" leaves them, "absolute" and "paired" re-estimate after all layers are quantized,
            "paired_layerwise" behind each layer before the next one is quantized.
        refine: Passes over the calibration images in which scales, shifts and biases that are still float are tuned
            towards the float network's values, guarded by a fifth of the images; 0 = none. See `slimbit.apply.refine`.
        per: Weighting of cost: "mac" counts a weight at every output position, "parameter" once.
        activation_bits: Width of what layers read, 2 to 8; network inputs, and values that no layer reads, have 8 bits.
            A price for a cost that falls with these widths (bit operations, machines) chooses them as well, up to that
            one. The network then computes in integers, see `slimbit.apply.integers`. None: activations stay float.
        activation_codes: "unsigned" codes where a value is never negative, else signed ones around zero; "signed" ones
            everywhere, which TensorRT asks for; or "affine": unsigned with a zero point where a value can be negative.
        activation_range: How the range of an activation is chosen from the calibration images, see
            `slimbit.numerics.activation_range`.

    >>> QuantConfig(grid="midtread").grid
    'midtread'
    >>> QuantConfig(gird="midtread")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: settings must hold only known keys, got gird; did you mean grid?
    """

    grid: Grid | None = None
    granularity: Granularity = "layer"
    skip: Strings = ()
    rounding: Rounding = "nearest"
    compensation: bool = True
    target: Target = "outputs"
    refit: bool = False
    bit_allocation: bool = False
    bias_correction: bool = False
    statistics: Statistics = "paired_layerwise"
    refine: Annotated[int, Field(ge=0, le=1000)] = 0
    per: Per = "mac"
    activation_bits: Annotated[int, Field(ge=FEWEST_BITS, le=MOST_BITS)] | None = None
    activation_codes: Codes = "unsigned"
    activation_range: RangeMethod = "mse"

    @model_validator(mode="after")
    def _one_scale(self) -> Self:
        if self.bias_correction and self.refit:
            raise InputError("refit must be false with bias_correction, which sets the scale of each filter, got true")
        return self

    @property
    def needs_images(self) -> bool:
        """Whether carrying it out needs calibration images."""
        return self.compensation or self.bias_correction or self.statistics != "stored" or self.refine > 0

    def for_metric(self, metric: str | None) -> Self:
        """The same with a grid: the one that was chosen, or that suits a metric (None: a given bit width).

        ``midrise_zero`` where zeros cost nothing, ``midrise`` at given bit widths and where widths are per filter,
        ``midtread`` for machines and whatever else counts operands: its levels are the integers that they multiply.

        Raises:
            InputError: A grid or a rounding that the metric cannot be saved with.

        >>> QuantConfig().for_metric("esn_digital").grid, QuantConfig().for_metric(None).grid
        ('midrise_zero', 'midrise')
        """
        form = None if metric is None else allocation_of(metric)
        suits: dict[str | None, Grid] = {"analog": "midrise_zero", "digital": "midrise_zero", "table": "midtread"}
        chosen = self.grid or suits.get(form, "midrise")
        if form in ("filterwise", "table"):
            if chosen == "midrise_zero":
                raise InputError(f"grid must be midrise or midtread for {metric}, got midrise_zero")
            if self.rounding == "rate_aware":
                raise InputError(
                    f"rounding must be nearest for {metric}, whose cost is not one of levels, got rate_aware"
                )
        return self.model_copy(update={"grid": chosen})

    def check_names(self, spec: NetworkSpec) -> None:
        """Raise `InputError` where ``skip`` names what is no layer of the network."""
        names = tuple(layer.name for layer in spec.layers)
        for name in self.skip:
            if name not in names:
                raise InputError(f"skip must name layers of the network, got {name!r}{closest(name, names)}")


ADMM_STAGES = 4
"""Stages of a training that drives filters to zero."""
PAPER = QuantConfig(grid="midrise", compensation=False, target="weights", statistics="absolute")
"""How the paper quantizes: plain rounding on the mid-rise grid, BatchNorm statistics averaged anew."""
ACIQ = QuantConfig(
    grid="midrise",
    granularity="filter",
    compensation=False,
    target="weights",
    bit_allocation=True,
    bias_correction=True,
    statistics="stored",
    activation_range="aciq_laplace",
)
"""How Banner et al. quantize (arXiv 1810.05723): a step and a width per filter, bias correction, analytic clipping."""


class TuneConfig(ConfigTable):
    """Training after pruning.

    A few epochs: batch 64, the learning rate divided by 10 after half and after three quarters of the epochs (the
    paper's ImageNet setting is 4 epochs, divided at 2 and 3). More than 40: batch 100 and a cosine (its 160 epochs).

    Attributes:
        epochs: Passes over the training images.
        learning_rate: At the beginning; the paper's 0.1.
        distill: Whether it learns the outputs of the original network instead of labels.
        admm_epochs: Epochs of each of the four stages of ADMM, where filters are ranked by "admm".
        admm_learning_rate: Highest learning rate of these stages: it rises until the last stage, in which it falls to
            zero, so that neither noise nor statistics that trail moving weights are left to be cut.
        train: Any other setting of the training; what is left out follows the paper as above.

    >>> TuneConfig(epochs=4).training().schedule.milestones, TuneConfig(epochs=160).training().schedule.name
    ((2, 3), 'cosine')
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    distill: bool = False
    admm_epochs: Annotated[int, Field(ge=1, le=10_000)] = 3
    admm_learning_rate: Annotated[float, Field(gt=0)] = 0.05
    train: OwnSettings = TrainConfig()

    @model_validator(mode="after")
    def _once(self) -> Self:
        check_said_once(self.train, "tuning")
        return self

    def training(self, **more: Any) -> TrainConfig:
        """The settings of the training as a whole.

        Args:
            more: Put over everything, e.g. a seed.
        """
        milestones = sorted({self.epochs // 2, self.epochs * 3 // 4} - {0})
        shape: dict[str, Any] = {"batch_size": 100, "schedule": {"name": "cosine"}}
        if self.epochs <= SHORT_TRAINING:
            shape = {"batch_size": 64, "schedule": {"name": "step", "milestones": milestones}}
        begin = {"epochs": self.epochs, "optimizer": {"learning_rate": self.learning_rate}, **shape, **more}
        return with_own_settings(begin, self.train)


class PruneConfig(ConfigTable):
    """How filters are removed.

    Attributes:
        keep: Share of each group's filters that stays, in (0, 1]; or shares by layer name or pattern (``layer3.*``),
            of which the last that names a layer counts; groups that none names stay whole.
        by: What ranks filters: "norm" (the squared L2 norm), "signal" (its mean over a training epoch), "fisher" (the
            sensitivity of the outputs), "admm" (training that drives filters to zero first), or "dead" (removes the
            filters whose norm collapsed during training, whatever ``keep`` says).
        scope: "layer" ranks each group by itself; "global" ranks all filters of the network together, so that the one
            ratio is of all of them. At least one filter of every group stays either way.
        protect: Layers that lose no filter, by name or pattern.
        constants: What happens to the constant that a removed filter would still send on: "fold" adds it to what reads
            it, "zero" drops it.
        statistics: BatchNorm statistics after the cut.
        signal: Epoch that "signal" ranks by: a training run (its last epoch), or the record itself.
        tune: Training afterwards; None = none.
        budget: In place of ``keep``: the largest cost by metric; an amount of at most 1 is a share of the whole
            network's. The one share of every group's filters (or of all, by ``scope``) that fits is found by bisection.
        budget_bits: Bit width at which ESN metrics of the budget are counted.

    >>> PruneConfig(keep=0.5, protect=("layer3.*",)).protect
    ('layer3.*',)
    >>> PruneConfig(budget={"macs": 0.5}).budget
    {'macs': 0.5}
    """

    keep: Ratio | dict[str, Ratio] = 0.5
    by: By = "norm"
    scope: Scope = "layer"
    protect: Strings = ()
    constants: Constants = "fold"
    statistics: Statistics = "paired"
    signal: str | EpochSignal | None = None
    tune: TuneConfig | None = None
    budget: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    budget_bits: Annotated[float, Field(ge=1, le=16)] = 8

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.budget is not None and "keep" in self.model_fields_set:
            raise InputError("one of keep and budget may be given, got both")
        if self.budget is not None and self.by == "dead":
            raise InputError("budget must not be given for pruning by dead, which decides by itself")
        if (self.by == "signal") != (self.signal is not None):
            raise InputError(
                "signal (--signal RUN) must be given for pruning by signal, and only there, got one without the other"
            )
        if self.by == "admm" and self.tune is None:
            raise InputError(
                "tune (--tune-epochs) must be given for pruning by admm, which trains before and after, got none"
            )
        if self.scope == "global" and isinstance(self.keep, Mapping):
            raise InputError("keep must be one number for the global scope, got one per layer")
        return self


class RunConfig(ConfigTable):
    """What a run that traces a frontier consists of.

    Attributes:
        metric: Cost that is saved: a metric of the cost report, ``hardware:NAME``, the ``.toml`` file of a machine, or
            ``package.module:function``.
        points: Number of points of each network, those for comparison not counted; a finished run that is continued
            with a larger number gets the others where its curve bends.
        near: Where further points are wanted, by accuracy or cost metric: ``{"accuracy": 91}`` adds `NEAR_POINTS`.
        baselines: What to compare with, each at 8 to 2 bits: "max_abs", the paper's quantize-only; "aciq", Banner
            et al. True stands for ``("max_abs",)``, False for none.
        keep_ratios: Shares of the filters to keep, each a network of its own; 1 = the network as it is.
        signal: Training run, or its ``signal.jsonl``, whose epochs give further points.
        signal_epochs: Its epochs to take; None: at most eight, spread evenly.
        seed: Of sampled images, labels and positions.
        likelihood: What the sensitivity samples labels from: "categorical" for classifiers, "gaussian" for regression.
        batch_size: Calibration images that are worked on at once, and images that ``slimbit frontier`` scores at once;
            None: by their size. Results do not depend on it.
        memory_gib: What the activations of all calibration images may take, in GiB; None: half of what is free. If they
            need more, they are kept in half precision, then fewer images are used.
        storage: Database for the study; None: a file in the run's folder. On a database server
            (``postgresql://...``) machines with different folders share one run.
        artifacts: Where levels, statistics and networks are kept by content: a folder, ``s3://bucket/prefix`` or
            ``gs://bucket/prefix``; None: the run's folder.
        run_name: Name of the run on a database server; None: one that the settings make.
        takeover_seconds: On a database server, the time without a sign of life after which others take over what a
            worker was at; that of the worker that begins the run counts.
        stages: Folder of pruned and tuned networks, kept by content, for several runs; None: in the run.
        retry_failed: Whether points that failed earlier are tried again.
        metric_name: What the score of ``evaluate`` is called in tables and on axes, e.g. "IoU"; None: its ``name``
            attribute, else "accuracy".
        timeout_seconds: Most seconds that one call of ``evaluate``, or reading the calibration images, may take; a
            point beyond that fails. None: no limit.
        quant: How networks are quantized.
        prune: How the networks of ``keep_ratios`` are made; their ratio takes the place of its ``keep``.
        learn: One training of each network that yields further points, as many again; None: none. A finished run that
            is continued with it gets them.

    >>> config = RunConfig(points=8, keep_ratios=(1, 0.5), quant=QuantConfig(skip=("fc",)))
    >>> config.points, config.prunes, config.quant.skip
    (8, True, ('fc',))
    """

    metric: str = "esn_digital"
    points: Annotated[int, Field(ge=1, le=1000)] = 16
    near: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    baselines: Baselines = ("max_abs",)
    keep_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1, strict=False)] = (1.0,)
    signal: str | None = None
    signal_epochs: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    likelihood: Literal["categorical", "gaussian"] = "categorical"
    batch_size: Count | None = None
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    storage: Annotated[str | None, Field(repr=False)] = None  # it may hold a password
    artifacts: str | None = None
    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    takeover_seconds: Annotated[int, Field(ge=2, le=86400)] = 120
    stages: str | None = None
    retry_failed: bool = False
    metric_name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"\S")] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] | None = None
    quant: QuantConfig = QuantConfig()
    prune: PruneConfig = PruneConfig()
    learn: LearnConfig | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_cost_name(self.metric, "metric")
        check_priceable(self.metric)
        self.quant.for_metric(self.metric)
        alike = len({f"{ratio:g}" for ratio in self.keep_ratios}) < len(self.keep_ratios)
        if alike:  # results are kept by these names
            raise InputError(f"keep_ratios must differ in six digits, got {list(self.keep_ratios)}")
        for name in self.near:
            check_cost_name(name, "near", more=("accuracy",))
        if len({*self.baselines}) < len(self.baselines):
            raise InputError(f"baselines must be named once, got {', '.join(self.baselines)}")
        if self.signal_epochs is not None and self.signal is None:
            raise InputError("signal (--signal RUN) must be given with signal_epochs, got none")
        if self.prunes and self.prune.by == "dead":
            raise InputError("by must be one that reaches a ratio, got dead, which decides by itself")
        if self.prune.budget is not None:
            raise InputError("budget must not be given for a frontier, whose keep_ratios say how much stays")
        if not self.prunes and self.prune != PruneConfig():
            raise InputError("keep_ratios (--widths) must be given with settings of pruning, e.g. 1 and 0.5, got none")
        return self

    @property
    def prunes(self) -> bool:
        """Whether any network loses filters first."""
        return any(ratio != 1 for ratio in self.keep_ratios)


class FrontierConfig(RunConfig):
    """A TOML file for ``slimbit frontier``: a run, and the network and data that it is about.

    Attributes:
        network: As NETWORK on the command line.
        weights: Weights file; relative to the current folder.
        data: Data spec.
        input: Shape of one input, ``3x32x32``.
        calibration_images: Number of unlabelled images; None = 500, or all where there are fewer.
        calibration_augment: Whether they are cropped and flipped as in training.
        evaluate_images: Number of test images to choose by; None = as of ``select_images``.
        select_images: Number of images that points are chosen by, see `slimbit.zoo.data.DataSet.selection`; 0 = every
            point is scored on all test images.
        device: Where networks are compressed and scored: cpu, cuda or cuda:1.
    """

    network: str | None = None
    weights: str | None = None
    data: str | None = None
    input: str | None = None
    calibration_images: Count | None = None
    calibration_augment: bool = False
    evaluate_images: Count | None = None
    select_images: Annotated[int, Field(ge=0)] | None = None
    device: str = "cpu"

    def run(self) -> RunConfig:
        """The run alone."""
        return RunConfig(
            **{name: getattr(self, name) for name in RunConfig.model_fields if name in self.model_fields_set}
        )


def check_config(config: object, kind: type[ConfigTable]) -> None:
    """Raise `InputError` unless settings are of the kind that a function takes, or None."""
    if config is not None and not isinstance(config, kind):
        raise InputError(f"config must be a slimbit.{kind.__name__}, got {type(config).__name__}")


def matching(pattern: str, names: tuple[str, ...]) -> list[str]:
    """Layer names that a pattern names.

    Raises:
        InputError: There are none.

    >>> matching("layer1.*", ("conv1", "layer1.0", "layer1.1"))
    ['layer1.0', 'layer1.1']
    """
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found:
        raise InputError(f"layer names and patterns must match layers, got {pattern!r}{closest(pattern, names)}")
    return found


def check_positive(what: str, value: object) -> None:
    """Raise `InputError` unless a value is a positive, finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator] # a number by then
        raise InputError(f"{what} must be a positive number, got {value!r}")
