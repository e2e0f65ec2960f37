"""Measure what a network costs, layer by layer: Prune or quantize? (2019), section 3; formulas in docs/glossary.md."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.measure.cost_config import CostConfig, Steps, cost_config_from, step_of
from slimbit.measure.hardware import HardwareLike, hardware_cost, load_hardware
from slimbit.numerics.energy import LevelFormat, LevelSums, code_bits, inputs_read, level_sums, quantized_sums
from slimbit.numerics.levels import LayerLevels
from slimbit.records.cost import LEVEL_METRICS, CostReport, LayerCost, TotalCost
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, Per
from slimbit.survey.module import explicit_mask, survey_network
from slimbit.survey.result import Survey
from slimbit.survey.trace import Inputs

FLOAT_ACTIVATION_BITS = 32
QUANTIZED_ACTIVATION_BITS = 8
# Grids whose rounding error is as good as uniform on +-step/2, as Eq. (4) supposes. On midrise_zero a weight becomes 0
# below a quarter of a step, so that the error of the levels 0 and +-0.5 has other bounds.
UNIFORM_ERROR = ("midrise", "midtread")
# Below this S/N (13 dB) a Gaussian layer's Eq. (4) estimate is more than 5 % off (derived, docs/glossary.md).
RELIABLE_SIGNAL_TO_NOISE = 20.0


def cost(
    model: nn.Module,
    example_input: Inputs,
    *,
    bits: float | None = None,
    steps: Steps | None = None,
    per: Per = "mac",
    hardware: HardwareLike | Iterable[HardwareLike] = (),
    batch: int | None = None,
    **counting: Any,
) -> CostReport:
    """What a network costs, layer by layer, in units that no particular chip distorts.

    With ``bits=b`` every layer is rounded with ``step = max|W| / 2^(b-1)`` and clipped to ``2^(b-1) - 0.5`` steps;
    with ``steps`` it is rounded with those and not clipped; with neither the weights are taken as they are.

    ``esn_analog = sum_l c_l sum_i q_i^2``, Eq. (2); ``esn_digital = sum_l c_l sum_i bits(q_i)``, Eq. (3).
    All metrics: `slimbit.records.cost.Metrics`.

    Args:
        model: Any module; left as it is (mode, hooks, buffers, device). Masks of `torch.nn.utils.prune` are read:
            pruned weights cost nothing.
        example_input: One example with its batch dimension; a tuple or dict for several arguments.
        bits: Bit width, 1 to 16; fractional widths sweep ``max_abs`` smoothly.
        steps: One step for all layers, or by layer name a step or one per filter.
        per: "mac" weighs a weight by its output positions ``c_l``, "parameter" by 1.
        hardware: Hardware cost models: names, TOML files, functions (`slimbit.HardwareModel`).
        batch: How many images the example holds; default: learned from what the network does with more of them.
        **counting: ``policy``, ``grid``, ``formula``, ``activation_bits`` of `CostConfig`.

    Returns:
        A report without tensors.

    Raises:
        InputError: A network that does not run on the example, weights that are not finite, bits outside 1 to 16,
            steps for layers that do not exist.

    >>> layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    >>> report = cost(layer, torch.zeros(1, 3, 4, 4), bits=1)
    >>> report.total.macs, report.total.esn_digital, report.total.esn_analog
    (3456, 3456, 864.0)
    """
    settings = cost_config_from(bits=bits, steps=steps, per=per, **counting)
    survey = survey_network(model, example_input, batch=batch)
    report = cost_of_survey(survey, settings, keep=lambda layer: explicit_mask(model, layer))
    return with_hardware(report, hardware)


def cost_of_survey(
    survey: Survey, counting: CostConfig, *, keep: Callable[[LayerSpec], Tensor | None] = lambda _layer: None
) -> CostReport:
    """Count a surveyed network or file.

    Args:
        survey: From any room that looks: a module, an ONNX file, an exported program.
        counting: How to count.
        keep: Bool mask of the weights that are kept, filters first, or None for all.
    """
    counting.check_names(survey.spec)
    if counting.per == "mac" and survey.spec.layers and all(layer.kind == "tensor" for layer in survey.spec.layers):
        raise InputError(f"per must be parameter for {survey.spec.name}, which holds weights but no graph, got mac")
    layers = tuple(
        _layer_cost(layer, survey.weight(layer), counting, keep(layer), survey.activation_bits.get(layer.name))
        for layer in survey.spec.layers
    )
    if not layers and not survey.spec.other_work and not survey.spec.uncounted:
        found = " ".join(("got none.", *survey.spec.notes)) if survey.spec.notes else "got none"
        raise InputError(
            f"{survey.spec.name} must have a layer that Slimbit counts (convolution, linear, attention, embedding), "
            f"{found}"
        )
    settings = {layer.grid for layer in layers}
    return CostReport(
        network=survey.spec.name,
        per=counting.per,
        setting=", ".join(sorted(settings)) if counting.bits is counting.steps is None else counting.setting,
        total=_total(layers, survey),
        layers=layers,
        other_parameters=survey.spec.other_parameters,
        other_work=survey.spec.other_work,
        notes=(*survey.spec.notes, *_notes(layers)),
        inputs=survey.spec.inputs,
    )


def with_hardware(report: CostReport, hardware: HardwareLike | Iterable[HardwareLike]) -> CostReport:
    """The report with hardware cost models added: one or several names, TOML files or functions.

    A machine that the report has already, or that is given twice, counts once.

    Raises:
        InputError: Two different models of one name, or as of `slimbit.measure.hardware.load_hardware` and
            `hardware_cost`.
    """
    several = isinstance(hardware, Iterable) and not isinstance(hardware, str | PathLike)
    models: Iterable[HardwareLike] = hardware if several else [hardware]  # type: ignore[assignment,list-item] # told apart above
    costs = dict(report.hardware)
    for model in models:
        entry = hardware_cost(load_hardware(model), report.layers)
        there = costs.setdefault(entry.model, entry)
        if (there.unit, there.layers) != (entry.unit, entry.layers):
            given = f" of {fspath(model)}" if isinstance(model, str | PathLike) else ""
            raise InputError(
                f"names of different hardware models must differ, got {entry.model!r}{given} at {entry.total:g} "
                f"{entry.unit} beside another {entry.model!r} at {there.total:g} {there.unit}: give one another name"
            )
    return replace(report, hardware=costs)


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the cost of a layer is made of, whether its weights are float, rounded or stored as integers.

    Attributes:
        sums: Sums over the levels.
        alive: Sums whose zeros are pruned weights, so that whole filters and inputs of them are gone; None = a zero
            is a weight like any other.
    """

    sums: LevelSums
    alive: LevelSums | None
    grid: str
    filter_bits: Tensor
    activation_bits: int
    declared_bits: int = 0
    steps: Tensor | None = None
    signal_to_noise: float | None = None
    nonzero_weights: int | None = None


def _layer_cost(
    layer: LayerSpec, weight: Tensor | LayerLevels, counting: CostConfig, keep: Tensor | None, declared: int | None
) -> LayerCost:
    if isinstance(weight, LayerLevels):
        facts = _stored_facts(layer, weight, counting)
    elif counting.bits is counting.steps is None:
        facts = _float_facts(layer, weight, keep)
    else:
        facts = _rounded_facts(layer, weight, counting, keep)
    activation_bits = counting.activation_bits or declared or facts.activation_bits
    return _record(layer, replace(facts, activation_bits=activation_bits), counting.per)


def _stored_facts(layer: LayerSpec, stored: LayerLevels, counting: CostConfig) -> _Facts:
    if counting.bits is not None or counting.steps is not None:
        raise InputError(f"bits must not be given for weights that are integers already, got {layer.name}")
    sums = level_sums(stored.levels, counting.formula, width=stored.bits)
    return _Facts(
        sums=sums,
        # zeros of ours are pruned weights; those of a file, which declares a width, are weights like any other
        alive=None if stored.bits else sums,
        grid=stored.grid,
        filter_bits=code_bits(sums, stored.grid, counting.formula, groups=layer.groups, width=stored.bits),
        activation_bits=QUANTIZED_ACTIVATION_BITS,
        declared_bits=stored.bits,
        steps=stored.steps,
        signal_to_noise=stored.signal_to_noise,
    )


def _float_facts(layer: LayerSpec, weight: Tensor, keep: Tensor | None) -> _Facts:
    """A float that happens to be 0 is stored and multiplied; only a mask says that a weight is pruned."""
    _refuse_unusable(layer, weight)
    sums = level_sums(weight != 0 if keep is None else (weight != 0) & keep)
    alive = None if keep is None else level_sums(keep)
    width = torch.finfo(weight.dtype).bits
    return _Facts(
        sums=replace(sums, bits=sums.nonzero * width),
        alive=alive,
        grid=str(weight.dtype).removeprefix("torch."),
        filter_bits=(torch.ones_like(sums.peak) if alive is None else alive.peak).int() * width,
        activation_bits=FLOAT_ACTIVATION_BITS,
    )


def _rounded_facts(layer: LayerSpec, weight: Tensor, counting: CostConfig, keep: Tensor | None) -> _Facts:
    _refuse_unusable(layer, weight)
    weight = weight if weight.dtype in {torch.float32, torch.float64} else weight.float()
    step, limit = step_of(layer, weight if keep is None else weight * keep, counting)
    sums = quantized_sums(weight, step, LevelFormat(counting.grid, limit, counting.formula), keep=keep)
    return _Facts(
        sums=sums,
        alive=sums,
        grid=counting.grid,
        filter_bits=code_bits(sums, counting.grid, counting.formula, groups=layer.groups),
        activation_bits=QUANTIZED_ACTIVATION_BITS,
        steps=step,
        signal_to_noise=sums.signal / sums.error if sums.error > 0 else None,
        nonzero_weights=sums.nonzero_weights,
    )


def _record(layer: LayerSpec, facts: _Facts, per: Per) -> LayerCost:
    sums, c = facts.sums, layer.multiplicity(per)
    weights_left = _weights_left(layer, facts.alive, sums.peak.device)
    widest = max(facts.declared_bits, int(facts.filter_bits.max()))
    filterwise = int((weights_left * facts.filter_bits).sum())
    macs = c * int(weights_left.sum())
    owned = 0 if layer.shared_with else 1
    has_levels = facts.steps is not None
    ratio, nonzero = facts.signal_to_noise, facts.nonzero_weights
    uniform = c * nonzero / 12 if nonzero is not None and facts.grid in UNIFORM_ERROR else None
    estimate, plus = (None, None) if uniform is None or ratio is None else (uniform * ratio, uniform * (ratio + 1))
    return LayerCost(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        filters=layer.filters,
        positions=c,
        weights=layer.weights,
        grid=facts.grid,
        weight_bits=widest,
        activation_bits=facts.activation_bits,
        steps=() if facts.steps is None else tuple(facts.steps.reshape(-1).tolist()),
        filter_bits=tuple(facts.filter_bits.tolist()),
        parameters=owned * layer.weights + layer.bias_parameters,
        macs=macs,
        nonzero_macs=c * sums.nonzero,
        esn_analog=c * sums.squares if has_levels else None,
        esn_digital=c * sums.bits,
        esn_filterwise=c * filterwise,
        esn_analog_class_a=macs * float(sums.peak.max()) ** 2 if has_levels else None,
        bit_operations=macs * widest * facts.activation_bits,
        weight_bytes=owned * filterwise / 8,
        mean_bits=sums.bits / layer.weights,
        signal_to_noise=ratio,
        esn_analog_estimate=estimate,
        esn_analog_estimate_plus=plus,
    )


def _weights_left(layer: LayerSpec, alive: LevelSums | None, device: torch.device) -> Tensor:
    """Weights of each filter once whole pruned filters and the inputs that no filter of its group reads are gone."""
    kernel = math.prod(layer.shape[2:])
    inputs = layer.shape[1] if len(layer.shape) > 1 else 1
    if alive is None or alive.reads is None:
        return torch.full((layer.filters,), inputs * kernel, device=device)
    return inputs_read(alive, layer.groups).sum(dim=1) * kernel * (alive.peak > 0)


def _total(layers: Sequence[LayerCost], survey: Survey) -> TotalCost:
    with_levels = [layer for layer in layers if layer.has_levels]

    def exact(metric: str) -> Any:
        values = [layer[metric] for layer in (with_levels if metric in LEVEL_METRICS else layers)]
        if (metric in LEVEL_METRICS and not values) or any(value is None for value in values):
            return None
        whole = all(isinstance(value, int) for value in values)
        return sum(values) if whole else math.fsum(values)  # type: ignore[arg-type] # no None is left

    others = sum(other.elements for other in survey.spec.other_parameters)
    owned = [(c, s) for c, s in zip(layers, survey.spec.layers, strict=True) if not s.shared_with]
    weights = sum(layer.weights for layer, _ in owned)
    return TotalCost(
        layers=len(layers),
        convolution_filters=sum(spec.filters for _, spec in owned if spec.is_convolution),
        **{metric: exact(metric) for metric in _SUMMED},
        parameters=exact("parameters") + others,
        mean_bits=math.fsum(layer.mean_bits * layer.weights for layer, _ in owned) / max(1, weights),
    )


_SUMMED = (
    "macs",
    "nonzero_macs",
    "esn_analog",
    "esn_digital",
    "esn_filterwise",
    "esn_analog_class_a",
    "bit_operations",
    "weight_bytes",
    "esn_analog_estimate",
    "esn_analog_estimate_plus",
)


def _notes(layers: Sequence[LayerCost]) -> Iterator[str]:
    if not layers:
        yield "No layer is counted: what the network does is listed, or named in a note, as not counted."
    elif all(layer.nonzero_macs == 0 and layer.mean_bits == 0 for layer in layers):
        yield "Every weight is 0: nothing is left to cost."
    floats = [layer.name for layer in layers if not layer.has_levels]
    if 0 < len(floats) < len(layers):
        yield (
            f"esn_analog and esn_analog_class_a are sums over {len(layers) - len(floats)} of {len(layers)} layers: the "
            f"others are float and have no levels (first: {floats[0]})."
        )
    estimated = [layer for layer in layers if layer.esn_analog_estimate is not None]
    off = [layer.name for layer in estimated if (layer.signal_to_noise or 0.0) < RELIABLE_SIGNAL_TO_NOISE]
    if off:
        yield (
            f"Eq. (4) estimates esn_analog from S/N and is unreliable below S/N {RELIABLE_SIGNAL_TO_NOISE:g}, "
            f"which is so in {len(off)} of {len(layers)} layers (first: {off[0]}): quote the exact esn_analog."
        )


def _refuse_unusable(layer: LayerSpec, weight: Tensor) -> None:
    if weight.is_complex():
        kind = str(weight.dtype).removeprefix("torch.")
        raise InputError(f"weights of layer {layer.name} must be real, got {kind}")
    if weight.is_meta:
        raise InputError(f"weights of layer {layer.name} must have values, got a network on the meta device")
    if not weight.numel():
        raise InputError(f"weights of layer {layer.name} must hold numbers, got the shape {tuple(weight.shape)}")
    low, high = weight.aminmax()
    if not bool(low.isfinite() & high.isfinite()):
        bad = int((~weight.isfinite()).sum())
        raise InputError(f"weights of layer {layer.name} must be finite, got {bad} that are NaN or infinite")
