"""The model of a point, from what its run keeps of it."""

from collections.abc import Callable
from typing import Any

from torch import nn

from slimbit.apply.integers import IntegerNetwork
from slimbit.artifacts.manifest import AccuracyEntry, LayerEntry, NetworkReference
from slimbit.artifacts.packed import PackedModel, unpack_model
from slimbit.artifacts.rebuild import rebuild
from slimbit.compress.load import form_of, program_of
from slimbit.compress.model import CompressedModel
from slimbit.compress.prune import pruned_from_state
from slimbit.measure.cost import cost
from slimbit.numerics.batches import zeros_like_input
from slimbit.records.codec import from_json
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.network import NetworkSpec
from slimbit.records.origin import without_folders
from slimbit.records.plan import CompressionPlan
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo
from slimbit.survey.module import survey_network

ROLES = ("plan", "cost", "layers", "levels", "state")


def restored_point(
    info: RunInfo,
    point: FrontierPoint,
    read: Callable[[str, Any], bytes],
    *,
    form: nn.Module | None,
    allow_code: bool,
) -> CompressedModel:
    """The model of a point.

    Args:
        info: The run.
        point: One of its points.
        read: Reads a verified object.
        form: A network of the original's form; None: it is built by its name.
        allow_code: Whether code that the run names may be run to build it.

    Raises:
        InputError: A failed point, a damaged object, or a network that cannot be built.
    """
    missing = [role for role in ROLES if role not in point.objects]
    if missing:
        raise InputError(f"point {point.number} ({point.label}) must be a finished one to be loaded, got a failed one")
    where = f"point {point.number} of {info.network}"

    def json(role: str) -> bytes:
        return read(point.objects[role], "json")

    entries = from_json(tuple[LayerEntry, ...], json("layers"), where=f"layers of {where}")
    packed = PackedModel(entries, read(point.objects["levels"], "bin"), read(point.objects["state"], "safetensors"))
    keep = from_json(KeepPlan, json("keep"), where=f"keep plan of {where}") if "keep" in point.objects else None
    origin = info.origin
    if form is None:
        form = form_of(_reference(info, where), packed, keep, model=None, allow_code=allow_code, where=where)
    network, layers = unpack_model(packed, form, keep=keep, where=where)
    spec = NetworkSpec(info.network, tuple(entry.spec() for entry in entries))
    plan = from_json(CompressionPlan, json("plan"), where=f"plan of {where}")
    program = None
    if plan.activations:  # a network of weights alone is not called here: its example may be no tensor of float32
        if not origin.input_shape:
            raise InputError(
                f"input shape of {info.network} must be known for quantized activations, got none in the run"
            )
        example = zeros_like_input(origin.input_shape)
        spec = survey_network(network, example, name=info.network).spec
        program = program_of(network, plan, spec, layers, example)
    assert point.accuracy is not None
    images = "" if info.evaluate_images is None else f"{info.evaluate_images} images"
    accuracy = AccuracyEntry(
        value=point.accuracy,
        low=point.accuracy_low,
        high=point.accuracy_high,
        uncompressed=info.float_accuracy,
        measured_on=", ".join(filter(None, (without_folders(origin.data), images))),
    )
    return CompressedModel(
        model=network if program is None else IntegerNetwork(program),
        network=network,
        program=program,
        cost=from_json(CostReport, json("cost"), where=f"cost of {where}", schema=COST_SCHEMA),
        spec=spec,
        plan=plan,
        layers=layers,
        keep=keep,
        origin=origin,
        accuracy=accuracy,
        provenance={"point": point.number, "seed": info.seed, **point.provenance},
    )


def restored_pruned(
    info: RunInfo, keep: KeepPlan, state: bytes, *, form: nn.Module | None, allow_code: bool
) -> CompressedModel:
    """The float network that a pruning of a run has left.

    Args:
        info: The run.
        keep: What is left of the original.
        state: Its weights, see `slimbit.compress.prune.packed_state`.
        form: A network of the original's form; None: it is built by its name.
        allow_code: Whether code that the run names may be run to build it.

    Raises:
        InputError: Damaged weights, or a network that cannot be built or called without an example.
    """
    where = f"the pruned network of {info.network}"
    if form is None:
        form = rebuild(_reference(info, where), allow_code=allow_code)
    network = pruned_from_state(form, keep, state)
    example = zeros_like_input(info.origin.input_shape)
    spec = survey_network(network, example, name=info.network).spec
    return CompressedModel(
        model=network, network=network, cost=cost(network, example), spec=spec, keep=keep, origin=info.origin
    )


def _reference(info: RunInfo, where: str) -> NetworkReference:
    """How the network of a run is built again."""
    origin = info.origin
    if not origin.source or not origin.input_shape:
        raise InputError(f"model must be given for {where}: the run does not know how its network is built")
    return NetworkReference(source=origin.source, classes=origin.classes, input_shape=origin.input_shape)
