"""Levels of one layer to bytes and back, exactly. Without torch.

Levels come doubled, ``2 q``, so that halves are whole, filters first. Each grid numbers its levels without gaps:

================  ==============================================
grid              index i of level q
================  ==============================================
``midrise``       ``q - 0.5``: ..., -1.5 -> -2, -0.5 -> -1, 0.5 -> 0
``midrise_zero``  0 -> 0, else ``q + 0.5 sign(q)``: 0.5 -> 1
``midtread``      ``q``
================  ==============================================

Filters whose levels are all 0 (pruned) are not in the codes. Two codings, the smaller one is taken:

* ``fixed``: 5 bits per filter for its width w (0 = all levels 0), then ``i + 2^(w-1)`` in w bits for all filters
  of width 1, of width 2, and so on, each width from a byte of its own. Here the zero level is paid for as what
  it is, one code more: a ``midrise_zero`` filter of b-bit levels takes b + 1.
* ``huffman``: a header (number of symbols, whether a mask follows), where some filters are all 0 one bit per filter
  that is not, then every index as symbol ``2 i`` (i >= 0) or ``-2 i - 1`` through `slimbit.artifacts.entropy`.
"""

import struct
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slimbit.artifacts import entropy
from slimbit.records.config import Grid
from slimbit.records.errors import InputError

Coding = Literal["fixed", "huffman"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
LARGEST_DOUBLED = (1 << 16) - 1
"""Twice the largest 16-bit mid-rise level."""
WIDTH_BITS = 5
"""Widths go up to 17: 16 bits and a zero level."""
WIDEST = 17
HEADER = struct.Struct("<IB")
"""Of ``huffman``: number of symbols, whether a mask of the filters follows."""
CHUNK = 1 << 16
"""Codes turned into single bits at once, to bound memory."""

Levels = NDArray[np.integer]


@dataclass(frozen=True)
class Packed:
    """One layer's levels as bytes.

    Attributes:
        coding: How.
        data: The bytes.
    """

    coding: Coding
    data: bytes


def pack_levels(doubled: Levels, grid: Grid) -> Packed:
    """The smaller of both codings.

    Args:
        doubled: Twice the levels, shape ``(filters, ...)``.
        grid: What they lie on.

    Raises:
        InputError: A level is not on the grid, or beyond 16 bits.

    >>> packed = pack_levels(np.array([[1, -1, 3, -3], [0, 0, 0, 0]]), "midrise")
    >>> packed.coding, len(packed.data)  # widths 2 x 5 bits, codes 4 x 2 bits
    ('fixed', 3)
    >>> unpack_levels(packed, "midrise", (2, 4)).tolist()
    [[1, -1, 3, -3], [0, 0, 0, 0]]
    """
    rows = doubled.reshape(len(doubled), -1).astype(np.int32)
    _check_levels(rows, grid)
    kept: NDArray[np.bool_] = np.any(rows != 0, axis=1)
    indices = _indices(rows[kept], grid)
    widths = np.zeros(len(rows), np.uint8)
    widths[kept] = _widths(indices)
    coded = _huffman(indices, kept)
    if coded is None or len(coded) >= fixed_bytes(widths, rows.shape[1]):
        return Packed("fixed", _fixed(indices, widths))
    return Packed("huffman", coded)


def unpack_levels(packed: Packed, grid: Grid, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """The doubled levels that `pack_levels` was given.

    Args:
        packed: From there.
        grid: As there.
        shape: Shape of the levels; the caller bounds its size.

    Raises:
        InputError: The bytes are damaged.
    """
    read = _read_fixed if packed.coding == "fixed" else _read_huffman
    filters, weights = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    kept, indices = read(packed.data, filters, weights)
    values = _doubled(indices, grid)
    if values.size and int(np.abs(values).max()) > LARGEST_DOUBLED:
        raise InputError("packed levels must have at most 16 bits, got wider ones")
    doubled = np.zeros((filters, weights), np.int32)
    doubled[kept] = values
    return doubled.reshape(shape)


def coding_grid(doubled: Levels, grid: Grid) -> Grid:
    """The grid to pack with: mid-rise with single weights cut away (0) takes the grid that has a zero.

    >>> coding_grid(np.array([[1, 0], [0, 0]]), "midrise"), coding_grid(np.array([[1, 1], [0, 0]]), "midrise")
    ('midrise_zero', 'midrise')
    """
    rows = doubled.reshape(len(doubled), -1)
    some_cut = grid == "midrise" and bool((rows[rows.any(axis=1)] == 0).any())
    return "midrise_zero" if some_cut else grid


def fixed_bytes(widths: NDArray[np.integer], weights_per_filter: int) -> int:
    """Size of the coding ``fixed``.

    >>> fixed_bytes(np.array([3, 0, 3]), 15)  # 3 x 5 = 15 bits, 2 x 15 x 3 = 90 bits
    14
    """
    used, filters = np.unique(widths, return_counts=True)
    groups = (int(count) * weights_per_filter * int(width) for width, count in zip(used, filters, strict=True))
    return -(-WIDTH_BITS * len(widths) // 8) + sum(-(-bits // 8) for bits in groups)


def _check_levels(rows: NDArray[np.int32], grid: Grid) -> None:
    if rows.size and int(np.abs(rows).max()) > LARGEST_DOUBLED:
        raise InputError(f"levels must be from -32767.5 to 32767.5, got {np.abs(rows).max() / 2}")
    off = rows % 2 == 1 if grid == "midtread" else rows % 2 == 0
    if grid == "midrise":
        off[~rows.any(axis=1)] = False
    elif grid == "midrise_zero":
        off &= rows != 0
    if off.any():
        raise InputError(f"levels must lie on the grid {grid}, got {rows[off][0] / 2}")


def _indices(rows: NDArray[np.int32], grid: Grid) -> NDArray[np.int32]:
    if grid == "midrise":
        return (rows - 1) >> 1
    return (rows + np.sign(rows)) >> 1 if grid == "midrise_zero" else rows >> 1


def _doubled(indices: NDArray[np.int32], grid: Grid) -> NDArray[np.int32]:
    if grid == "midrise":
        return 2 * indices + 1
    return 2 * indices - np.sign(indices) if grid == "midrise_zero" else 2 * indices


def _widths(indices: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Bits of each filter: the least w, at least 1, with all indices from ``-2^(w-1)`` to ``2^(w-1) - 1``."""
    if not indices.size:
        return np.zeros(len(indices), np.uint8)
    reach = np.maximum(indices.max(axis=1), -1 - indices.min(axis=1))  # at most 2^16, exact in floating point
    widths: NDArray[np.uint8] = (np.ceil(np.log2(reach + 1.0)) + 1).astype(np.uint8)
    return widths


def _fixed(indices: NDArray[np.int32], widths: NDArray[np.uint8]) -> bytes:
    kept = widths[widths > 0]
    groups = ((width, indices[kept == width].reshape(-1)) for width in map(int, np.unique(kept)))
    return _bits(widths, WIDTH_BITS) + b"".join(_bits(codes + (1 << (width - 1)), width) for width, codes in groups)


def _read_fixed(data: bytes, filters: int, weights: int) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    table = -(-WIDTH_BITS * filters // 8)
    widths = _codes(data[:table], WIDTH_BITS, filters)
    if int(widths.max(initial=0)) > WIDEST or len(data) != fixed_bytes(widths, weights):
        raise InputError(f"packed levels must be as long as their widths say, got {len(data)} bytes")
    kept = widths[widths > 0]
    indices = np.empty((len(kept), weights), np.int32)
    start = table
    for width in map(int, np.unique(kept)):
        rows = kept == width
        count = int(rows.sum()) * weights
        stop = start + -(-count * width // 8)
        indices[rows] = _codes(data[start:stop], width, count).reshape(-1, weights) - (1 << (width - 1))
        start = stop
    return widths > 0, indices


def _bits(codes: NDArray[np.integer], width: int) -> bytes:
    """``codes`` at ``width`` bits each, most significant bit first, the last byte filled with 0."""
    shifts = np.arange(width - 1, -1, -1)
    chunks = (codes[start : start + CHUNK] for start in range(0, len(codes), CHUNK))  # 8 divides CHUNK: whole bytes
    return b"".join(np.packbits((chunk[:, None] >> shifts & 1).astype(np.uint8)).tobytes() for chunk in chunks)


def _codes(data: bytes, width: int, count: int) -> NDArray[np.int32]:
    """The first ``count`` codes of ``width`` bits."""
    if len(data) * 8 < count * width:
        raise InputError(f"packed levels must hold {count} codes of {width} bits, got {len(data)} bytes")
    source = np.frombuffer(data, np.uint8)
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int32)
    codes = np.empty(count, np.int32)
    for start in range(0, count, CHUNK):
        part = codes[start : start + CHUNK]
        first = start * width // 8
        bits = np.unpackbits(source[first : first + -(-len(part) * width // 8)], count=len(part) * width)
        part[:] = bits.reshape(-1, width) @ weights
    return codes


def _huffman(indices: NDArray[np.int32], kept: NDArray[np.bool_]) -> bytes | None:
    """None where there are more symbols than `slimbit.artifacts.entropy` takes."""
    symbols = np.where(indices < 0, -2 * indices - 1, 2 * indices).reshape(-1)
    base, masked = int(symbols.max(initial=0)) + 1, not kept.all()
    if base > entropy.MOST_SYMBOLS:
        return None
    mask = np.packbits(kept).tobytes() if masked else b""
    return HEADER.pack(base, masked) + mask + entropy.encode(symbols, base)


def _read_huffman(data: bytes, filters: int, weights: int) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
    if len(data) < HEADER.size:
        raise InputError(f"packed levels must start with {HEADER.size} bytes of header, got {len(data)} bytes")
    base, masked = HEADER.unpack_from(data)
    if masked > 1:
        raise InputError(f"packed levels must say 0 or 1 for a mask, got {masked}")
    start = HEADER.size + (-(-filters // 8) if masked else 0)
    kept = np.ones(filters, np.bool_)
    if masked:
        kept = _codes(data[HEADER.size : start], 1, filters).astype(np.bool_)
    symbols = entropy.decode(data[start:], base, count=int(kept.sum()) * weights).astype(np.int32)
    indices = (symbols >> 1) ^ -(symbols & 1)
    return kept, indices.reshape(-1, weights)
