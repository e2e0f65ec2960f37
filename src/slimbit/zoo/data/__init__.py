"""Supply images: data sets by a short text, their calibration batches, and top-1 accuracy as ``evaluate``.

Importing this room does not import torch; taking batches does. docs/how-to/data.md tells every spec.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slimbit.zoo.data.request import open_data

if TYPE_CHECKING:
    from slimbit.zoo.data.batches import CalibrationBatches as CalibrationBatches
    from slimbit.zoo.data.dataset import DataSet as DataSet
    from slimbit.zoo.data.dataset import Part as Part
    from slimbit.zoo.data.evaluator import Evaluator as Evaluator
    from slimbit.zoo.data.normalization import Normalization as Normalization

_LAZY = {
    "CalibrationBatches": "slimbit.zoo.data.batches",
    "DataSet": "slimbit.zoo.data.dataset",
    "Evaluator": "slimbit.zoo.data.evaluator",
    "Normalization": "slimbit.zoo.data.normalization",
    "Part": "slimbit.zoo.data.dataset",
}

__all__ = ["CalibrationBatches", "DataSet", "Evaluator", "Normalization", "Part", "open_data"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'slimbit.zoo.data' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
