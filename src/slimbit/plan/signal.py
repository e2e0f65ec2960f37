"""Policy ``signal``: the steps that training itself paid for (Prune or quantize? (2019), Appendix B; reconstructed)."""

import math
from dataclasses import replace

from torch import Tensor

from slimbit.numerics.steps import signal_step
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import grid_of, layer_plan, make_plan
from slimbit.records.config import PAPER, QuantConfig
from slimbit.records.errors import InputError, closest
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Epoch
from slimbit.records.signal import EpochSignal, LayerSignal


def step_by_signal(inputs: PlanInputs, epoch: EpochSignal, config: QuantConfig = PAPER) -> CompressionPlan:
    """Steps whose levels cost, layer by layer, what the weights' walk in an epoch was worth: policy ``signal``.

    ``sum q^2 = ||W||_0 S/N / 12`` per layer: its ESN_a by the paper's Eq. (4) over its positions, with the
    signal-to-noise ratio of Eq. (5). See `slimbit.numerics.steps.signal_step` for how exact that is. With
    compensation the levels, and with them the sum, become a little different from those that the step is chosen by.

    A layer whose target no step reaches is clamped and named in ``plan.clamped``. On the grid ``midrise`` a weight
    costs at least a quarter, so that an S/N below 3 is out of reach; weights that did not move ask for infinitely
    fine steps.

    Args:
        inputs: Layers and weights.
        epoch: Signal and noise of one training epoch.
        config: Grid, layers to skip, and how the plan will be carried out; one step per layer. Default: the paper's.

    Raises:
        InputError: Records of another network, a layer without one, or one step per filter asked for.
    """
    config = config.for_metric(None)
    check_signal(inputs.spec, config, epoch)
    clamped = []

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        alive = weights[weights.flatten(1).any(1)]  # a filter that is all zero stays so, and costs nothing
        step, reached = signal_step(alive, target_of(epoch.layer(layer.name)), grid=grid_of(config))
        clamped.extend([] if reached else [layer.name])
        return layer_plan(layer, weights, [step], config)

    plan = make_plan("signal", inputs, steps, config, Epoch(epoch.epoch))
    return replace(plan, clamped=tuple(clamped))


def target_of(layer: LayerSignal) -> float:
    """``||W||_0 S/N / 12``: ESN_a by the paper's Eq. (4) for one position.

    >>> powers = {"filter_signal": (8.0,), "filter_noise": (1.0,)}
    >>> target_of(LayerSignal(name="a", epoch=1, nonzero_weights=6, positions=9, **powers))
    4.0
    """
    return layer.nonzero_weights * layer.signal_to_noise / 12 if layer.nonzero_weights else 0.0


def check_signal(spec: NetworkSpec, config: QuantConfig, epoch: EpochSignal) -> None:
    """Raise `InputError` unless an epoch's records are of this network and cover what is to be quantized."""
    if not isinstance(epoch, EpochSignal):
        raise InputError(f"signal must hold EpochSignal records, got {type(epoch).__name__}")
    if config.granularity != "layer":
        raise InputError(f"granularity must be layer for policy signal, got {config.granularity}")
    layers = {layer.name: layer for layer in spec.layers}
    recorded = {record.name for record in epoch.layers}
    where = f"signal of epoch {epoch.epoch}"
    if len(recorded) < len(epoch.layers):
        raise InputError(
            f"{where} must name each layer once, got {len(epoch.layers)} records of {len(recorded)} layers"
        )
    for record in epoch.layers:
        if record.name not in layers:
            hint = closest(record.name, tuple(layers))
            raise InputError(f"{where} must be of layers of {spec.name}, got {record.name!r}{hint}")
        _check_record(layers[record.name], record, where)
    needed = [x.name for x in spec.layers if not x.shared_with and x.name not in config.skip]
    missing = [name for name in needed if name not in recorded]
    if missing:
        raise InputError(f"{where} must cover every layer to quantize, got none for {', '.join(missing)}")


def _check_record(layer: LayerSpec, record: LayerSignal, where: str) -> None:
    what = f"{where}, layer {layer.name!r},"
    for values in (record.filter_signal, record.filter_noise):
        if len(values) != layer.filters:
            raise InputError(f"{what} must have {layer.filters} filters, got {len(values)}")
        wrong = [value for value in values if not (math.isfinite(value) and value >= 0)]
        if wrong:
            raise InputError(f"{what} must have finite powers from 0, got {wrong[0]}")
    if not 0 <= record.nonzero_weights <= layer.weights:
        raise InputError(f"{what} must have at most {layer.weights} non-zero weights, got {record.nonzero_weights}")
