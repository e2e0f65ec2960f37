"""Supply images: data sets by a short text, their calibration batches, and top-1 accuracy as ``evaluate``.

Importing this room does not import torch; taking batches does. docs/how-to/data.md tells every spec.
"""

from typing import TYPE_CHECKING

from slimbit._imports import lazy_names
from slimbit.zoo.data.request import open_data

if TYPE_CHECKING:
    from slimbit.records.origin import Normalization as Normalization
    from slimbit.zoo.data.batches import CalibrationBatches as CalibrationBatches
    from slimbit.zoo.data.dataset import DataSet as DataSet
    from slimbit.zoo.data.dataset import Part as Part
    from slimbit.zoo.data.evaluator import Evaluator as Evaluator

_LAZY = {
    "CalibrationBatches": "slimbit.zoo.data.batches",
    "DataSet": "slimbit.zoo.data.dataset",
    "Evaluator": "slimbit.zoo.data.evaluator",
    "Normalization": "slimbit.records.origin",
    "Part": "slimbit.zoo.data.dataset",
}

__all__ = ["CalibrationBatches", "DataSet", "Evaluator", "Normalization", "Part", "open_data"]

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
