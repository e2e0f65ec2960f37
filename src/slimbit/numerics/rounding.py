"""From weights to levels: nearest, rate-aware, with error compensation; and the scale that fits the levels best."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from slimbit.numerics.energy import level_bits
from slimbit.numerics.grid import along_filters, largest_level, nearest_levels, to_levels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError

LevelMetric = Literal["esn_analog", "esn_digital"]


@dataclass(frozen=True)
class Quantizer:
    """How one layer is rounded.

    Attributes:
        step: Positive; scalar, or shape ``(filters,)``.
        grid: Grid.
        limit: Largest level; None, a number, or shape ``(filters,)``.
        rate: Weight of the cost, in squared weights; scalar or ``(filters,)``. 0 = nearest rounding.
        metric: Cost ``phi`` of a level: squared level, or bits.
        mask: Shape of the weights, False where a weight was pruned: its level is 0 on every grid. None = none was.
    """

    step: Tensor
    grid: Grid = "midrise"
    limit: float | Tensor | None = None
    rate: float | Tensor = 0.0
    metric: LevelMetric = "esn_analog"
    mask: Tensor | None = None

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


def round_levels(weights: Tensor, quantizer: Quantizer) -> Tensor:
    """Levels of weights one by one: nearest, or minimizing ``(w - step q)^2 + rate phi(q)`` exactly.

    For ``phi = q^2`` the loss is ``(step^2 + rate) (q - w step / (step^2 + rate))^2`` up to a constant: the nearest
    level at a larger step. For bits, only the nearest level and the largest level of every smaller width can win.

    Args:
        weights: Filters first.
        quantizer: Step, grid, limit, and the weight of the cost.

    >>> round_levels(torch.tensor([0.6, 1.4]), Quantizer(torch.tensor(1.0), "midtread", rate=0.2)).tolist()
    [0.0, 1.0]
    """
    step = quantizer.step
    if quantizer.rate_aware and quantizer.metric == "esn_analog":
        step = step + quantizer.rate / step
    nearest = to_levels(weights, step, grid=quantizer.grid, limit=quantizer.limit)
    if quantizer.mask is not None:
        nearest = nearest * quantizer.mask
    if not quantizer.rate_aware or quantizer.metric == "esn_analog":
        return nearest
    return _fewer_bits(weights, nearest, quantizer)


def _fewer_bits(weights: Tensor, nearest: Tensor, quantizer: Quantizer) -> Tensor:
    step = along_filters(quantizer.step, weights)
    rate = along_filters(quantizer.rate, weights) if isinstance(quantizer.rate, Tensor) else quantizer.rate
    size, sign = nearest.abs(), nearest.sign()
    best, least = nearest, (weights - nearest * step).square() + rate * level_bits(nearest)
    for bits in range(1 if quantizer.grid == "midrise" else 0, int(level_bits(nearest).max())):
        trial = size.clamp(max=largest_level(bits, quantizer.grid) if bits else 0.0) * sign
        loss = (weights - trial * step).square() + rate * level_bits(trial)
        best = torch.where(loss < least, trial, best)
        least = torch.minimum(loss, least)
    return best


BLOCK, STRIP = 128, 16
"""Columns that are worked on before what they do to all others is added in one product, and, within a block, before
what they do to the rest of it is: a strip of 2,048 filters in single precision stays in a core's cache."""
WORKED = torch.float32
"""Type in which columns are worked on, whatever that of ``H`` is, whose factors are computed in its own: decisions were
the same in float64 (benchmarks/RESULTS.md)."""


def compensate(weights: Tensor, moment: Tensor, quantizer: Quantizer) -> Tensor:
    """Levels whose *outputs* are close: rounding with error compensation (the GPTQ/OBQ family).

    Columns are rounded one by one, and each error is spread over the columns not yet done: with the unit upper factor
    of ``H = R D R^T``, column j is rounded at ``w_j + sum_{i<j} (w_i - step q_i) R_ij``. That is optimal brain
    quantization, ``w[j+1:] -= (w_j - step q_j) / U_jj * U[j, j+1:]`` with ``H^-1 = U^T U`` (Frantar et al. 2023,
    arXiv 2210.17323), without the inverse (Chee et al. 2023, arXiv 2307.13304, theorem 6): it minimizes
    ``sum_f (w_f - step q_f)^T H (w_f - step q_f)`` over the columns not yet done. Columns go from the strongest input
    to the weakest. Weights are in units of their steps meanwhile.

    Args:
        weights: ``(filters, ...)``, features in the order of ``H``; groups of filters are consecutive.
        moment: ``H`` of each group, damped (see `damped`), ``(groups, features, features)``.
        quantizer: Step, grid, limit. Cost takes no part here: a cheap first column would be paid by the later ones.

    Returns:
        Levels, shape of ``weights``.
    """
    groups, features, _ = moment.shape
    if weights[0].numel() != features or len(weights) % groups:
        raise InputError(f"second moments must match the weights, got {tuple(moment.shape)} for {tuple(weights.shape)}")
    order = column_order(moment)
    factor = _upper_factor(moment, order)
    feedback = (factor / factor.diagonal(dim1=1, dim2=2).unsqueeze(1)).to(WORKED)
    columns = order[:, :, None].expand(-1, -1, len(weights) // groups)
    work, kept = _by_column(weights, moment, quantizer)
    work = work.gather(1, columns)
    kept = None if kept is None else kept.gather(1, columns)
    limit = _by_group(quantizer.limit, groups)
    levels, errors = torch.empty_like(work), torch.empty_like(work)
    for start in range(0, features, BLOCK):
        end = min(start + BLOCK, features)
        block = work[:, start:end] + feedback[:, :start, start:end].transpose(1, 2) @ errors[:, :start]
        for first in range(start, end, STRIP):
            here = slice(first, min(first + STRIP, end))
            strip = block[:, first - start : here.stop - start]
            strip.baddbmm_(feedback[:, start:first, here].transpose(1, 2), errors[:, start:first])
            parts = (strip, feedback[:, here, here], work[:, here], levels[:, here], errors[:, here])
            at = (part.unbind(1) for part in parts)
            for j, (column, row, weight, level, error) in enumerate(zip(*at, strict=True), first):
                q = nearest_levels(column.clone(), grid=quantizer.grid, limit=limit)
                torch.sub(weight, level.copy_(q if kept is None else q * kept[:, j]), out=error)
                # columns that are done change, too, and are never read again
                strip.baddbmm_(row.unsqueeze(2), error.unsqueeze(1))
    levels = torch.empty_like(levels).scatter_(1, columns, levels)
    return levels.transpose(1, 2).reshape(weights.shape).to(weights.dtype)


def coordinate_descent(
    weights: Tensor, levels: Tensor, moment: Tensor, quantizer: Quantizer, *, sweeps: int = 2
) -> Tensor:
    """Levels improved by coordinate descent on ``(w_f - step q_f)^T H (w_f - step q_f) + rate sum phi(q)``.

    Column by column the best level is chosen with all others held, so the loss never grows. Compensation decides
    early columns before late ones are known; this gives them a second chance, and a place for the cost.

    Args:
        weights: ``(filters, ...)``.
        levels: Where to start, from `compensate`.
        moment: As in `compensate`.
        quantizer: Step, grid, limit, and the rate, meant for ``H`` scaled to a mean diagonal of 1.
        sweeps: How often every column has its turn.

    Returns:
        Levels, shape of ``weights``.
    """
    groups, features, _ = moment.shape
    work, kept = _by_column(weights, moment, quantizer)
    q = levels.reshape(groups, -1, features).transpose(1, 2).to(WORKED).clone(memory_format=torch.contiguous_format)
    strength = moment.diagonal(dim1=1, dim2=2).unsqueeze(2)
    # what a column gains by a step of its own: rows over their diagonal
    coupling = (moment / strength).to(WORKED)
    gains = torch.bmm(coupling, work - q)
    limit = _by_group(quantizer.limit, groups)
    for start in [*range(0, features, BLOCK)] * sweeps:
        end = min(start + BLOCK, features)
        moved = torch.empty_like(q[:, start:end])
        for first in range(start, end, STRIP):
            here, mine = slice(first, min(first + STRIP, end)), slice(first - start, min(first + STRIP, end) - start)
            strip = gains[:, here].clone()
            strip.baddbmm_(coupling[:, here, start:first], moved[:, : mine.start])
            local = coupling[:, here, here].transpose(1, 2)
            at = (part.unbind(1) for part in (moved[:, mine], strip, local, q[:, here], strength[:, here]))
            for j, (move, gain, row, level, weight) in enumerate(zip(*at, strict=True), first):
                if quantizer.rate_aware:
                    chosen = _weighed(level + gain, weight, quantizer)
                else:
                    chosen = nearest_levels(level + gain, grid=quantizer.grid, limit=limit)
                chosen = chosen if kept is None else chosen * kept[:, j]
                torch.sub(level, chosen, out=move)
                level.copy_(chosen)
                strip.baddbmm_(row.unsqueeze(2), move.unsqueeze(1))
        gains.baddbmm_(coupling[:, :, start:end], moved)
    return q.transpose(1, 2).reshape(weights.shape).to(weights.dtype)


def _by_column(weights: Tensor, moment: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor | None]:
    """Weights in units of their steps and their mask, ``(groups, features, filters)``: each column in one piece."""
    groups, features, _ = moment.shape
    step = quantizer.step.to(moment.dtype)
    work = weights.reshape(groups, -1, features).to(moment.dtype).transpose(1, 2)
    work = work / (step.reshape(groups, 1, -1) if step.ndim else step)
    mask = quantizer.mask
    kept = None if mask is None else mask.reshape(groups, -1, features).transpose(1, 2)
    return work.to(WORKED).contiguous(), kept


def _by_group(value: float | Tensor | None, groups: int) -> float | Tensor | None:
    """What each filter has, ``(groups, filters)``; one number stays one."""
    return value.reshape(groups, -1) if isinstance(value, Tensor) and value.ndim else value


def _weighed(values: Tensor, weight: Tensor, quantizer: Quantizer) -> Tensor:
    """Levels of one column of every group, in units of steps, where a squared error counts ``weight`` times."""
    flat, steps = values.reshape(-1), quantizer.step.expand(values.numel())
    rate = (quantizer.rate / (weight.expand_as(values).reshape(-1) * steps.to(weight.dtype).square())).to(values.dtype)
    one = replace(quantizer, step=torch.ones_like(flat[0]), rate=rate, mask=None)
    return round_levels(flat, one).reshape(values.shape)


def column_order(moment: Tensor) -> Tensor:
    """Columns of each group in the order in which compensation rounds them: strongest input first, weakest last.

    Args:
        moment: ``H`` of each group, ``(groups, features, features)``.

    Returns:
        Column numbers, ``(groups, features)``; equally strong columns keep their order. Those within 2^-16 of the
        mean strength are equal: all taps of a transposed convolution may read the same pixels, and the rounding of
        their sums must not decide.

    >>> column_order(torch.diag(torch.tensor([1.0, 3.0, 1.0]))[None]).tolist()
    [[1, 0, 2]]
    """
    strength = moment.diagonal(dim1=1, dim2=2)
    steps = (strength / strength.mean(dim=1, keepdim=True) * 2**16).round()
    return steps.argsort(dim=1, descending=True, stable=True)


def compensation_factor(moment: Tensor) -> float:
    """What compensation leaves of plain rounding's output error, for ``H`` with a mean diagonal of 1.

    Rounding column j costs ``D_jj`` of ``H = R D R^T`` with a unit upper ``R`` once the later columns have adapted,
    ``H_jj`` if they may not; so the share is ``mean_j D_jj``, which is 1 for independent inputs. It depends on the
    order of the columns, which is that of `compensate`: `column_order`.

    >>> compensation_factor(torch.eye(3)[None])
    1.0
    """
    return float(_upper_factor(moment, column_order(moment)).diagonal(dim1=1, dim2=2).double().square().mean())


def damped(moment: Tensor, share: float = 0.01) -> Tensor:
    """``H`` plus ``share`` of its mean diagonal, scaled to a mean diagonal of 1: positive definite.

    A group whose inputs are all zero, or too large to be squared, becomes the identity, so its
    weights are rounded plainly.

    >>> damped(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), 0.0)[0].tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    scale = moment.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    silent = ~((scale > 0) & scale.isfinite())
    found = (moment / torch.where(silent, 1.0, scale)).masked_fill_(silent, 0.0)
    found.diagonal(dim1=1, dim2=2).add_(silent[:, :, 0] + share)
    return found


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


def _upper_factor(moment: Tensor, order: Tensor) -> Tensor:
    """Upper ``V`` with ``H = V V^T``, rows and columns of ``H`` in ``order``: the Cholesky factor from the end."""
    groups = torch.arange(len(moment), device=moment.device)[:, None, None]
    back = order.flip(1)
    return cholesky(moment[groups, back[:, :, None], back[:, None, :]]).flip(1, 2)


JITTER = (1e-6, 1e-4, 1e-2, 1.0)
"""Shares of the mean diagonal that are added in turn to a matrix that is not quite positive definite."""


def cholesky(matrices: Tensor, *, upper: bool = False) -> Tensor:
    """Cholesky factors that always exist: what rounding made indefinite gets a growing share of its mean diagonal.

    What fails in float32 is tried in float64 first. A matrix that is beyond that (infinite, or all zero) counts as the
    identity.

    Args:
        matrices: Symmetric, ``(groups, features, features)``.
        upper: Whether to give upper factors.

    >>> cholesky(torch.tensor([[[4.0]], [[0.0]], [[float("nan")]]])).flatten().tolist()
    [2.0, 1.0, 1.0]
    """
    factors: Tensor
    factors, failed = torch.linalg.cholesky_ex(matrices, upper=upper)
    if matrices.dtype == torch.float32 and bool(failed.any()):
        return cholesky(matrices.double(), upper=upper).to(matrices.dtype)
    eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    scale = matrices.diagonal(dim1=1, dim2=2).abs().mean(dim=1)[:, None, None]
    for share in JITTER:
        bad = (failed != 0)[:, None, None]
        if not bool(bad.any()):
            return factors
        trial, still = torch.linalg.cholesky_ex(matrices + share * scale * eye, upper=upper)
        factors, failed = torch.where(bad, trial, factors), torch.where(bad.flatten(), still, failed)
    whole: Tensor = torch.where((failed != 0)[:, None, None], eye, factors)
    return whole
