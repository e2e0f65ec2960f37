"""A compressed network as bytes, and back: what a run keeps of a point is what an artifact ships."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor, nn

from slimbit.apply.surgery import cut_as
from slimbit.artifacts.manifest import LayerEntry
from slimbit.artifacts.packing import Packed, coding_grid, pack_levels, unpack_levels
from slimbit.numerics.copies import plain_network
from slimbit.numerics.grid import GRIDS, filters_stored, layer_weight
from slimbit.numerics.levels import LayerLevels
from slimbit.records.containers import check_safetensors_header
from slimbit.records.errors import InputError, closest
from slimbit.records.keep import KeepPlan
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.text import clipped

LITTLE = {torch.float32: "<f4", torch.float64: "<f8"}
"""Types of steps, and how they are written."""


@dataclass(frozen=True)
class PackedModel:
    """A compressed network as bytes (docs/reference/artifact-format.md).

    Attributes:
        entries: Quantized layers, in the order of their bytes.
        levels: Their steps and packed levels, one layer after the other.
        state: Safetensors of every other entry of the state dict, in its own type.
    """

    entries: tuple[LayerEntry, ...]
    levels: bytes
    state: bytes


def pack_model(model: nn.Module, layers: Mapping[str, LayerLevels], spec: NetworkSpec) -> PackedModel:
    """Levels of the quantized layers, and everything else of the state dict as it is. Equal content, equal bytes.

    Args:
        model: The compressed network; weights of its quantized layers are exactly ``step * levels``.
        layers: Quantized layers by name.
        spec: Its layers.

    Raises:
        InputError: Levels that are not the network's.
    """
    tensors = {key: value.cpu() for key, value in tensors_of(model).items()}
    packed, entries = [], []
    for name in sorted(layers, key=lambda name: spec.layers.index(layer_of(spec, name))):
        entry, content = _pack_layer(layers[name], layer_of(spec, name), tensors)
        entries.append(entry)
        packed.append(content)
    rest = {key: value.clone().contiguous() for key, value in tensors.items() if not _is_packed(key, value, entries)}
    return PackedModel(tuple(entries), b"".join(packed), save(rest))


def unpack_model(
    packed: PackedModel, form: nn.Module, *, keep: KeepPlan | None = None, where: str = "packed network"
) -> tuple[nn.Module, dict[str, LayerLevels]]:
    """The network that was packed, in evaluation mode, and its levels by layer name; outputs are equal bit for bit.

    Args:
        packed: From `pack_model`.
        form: A network of the original's form, whose weights do not matter; a copy is filled.
        keep: What was removed from the original before it was quantized.
        where: What is read, for messages.

    Raises:
        InputError: Damaged bytes, or a network of another form.
    """
    state = read_state(packed.state, where)
    network = formed(form, keep, state)
    tensors = tensors_of(network)
    check_fit(tensors, state, packed.entries, where)
    for key, value in state.items():
        tensors[key] = value.to(tensors[key].device)
    start, layers = 0, {}
    for entry in packed.entries:
        stop = start + entry.step_bytes + entry.bytes
        layer = layers[entry.name] = _unpacked(entry, packed.levels[start:stop])
        if entry.key not in state:
            tensors[entry.key] = tensors[entry.key].to(getattr(torch, entry.type))
        place(tensors, entry.spec(), layer.weights())
        start = stop
    _fill(network, tensors)
    return network.eval(), layers


def formed(form: nn.Module, keep: KeepPlan | None, state: Mapping[str, Tensor]) -> nn.Module:
    """A plain copy of the form, cut as the plan says."""
    return plain_network(form) if keep is None else cut_as(form, keep, state)


def read_state(content: bytes, where: str) -> dict[str, Tensor]:
    """Tensors by name from safetensors bytes.

    Raises:
        InputError: The bytes are damaged.
    """
    check_safetensors_header(content[:8], len(content), f"state of {where}")
    try:
        return load_tensors(content)
    # Beside its own error the reader lets through whatever torch raises at impossible shapes and types.
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise InputError(f"state of {where} must be complete safetensors, got {clipped(str(error), 120)}") from error


def _pack_layer(layer: LayerLevels, spec: LayerSpec, tensors: Mapping[str, Tensor]) -> tuple[LayerEntry, bytes]:
    weight = taken(tensors, spec)
    _check_layer(layer, spec, weight)
    doubled = (layer.levels.cpu().double() * 2).numpy()
    if not (np.isfinite(doubled).all() and np.array_equal(doubled, np.rint(doubled))):
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


def check_fit(
    tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], entries: tuple[LayerEntry, ...], where: str
) -> None:
    """Raise `InputError` unless the packed entries are those of the network, in shape and kind."""
    packed = {entry.key for entry in entries}
    for key, value in state.items():
        if key not in tensors:
            raise InputError(
                f"the network of {where} must have the entry {key[:200]!r}, got none{closest(key, list(tensors))}"
            )
        if tensors[key].shape != value.shape:
            expected = tuple(tensors[key].shape)
            raise InputError(f"entry {key!r} of the network of {where} must be {expected}, got {tuple(value.shape)}")
        if tensors[key].dtype != value.dtype and not (tensors[key].is_floating_point() and value.is_floating_point()):
            raise InputError(f"entry {key!r} of the network of {where} must be {tensors[key].dtype}, got {value.dtype}")
    for layer in entries:
        if taken(tensors, layer.spec()).shape != layer.shape:
            found = tuple(taken(tensors, layer.spec()).shape)
            raise InputError(f"layer {layer.name!r} of the network of {where} must be {layer.shape}, got {found}")
    missing = [key for key in tensors if key not in state and key not in packed]
    if missing:
        raise InputError(f"{where} must hold every entry of the network, got no {missing[0]!r}")


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


def layer_of(spec: NetworkSpec, name: str) -> LayerSpec:
    """The layer of that name.

    Raises:
        InputError: There is none.
    """
    try:
        return spec.layer(name)
    except KeyError:
        names = [layer.name for layer in spec.layers]
        raise InputError(f"levels must be for layers of {spec.name}, got {name!r}{closest(name, names)}") from None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, detached.

    Raises:
        InputError: It holds more than tensors.
    """
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"state of the network must be tensors, got {type(value).__name__} at {key!r}")
    return {key: value.detach() for key, value in state.items()}


def place(tensors: dict[str, Tensor], layer: LayerSpec, weights: Tensor) -> None:
    """Put a layer's weights, filters first, where the network keeps them; the tensor that was there stays as it was.

    Raises:
        InputError: No such entry, or another shape.
    """
    rows = rows_of(tensors, layer)
    stored = filters_stored(weights, transposed=layer.transposed, groups=layer.groups)
    new = tensors[layer.weight_key].clone()
    if new[rows].shape != stored.shape:
        raise InputError(f"levels of layer {layer.name!r} must be {tuple(new[rows].shape)}, got {tuple(stored.shape)}")
    new[rows] = stored.to(new)
    tensors[layer.weight_key] = new


def taken(tensors: Mapping[str, Tensor], layer: LayerSpec) -> Tensor:
    """The layer's weights, filters first, as the network keeps them now."""
    rows_of(tensors, layer)
    return layer_weight(tensors[layer.weight_key], layer)


def rows_of(tensors: Mapping[str, Tensor], layer: LayerSpec) -> slice:
    """Rows of the stored tensor that belong to the layer.

    Raises:
        InputError: The network has no such tensor or rows, or it is no weight.
    """
    tensor = tensors.get(layer.weight_key)
    if tensor is None or tensor.ndim == 0 or not tensor.is_floating_point():
        raise InputError(f"network must have the weight {layer.weight_key!r} of layer {layer.name!r}, got none")
    if layer.transposed and (tensor.ndim < 2 or len(tensor) % layer.groups):
        raise InputError(f"groups of layer {layer.name!r} must divide {tuple(tensor.shape)}, got {layer.groups}")
    if layer.rows is None:
        return slice(None)
    first, last = layer.rows
    if not 0 <= first < last <= len(tensor):
        raise InputError(f"rows of layer {layer.name!r} must be within {len(tensor)}, got {first} to {last}")
    return slice(first, last)
