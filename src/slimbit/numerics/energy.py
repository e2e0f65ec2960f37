"""What a level costs: bits, squared levels, and their sums over a tensor. One formula, one place.

``bits(q) = 0`` for ``q = 0``, else ``ceil(log2(2|q| + 1)) = floor(log2|q|) + 2``: 0.5 -> 1, 1.5 -> 2, 2.5 and
3.5 -> 3, 4.5 ... 7.5 -> 4; on the mid-tread grid 1 -> 2, 2 and 3 -> 3, 4 ... 7 -> 4. The *literal* formula,
``ceil(log2|q| + 1)`` as the paper prints it, gives 0 for 0.5 and is otherwise equal on the mid-rise grid.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from slimbit.numerics.grid import filter_chunks, to_levels, to_weights
from slimbit.records.config import Grid

Formula = Literal["standard", "literal"]


@dataclass(frozen=True)
class LevelFormat:
    """How weights become levels and levels become bits: grid, clip (largest level), bit formula."""

    grid: Grid = "midrise"
    limit: float | None = None
    formula: Formula = "standard"


# Elements worked on at once: small enough that passes after the first read the cache, large enough that
# starting an operation costs nothing beside it.
CHUNK = 1 << 18


def level_bits(levels: Tensor, formula: Formula = "standard") -> Tensor:
    """Bits of each level, int32, same shape (formula at the top of the file).

    ``floor(log2|q|)`` is read from the exponent field of the float32, which is exact where a logarithm would
    round. Levels are multiples of 0.5 and no larger than 2^23, so float32 holds every one of them.

    Args:
        levels: Levels on any grid, any type.
        formula: "standard", or "literal" for the text of the paper.

    >>> level_bits(torch.tensor([0, 0.5, -1.5, 2.5, 3.5, 4.5, 7.5, 8.5])).tolist()
    [0, 1, 2, 3, 3, 4, 4, 5]
    >>> level_bits(torch.tensor([0, 0.5, 1.5, 3.5]), "literal").tolist()
    [0, 0, 2, 3]
    """
    field = levels.to(torch.float32, memory_format=torch.contiguous_format).view(torch.int32)
    # exponent field = floor(log2|q|) + 127, and 0 for q = 0, which clamps to 0 bits
    bits = (field >> 23).bitwise_and_(255).sub_(125).clamp_(min=0)
    if formula == "literal":
        # ceil(log2|q| + 1) is one less than floor(log2|q|) + 2 where |q| is a power of two
        bits -= ((field & 0x7FFFFF) == 0).logical_and_(bits > 0).to(bits.dtype)
    return bits


def code_bits(
    sums: "LevelSums", grid: Grid, formula: Formula = "standard", *, groups: int = 1, width: int = 0
) -> Tensor:
    """Width of the codes of each filter, int32, shape ``(filters,)``; 0 = pruned.

    The bits of its widest level. The mid-rise levels of b bits use all ``2^b`` codes, so a zero beside them takes one
    bit more, unless the widest level leaves a code free (0 and +-0.5, +-1.5, +-2.5 are seven codes of three bits).
    Zeros of inputs that no filter of the group reads need no code: they go with the channel.

    Args:
        sums: Sums over the levels of a layer.
        grid: Grid of the levels.
        formula: Bit formula.
        groups: Groups of the layer; their filters are consecutive.
        width: Bits of the stored codes, which no filter exceeds; 0 = any.

    >>> code_bits(level_sums(torch.tensor([[0.5, -0.5], [0.5, 0.0], [2.5, 0.0], [3.5, 0.0]])), "midrise_zero").tolist()
    [1, 2, 3, 4]
    >>> code_bits(level_sums(torch.tensor([[0.5, 0.0], [-0.5, 0.0]])), "midrise_zero").tolist()
    [1, 1]
    """
    bits = _within(level_bits(sums.peak, formula), width)
    if grid != "midrise_zero" or sums.zeros is None:
        return bits
    needed = (sums.zeros & inputs_read(sums, groups)).any(dim=1)
    full = sums.peak == torch.exp2(bits - 1.0) - 0.5
    return bits + (full & needed & (bits > 0)).to(bits.dtype)


def inputs_read(sums: "LevelSums", groups: int = 1) -> Tensor:
    """Which inputs any filter of its group reads, bool, shape ``(filters, inputs / groups)``; some level must be 0."""
    assert sums.reads is not None, "only asked where some level is 0"
    grouped = sums.reads.reshape(groups, -1, sums.reads.shape[1])
    return grouped.any(dim=1, keepdim=True).expand(grouped.shape).reshape(sums.reads.shape)


@dataclass(frozen=True)
class LevelSums:
    """Sums over the levels of one layer; costs are these times positions.

    Attributes:
        squares: ``sum q^2``.
        bits: ``sum bits(q)``.
        nonzero: Number of levels that are not 0.
        peak: ``max |q|`` of each filter, shape (filters,).
        zeros: At which inputs each filter holds a 0, bool, shape (filters, inputs / groups); None = nowhere.
        reads: Which inputs each filter reads, bool, shape (filters, inputs / groups): False where all its levels
            for that input are 0. None = every filter reads every input.
        signal: ``sum (step q + error)^2 = ||W||^2`` over kept weights; 0 where no weights were given.
        error: ``||W - step q||^2``; 0 where no weights were given.
        nonzero_weights: ``||W||_0``, kept weights that are not 0 before they are rounded; None without weights.
    """

    squares: float
    bits: int
    nonzero: int
    peak: Tensor
    zeros: Tensor | None = None
    reads: Tensor | None = None
    signal: float = 0.0
    error: float = 0.0
    nonzero_weights: int | None = None


def level_sums(levels: Tensor, formula: Formula = "standard", *, width: int = 0) -> LevelSums:
    """Sums over given levels.

    Args:
        levels: Shape ``(filters, ...)``.
        formula: Bit formula.
        width: Bits of the stored codes, which no level exceeds: the -8 of int4 takes four, although the formula,
            whose codes are symmetric, says five. 0 = any.

    >>> sums = level_sums(torch.full((2, 3), 1.5))
    >>> sums.squares, sums.bits, sums.nonzero, sums.peak.tolist()
    (13.5, 12, 6, [1.5, 1.5])
    """
    return _add([_sums(levels[rows], formula, width=width) for rows in filter_chunks(levels, CHUNK)])


def quantized_sums(weights: Tensor, step: Tensor, rounding: LevelFormat, *, keep: Tensor | None = None) -> LevelSums:
    """Sums over the levels that ``weights`` round to, made chunk by chunk so that they are never held as a whole.

    Args:
        weights: Shape ``(filters, ...)``.
        step: Scalar, or one per filter.
        rounding: Grid, clip and bit formula.
        keep: Bool, shape of ``weights``: False = pruned, level 0 whatever the grid. None = all kept.

    >>> sums = quantized_sums(torch.tensor([[0.6, -0.2]]), torch.tensor(0.4), LevelFormat())
    >>> sums.squares, round(sums.signal, 3), round(sums.error, 3)
    (2.5, 0.4, 0.0)
    """
    parts = []
    for rows in filter_chunks(weights, CHUNK):
        part = weights[rows]
        part_step = step if step.ndim == 0 else step[rows]
        levels = to_levels(part, part_step, grid=rounding.grid, limit=rounding.limit)
        if keep is not None:
            levels *= keep[rows]
            part = part * keep[rows]
        sums = _sums(levels, rounding.formula, zeros=keep is not None or rounding.grid != "midrise")
        error = _power(part - to_weights(levels, part_step))
        nonzero = int(torch.count_nonzero(part))
        parts.append(replace(sums, signal=_power(part), error=error, nonzero_weights=nonzero))
    return _add(parts)


def _sums(levels: Tensor, formula: Formula, *, zeros: bool = True, width: int = 0) -> LevelSums:
    flat = levels.reshape(len(levels), -1)
    flat = flat if flat.is_floating_point() else flat.float()
    nonzero = int(torch.count_nonzero(flat)) if zeros else flat.numel()
    inputs = levels.shape[1] if levels.ndim > 1 else 1
    by_input = None if nonzero == flat.numel() else (flat != 0).reshape(len(flat), inputs, -1)
    return LevelSums(
        squares=float(flat.square().sum(dtype=_wide(flat))),
        bits=int(_within(level_bits(flat, formula), width).sum()),
        nonzero=nonzero,
        peak=torch.maximum(flat.amax(dim=1), -flat.amin(dim=1)),
        zeros=None if by_input is None else ~by_input.all(dim=-1),
        reads=None if by_input is None else by_input.any(dim=-1),
    )


def _within(bits: Tensor, width: int) -> Tensor:
    return bits.clamp_(max=width) if width else bits


def _add(parts: list[LevelSums]) -> LevelSums:
    full = [part.reads is None for part in parts]
    some = None if all(full) else parts[full.index(False)].reads
    counts = [part.nonzero_weights for part in parts if part.nonzero_weights is not None]
    return LevelSums(
        squares=math.fsum(part.squares for part in parts),
        bits=sum(part.bits for part in parts),
        nonzero=sum(part.nonzero for part in parts),
        peak=torch.cat([part.peak for part in parts]),
        zeros=None if some is None else torch.cat([_by_input(x.zeros, x, some, default=False) for x in parts]),
        reads=None if some is None else torch.cat([_by_input(x.reads, x, some, default=True) for x in parts]),
        signal=math.fsum(part.signal for part in parts),
        error=math.fsum(part.error for part in parts),
        nonzero_weights=sum(counts) if len(counts) == len(parts) else None,
    )


def _by_input(value: Tensor | None, part: LevelSums, like: Tensor, *, default: bool) -> Tensor:
    """A mask by filter and input; of a part without zeros it is the same everywhere."""
    return like.new_full((len(part.peak), like.shape[1]), default) if value is None else value


def _power(values: Tensor) -> float:
    flat = values.reshape(-1)
    return float(torch.dot(flat, flat))


def _wide(values: Tensor) -> torch.dtype:
    # MPS has no float64; its float32 sum of a chunk is what there is
    return torch.float32 if values.device.type == "mps" else torch.float64
