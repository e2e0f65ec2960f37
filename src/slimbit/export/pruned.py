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
from slimbit.records.keep import KeepPlan
from slimbit.zoo.files import read_weights

WEIGHTS, PLAN = "model.safetensors", "prune.json"
SCHEMA = 1


def write_pruned(
    folder: Path, model: nn.Module, plan: KeepPlan, *, network: NetworkReference, about: Mapping[str, Any]
) -> None:
    """Write ``model.safetensors`` and ``prune.json``.

    Args:
        folder: Made if it does not exist.
        model: The pruned network.
        plan: What led to it.
        network: How the original is built.
        about: Plain data: a model card under ``card`` (as `slimbit.zoo.cards.read_card` reads it) and anything else.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    card = json.dumps(dict(about.get("card", {})))
    data = {"schema": SCHEMA, "network": network.model_dump(mode="json"), "plan": plan.to_dict(), **about}
    write_whole(folder / WEIGHTS, save(tensors, metadata={"slimbit": card}))
    write_whole(folder / PLAN, json.dumps(data, indent=2, allow_nan=False).encode())


def load_pruned(folder: str | Path, *, model: nn.Module | None = None) -> nn.Module:
    """The pruned network of a folder, in evaluation mode.

    Args:
        folder: Written by ``slimbit prune`` or `write_pruned`.
        model: A network of the original's form; needed where it is neither in the zoo nor in timm.

    Raises:
        InputError: No such folder, a damaged file, or a plan or weights that do not fit the network.
    """
    file = Path(folder) / PLAN
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"pruned network must have a readable {PLAN}, got {file}: {error}") from error
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        raise InputError(
            f"{file} must have schema {SCHEMA}, got {data.get('schema') if isinstance(data, Mapping) else data!r}"
        )
    plan = KeepPlan.from_dict(data.get("plan", {}))
    if model is None:
        try:
            reference = NetworkReference.model_validate_json(json.dumps(data.get("network")))
        except ValueError as error:
            raise InputError(f"network of {file} must be valid, got {data.get('network')!r}") from error
        model = rebuild(reference)
    return rebuild_pruned(model, plan, read_weights(Path(folder) / WEIGHTS))
