"""Checkpoints: one safetensors file that holds everything a run needs to go on, replaced as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from slimbit.records.codec import canonical, from_json, record
from slimbit.records.containers import check_safetensors
from slimbit.records.errors import InputError
from slimbit.records.files import write_whole

METADATA_KEY = "slimbit-training"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        epoch: Finished epochs.
        digest: Of the settings, see `TrainConfig.digest`.
        best_epoch: Epoch of the best accuracy on held-out images; 0 = none yet.
        best_accuracy: Its accuracy, percent.
        tensors: By group ("model", "best", "momentum", "tracker"), tensors by name.
    """

    epoch: int
    digest: str
    best_epoch: int = 0
    best_accuracy: float | None = None
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it so that the file is always a whole one, the old or the new.

    Raises:
        StoreError: It cannot be written; the old one stays.
    """
    flat = {f"{group}/{name}": plain(t) for group, part in checkpoint.tensors.items() for name, t in part.items()}
    progress = _Progress(
        epoch=checkpoint.epoch,
        digest=checkpoint.digest,
        best_epoch=checkpoint.best_epoch,
        best_accuracy=checkpoint.best_accuracy,
    )
    write_whole(path, save(flat, metadata={METADATA_KEY: canonical(progress).decode()}))


@record
class _Progress:
    """What a checkpoint says beside its tensors."""

    epoch: Annotated[int, Field(ge=0)]
    digest: str
    best_epoch: Annotated[int, Field(ge=0)]
    best_accuracy: float | None


def plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, as safetensors wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """What was written, or None where nothing was.

    Raises:
        InputError: The file is damaged or no checkpoint.
    """
    if not path.exists():
        return None
    check_safetensors(path, "checkpoint")
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as content:
            found = from_json(_Progress, (content.metadata() or {})[METADATA_KEY], where="its record")
            for key in content.keys():  # noqa: SIM118 - a reader, not a mapping
                group, _, name = key.partition("/")
                tensors.setdefault(group, {})[name] = content.get_tensor(key)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"checkpoint {path} must be a whole checkpoint of a training run, got {error}") from error
    return Checkpoint(
        epoch=found.epoch,
        digest=found.digest,
        best_epoch=found.best_epoch,
        best_accuracy=found.best_accuracy,
        tensors=tensors,
    )


def check_fits(checkpoint: Checkpoint, model: nn.Module, digest: str, path: Path) -> None:
    """Raise `InputError` unless the checkpoint is of this network and these settings."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.get("model", {}).items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"checkpoint {path} must be of this network, got {name!r} with shape {found.get(name, 'none')} "
                f"instead of {wanted.get(name, 'none')}"
            )
    if checkpoint.digest != digest:
        raise InputError(f"checkpoint {path} must come from the same settings, got one from others: see train.json")
