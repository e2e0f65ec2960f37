"""Ship a compressed network as a folder: packed levels, everything else of its state, plan, cost, and hashes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from slimbit.export.manifest import (
    KEEP,
    MANIFEST,
    Accuracy,
    FileEntry,
    FileName,
    LayerEntry,
    Manifest,
    NetworkReference,
    Normalization,
    PlanSummary,
    parse_json,
    read_file,
)
from slimbit.export.packing import coding_grid, pack_levels
from slimbit.export.weights import LayerLevels, layer_of, taken, tensors_of
from slimbit.numerics.grid import GRIDS
from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError
from slimbit.records.files import write_folder
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.plan import CompressionPlan

LITTLE = {torch.float32: "<f4", torch.float64: "<f8"}
"""Types of steps, and how they are written."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an artifact tells about where it comes from.

    Attributes:
        network: How the network is built again.
        plan: JSON of the `CompressionPlan` that was carried out.
        cost: JSON of the `CostReport`.
        keep: JSON of the `KeepPlan` that leads from ``network`` to the one quantized; None where nothing was pruned.
        accuracy: What was measured.
        normalization: What inputs need.
        provenance: Versions, seed, hardware: anything JSON.
    """

    network: NetworkReference
    plan: bytes
    cost: bytes
    keep: bytes | None = None
    accuracy: Accuracy | None = None
    normalization: Normalization | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_artifact(
    folder: str | Path, model: nn.Module, levels: Mapping[str, LayerLevels], *, spec: NetworkSpec, origin: Origin
) -> Manifest:
    """Write a compressed network as a folder that `slimbit.load` reads; all of it or nothing.

    The format is written down in docs/reference/artifact-format.md. Equal content gives equal files.

    Args:
        folder: A new or empty one, or one that holds this very artifact already.
        model: The compressed network; weights of its quantized layers are exactly ``step * levels``.
        levels: Quantized layers by name. Everything else of the state dict is kept as it is.
        spec: Survey of the network.
        origin: Network reference, plan, cost and measurements.

    Returns:
        The manifest.

    Raises:
        InputError: Levels that are not the network's, a folder with something else in it, a full disk.
    """
    tensors = {key: value.cpu() for key, value in tensors_of(model).items()}
    packed, entries = [], []
    for name, layer in sorted(levels.items(), key=lambda item: _position(spec, item[0])):
        entry, content = _pack_layer(layer, layer_of(spec, name), tensors)
        entries.append(entry)
        packed.append(content)
    rest = {key: value for key, value in tensors.items() if not _is_packed(key, value, entries)}
    files: dict[FileName, bytes] = {
        "levels.bin": b"".join(packed),
        "state.safetensors": save({key: value.clone().contiguous() for key, value in rest.items()}),
        "plan.json": origin.plan,
        "cost.json": origin.cost,
    }
    if origin.keep is not None:
        files[KEEP] = origin.keep
    manifest = _manifest(origin, tuple(entries), files)
    _write_folder(Path(folder), {MANIFEST: manifest.to_bytes(), **{str(k): v for k, v in files.items()}})
    return manifest


def _position(spec: NetworkSpec, name: str) -> int:
    return spec.layers.index(layer_of(spec, name))


def _pack_layer(layer: LayerLevels, spec: LayerSpec, tensors: Mapping[str, Tensor]) -> tuple[LayerEntry, bytes]:
    weight = taken(tensors, spec)
    _check_layer(layer, spec, weight)
    doubled = (layer.levels.cpu().double() * 2).numpy()
    if not np.array_equal(doubled, np.rint(doubled)):
        raise InputError(f"levels of layer {spec.name!r} must be whole or half numbers, got others")
    grid = coding_grid(doubled.astype(np.int64), layer.grid)
    try:
        packed = pack_levels(doubled.astype(np.int64), grid)
    except InputError as error:
        raise InputError(f"layer {spec.name!r}: {error}") from error
    steps = layer.steps.detach().cpu().reshape(-1).numpy().astype(LITTLE[layer.steps.dtype]).tobytes()
    entry = LayerEntry(
        name=spec.name,
        key=spec.weight_key,
        shape=tuple(layer.levels.shape),
        grid=grid,
        coding=packed.coding,
        bytes=len(packed.data),
        steps=layer.steps.numel(),
        step_type="float64" if layer.steps.dtype == torch.float64 else "float32",
        type=str(weight.dtype).removeprefix("torch."),  # type: ignore[arg-type] # the record checks it
        transposed=spec.transposed,
        groups=spec.groups,
        rows=spec.rows,
    )
    return entry, steps + packed.data


def _check_layer(layer: LayerLevels, spec: LayerSpec, weight: Tensor) -> None:
    where = f"of layer {spec.name!r}"
    if layer.grid not in GRIDS:
        raise InputError(f"grid {where} must be one of {', '.join(GRIDS)}, got {layer.grid!r}")
    if layer.steps.dtype not in LITTLE:
        raise InputError(f"steps {where} must be float32 or float64, got {layer.steps.dtype}")
    if layer.steps.shape not in ((), (1,), (spec.filters,)):
        raise InputError(f"steps {where} must be 1 or {spec.filters} numbers, got shape {tuple(layer.steps.shape)}")
    if not bool((layer.steps.isfinite() & (layer.steps > 0)).all()):
        raise InputError(f"steps {where} must be positive numbers, got {float(layer.steps.min())}")
    if layer.levels.shape != weight.shape:
        raise InputError(f"levels {where} must be {tuple(weight.shape)}, got {tuple(layer.levels.shape)}")
    if not torch.equal(layer.weights().cpu().to(weight.dtype), weight):
        raise InputError(f"weights {where} must be exactly step * levels, got others: they were changed afterwards")


def _is_packed(key: str, value: Tensor, entries: list[LayerEntry]) -> bool:
    """Whether the layers hold all rows of an entry of the state dict."""
    rows: set[int] = set()
    for entry in entries:
        if entry.key == key:
            rows.update(range(*(entry.rows or (0, len(value)))))
    return value.ndim > 0 and len(rows) == len(value) > 0


def _manifest(origin: Origin, layers: tuple[LayerEntry, ...], files: Mapping[FileName, bytes]) -> Manifest:
    plan = CompressionPlan.from_dict(parse_json(origin.plan, where="plan.json"))
    cost = parse_json(origin.cost, where="cost.json").get("total")
    if not isinstance(cost, dict):
        raise InputError(f"cost.json must hold the totals of a cost report, got {type(cost).__name__}")
    return Manifest(
        network=origin.network,
        normalization=origin.normalization,
        accuracy=origin.accuracy,
        plan=PlanSummary(
            digest=plan.digest(), policy=plan.policy, setting=plan.setting, metric=plan.metric, price=plan.price
        ),
        cost={metric: cost.get(metric) for metric in METRICS},
        layers=layers,
        files={
            name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
        provenance=dict(origin.provenance),
    )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """All files under a temporary name beside the folder, then one rename."""
    if _holds(folder, files):
        return
    try:
        write_folder(folder, files)
    except OSError as error:
        # another process may have written the same artifact meanwhile
        if not _holds(folder, files):
            raise InputError(f"artifact must go where it can be written, got {folder}: {error.strerror}") from error


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether the folder is this artifact already.

    Raises:
        InputError: It is something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / MANIFEST).is_file():
        raise InputError(f"artifact must go to a new or empty folder, got {folder}, which holds something else")
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or read_file(path, limit=max(len(content), path.stat().st_size)) != content:
            raise InputError(
                f"artifact must go to a new or empty folder, got {folder}, which holds another or a damaged artifact"
            )
    return True
