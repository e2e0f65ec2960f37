"""Allocation formulas: from one price to a step for each layer. Derived, see docs/glossary.md.

Loss is second order: ``1/2 s ||w - step q||^2`` for a layer of sensitivity ``s`` (mean Fisher diagonal), plus
``price * c * sum phi(q)``, where ``c`` is the number of positions. Setting the derivative by the step to zero gives
the closed forms; they hold while the error is uniform in a step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimbit.numerics.grid import along_filters, filter_chunks, largest_level, to_levels
from slimbit.records.config import Grid


def analog_step(price: float, *, positions: float, variance: float, sensitivity: float) -> float:
    """``step^4 = 24 * price * c * sigma^2 / s``: optimal for ESN_a.

    Cost is ``c (sigma^2 / step^2 + const)`` per weight, error ``step^2 / 12``.

    >>> round(analog_step(1e-3, positions=10, variance=0.04, sensitivity=2.0), 6)
    0.263215
    """
    return math.sqrt(math.sqrt(24.0 * price * positions * variance / sensitivity))


def digital_step(price: float, *, positions: float, sensitivity: float) -> float:
    """``step^2 = 12 * price * c / (s ln 2)``: optimal for ESN_d (reverse water-filling).

    Cost is ``c (const - log2 step)`` per weight, error ``step^2 / 12``.

    >>> round(digital_step(1e-4, positions=10, sensitivity=2.0), 6)
    0.093039
    """
    return math.sqrt(12.0 * price * positions / (sensitivity * math.log(2.0)))


@dataclass(frozen=True)
class WidthTable:
    """Best step of each filter at each bit width 0, 1, ..., and the squared error it leaves.

    Attributes:
        error: ``||w_f - step q||^2``, float64, shape ``(filters, widths)``; width 0 is ``||w_f||^2``.
        step: Shape ``(filters, widths)``; width 0 repeats width 1.
    """

    error: Tensor
    step: Tensor


MAX_WIDTH = 8
_LADDER = 48


def width_table(weights: Tensor, *, grid: Grid = "midrise", widths: int = MAX_WIDTH) -> WidthTable:
    """The error-minimizing step of each filter at every width, by search over a geometric ladder of steps.

    For width b the candidates run from ``max|w| / limit`` (nothing clipped) downwards by 4 % each.

    Args:
        weights: Filters first.
        grid: ``midrise`` or ``midtread``; a zero beside mid-rise would be an uncounted code.
        widths: Largest width.

    >>> table = width_table(torch.tensor([[1.0, -1.0]]), widths=2)
    >>> table.error.tolist()
    [[2.0, 0.0, 0.0]]
    """
    rows = weights.reshape(len(weights), -1)
    parts = [_width_table(rows[part], grid, widths) for part in filter_chunks(rows, 1 << 16)]
    return WidthTable(torch.cat([p.error for p in parts]), torch.cat([p.step for p in parts]))


def _width_table(rows: Tensor, grid: Grid, widths: int) -> WidthTable:
    peak = rows.abs().amax(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
    error = torch.full((len(rows), widths + 1), math.inf, dtype=torch.float64, device=rows.device)
    step = torch.ones_like(error)
    error[:, 0] = rows.double().square().sum(1)
    for bits in range(1, widths + 1):
        limit = largest_level(bits, grid)
        for k in range(_LADDER):
            # a mid-tread grid of one bit holds only zero: any step does, and its error is that of width 0
            trial = peak / max(limit, 0.5) * 0.96**k
            levels = to_levels(rows, trial, grid=grid, limit=limit)
            left = (rows - levels * along_filters(trial, rows)).double().square().sum(1)
            better = left < error[:, bits]
            error[:, bits] = torch.where(better, left, error[:, bits])
            step[:, bits] = torch.where(better, trial.double(), step[:, bits])
    step[:, 0] = step[:, 1]
    return WidthTable(error, step)


def best_widths(
    table: WidthTable,
    price: float,
    *,
    sensitivity: Tensor,
    macs_per_filter: float,
    compensation_factor: float = 1.0,
) -> Tensor:
    """Width of each filter minimizing ``1/2 r s error(b) + price * MAC_m * b``; ties go to the narrower.

    Width 0 leaves ``1/2 s ||w||^2``: compensation repairs the share ``1 - r`` of a rounding error, and nothing of a
    filter that is gone.

    Args:
        table: See `width_table`.
        price: Loss per MAC and bit.
        sensitivity: ``s``, one or one per filter.
        macs_per_filter: ``MAC_m`` of this layer.
        compensation_factor: ``r``.

    Returns:
        Whole numbers 0 ... widths, shape ``(filters,)``; 0 = pruned.

    >>> table, s = width_table(torch.tensor([[0.5, -0.4]]), widths=1), torch.tensor(2.0)  # losing it costs 0.41
    >>> [int(best_widths(table, p, sensitivity=s, macs_per_filter=1, compensation_factor=0.1)) for p in (0.4, 0.42)]
    [1, 0]
    """
    widths = torch.arange(table.error.shape[1], dtype=torch.float64, device=table.error.device)
    left = torch.full_like(widths, compensation_factor)
    left[0] = 1.0
    half = 0.5 * sensitivity.double().reshape(-1, 1) * table.error
    return (left * half + price * macs_per_filter * widths).argmin(dim=1)


def loss_at_widths(
    table: WidthTable,
    price: float,
    *,
    sensitivity: Tensor,
    cost: Tensor,
    widths: Sequence[int],
    compensation_factor: float = 1.0,
    drop_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Predicted loss + price x cost of a layer whose filters share one width or are dropped, at every choice of widths.

    ``sum_f min(1/2 r s_f error_f(b) + price * cost(b, a) / filters, 1/2 d s_f ||w_f||^2)``: a filter stays where its
    share of the layer's cost is less than what losing it costs. Compensation repairs the share ``1 - r`` of a rounding
    error, and nothing of a filter that is gone.

    Args:
        table: See `width_table`.
        price: Loss per unit of cost.
        sensitivity: ``s``, one or one per filter.
        cost: Of the whole layer, a row for each of ``widths`` and a column for each width of its inputs; infinite
            where the machine does not run that.
        widths: Of weights; a width at which every weight is zero is none.
        compensation_factor: ``r``.
        drop_factor: ``d``, by how much more than it loses the rounding is predicted to lose.

    Returns:
        The sum, shaped as ``cost``, and which filters stay, shape ``(filters, *cost.shape)``.

    >>> table = width_table(torch.tensor([[1.0, -1.0], [0.1, -0.1]]), widths=1)
    >>> cost, s = torch.tensor([[4.0]]), torch.tensor(2.0)
    >>> loss, stays = loss_at_widths(table, 0.1, sensitivity=s, cost=cost, widths=(1,))
    >>> [round(x, 3) for x in loss[0].tolist()], stays[:, 0, 0].tolist()  # 0.1 x 4 / 2, and 1/2 x 2 x 0.02
    ([0.22], [True, False])
    """
    half = 0.5 * sensitivity.double().reshape(-1, 1, 1) * table.error[:, :, None]
    kept = compensation_factor * half[:, list(widths)] + price * cost.double() / len(table.error)
    gone = drop_factor * half[:, :1].expand_as(kept)
    return torch.minimum(kept, gone).sum(0), kept < gone
