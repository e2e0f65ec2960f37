"""An artifact as an ordinary network again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from slimbit.apply.surgery import cut_as
from slimbit.export.manifest import (
    KEEP,
    FileEntry,
    LayerEntry,
    Manifest,
    parse_json,
    read_file,
    read_manifest,
)
from slimbit.export.packing import Packed, unpack_levels
from slimbit.export.rebuild import rebuild
from slimbit.export.weights import LayerLevels, place, taken, tensors_of
from slimbit.numerics.copies import plain_network
from slimbit.records.errors import InputError, closest
from slimbit.records.keep import KeepPlan
from slimbit.records.plan import CompressionPlan


def load(folder: str | Path, *, model: nn.Module | None = None, allow_code: bool = False) -> nn.Module:
    """The compressed network of an artifact: an ordinary module in evaluation mode, weights ``step * levels``.

    Its outputs equal, bit for bit, those of the network that was written. Every file is checked against its hash
    before anything is built. The hashes find damage, not fraud: who can write the folder can write the hashes.

    Args:
        folder: Written by ``slimbit pick`` or `slimbit.export.artifact.write_artifact`.
        model: The network to fill, whose weights do not matter; a copy is filled. Of a pruned network it is the
            original's form, before filters were removed. Needed where the network is neither in the zoo nor in timm.
        allow_code: Whether a network named ``package.module:callable`` is imported and called instead. That runs
            code which the artifact names, so only for artifacts that are trusted.

    Raises:
        InputError: No artifact, damaged, of another version, for another network, or it needs ``model``.

    Example (one that loads is in docs/reference/artifact-format.md):
        >>> load("nowhere")
        Traceback (most recent call last):
            ...
        slimbit.records.errors.InputError: artifact file must exist, got none at nowhere/slimbit.json
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    files = {name: _verified(folder / name, entry) for name, entry in manifest.files.items()}
    _check_plan(files["plan.json"], manifest, folder)
    state = _read_state(files["state.safetensors"], folder / "state.safetensors")
    keep = _read_keep(files[KEEP], folder / KEEP) if KEEP in files else None

    def formed(whole: nn.Module) -> nn.Module:
        return plain_network(whole) if keep is None else cut_as(whole, keep, state)

    if model is None and ":" not in manifest.network.source:
        # shapes first: a manifest must not make a network larger than its own files explain
        _check_fit(tensors_of(formed(rebuild(manifest.network, without_memory=True))), state, manifest)
    network = formed(rebuild(manifest.network, allow_code=allow_code) if model is None else model)
    tensors = tensors_of(network)
    _check_fit(tensors, state, manifest)
    _place_layers(tensors, state, manifest, files["levels.bin"])
    _fill(network, tensors)
    return network


def _verified(path: Path, entry: FileEntry) -> bytes:
    content = read_file(path, limit=entry.bytes)
    if len(content) != entry.bytes:
        raise InputError(f"artifact file {path} must have {entry.bytes} bytes, got {len(content)}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise InputError(f"artifact file {path} must have the hash in its manifest, got another: it is damaged")
    return content


def _check_plan(content: bytes, manifest: Manifest, folder: Path) -> None:
    plan = CompressionPlan.from_dict(parse_json(content, where=str(folder / "plan.json")))
    if plan.digest() != manifest.plan.digest:
        raise InputError(f"{folder / 'plan.json'} must be the plan of the manifest, got {plan.digest()[:12]}")


def _read_keep(content: bytes, path: Path) -> KeepPlan:
    try:
        return KeepPlan.from_dict(parse_json(content, where=str(path)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_state(content: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(content)
    # Beside its own error the reader lets through whatever torch raises at impossible shapes and types.
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path} must be a complete safetensors file, got {str(error)[:120]}") from error


def _check_fit(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Every entry of the network comes from the artifact, every entry of the artifact fits the network."""
    source, packed = manifest.network.source, {layer.key for layer in manifest.layers}
    for key, value in state.items():
        if key not in tensors:
            raise InputError(
                f"network {source} must have the entry {key[:200]!r}, got none{closest(key, list(tensors))}"
            )
        if tensors[key].shape != value.shape:
            expected = tuple(tensors[key].shape)
            raise InputError(f"entry {key!r} of network {source} must be {expected}, got {tuple(value.shape)}")
        if tensors[key].dtype != value.dtype and not (tensors[key].is_floating_point() and value.is_floating_point()):
            raise InputError(f"entry {key!r} of network {source} must be {tensors[key].dtype}, got {value.dtype}")
    for layer in manifest.layers:
        if taken(tensors, layer.spec()).shape != layer.shape:
            found = tuple(taken(tensors, layer.spec()).shape)
            raise InputError(f"layer {layer.name!r} of network {source} must be {layer.shape}, got {found}")
    missing = [key for key in tensors if key not in state and key not in packed]
    if missing:
        raise InputError(f"artifact must hold every entry of network {source}, got no {missing[0]!r}")


def _place_layers(tensors: dict[str, Tensor], state: Mapping[str, Tensor], manifest: Manifest, content: bytes) -> None:
    """Replace all tensors by those of the artifact."""
    for key, value in state.items():
        tensors[key] = value.to(tensors[key].device)
    start = 0
    for layer in manifest.layers:
        stop = start + layer.step_bytes + layer.bytes
        weights = _unpacked(layer, content[start:stop]).weights()
        if layer.key not in state:
            tensors[layer.key] = tensors[layer.key].to(getattr(torch, layer.type))
        place(tensors, layer.spec(), weights)
        start = stop


def _unpacked(layer: LayerEntry, content: bytes) -> LayerLevels:
    values = np.frombuffer(content[: layer.step_bytes], "<f8" if layer.step_type == "float64" else "<f4")
    steps = torch.from_numpy(values.astype(layer.step_type))
    if not bool((steps.isfinite() & (steps > 0)).all()):
        raise InputError(f"steps of layer {layer.name!r} must be positive numbers, got {float(steps.min())}")
    doubled = unpack_levels(Packed(layer.coding, content[layer.step_bytes :]), layer.grid, layer.shape)
    levels = torch.from_numpy(doubled).to(steps.dtype).mul_(0.5)
    return LayerLevels(levels, steps[0] if len(steps) == 1 else steps, layer.grid)


def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy in place, so that tied parameters stay tied; types follow the artifact."""
    for key, target in network.state_dict(keep_vars=True).items():
        if target.dtype != tensors[key].dtype:
            target.data = target.data.to(tensors[key].dtype)
    network.load_state_dict(tensors)
