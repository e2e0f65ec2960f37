"""The manifest ``slimbit.json``: what an artifact holds, checked by hash. docs/reference/artifact-format.md.

Reading it needs no torch.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from slimbit.artifacts.packing import Coding
from slimbit.records.codec import digest, from_json, from_plain, json_file, sha256
from slimbit.records.config import Grid
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.files import parse_json, read_regular
from slimbit.records.network import LayerSpec
from slimbit.records.origin import Normalization
from slimbit.records.text import clipped

MANIFEST = "slimbit.json"
LARGEST_MANIFEST = 1 << 26
"""Bytes; a network of ten thousand layers needs about 2 million."""
MOST_WEIGHTS = 1 << 31
"""Weights of one artifact: some gigabytes, more than any convolutional network, less than a memory bomb."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Size = Annotated[int, Field(ge=1, le=MOST_WEIGHTS)]
Shape = Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]
FileName = Literal["levels.bin", "state.safetensors", "plan.json", "cost.json", "keep.json"]
KEEP: FileName = "keep.json"
FILES: tuple[FileName, ...] = tuple(name for name in get_args(FileName) if name != KEEP)
"""Files of every artifact; that of a pruned network has `KEEP` besides."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class NetworkReference(_Record):
    """How the network is built again.

    Attributes:
        source: Zoo name, ``timm:NAME``, or ``package.module:callable``.
        classes: Outputs of a zoo network; None = its default.
        input_shape: Shape of one input, without the batch dimension.
        weights_digest: SHA-256 of the float network's weights, "" where unknown.
    """

    source: Name
    classes: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    input_shape: Shape
    weights_digest: Digest | Literal[""] = ""


class AccuracyEntry(_Record):
    """What the run measured.

    Attributes:
        value: Of the compressed network; percent for the built-in data, higher is better.
        low: Lower end of its 95 % confidence interval, where known.
        high: Upper end.
        uncompressed: Of the float network on the same data.
        measured_on: The data, for people.
    """

    value: float
    low: float | None = None
    high: float | None = None
    uncompressed: float | None = None
    measured_on: str = ""


class PlanSummary(_Record):
    """Which plan was carried out; the whole of it is in ``plan.json``."""

    digest: Digest
    policy: str
    setting: str = ""
    metric: str | None = None
    price: float | None = None


class LayerEntry(_Record):
    """One quantized layer and its bytes in ``levels.bin``.

    Attributes:
        name: As in the plan.
        key: State-dict key of its weight.
        shape: Shape of the levels, filters first.
        grid: How levels are numbered in the bytes, see `slimbit.artifacts.packing`.
        coding: How the numbers became bytes.
        bytes: Number of packed bytes.
        steps: Number of steps: 1, or one per filter.
        step_type: Their type.
        type: Type of the weight in the network.
        transposed: Whether the network stores inputs first.
        groups: Number of convolution groups.
        rows: First and one-past-last row of the stored tensor where it holds several layers.
    """

    name: Name
    key: Name
    shape: Shape
    grid: Grid
    coding: Coding
    bytes: Annotated[int, Field(ge=0)]
    steps: Size
    step_type: Literal["float32", "float64"] = "float32"
    type: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    transposed: bool = False
    groups: Size = 1
    rows: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None

    @property
    def step_bytes(self) -> int:
        """Bytes of the steps, in front of the packed levels."""
        return self.steps * (8 if self.step_type == "float64" else 4)

    def spec(self) -> LayerSpec:
        """The layer as weights are placed by; its positions are not known here."""
        return LayerSpec(
            name=self.name,
            kind="tensor",
            weight_key=self.key,
            shape=self.shape,
            groups=self.groups,
            transposed=self.transposed,
            rows=self.rows,
        )


class FileEntry(_Record):
    """One file of the folder."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class Manifest(_Record):
    """Everything an artifact says of itself.

    Attributes:
        format: Always "slimbit-artifact".
        schema_: Version of the format; ``schema`` in the file.
        network: How it is built again.
        normalization: What its inputs need; None where unknown.
        accuracy: What the run measured; None where nothing was.
        plan: What was carried out.
        cost: Every cost metric.
        layers: Quantized layers, in the order of their bytes.
        files: Size and hash of every other file of the folder.
        provenance: Versions, seed, hardware.
    """

    format: Literal["slimbit-artifact"] = "slimbit-artifact"
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    network: NetworkReference
    normalization: Normalization | None = None
    accuracy: AccuracyEntry | None = None
    plan: PlanSummary
    cost: dict[Name, int | float | None]
    layers: tuple[LayerEntry, ...]
    files: dict[FileName, FileEntry]
    provenance: dict[str, JsonValue] = Field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The manifest as it is written, with the hash of itself: equal content, equal bytes."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        data = {"format": self.format, "schema": self.schema_, **data}
        return json_file({**data, "digest": digest(data)}, indent=1)


def read_manifest(folder: str | Path) -> Manifest:
    """What an artifact says of itself: network, accuracy, cost, plan. The other files are not read.

    Args:
        folder: Written by ``slimbit pick`` or `slimbit.artifacts.artifact.write_artifact`.

    Raises:
        InputError: No artifact, of another version, damaged, or with entries that no artifact has.
    """
    path = Path(folder) / MANIFEST
    data = parse_json(read_regular(path, "artifact file", limit=LARGEST_MANIFEST), where=str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path} must be a JSON object, got {type(data).__name__}")
    if data.get("format") != "slimbit-artifact":
        raise InputError(f"{path} must have the format slimbit-artifact, got {clipped(repr(data.get('format')))}")
    if data.get("schema") != 1:
        raise InputError(
            f"{path} must have schema 1, got {clipped(repr(data.get('schema')))}: a newer slimbit may read it"
        )
    stated = data.pop("digest", None)
    if stated != digest(data):
        raise InputError(f"{path} must have the hash it states, got another: it is damaged or was edited")
    manifest = from_plain(Manifest, data, where=str(path))
    _check(manifest, path)
    return manifest


def read_entry(folder: str | Path, manifest: Manifest, name: FileName) -> bytes:
    """Content of a file of an artifact, checked against its hash.

    Raises:
        InputError: It is missing or damaged.
    """
    path, entry = Path(folder) / name, manifest.files[name]
    content = read_regular(path, "artifact file", limit=entry.bytes)
    if len(content) != entry.bytes:
        raise InputError(f"artifact file {path} must have {entry.bytes} bytes, got {len(content)}")
    if sha256(content) != entry.sha256:
        raise InputError(f"artifact file {path} must have the hash in its manifest, got another: it is damaged")
    return content


def read_cost(folder: str | Path) -> CostReport:
    """What the model of an artifact costs, layer by layer, as it was counted when it was written.

    Raises:
        InputError: No artifact, or a damaged one.
    """
    manifest = read_manifest(folder)
    where = str(Path(folder) / "cost.json")
    return from_json(CostReport, read_entry(folder, manifest, "cost.json"), where=where, schema=COST_SCHEMA)


def _check(manifest: Manifest, path: Path) -> None:
    """What the types cannot say."""
    missing = set(FILES) - set(manifest.files)
    if missing:
        raise InputError(f"{path} must list every file, got no {min(missing)}")
    total = 0
    for layer in manifest.layers:
        weights = 1
        for size in layer.shape:
            weights *= size
        total += weights
        if layer.steps not in (1, layer.shape[0]):
            raise InputError(f"steps of layer {layer.name!r} must be 1 or {layer.shape[0]}, got {layer.steps}")
    if total > MOST_WEIGHTS:
        raise InputError(f"{path} must have at most {MOST_WEIGHTS} weights, got {total}")
    packed = sum(layer.bytes + layer.step_bytes for layer in manifest.layers)
    stated = manifest.files["levels.bin"].bytes
    if packed != stated:
        raise InputError(f"{path} must say of levels.bin what its layers add up to, {packed} bytes, got {stated}")
    names = [layer.name for layer in manifest.layers]
    if len(set(names)) != len(names):
        raise InputError(f"{path} must name every layer once, got {len(names) - len(set(names))} twice")
