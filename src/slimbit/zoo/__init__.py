"""Supply: networks by name, the weights that somebody trained for them, and data sets.

Importing this room does not import torch; building a network or reading weights does.
"""

from typing import TYPE_CHECKING

from slimbit._imports import lazy_names
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

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
