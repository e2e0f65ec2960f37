"""Ship a compressed network as a folder: packed levels, everything else of its state, plan, cost, and hashes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimbit.artifacts.manifest import (
    KEEP,
    MANIFEST,
    AccuracyEntry,
    FileEntry,
    FileName,
    Manifest,
    NetworkReference,
    PlanSummary,
)
from slimbit.artifacts.packed import PackedModel
from slimbit.records.codec import sha256
from slimbit.records.cost import METRICS, CostReport
from slimbit.records.errors import InputError
from slimbit.records.files import read_regular, write_folder
from slimbit.records.origin import Normalization
from slimbit.records.plan import CompressionPlan


def write_artifact(
    folder: Path,
    packed: PackedModel,
    files: Mapping[str, bytes],
    *,
    network: NetworkReference,
    plan: CompressionPlan,
    cost: CostReport,
    accuracy: AccuracyEntry | None = None,
    normalization: Normalization | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a compressed network as a folder that `slimbit.load` reads; all of it or nothing.

    The format is written down in docs/reference/artifact-format.md. Equal content gives equal files.

    Args:
        folder: A new or empty one, or one that holds this very artifact already.
        packed: Levels, steps, and the rest of the state dict.
        files: JSON by name: "plan", "cost" and, of a pruned network, "keep".
        network: How the network is built again.
        plan: What was carried out.
        cost: What it costs.
        accuracy: What was measured.
        normalization: What inputs need.
        provenance: Versions, seed, hardware: anything JSON.

    Raises:
        InputError: A folder with something else in it, or a full disk.
    """
    contents: dict[FileName, bytes] = {
        "levels.bin": packed.levels,
        "state.safetensors": packed.state,
        "plan.json": files["plan"],
        "cost.json": files["cost"],
    }
    if "keep" in files:
        contents[KEEP] = files["keep"]
    price = plan.price
    manifest = Manifest(
        network=network,
        normalization=normalization,
        accuracy=accuracy,
        plan=PlanSummary(
            digest=plan.digest(),
            policy=plan.policy,
            setting="" if plan.setting is None else str(plan.setting),
            metric=None if price is None else price.metric,
            price=None if price is None else price.value,
        ),
        cost={metric: cost.total[metric] for metric in METRICS},
        layers=packed.entries,
        files={name: FileEntry(bytes=len(content), sha256=sha256(content)) for name, content in contents.items()},
        provenance=dict(provenance or {}),
    )
    _write_folder(folder, {MANIFEST: manifest.to_bytes(), **{str(k): v for k, v in contents.items()}})
    return manifest


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
        same = path.is_file() and path.stat().st_size == len(content)
        if not same or read_regular(path, "artifact file", limit=len(content)) != content:
            raise InputError(
                f"artifact must go to a new or empty folder, got {folder}, which holds another or a damaged artifact"
            )
    return True
