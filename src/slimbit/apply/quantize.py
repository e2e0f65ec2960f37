"""One layer: from its float weight, its inputs' second moments and its plan to levels."""

from dataclasses import replace

import torch
from torch import Tensor

from slimbit.numerics.aciq import norm_ratio
from slimbit.numerics.grid import to_weights
from slimbit.numerics.levels import LayerLevels
from slimbit.numerics.moments import PatchMoments
from slimbit.numerics.rounding import (
    Quantizer,
    cholesky,
    compensate,
    coordinate_descent,
    damped,
    refit_step,
    round_levels,
    weighted_error,
)
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan, LayerPlan


def quantizer_of(plan: LayerPlan, metric: str | None, weights: Tensor) -> Quantizer:
    """The plan's numbers as tensors beside the weights.

    Raises:
        InputError: Neither one number nor one per filter.
    """

    def tensor(values: tuple[float, ...], what: str) -> Tensor:
        if len(values) not in (1, len(weights)):
            raise InputError(f"{what} of layer {plan.name!r} must be 1 or {len(weights)} numbers, got {len(values)}")
        numbers = weights.new_tensor(values)
        return numbers[0] if len(values) == 1 else numbers

    return Quantizer(
        tensor(plan.steps, "steps"),
        plan.grid,
        tensor(plan.limits, "limits") if plan.limits else None,
        tensor(plan.rate, "rate") if plan.rate else 0.0,
        "esn_analog" if metric == "esn_analog" else "esn_digital",
    )


def plain_levels(weights: Tensor, layer: LayerPlan, *, mask: Tensor | None = None) -> LayerLevels:
    """Levels and step of one layer by nearest rounding alone: what a plan costs, nearly, before any data is seen.

    Args:
        weights: Float, filters first.
        layer: Its entry; a rate takes no part.
        mask: False where a weight was pruned and stays zero; None = none was.
    """
    quantizer = replace(quantizer_of(replace(layer, rate=()), None, weights), mask=mask)
    return LayerLevels(_cut(round_levels(weights, quantizer), layer), quantizer.step, layer.grid)


def quantize_layer(
    weights: Tensor,
    layer: LayerPlan,
    plan: CompressionPlan,
    *,
    moments: PatchMoments | None = None,
    mask: Tensor | None = None,
) -> LayerLevels:
    """Levels and step of one layer, on the plan's grid.

    Args:
        weights: Float, filters first.
        layer: Its entry.
        plan: The plan it belongs to (rounding, compensation, refit, metric).
        moments: What the layer reads; None = plain rounding, as where its squares are beyond all numbers.
        mask: False where a weight was pruned and stays zero; None = none was.
    """
    quantizer = replace(quantizer_of(layer, None if plan.price is None else plan.price.metric, weights), mask=mask)
    if moments is not None and not _are_finite(moments):
        moments = None
    if plan.config.rounding == "nearest":
        quantizer = replace(quantizer, rate=0.0)
    target = weights
    if moments is None:
        levels, h = round_levels(weights, quantizer), None
    else:
        h = damped(moments.inputs)
        if moments.outputs is not None:
            target = fit_to_outputs(weights, moments)
        levels = compensate(target, h, quantizer) if plan.config.compensation else round_levels(target, quantizer)
        if plan.config.compensation and SWEEPS:
            levels = coordinate_descent(target, levels, h, quantizer, sweeps=SWEEPS)
    step = quantizer.step
    if plan.config.refit:
        h = damped(torch.eye(weights[0].numel())[None]) if h is None else h
        step = _refitted(target, levels, h, step)
    levels = _cut(levels, layer)
    if plan.config.bias_correction:
        step = step * norm_ratio(weights, to_weights(levels, step))
    return _result(weights, levels, step, h, layer)


def mean_shift(weights: Tensor, found: LayerLevels, layer: LayerPlan) -> Tensor:
    """What bias correction adds to every weight of a filter, ``xi_f mu_f``: levels have no room for it.

    ``xi_f (Wq_f + mu_f)`` of `slimbit.numerics.aciq.bias_corrected` is ``step_f q_f + xi_f mu_f``, with
    ``step_f = xi_f`` times the planned one.

    Args:
        weights: Float, filters first.
        found: From `quantize_layer` with bias correction.
        layer: The layer's plan.

    Returns:
        Shape ``(filters,)``.
    """
    planned = quantizer_of(layer, None, weights).step
    means = (x.double().flatten(1).mean(dim=1) for x in (weights, to_weights(found.levels, planned)))
    before, after = means
    return (found.steps / planned).double() * (before - after)


def _are_finite(moments: PatchMoments) -> bool:
    parts = (moments.inputs,) if moments.outputs is None else (moments.inputs, moments.outputs)
    return all(bool(part.isfinite().all()) for part in parts)


def fit_to_outputs(weights: Tensor, moments: PatchMoments) -> Tensor:
    """The float weight that on compressed inputs comes closest to the float outputs, drawn towards ``weights``.

    ``W* = W + (C - W H) (H + eps I)^-1`` with ``C = mean y x^T``.
    """
    assert moments.outputs is not None
    h = moments.inputs
    groups, features, _ = h.shape
    w = weights.reshape(groups, -1, features).to(h.dtype)
    scale = h.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None]
    ridge = h.clone()
    ridge.diagonal(dim1=1, dim2=2).add_(torch.where(scale > 0, RIDGE * scale, 1.0))
    residual = moments.outputs - torch.bmm(w, h)
    shift = torch.cholesky_solve(residual.transpose(1, 2), cholesky(ridge)).transpose(1, 2)
    return (w + shift).reshape(weights.shape).to(weights.dtype)


SWEEPS = 2
"""Turns of coordinate descent after compensation."""

RIDGE = 0.1
"""Share of the mean diagonal that ties the fitted weight to the float one."""


def _refitted(target: Tensor, levels: Tensor, h: Tensor, step: Tensor) -> Tensor:
    fitted = refit_step(target, levels, h).to(step.dtype)
    return torch.where(fitted > 0, fitted, step)


def _cut(levels: Tensor, layer: LayerPlan) -> Tensor:
    if layer.kept is None:
        return levels
    if layer.kept and layer.kept[-1] >= len(levels):
        raise InputError(f"kept filters of layer {layer.name!r} must be below {len(levels)}, got {layer.kept[-1]}")
    mask = torch.zeros(len(levels), dtype=torch.bool, device=levels.device)
    mask[list(layer.kept)] = True
    return levels.masked_fill(~mask.reshape(-1, *[1] * (levels.ndim - 1)), 0.0)


def _result(weights: Tensor, levels: Tensor, step: Tensor, h: Tensor | None, layer: LayerPlan) -> LayerLevels:
    value = to_weights(levels, step)
    rows = slice(None) if layer.kept is None else list(layer.kept)
    noise = float((weights - value)[rows].double().square().sum())
    signal = float(weights[rows].double().square().sum())
    error = None
    if h is not None:
        whole = float(weighted_error(weights, torch.zeros_like(weights), h).sum())
        error = float(weighted_error(weights, value, h).sum()) / whole if whole > 0 else 0.0
    ratio = signal / noise if noise > 0 else float("inf")
    return LayerLevels(levels, step, layer.grid, signal_to_noise=ratio, error=error)
