"""From weights to levels: nearest, rate-aware, with error compensation; and the scale that fits the levels best."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from slimbit.numerics.energy import level_bits
from slimbit.numerics.grid import Grid, to_levels, to_weights
from slimbit.records.errors import InputError

LevelMetric = Literal["esn_analog", "esn_digital"]
LEVEL_METRICS: tuple[LevelMetric, ...] = get_args(LevelMetric)


@dataclass(frozen=True)
class Quantizer:
    """How one layer is rounded.

    Attributes:
        step: Positive; scalar, or shape ``(filters,)``.
        grid: Grid.
        limit: Largest level; None, a number, or shape ``(filters,)``.
        rate: Weight of the cost, in squared weights; scalar or ``(filters,)``. 0 = nearest rounding.
        metric: Cost ``phi`` of a level: squared level, or bits.
    """

    step: Tensor
    grid: Grid = "midrise"
    limit: float | Tensor | None = None
    rate: float | Tensor = 0.0
    metric: LevelMetric = "esn_analog"

    @property
    def rate_aware(self) -> bool:
        """Whether cost takes part in rounding."""
        return isinstance(self.rate, Tensor) or self.rate > 0


def level_cost(levels: Tensor, metric: LevelMetric) -> Tensor:
    """``phi(q)``: what one level costs per position, ``q^2`` or ``bits(q)``.

    >>> level_cost(torch.tensor([0, 1.5]), "esn_analog").tolist()
    [0.0, 2.25]
    """
    return levels.square() if metric == "esn_analog" else level_bits(levels).to(levels.dtype)


def round_levels(weights: Tensor, quantizer: Quantizer, *, importance: float = 1.0) -> Tensor:
    """Levels of weights one by one: nearest, or minimizing ``importance (w - step q)^2 + rate phi(q)``.

    Args:
        weights: Filters first.
        quantizer: Step, grid, limit, and the weight of the cost.
        importance: Weight of the squared error.

    >>> round_levels(torch.tensor([0.6, 1.4]), Quantizer(torch.tensor(1.0), "midtread", rate=0.2)).tolist()
    [0.0, 1.0]
    """
    nearest = to_levels(weights, quantizer.step, grid=quantizer.grid, limit=quantizer.limit)
    if not quantizer.rate_aware:
        return nearest
    levels = _candidates(nearest, quantizer.grid)
    step, rate = (_column(v, nearest) for v in (quantizer.step, quantizer.rate))
    loss = (weights - levels * step).square() * importance + rate * level_cost(levels, quantizer.metric)
    return levels.gather(0, loss.argmin(0, keepdim=True)).squeeze(0)


def _candidates(nearest: Tensor, grid: Grid) -> Tensor:
    """Levels worth trying, stacked first: cheaper ones between the nearest level and zero.

    The nearest, the next two towards zero, the largest level of one bit less, the smallest, and zero where the
    grid has it.
    """
    size, sign = nearest.abs(), nearest.sign()
    least = 0.5 if grid == "midrise" else 0.0
    offset = 1.0 if grid == "midtread" else 0.5
    narrower = torch.exp2(level_bits(nearest) - (1.0 if grid == "midtread" else 2.0)) - offset
    narrower = torch.minimum(narrower.to(size.dtype), size)
    smallest = torch.minimum(size, torch.full_like(size, offset))
    sizes = [size, size - 1, size - 2, narrower, smallest, torch.full_like(size, least)]
    return torch.stack(sizes).clamp_(min=least) * sign


def _column(value: float | Tensor, like: Tensor) -> float | Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1)) if isinstance(value, Tensor) and value.ndim else value


def compensate(weights: Tensor, moment: Tensor, quantizer: Quantizer) -> Tensor:
    """Levels whose *outputs* are close: rounding with error compensation (the GPTQ/OBQ family).

    Columns are rounded one by one; each error is spread over the columns not yet done along the rows of the upper
    Cholesky factor ``U`` of ``H^-1 = U^T U``: ``w[j+1:] -= (w_j - step q_j) / U_jj * U[j, j+1:]``, which minimizes
    ``sum_f (w_f - step q_f)^T H (w_f - step q_f)`` over them (Frantar et al. 2023, arXiv 2210.17323). Columns go
    from the strongest input to the weakest.

    Args:
        weights: ``(filters, ...)``, features in the order of ``H``; groups of filters are consecutive.
        moment: ``H`` of each group, damped (see `damped`), ``(groups, features, features)``.
        quantizer: Step, grid, limit; the rate is meant for ``H`` scaled to a mean diagonal of 1.

    Returns:
        Levels, shape of ``weights``.
    """
    groups, features, _ = moment.shape
    work = weights.reshape(groups, -1, features).to(moment.dtype).clone()
    if weights[0].numel() != features or len(weights) % groups:
        raise InputError(f"second moments must match the weights, got {tuple(moment.shape)} for {tuple(weights.shape)}")
    order = moment.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    work = work.gather(2, order[:, None, :].expand_as(work))
    upper = _inverse_factor(moment, order)
    levels = torch.empty_like(work)
    for j in range(features):
        pivot = upper[:, j, j]
        column = work[:, :, j]
        q = _round_column(column, pivot, quantizer)
        levels[:, :, j] = q
        error = (column - to_weights(q.reshape(-1), quantizer.step).reshape(q.shape)) / pivot[:, None]
        work[:, :, j + 1 :] -= error.unsqueeze(2) * upper[:, None, j, j + 1 :]
    back = order.argsort(dim=1)
    return levels.gather(2, back[:, None, :].expand_as(levels)).reshape(weights.shape).to(weights.dtype)


def damped(moment: Tensor, share: float = 0.01) -> Tensor:
    """``H`` plus ``share`` of its mean diagonal, scaled to a mean diagonal of 1: positive definite.

    A group whose inputs are all zero becomes the identity, so its weights are rounded plainly.

    >>> damped(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), 0.0)[0].tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    scale = moment.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    silent = scale <= 0
    eye = torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
    return torch.where(silent, eye, moment / torch.where(silent, 1.0, scale)) + share * eye


def weighted_error(weights: Tensor, approximation: Tensor, moment: Tensor) -> Tensor:
    """``(w_f - v_f)^T H (w_f - v_f)`` of each filter, shape ``(filters,)``.

    >>> weighted_error(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2), torch.eye(2)[None]).tolist()
    [2.0]
    """
    groups, features, _ = moment.shape
    delta = (weights - approximation).reshape(groups, -1, features).to(moment.dtype)
    return (torch.bmm(delta, moment) * delta).sum(dim=2).reshape(-1)


def refit_step(weights: Tensor, levels: Tensor, moment: Tensor) -> Tensor:
    """The scale of each filter that fits its levels best, ``w^T H q / q^T H q``, shape ``(filters,)``.

    A filter whose levels are all zero gets 0, one that would turn negative too: the caller keeps the old step.
    """
    groups, features, _ = moment.shape
    w, q = (t.reshape(groups, -1, features).to(moment.dtype) for t in (weights, levels))
    hq = torch.bmm(q, moment)
    signal, energy = (hq * w).sum(2).reshape(-1), (hq * q).sum(2).reshape(-1)
    return torch.where(energy > 0, signal / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0.0).clamp(min=0)


def _round_column(column: Tensor, pivot: Tensor, quantizer: Quantizer) -> Tensor:
    """One column of every group; an error on it costs ``1 / pivot^2``, what compensation cannot repair."""
    flat = column.reshape(-1)
    if quantizer.rate_aware:
        weight = pivot.square()[:, None].expand_as(column).reshape(-1) * quantizer.rate
        quantizer = Quantizer(quantizer.step, quantizer.grid, quantizer.limit, weight, quantizer.metric)
    return round_levels(flat, quantizer).reshape(column.shape)


def _inverse_factor(moment: Tensor, order: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of ``H`` with rows and columns in ``order``."""
    rows = order[:, :, None].expand_as(moment)
    columns = order[:, None, :].expand_as(moment)
    ordered = moment.gather(1, rows).gather(2, columns).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.to(moment.dtype)
