"""The quantization grids: from weights and a step to levels and back. The only place that knows the convention.

======================  ===============================  =======================================
grid                    levels q                         a weight w becomes
======================  ===============================  =======================================
``midrise``             +-0.5, +-1.5, ... (no zero)      ``floor(w / step) + 0.5``
``midrise_zero``        0, +-0.5, +-1.5, ...             the nearest of them: 0 below a quarter step
``midtread``            0, +-1, +-2, ...                 ``round(w / step)``
======================  ===============================  =======================================

Weights come *filters first*, ``(filters, ...)``; a step is a scalar, or one per filter, shape ``(filters,)``.
"""

import math
from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from slimbit.records.config import Grid
from slimbit.records.network import LayerSpec

GRIDS: tuple[Grid, ...] = get_args(Grid)


def largest_level(bits: float, grid: Grid = "midrise") -> float:
    """Largest level that a width allows: ``2^(bits-1) - 0.5`` for mid-rise, ``2^(bits-1) - 1`` for mid-tread.

    Without this clip the extreme positive weight of nearly every layer lands one level too high,
    because its ratio to the step is exactly ``2^(bits-1)``. A width that is not whole (a smooth sweep of
    ``max_abs``) rounds the number of levels up, unless a power of two is a whole number but for its last digits.

    Args:
        bits: Bit width, at least 1; may be fractional.
        grid: Grid.

    >>> largest_level(4), largest_level(4, "midtread"), largest_level(1)
    (7.5, 7.0, 0.5)
    >>> largest_level(1 + math.log2(13))  # 2^log2(13) is 13.000000000000002 in floating point
    12.5
    """
    wanted = float(2 ** (bits - 1))
    codes = round(wanted) if math.isclose(wanted, round(wanted), rel_tol=1e-9) else math.ceil(wanted)
    return codes - 1.0 if grid == "midtread" else codes - 0.5


def to_levels(weights: Tensor, step: Tensor, *, grid: Grid = "midrise", limit: float | Tensor | None = None) -> Tensor:
    """Levels of ``weights`` on a grid, ``q = floor(W / step) + 0.5`` for mid-rise (Prune or quantize?, section 3).

    Args:
        weights: Any shape, filters first.
        step: Positive; scalar, or shape ``(filters,)``.
        grid: Grid.
        limit: Levels are clipped to +-limit (see `largest_level`); None = no clip.

    Returns:
        Levels, same shape and floating type as ``weights``.

    >>> to_levels(torch.tensor([-0.3, 0.0, 0.2, 1.4]), torch.tensor(0.5)).tolist()
    [-0.5, 0.5, 0.5, 2.5]
    >>> to_levels(torch.tensor([-0.3, 0.0, 0.2, 1.4]), torch.tensor(0.5), grid="midrise_zero").tolist()
    [-0.5, 0.0, 0.5, 2.5]
    """
    bound = along_filters(limit, weights) if isinstance(limit, Tensor) else limit
    return nearest_levels(weights / along_filters(step, weights), grid=grid, limit=bound)


def nearest_levels(ratio: Tensor, *, grid: Grid, limit: float | Tensor | None) -> Tensor:
    """Levels nearest to weights in units of their steps; ``ratio`` is overwritten.

    Args:
        ratio: Weights over steps, any shape.
        grid: Grid.
        limit: Largest level, as a number or a tensor that broadcasts; None = no clip.
    """
    if grid == "midtread":
        levels = ratio.round_()
    elif grid == "midrise":
        levels = ratio.floor_().add_(0.5)
    else:
        small = ratio.abs() <= 0.25
        levels = ratio.floor_().add_(0.5).masked_fill_(small, 0.0)
    if isinstance(limit, Tensor):
        return torch.minimum(torch.maximum(levels, -limit), limit)
    return levels if limit is None else levels.clamp_(-limit, limit)


def within_cells(ratio: Tensor, levels: Tensor, *, grid: Grid, margin: float = 0.05) -> Tensor:
    """Weights in units of their step, moved as little as it takes to be rounded to given levels.

    Args:
        ratio: Weights over steps.
        levels: On the grid, same shape.
        grid: Grid.
        margin: Share of a cell that is left free at either end.

    >>> ratio, levels = torch.tensor([0.75, 0.9, -3.0]), torch.tensor([0.5, 0.0, -1.5])
    >>> within_cells(ratio, levels, grid="midrise_zero", margin=0).tolist()
    [0.75, 0.25, -2.0]
    """
    inner, outer = levels.abs() - 0.5, levels.abs() + 0.5
    if grid == "midrise_zero":
        inner = torch.where(levels.abs() == 0.5, 0.25, inner)
        outer = torch.where(levels == 0, 0.25, outer)
    inner = torch.where(levels == 0, -outer, inner)
    free = margin * (outer - inner)
    sign = torch.where(levels < 0, -1.0, 1.0).to(ratio.dtype)
    return sign * torch.minimum(torch.maximum(ratio * sign, inner + free), outer - free)


def to_weights(levels: Tensor, step: Tensor) -> Tensor:
    """Weights that levels stand for, ``step * levels``; shapes as in `to_levels`."""
    return levels * along_filters(step, levels)


def along_filters(value: Tensor, like: Tensor) -> Tensor:
    """``value`` shaped to broadcast along the first dimension of ``like`` (a scalar stays a scalar)."""
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


def filters_first(weights: Tensor, *, transposed: bool = False, groups: int = 1) -> Tensor:
    """A stored weight as ``(filters, inputs / groups, *kernel)``.

    Transposed convolutions store ``(inputs, filters / groups, *kernel)``.

    >>> filters_first(torch.zeros(6, 4, 3, 3), transposed=True, groups=2).shape
    torch.Size([8, 3, 3, 3])
    """
    if not transposed:
        return weights
    inputs, filters, *kernel = weights.shape
    return (
        weights.reshape(groups, inputs // groups, filters, *kernel)
        .transpose(1, 2)
        .reshape(groups * filters, inputs // groups, *kernel)
    )


def layer_weight(stored: Tensor, layer: LayerSpec) -> Tensor:
    """A layer's weight, filters first, from the tensor that a module stores; a view where possible.

    Also for whatever has the shape of that tensor: a gradient, a pruning mask, the values of a regularizer.

    Args:
        stored: The tensor under ``layer.weight_key``.
        layer: The layer.

    >>> layer = LayerSpec(name="up", kind="conv_transpose1d", weight_key="up.weight", shape=(2, 3, 1), transposed=True)
    >>> layer_weight(torch.arange(6).reshape(3, 2, 1), layer).flatten(1).tolist()  # stored: three inputs, two filters
    [[0, 2, 4], [1, 3, 5]]
    """
    rows = stored[slice(*(layer.rows or (None,)))]
    return filters_first(rows, transposed=layer.transposed, groups=layer.groups)


def filters_stored(weights: Tensor, *, transposed: bool = False, groups: int = 1) -> Tensor:
    """Inverse of `filters_first`: the order in which the module stores its weight.

    >>> stored = torch.randn(6, 4, 3, 3)
    >>> torch.equal(filters_stored(filters_first(stored, transposed=True, groups=2), transposed=True, groups=2), stored)
    True
    """
    if not transposed:
        return weights
    filters, inputs, *kernel = weights.shape
    return (
        weights.reshape(groups, filters // groups, inputs, *kernel)
        .transpose(1, 2)
        .reshape(groups * inputs, filters // groups, *kernel)
    )


def filter_chunks(weights: Tensor, elements: int) -> Iterator[slice]:
    """Slices over the first dimension of about ``elements`` each (at least one filter)."""
    rows = max(1, elements // max(1, weights[0].numel()))
    for start in range(0, len(weights), rows):
        yield slice(start, min(start + rows, len(weights)))
