"""A pruned network as a folder: its weights, and the plan that leads to it from the original's form."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save
from torch import nn

from slimbit.artifacts.manifest import AccuracyEntry, NetworkReference
from slimbit.records.codec import canonical, from_plain, json_file, with_schema
from slimbit.records.errors import InputError
from slimbit.records.files import parse_json, read_regular, write_whole
from slimbit.records.keep import PRUNED, PRUNED_WEIGHTS, KeepPlan
from slimbit.records.keep import SCHEMA as KEEP_SCHEMA
from slimbit.records.origin import Normalization

TRAININGS = ("admm", "tune")
SCHEMA = 1
LARGEST = 1 << 26
KNOWN = ("schema", "network", "plan", "content", "normalization", "accuracy")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class PrunedFolder:
    """What ``prune.json`` says.

    Attributes:
        network: How the original is built.
        plan: What is left of it.
        content: Digest of what the result depends on, "" where nothing says it.
        normalization: What its inputs need; None where unknown.
        accuracy: What was measured of it; None where nothing was.
        about: Everything else.
    """

    network: NetworkReference
    plan: KeepPlan
    content: str
    normalization: Normalization | None
    accuracy: AccuracyEntry | None
    about: Mapping[str, Any]


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
    card = canonical(about.get("card", {})).decode()
    said = {"network": network, "content": content, "plan": with_schema(plan, KEEP_SCHEMA), **about}
    write_whole(folder / PRUNED, json_file(with_schema(said, SCHEMA)))
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
        if read_pruned(folder).content == content:
            return
        strange = ["another pruning"] if set(strange) <= {PRUNED_WEIGHTS, PRUNED} else strange
    if strange:
        raise InputError(
            f"--out must be a new folder, an empty one or one of this pruning, got {folder} with {strange[0]} in it"
        )


def read_pruned(folder: str | Path) -> PrunedFolder:
    """What a folder of ``slimbit prune`` says of itself.

    Raises:
        InputError: No such folder, or a damaged file.
    """
    path = Path(folder) / PRUNED
    where = str(path)
    data = parse_json(read_regular(path, "pruned network", limit=LARGEST), where=where)
    if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
        raise InputError(f"{where} must have schema {SCHEMA}, got {found!r}")
    rest = {key: value for key, value in data.items() if key not in KNOWN}
    return PrunedFolder(
        network=from_plain(NetworkReference, data.get("network"), where=f"network of {where}"),
        plan=from_plain(KeepPlan, data.get("plan"), where=f"plan of {where}", schema=KEEP_SCHEMA),
        content=str(data.get("content", "")),
        normalization=_entry(Normalization, data, "normalization", where),
        accuracy=_entry(AccuracyEntry, data, "accuracy", where),
        about=rest,
    )


def _entry(kind: type[Entry], data: Mapping[str, Any], name: str, where: str) -> Entry | None:
    return from_plain(kind, data[name], where=f"{name} of {where}") if name in data else None
