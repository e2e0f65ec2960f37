"""The networks by name, without torch: a name costs nothing until its network is built."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import InputError, closest

if TYPE_CHECKING:
    from torch import nn

CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
SMALLEST_WIDTH, LARGEST_WIDTH = 0.05, 8.0
"""0.05 still leaves one filter of 16; above 8 the networks no longer fit into ordinary memory."""
MOST_CLASSES = 1_000_000
TIMM = "timm:"
LONGEST_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How one named network is built.

    Attributes:
        builder: ``module:function``; the function takes ``classes``, ``width`` and the options.
        options: Further keyword arguments of the builder.
        shape: Shape of one input image: channels, height, width.
        classes: Outputs, unless the caller asks for another number.
    """

    builder: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10

    def build(self, *, classes: int, width: float) -> "nn.Module":
        """Import the builder and call it."""
        module, function = self.builder.split(":")
        try:
            built: nn.Module = getattr(import_module(module), function)(classes=classes, width=width, **self.options)
        except (MemoryError, RuntimeError) as error:  # torch's allocator raises the latter
            raise InputError(
                f"the network must fit into memory, got {width:g} times the filters and {classes} outputs"
            ) from error
        return built


def _cifar_resnets() -> dict[str, Entry]:
    suffixes = {"": "projection", "-A": "A", "-B": "B"}
    return {
        f"resnet{depth}{suffix}": Entry(
            builder="slimbit.zoo.resnet_cifar:resnet_cifar", options={"depth": depth, "shortcut": shortcut}
        )
        for depth in CIFAR_DEPTHS
        for suffix, shortcut in suffixes.items()
    }


def _imagenet(builder: str, **options: int) -> Entry:
    return Entry(builder=f"slimbit.zoo.{builder}", options=options, shape=(3, 224, 224), classes=1000)


ENTRIES: Mapping[str, Entry] = {
    **_cifar_resnets(),
    "digits_resnet": Entry(builder="slimbit.zoo.resnet_cifar:digits_resnet", shape=(1, 8, 8)),
    "vgg7": Entry(builder="slimbit.zoo.vgg:vgg7"),
    "densenet_bc_100_12": Entry(builder="slimbit.zoo.densenet:densenet_bc", options={"depth": 100, "growth": 12}),
    "resnet18": _imagenet("resnet_imagenet:resnet_imagenet", depth=18),
    "resnet50": _imagenet("resnet_imagenet:resnet_imagenet", depth=50),
    "mobilenet_v2": _imagenet("mobilenet:mobilenet_v2"),
}


def names() -> tuple[str, ...]:
    """Every network name, without width multipliers.

    >>> names()[:4]
    ('resnet8', 'resnet8-A', 'resnet8-B', 'resnet14')
    """
    return tuple(ENTRIES)


def default_input(name: str) -> tuple[int, ...]:
    """Shape of one input image: channels, height, width.

    Args:
        name: As in `network`.

    Raises:
        InputError: There is no such network or width.

    >>> default_input("resnet20-A@0.5")
    (3, 32, 32)
    """
    return _lookup(name)[0].shape


def default_classes(name: str) -> int:
    """Number of classes that the network has when nobody asks for another number.

    Args:
        name: As in `network`.

    Raises:
        InputError: There is no such network or width.

    >>> default_classes("resnet18")
    1000
    """
    return _lookup(name)[0].classes


def network(name: str, *, weights: "str | os.PathLike[str] | None" = None, classes: int | None = None) -> "nn.Module":
    """A network of the zoo, or of timm: with weights of a file in evaluation mode, else new ones in training mode.

    New weights are random (He initialization from torch's global generator).

    Names end in an optional width multiplier: ``vgg7@0.5`` has half the filters in every layer.
    CIFAR residual networks also say their shortcuts: ``resnet20`` projects in the first block of all three
    stages (Prune or quantize? (2019)), ``resnet20-A`` pads with zeros, ``resnet20-B`` projects in stages 2 and 3.

    Args:
        name: One of `names`, with or without ``@width``; the width lies between 0.05 and 8. Or ``timm:NAME``.
        weights: A ``.safetensors`` file, or ``.pth``, ``.pt``, ``.th``, ``.tar`` as ``torch.save`` writes them; or
            "shipped" for those that come with Slimbit.
        classes: Outputs; by default 10 for 32x32 images and 1000 for ImageNet networks, of timm the network's own.

    Returns:
        A module from images ``(batch, *default_input(name))`` to logits ``(batch, classes)``.

    Raises:
        InputError: There is no such network or width, ``classes`` is no whole number from 1 to a million, or the file
            cannot be read or does not fit.
        MissingExtraError: timm is not installed.

    >>> model = network("resnet20-A@0.5", classes=100)
    >>> tuple(model.linear.weight.shape)
    (100, 32)
    """
    whole = isinstance(classes, int) and not isinstance(classes, bool)
    if classes is not None and not (whole and 1 <= classes <= MOST_CLASSES):
        raise InputError(f"classes must be a whole number from 1 to {MOST_CLASSES}, got {classes!r}")
    from slimbit.numerics.strided import protect_gradients

    if isinstance(name, str) and name.startswith(TIMM):
        from slimbit.zoo.timm_models import timm_model

        built = protect_gradients(timm_model(name.removeprefix(TIMM), classes=classes))
    else:
        entry, width = _lookup(name)
        classes = entry.classes if classes is None else classes
        built = protect_gradients(entry.build(classes=classes, width=width))
    built.zoo_name, built.zoo_classes = name, classes  # type: ignore[assignment] # how it is built again, for what is saved
    if weights is None:
        return built
    from slimbit.zoo.weights import load_weights

    file: str | os.PathLike[str] | None = weights
    if weights == "shipped":
        file = None if name.startswith(TIMM) else shipped_weights(name)
    if file is None:
        raise InputError(f"weights of {name} must be a file, got 'shipped': none come with Slimbit")
    return load_weights(built, file).eval()


def shipped_weights(name: str) -> Path | None:
    """The file of weights that come with Slimbit for a network, None if there are none.

    ``load_weights(network(name), shipped_weights(name))`` is the trained network; `read_card` of the file tells
    how its images are normalized.

    Args:
        name: As in `network`; other widths than 1 have no weights.

    Raises:
        InputError: There is no such network or width.

    >>> shipped_weights("digits_resnet").name, shipped_weights("resnet20")
    ('digits_resnet.safetensors', None)
    """
    _lookup(name)
    file = Path(__file__).parent / "shipped" / f"{name}.safetensors"
    return file if file.is_file() else None


def _lookup(name: str) -> tuple[Entry, float]:
    if not isinstance(name, str):
        raise InputError(f"network name must be text, got {name!r}")
    base, at, width = name.partition("@")
    if base not in ENTRIES:
        hint, module, own = closest(base[:LONGEST_SHOWN].lower(), names()), base.rpartition(".")[0], ""
        if module and len(base) <= LONGEST_SHOWN and all(part.isidentifier() for part in base.split(".")):
            call = f"{base}:build" if base.endswith(".py") else f"{module}:{base.rpartition('.')[2]}"
            own = f"; a network of your own is module:callable, here {call}"
        elif not hint:
            own = f"; a network of your own is module:callable; the networks of Slimbit are {', '.join(names())}"
        hint = own + hint
        raise InputError(f"network name must be one that exists, got {_shown(name)}{hint}")
    return ENTRIES[base], _width(width, name) if at else 1.0


def _shown(name: str) -> str:
    return repr(name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}...")


def _width(text: str, name: str) -> float:
    # float() would also take "nan", "1_0" and other scripts' digits.
    plain = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?|\.[0-9]{1,6}", text)
    if not plain or not SMALLEST_WIDTH <= float(text) <= LARGEST_WIDTH:
        raise InputError(
            f"width after @ must be a number from {SMALLEST_WIDTH} to {LARGEST_WIDTH:g}, got {_shown(name)}"
        )
    return float(text)
