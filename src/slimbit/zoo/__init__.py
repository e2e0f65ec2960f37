"""Supply: networks by name, the weights that somebody trained for them, and data sets.

Importing this room does not import torch; building a network or reading weights does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slimbit.zoo.cards import read_card
from slimbit.zoo.data.request import open_data
from slimbit.zoo.registry import default_classes, default_input, names, network, shipped_weights

if TYPE_CHECKING:
    from slimbit.zoo.files import read_weights as read_weights
    from slimbit.zoo.weights import load_weights as load_weights

_LAZY = {"load_weights": "slimbit.zoo.weights", "read_weights": "slimbit.zoo.files"}

__all__ = [
    "default_classes",
    "default_input",
    "load_weights",
    "names",
    "network",
    "open_data",
    "read_card",
    "read_weights",
    "shipped_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'slimbit.zoo' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
