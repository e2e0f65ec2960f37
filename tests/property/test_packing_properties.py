"""Packed levels come back exactly, whatever the grid, widths and pruned filters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbit.artifacts import entropy, packing
from slimbit.artifacts.packing import Packed, coding_grid, fixed_bytes, pack_levels, unpack_levels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError

GRIDS: tuple[Grid, ...] = ("midrise", "midrise_zero", "midtread")


@st.composite
def layers(draw: st.DrawFn) -> tuple[np.ndarray, Grid]:
    """Doubled levels of some filters, each with a width of its own from 0 (pruned) to 16 bits."""
    grid = draw(st.sampled_from(GRIDS))
    shape = (draw(st.integers(1, 9)), *draw(st.lists(st.integers(1, 5), max_size=3)))
    widths = [draw(st.integers(0, 16)) for _ in range(shape[0])]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = np.stack([levels_of_width(rng, width, int(np.prod(shape[1:])), grid) for width in widths])
    return rows.reshape(shape), grid


def levels_of_width(rng: np.random.Generator, width: int, count: int, grid: Grid) -> np.ndarray:
    if width == 0:
        return np.zeros(count, np.int64)
    if grid == "midtread":
        top = 2 ** (width - 1) - 1
        return 2 * rng.integers(-top, top + 1, count)
    halves = 2 * rng.integers(-(2 ** (width - 1)), 2 ** (width - 1), count) + 1
    return halves if grid == "midrise" else halves * rng.integers(0, 2, count)


@given(layers())
@settings(max_examples=300, deadline=None)
def test_levels_come_back_exactly(layer: tuple[np.ndarray, Grid]) -> None:
    levels, grid = layer
    packed = pack_levels(levels, grid)
    assert np.array_equal(unpack_levels(packed, grid, levels.shape), levels)
    assert packed == pack_levels(levels.copy(), grid)


@given(layers())
@settings(max_examples=200, deadline=None)
def test_both_codings_agree_and_the_smaller_one_is_taken(layer: tuple[np.ndarray, Grid]) -> None:
    levels, grid = layer
    rows = levels.reshape(len(levels), -1).astype(np.int32)
    kept = np.any(rows != 0, axis=1)
    indices = packing._indices(rows[kept], grid)
    widths = np.zeros(len(rows), np.uint8)
    widths[kept] = packing._widths(indices)
    fixed, coded = packing._fixed(indices, widths), packing._huffman(indices, kept)
    assert len(fixed) == fixed_bytes(widths, rows.shape[1])
    assert np.array_equal(unpack_levels(Packed("fixed", fixed), grid, levels.shape), levels)
    sizes = [len(fixed)]
    if coded is not None:
        assert np.array_equal(unpack_levels(Packed("huffman", coded), grid, levels.shape), levels)
        sizes.append(len(coded))
    assert len(pack_levels(levels, grid).data) == min(sizes)


@given(layers())
@settings(max_examples=100, deadline=None)
def test_width_is_the_bit_formula_plus_the_zero_level(layer: tuple[np.ndarray, Grid]) -> None:
    """bits(q) = ceil(log2(2|q| + 1)); a zero level on the mid-rise grid costs at most one bit more."""
    levels, grid = layer
    rows = levels.reshape(len(levels), -1).astype(np.int32)
    rows = rows[np.any(rows != 0, axis=1)]
    widths = packing._widths(packing._indices(rows, grid)).astype(int)
    bits = np.ceil(np.log2(np.abs(rows).max(axis=1, initial=1) + 1)).astype(int)
    assert np.all(widths <= bits + (grid == "midrise_zero"))


@given(layers())
@settings(max_examples=100, deadline=None)
def test_single_zeros_on_the_midrise_grid_take_the_grid_that_has_one(layer: tuple[np.ndarray, Grid]) -> None:
    levels, _ = layer
    halves = np.where(levels == 0, 0, levels | 1)
    grid = coding_grid(halves, "midrise")
    assert np.array_equal(unpack_levels(pack_levels(halves, grid), grid, halves.shape), halves)


@given(st.integers(1, 300) | st.integers(60000, entropy.MOST_SYMBOLS), st.integers(0, 500), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_symbols_come_back(base: int, count: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, base, count)
    assert np.array_equal(entropy.decode(entropy.encode(symbols, base), base, count=count), symbols)


@given(
    st.binary(max_size=60),
    st.sampled_from(GRIDS),
    st.sampled_from(packing.CODINGS),
    st.integers(1, 5),
    st.integers(1, 9),
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_levels_or_an_input_error(
    data: bytes, grid: Grid, coding: packing.Coding, filters: int, weights: int
) -> None:
    try:
        levels = unpack_levels(Packed(coding, data), grid, (filters, weights))
    except InputError:
        return
    assert levels.shape == (filters, weights)
    assert np.array_equal(unpack_levels(pack_levels(levels, grid), grid, levels.shape), levels)


@given(layers(), st.data())
@settings(max_examples=200, deadline=None)
def test_truncated_or_longer_bytes_are_refused(layer: tuple[np.ndarray, Grid], data: st.DataObject) -> None:
    levels, grid = layer
    packed = pack_levels(levels, grid)
    shorter = packed.data[: data.draw(st.integers(0, len(packed.data) - 1))]
    for damaged in (shorter, packed.data + b"\0"):
        with pytest.raises(InputError):
            unpack_levels(Packed(packed.coding, damaged), grid, levels.shape)
