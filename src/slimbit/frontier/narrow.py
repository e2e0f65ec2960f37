"""The narrower network behind a point of a run, from the objects that the run keeps of it."""

import json
from collections.abc import Callable, Mapping

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from slimbit.apply.surgery import rebuild
from slimbit.frontier.objects import Kind
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan


def narrow_network(model: nn.Module, objects: Mapping[str, str], read: Callable[[str, Kind], bytes]) -> nn.Module:
    """The network that a point was quantized from.

    Args:
        model: The network as it was given, or one of its form; not changed.
        objects: `slimbit.FrontierPoint.objects`; without "keep" and "network" the network is the one given.
        read: Reads a verified object of the run.

    Raises:
        InputError: Objects that are missing, damaged, or of another network.
    """
    if "keep" not in objects:
        return model
    plan = KeepPlan.from_dict(json.loads(read(objects["keep"], "json")))
    try:
        state = load(read(objects["network"], "safetensors"))
    except SafetensorError as error:
        raise InputError(f"object {objects['network']} must be a network's weights, got {error}") from error
    return rebuild(model, plan, state).eval()
