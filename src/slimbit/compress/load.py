"""Open what was saved: an artifact, or a pruned folder, as a compressed model again."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from slimbit.apply.integers import IntegerNetwork, IntegerProgram, integer_program
from slimbit.apply.surgery import rebuild as rebuild_pruned
from slimbit.artifacts.manifest import KEEP, MANIFEST, Manifest, NetworkReference, read_entry, read_manifest
from slimbit.artifacts.packed import PackedModel, check_fit, formed, read_state, tensors_of, unpack_model
from slimbit.artifacts.pruned import read_pruned
from slimbit.artifacts.rebuild import rebuild
from slimbit.compress.model import CompressedModel
from slimbit.measure.cost import cost
from slimbit.numerics.batches import zeros_like_input
from slimbit.numerics.levels import LayerLevels
from slimbit.records.codec import from_json
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.files import as_path
from slimbit.records.keep import PRUNED, PRUNED_WEIGHTS, KeepPlan
from slimbit.records.network import NetworkSpec
from slimbit.records.origin import NetworkOrigin
from slimbit.records.plan import CompressionPlan
from slimbit.records.run import RUN_FILE
from slimbit.survey.dataflow import read_dataflow
from slimbit.survey.module import survey_network
from slimbit.survey.trace import Inputs
from slimbit.zoo.files import read_weights


def load(folder: str | Path, *, model: nn.Module | None = None, allow_code: bool = False) -> CompressedModel:
    """Open a folder that `CompressedModel.save`, ``slimbit pick`` or ``slimbit prune`` wrote.

    Outputs of an artifact's network equal, bit for bit, those of the network that was written. Every file is checked
    against its hash before anything is built. The hashes find damage, not fraud: who can write the folder can write
    the hashes.

    Args:
        folder: An artifact, or a pruned folder.
        model: The network to fill, whose weights do not matter; a copy is filled. Of a pruned network it is the
            original's form, before filters were removed. Needed where the network is neither in the zoo nor in timm.
        allow_code: Whether a network named ``package.module:callable`` is imported and called instead. That runs
            code which the folder names, so only for folders that are trusted.

    Raises:
        InputError: No such folder, damaged, of another version, for another network, or it needs ``model``.

    >>> import slimbit, tempfile, torch
    >>> images, folder = torch.randn(16, 1, 8, 8), tempfile.mkdtemp() + "/small"
    >>> small = slimbit.quantize(slimbit.network("digits_resnet"), images[:1], images, bits=4)
    >>> _ = small.save(folder)
    >>> torch.equal(load(folder).model(images), small.model(images))
    True
    >>> load("nowhere")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: nowhere must be a folder with slimbit.json (written by CompressedModel.save or \
slimbit pick) or prune.json (slimbit prune), got nothing
    """
    path = as_path(folder, "folder")
    _check_folder(path)
    if (path / PRUNED).is_file():
        return _load_pruned(path, model, allow_code=allow_code)
    manifest = read_manifest(path)
    files = {name: read_entry(path, manifest, name) for name in manifest.files}
    plan = from_json(CompressionPlan, files["plan.json"], where=str(path / "plan.json"))
    if plan.digest() != manifest.plan.digest:
        raise InputError(f"{path / 'plan.json'} must be the plan of the manifest, got {plan.digest()[:12]}")
    keep = from_json(KeepPlan, files[KEEP], where=str(path / KEEP)) if KEEP in files else None
    packed = PackedModel(manifest.layers, files["levels.bin"], files["state.safetensors"])
    where = f"artifact {path}" if model is not None else f"artifact {path} of network {manifest.network.source}"
    form = form_of(manifest.network, packed, keep, model=model, allow_code=allow_code, where=where)
    network, layers = unpack_model(packed, form, keep=keep, where=where)
    spec = NetworkSpec(plan.network, tuple(entry.spec() for entry in manifest.layers))
    example = zeros_like_input(manifest.network.input_shape)
    program = program_of(network, plan, spec, layers, example)
    return CompressedModel(
        model=network if program is None else IntegerNetwork(program),
        network=network,
        program=program,
        cost=from_json(CostReport, files["cost.json"], where=str(path / "cost.json"), schema=COST_SCHEMA),
        spec=spec,
        plan=plan,
        layers=layers,
        keep=keep,
        origin=origin_of(manifest),
        accuracy=manifest.accuracy,
        provenance=manifest.provenance,
    )


def _check_folder(path: Path) -> None:
    """Say what belongs into a folder that is none of those that can be loaded."""
    if any((path / name).exists() for name in (PRUNED, MANIFEST)):
        return
    kinds = f"a folder with {MANIFEST} (written by CompressedModel.save or slimbit pick) or {PRUNED} (slimbit prune)"
    if (path / RUN_FILE).exists():
        raise InputError(f"{path} must be {kinds}, got a run: slimbit.open_run opens it, and its load gives a model")
    found = "a file" if path.is_file() else "one without" if path.is_dir() else "nothing"
    raise InputError(f"{path} must be {kinds}, got {found}")


def form_of(
    reference: NetworkReference,
    packed: PackedModel,
    keep: KeepPlan | None,
    *,
    model: nn.Module | None,
    allow_code: bool,
    where: str,
) -> nn.Module:
    """The network to fill: the one given, or the one that is named, whose shapes are checked before it is built.

    Raises:
        InputError: It cannot be built, or is another network.
    """
    if model is not None:
        return model
    if ":" not in reference.source:
        # shapes first: a manifest must not make a network larger than its own files explain
        state = read_state(packed.state, where)
        skeleton = formed(rebuild(reference, without_memory=True), keep, state)
        check_fit(tensors_of(skeleton), state, packed.entries, where)
    return rebuild(reference, allow_code=allow_code)


def program_of(
    network: nn.Module, plan: CompressionPlan, spec: NetworkSpec, layers: Mapping[str, LayerLevels], example: Inputs
) -> IntegerProgram | None:
    """The integers that a network with quantized activations computes in; None where activations stay float.

    Raises:
        InputError: The plan is of a network that computes otherwise.
    """
    if not plan.activations:
        return None
    flow = read_dataflow(network, example, name=spec.name)
    levels = {name: layer.levels for name, layer in layers.items()}
    steps = {name: layer.steps for name, layer in layers.items()}
    return integer_program(network, flow, plan.activations, spec=spec, levels=levels, steps=steps)


def origin_of(manifest: Manifest) -> NetworkOrigin:
    """Where the network of an artifact came from."""
    network = manifest.network
    return NetworkOrigin(
        source=network.source,
        classes=network.classes,
        input_shape=network.input_shape,
        normalization=manifest.normalization,
        weights_digest=network.weights_digest,
    )


def _load_pruned(path: Path, model: nn.Module | None, *, allow_code: bool) -> CompressedModel:
    found = read_pruned(path)
    if model is None:
        model = rebuild(found.network, allow_code=allow_code)
    network = rebuild_pruned(model, found.plan, read_weights(path / PRUNED_WEIGHTS)).eval()
    example = zeros_like_input(found.network.input_shape)
    return CompressedModel(
        model=network,
        network=network,
        cost=cost(network, example),
        spec=survey_network(network, example, name=found.network.source).spec,
        keep=found.plan,
        origin=NetworkOrigin(
            source=found.network.source,
            classes=found.network.classes,
            input_shape=found.network.input_shape,
            normalization=found.normalization,
            weights_digest=found.network.weights_digest,
        ),
        accuracy=found.accuracy,
    )
