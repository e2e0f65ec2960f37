"""A pruning that is finished, kept in a folder: its weights, and the plan that leads to them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from slimbit.apply.surgery import rebuild
from slimbit.records.codec import from_json, json_file, sha256, with_schema
from slimbit.records.codec import record as stored_record
from slimbit.records.errors import InputError
from slimbit.records.files import not_written, read_regular, write_whole
from slimbit.records.keep import KeepPlan

DONE, NETWORK, SCHEMA = "pruned.json", "network.safetensors", 1
LARGEST = 1 << 26


@dataclass(frozen=True)
class PruneStage:
    """A pruning that is finished; the plan leads from the prepared network."""

    network: nn.Module
    plan: KeepPlan
    residuals: tuple[float, ...]


@stored_record
class _StageRecord:
    """``pruned.json``: a finished pruning.

    Attributes:
        network: SHA-256 of its weights.
        residuals: Of ADMM, by epoch.
        plan: What stayed.
    """

    network: str
    residuals: tuple[float, ...]
    plan: KeepPlan


def pruned_from_state(model: nn.Module, plan: KeepPlan, content: bytes) -> nn.Module:
    """The pruned network that `packed_state` packed.

    Raises:
        InputError: Damaged bytes, or those of another network.
    """
    try:
        state = load(content)
    except SafetensorError as error:
        raise InputError(f"weights of a pruned network must be complete safetensors, got {error}") from error
    return rebuild(model, plan, state).eval()


def packed_state(network: nn.Module) -> bytes:
    """A network's state dict as safetensors."""
    return packed(network.state_dict())


def packed(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors."""
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})


@contextmanager
def held_stage(folder: Path) -> Iterator[None]:
    """One process at a time works in the folder of a stage, which is made where there is none; others wait.

    Raises:
        StoreError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
    except OSError as error:
        raise not_written(folder, error) from error
    with lock:
        yield


def write_stage(folder: Path, stage: PruneStage) -> None:
    """Keep a finished pruning in a folder.

    Raises:
        StoreError: It cannot be written.
    """
    content = packed_state(stage.network)
    finite = tuple(value for value in stage.residuals if math.isfinite(value))
    found = _StageRecord(network=sha256(content), residuals=finite, plan=stage.plan)
    write_whole(folder / NETWORK, content)
    write_whole(folder / DONE, json_file(with_schema(found, SCHEMA)))


def read_stage(model: nn.Module, folder: Path) -> PruneStage | None:
    """The pruning that a folder holds; None where none is finished.

    Args:
        model: The network that was pruned.
        folder: Written by `write_stage`.

    Raises:
        InputError: What is in it is damaged.
    """
    file = folder / DONE
    if not file.exists():
        return None
    content = read_regular(file, "pruned network", limit=LARGEST)
    found = from_json(_StageRecord, content, where=str(file), schema=SCHEMA)
    weights = (folder / NETWORK).read_bytes() if (folder / NETWORK).is_file() else b""
    if sha256(weights) != found.network:
        raise InputError(f"{file} must name the network beside it, got another or none: delete {folder}")
    return PruneStage(pruned_from_state(model, found.plan, weights), found.plan, found.residuals)
