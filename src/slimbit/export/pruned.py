"""A pruned network as a folder: its weights, and the plan that leads to it from the original's form."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from slimbit.apply.surgery import rebuild as rebuild_pruned
from slimbit.export.manifest import NetworkReference
from slimbit.export.rebuild import rebuild
from slimbit.records.errors import InputError
from slimbit.records.files import write_whole
from slimbit.records.keep import PRUNED, PRUNED_WEIGHTS, KeepPlan
from slimbit.zoo.files import read_weights

TRAININGS = ("admm", "tune")
SCHEMA = 1


def write_pruned(
    folder: Path,
    model: nn.Module,
    plan: KeepPlan,
    *,
    network: NetworkReference,
    about: Mapping[str, Any],
    content: str = "",
) -> None:
    """Write ``model.safetensors`` and ``prune.json``.

    Args:
        folder: Made if it does not exist.
        model: The pruned network.
        plan: What led to it.
        network: How the original is built.
        content: Digest of what the result depends on, see `check_pruned_folder`.
        about: Plain data: a model card under ``card`` (as `slimbit.zoo.cards.read_card` reads it) and anything else.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    card = json.dumps(dict(about.get("card", {})))
    data = {
        "schema": SCHEMA,
        "network": network.model_dump(mode="json"),
        "content": content,
        "plan": plan.to_dict(),
        **about,
    }
    write_whole(folder / PRUNED, json.dumps(data, indent=2, allow_nan=False).encode())
    write_whole(folder / PRUNED_WEIGHTS, save(tensors, metadata={"slimbit": card}))


def check_pruned_folder(folder: Path, content: str) -> None:
    """Refuse a folder that holds anything but this pruning.

    Args:
        folder: New, empty, with trainings that were stopped (which check themselves), or written before.
        content: Digest of everything that the result depends on.

    Raises:
        InputError: Something else is in it, and what.
    """
    entries = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    found = sorted(name for name in entries if not name.startswith("."))
    strange = [name for name in found if name not in TRAININGS]
    if PRUNED in found:
        if _read(folder)["content"] == content:
            return
        strange = ["another pruning"] if set(strange) <= {PRUNED_WEIGHTS, PRUNED} else strange
    if strange:
        raise InputError(
            f"--out must be a new folder, an empty one or one of this pruning, got {folder} with {strange[0]} in it"
        )


def load_pruned(folder: str | Path, *, model: nn.Module | None = None, allow_code: bool = False) -> nn.Module:
    """The pruned network of a folder, in evaluation mode.

    Args:
        folder: Written by ``slimbit prune`` or `write_pruned`.
        model: A network of the original's form; needed where it is neither in the zoo nor in timm.
        allow_code: Whether a network that the folder names as ``package.module:callable`` may be imported and called.

    Raises:
        InputError: No such folder, a damaged file, or a plan or weights that do not fit the network.
    """
    reference, plan = pruned_from(folder)
    if model is None:
        model = rebuild(reference, allow_code=allow_code)
    return rebuild_pruned(model, plan, read_weights(Path(folder) / PRUNED_WEIGHTS))


def pruned_from(folder: str | Path) -> tuple[NetworkReference, KeepPlan]:
    """What the network of a folder was before, and the plan that led from there.

    Raises:
        InputError: No such folder, or a damaged file.
    """
    data = _read(Path(folder))
    return _reference(folder, data), KeepPlan.from_dict(data.get("plan", {}))


def _reference(folder: str | Path, data: Mapping[str, Any]) -> NetworkReference:
    try:
        return NetworkReference.model_validate_json(json.dumps(data.get("network")))
    except ValueError as error:
        raise InputError(f"network of {folder} must be valid, got {data.get('network')!r}") from error


def _read(folder: Path) -> Mapping[str, Any]:
    """What ``prune.json`` says."""
    file = folder / PRUNED
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"pruned network must have a readable {PRUNED}, got {file}: {error}") from error
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise InputError(
            f"{file} must have schema {SCHEMA}, got {data.get('schema') if isinstance(data, Mapping) else data!r}"
        )
    return {"content": "", **data}
