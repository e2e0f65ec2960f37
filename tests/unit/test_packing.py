"""Sizes of packed levels, against the widths that each filter needs and against the entropy."""

import os
from pathlib import Path

import numpy as np
import pytest

from slimbit.artifacts import entropy
from slimbit.artifacts.packing import Packed, fixed_bytes, pack_levels, unpack_levels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError

FILTERS, WEIGHTS = 64, 576


def gaussian_levels(grid: Grid, bits: int, *, filters: int = FILTERS, weights: int = WEIGHTS) -> np.ndarray:
    """Doubled levels of Gaussian weights whose filters differ in scale by up to 2, largest level as ``bits`` allow."""
    rng = np.random.default_rng(bits)
    values = rng.normal(size=(filters, weights)) * np.linspace(0.5, 1.0, filters)[:, None]
    ratio = values / (np.abs(values).max() / 2 ** (bits - 1))
    if grid == "midtread":
        top = 2 ** (bits - 1) - 1
        return 2 * np.clip(np.rint(ratio), -top, top).astype(np.int64)
    halves = 2 * np.clip(np.floor(ratio), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64) + 1
    return np.where(np.abs(ratio) <= 0.25, 0, halves) if grid == "midrise_zero" else halves


def ideal_bytes(doubled: np.ndarray) -> float:
    """Every weight at ``max_i bits(q_i)`` of its filter, the zero level not paid for."""
    rows = np.abs(doubled.reshape(len(doubled), -1)).max(axis=1)
    return float(np.ceil(np.log2(rows + 1)).sum() * doubled[0].size / 8)


def entropy_bytes(doubled: np.ndarray) -> float:
    _, counts = np.unique(doubled, return_counts=True)
    return float((counts * np.log2(doubled.size / counts)).sum() / 8)


@pytest.mark.parametrize("grid", ["midrise", "midrise_zero", "midtread"])
@pytest.mark.parametrize("bits", range(2, 17))
def test_packed_gaussian_levels_are_smaller_than_their_widths(grid: Grid, bits: int) -> None:
    levels = gaussian_levels(grid, bits)
    size = len(pack_levels(levels, grid).data)
    assert size <= 1.05 * ideal_bytes(levels)
    if bits <= 8:  # a byte or less per symbol: the entropy of single symbols is in reach
        assert size <= 1.06 * entropy_bytes(levels) + 100
        assert bits == 2 or size < 0.95 * ideal_bytes(levels)


@pytest.mark.parametrize("grid", ["midrise", "midtread"])
def test_uniform_levels_stay_within_5_percent_of_their_widths(grid: Grid) -> None:
    """Nothing can be gained on them: 4 bits x 36,864 levels = 18,432 bytes, on the mid-tread grid log2(15) bits."""
    rng = np.random.default_rng(0)
    whole = rng.integers(-8, 8, (FILTERS, WEIGHTS)) if grid == "midrise" else rng.integers(-7, 8, (FILTERS, WEIGHTS))
    levels = 2 * whole + (grid == "midrise")
    assert ideal_bytes(levels) == 18432
    assert len(pack_levels(levels, grid).data) <= 1.05 * 18432


def test_zero_level_is_paid_for_in_fixed_widths_and_beaten_by_coding() -> None:
    """0, +-0.5 and +-1.5: 5 codes, so 3 bits each fixed, while bits(1.5) = 2 leaves the zero out."""
    levels = gaussian_levels("midrise_zero", 2)
    assert np.unique(levels).tolist() == [-3, -1, 0, 1, 3]
    narrow = np.abs(levels).max(axis=1) == 1  # filters without +-1.5: 0 and +-0.5 are 3 codes, 2 bits
    widths = np.where(narrow, 2, 3)
    packed = pack_levels(levels, "midrise_zero")
    assert packed.coding == "huffman"
    assert len(packed.data) < ideal_bytes(levels) < fixed_bytes(widths, WEIGHTS)


def test_mostly_zero_levels_take_less_than_a_bit_each() -> None:
    """2 % of +-0.5: entropy 0.98 log2(1/0.98) + 0.02 log2(1/0.01) = 0.161 bits per level."""
    rng = np.random.default_rng(0)
    levels = np.where(rng.random((64, 1024)) < 0.02, rng.choice([-1, 1], (64, 1024)), 0)
    assert entropy_bytes(levels) * 8 / levels.size == pytest.approx(0.161, abs=0.01)
    # 5 symbols per byte, at least 1 bit per byte: 0.2 bits and what the other codes need
    assert len(pack_levels(levels, "midrise_zero").data) * 8 / levels.size < 0.3


def test_pruned_filters_take_a_bit_each() -> None:
    kept = gaussian_levels("midrise", 4)
    levels = np.concatenate([kept, np.zeros((800, WEIGHTS), np.int64)])
    # mask of 864 filters: 108 bytes
    assert len(pack_levels(levels, "midrise").data) == len(pack_levels(kept, "midrise").data) + 108
    assert np.array_equal(unpack_levels(pack_levels(levels, "midrise"), "midrise", levels.shape), levels)


def test_all_levels_pruned() -> None:
    levels = np.zeros((10, 9), np.int64)
    packed = pack_levels(levels, "midrise")
    assert packed == Packed("fixed", bytes(7))  # 10 x 5 bits = 50 bits of width 0
    assert not unpack_levels(packed, "midrise", (10, 9)).any()


def test_fixed_bytes_are_as_written_down() -> None:
    """Widths 2, 0, 1: 00010 00000 00001 0. Width 1: 0.5, -0.5 -> i = 0, -1 -> 1, 0. Width 2: i = -2, 1 -> 0, 3."""
    levels = np.array([[-3, 3], [0, 0], [1, -1]])
    packed = pack_levels(levels, "midrise")
    assert packed.coding == "fixed"
    assert packed.data == bytes([0b00010000, 0b00000010, 0b10000000, 0b00110000])


def test_grouped_symbols_are_as_written_down() -> None:
    """Base 3: five per byte, first most significant: 2*81 + 1*27 + 0*9 + 1*3 + 1 = 193, then 2*81 = 162 and zeros."""
    assert entropy._grouped(np.array([2, 1, 0, 1, 1, 2]), 3) == bytes([193, 162])
    assert entropy._grouped(np.array([300, 5]), 400) == bytes([1, 0, 44, 5])


@pytest.mark.parametrize(
    ("levels", "grid", "message"),
    [
        ([[1, 0]], "midrise", "grid midrise, got 0.0"),
        ([[2, 1]], "midrise", "grid midrise, got 1.0"),
        ([[2, 1]], "midrise_zero", "grid midrise_zero, got 1.0"),
        ([[2, -1]], "midtread", "grid midtread, got -0.5"),
        ([[65537]], "midrise", "from -32767.5 to 32767.5, got 32768.5"),
    ],
)
def test_levels_off_the_grid_are_refused(levels: list[list[int]], grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_levels(np.array(levels), grid)


def test_a_bomb_takes_no_more_memory_than_asked_for() -> None:
    """A megabyte of zeros in a kilobyte of DEFLATE, announced as 100 symbols."""
    bomb = entropy.encode(np.zeros(8 << 20, np.int64), 2)
    assert len(bomb) < 2000
    with pytest.raises(InputError, match="must hold 13 bytes, got more"):
        entropy.decode(bomb, 2, count=100)


@pytest.mark.skipif("SLIMBIT_DATA" not in os.environ, reason="needs the shared weights")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_real_resnet20_levels_are_far_below_their_widths(bits: int) -> None:
    """Measured: 0.61, 0.61 and 0.69 of the widths."""
    from safetensors.numpy import load_file

    weights = load_file(Path(os.environ["SLIMBIT_DATA"]) / "weights" / "cifar10_resnet20.safetensors")
    packed = ideal = 0.0
    for value in weights.values():
        if value.ndim < 2:
            continue
        step = np.abs(value).max() / 2 ** (bits - 1)
        levels = 2 * np.clip(np.floor(value / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64) + 1
        packed += len(pack_levels(levels, "midrise").data)
        ideal += ideal_bytes(levels)
    assert packed < 0.7 * ideal
