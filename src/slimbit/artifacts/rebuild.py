"""The network that a manifest names, with random weights."""

import torch
from torch import nn

from slimbit import zoo
from slimbit._imports import import_named
from slimbit.artifacts.manifest import NetworkReference
from slimbit.records.errors import InputError
from slimbit.zoo.timm_models import timm_model


def rebuild(reference: NetworkReference, *, allow_code: bool = False, without_memory: bool = False) -> nn.Module:
    """Build a network by its name; the caller's random numbers stay as they are.

    Args:
        reference: Zoo name, ``timm:NAME`` or ``package.module:callable``.
        allow_code: Whether a callable may be imported and called: it is code that the artifact chose.
        without_memory: On the meta device, to look at shapes; a callable and timm ignore it.

    Raises:
        InputError: It cannot be built, or only by code that is not allowed.

    >>> rebuild(NetworkReference(source="resnet8", input_shape=(3, 32, 32)), without_memory=True).linear.weight.is_meta
    True
    """
    with torch.random.fork_rng(devices=()):
        if reference.source.startswith("timm:"):
            return timm_model(reference.source.removeprefix("timm:"), classes=reference.classes)
        if ":" in reference.source:
            return _called(reference.source, allow_code=allow_code)
        with torch.device("meta" if without_memory else "cpu"):
            return _from_zoo(reference)


def _from_zoo(reference: NetworkReference) -> nn.Module:
    try:
        return zoo.network(reference.source, classes=reference.classes)
    except InputError as error:
        raise InputError(f"model must be given for this artifact: {error}") from error


def _called(source: str, *, allow_code: bool) -> nn.Module:
    if not allow_code:
        raise InputError(
            f"model must be given for this artifact, or allow_code=True where you trust it: its network {source} is "
            "built by running code"
        )
    try:
        built = import_named(source, "network")
        network = built if isinstance(built, nn.Module) else built()
    except (Exception, SystemExit) as error:
        raise InputError(f"network {source} of the artifact must be importable and callable, got {error}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {source} of the artifact must be a torch.nn.Module, got {type(network).__name__}")
    return network
