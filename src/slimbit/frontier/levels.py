"""The levels of one point as a safetensors file whose bytes depend on nothing but its content; without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from slimbit.records.errors import InputError

FORMAT, SCHEMA = "slimbit-levels", "1"
LARGEST = 32767 / 2
Array = NDArray[Any]


@dataclass(frozen=True)
class StoredPoint:
    """What a levels file holds.

    Attributes:
        levels: By layer name, filters first; halves and whole numbers, float32.
        steps: By layer name: shape ``()``, or ``(filters,)``.
        grids: Grid of each layer.
        state: Every other entry of the state dict that compression changed, by its key.
    """

    levels: Mapping[str, Array]
    steps: Mapping[str, Array]
    grids: Mapping[str, str]
    state: Mapping[str, Array] = field(default_factory=dict)


def pack_levels(point: StoredPoint) -> bytes:
    """A levels file (docs/reference/run-folder.md); equal content gives equal bytes.

    Raises:
        InputError: A level that is no multiple of 0.5 or does not fit 16 bits.

    >>> point = StoredPoint({"fc": np.array([[0.5, -1.5]])}, {"fc": np.float32(0.1)}, {"fc": "midrise"})
    >>> unpack_levels(pack_levels(point)).levels["fc"].tolist()
    [[0.5, -1.5]]
    """
    arrays = {f"{name}/levels": _doubled(name, levels) for name, levels in point.levels.items()}
    arrays |= {f"{name}/steps": np.array(steps, order="C") for name, steps in point.steps.items()}
    arrays |= {f"state/{key}": np.array(value, order="C") for key, value in point.state.items()}
    grids = json.dumps(dict(sorted(point.grids.items())), separators=(",", ":"))
    return _canonical(save(arrays, metadata={"format": FORMAT, "schema": SCHEMA, "grids": grids}))


def unpack_levels(content: bytes, *, where: str = "levels file") -> StoredPoint:
    """What `pack_levels` wrote, checked.

    Raises:
        InputError: Not a levels file; ``where`` names it.
    """
    try:
        arrays = load(content)
        metadata = json.loads(_header(content))["__metadata__"]
        grids = json.loads(metadata["grids"])
        known = (metadata["format"], metadata["schema"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where} must be a complete levels file, got {error}") from error
    if known != (FORMAT, SCHEMA):
        raise InputError(f"{where} must be of format {FORMAT} {SCHEMA}, got {known[0]!r} {known[1]!r}")
    missing = [name for name in grids if not {f"{name}/levels", f"{name}/steps"} <= arrays.keys()]
    if missing:
        raise InputError(f"{where} must hold levels and steps of every layer, got none for {missing[0]!r}")
    return StoredPoint(
        {name: arrays[f"{name}/levels"].astype(np.float32) / 2 for name in grids},
        {name: arrays[f"{name}/steps"] for name in grids},
        grids,
        {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")},
    )


def _doubled(name: str, levels: Array) -> Array:
    doubled = np.asarray(levels, dtype=np.float64) * 2
    if doubled.size and not float(np.abs(doubled).max()) <= 2 * LARGEST:
        raise InputError(f"levels of layer {name!r} must be at most {LARGEST:g}, got {np.abs(doubled).max() / 2:g}")
    whole = np.rint(doubled)
    if not np.array_equal(whole, doubled):
        raise InputError(f"levels of layer {name!r} must be multiples of 0.5, got others")
    return np.array(whole, dtype=np.int16, order="C")


def _header(content: bytes) -> bytes:
    return content[8 : 8 + int.from_bytes(content[:8], "little")]


def _canonical(content: bytes) -> bytes:
    """The same file with its header's keys in order: the library writes metadata in an order that changes by run."""
    header = _header(content)
    text = json.dumps(json.loads(header), sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + len(header) :]
