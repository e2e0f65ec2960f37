"""Slimbit: what a CNN costs, accuracy against cost, and the model that fits.

The public names are here and nowhere else; each is imported when first used, so that ``import slimbit`` is instant.
"""

from typing import TYPE_CHECKING

from slimbit._imports import lazy_names

if TYPE_CHECKING:
    from slimbit.compress.cost import cost as cost
    from slimbit.compress.load import load as load
    from slimbit.compress.model import CompressedModel as CompressedModel
    from slimbit.compress.prepared import PreparedNetwork as PreparedNetwork
    from slimbit.compress.prepared import prepare as prepare
    from slimbit.compress.prune import prune as prune
    from slimbit.compress.quantize import quantize as quantize
    from slimbit.compress.train import train as train
    from slimbit.compress.verify import verify as verify
    from slimbit.frontier.frontier import Frontier as Frontier
    from slimbit.frontier.frontier import open_run as open_run
    from slimbit.frontier.trace import trace_frontier as trace_frontier
    from slimbit.measure.hardware import HardwareModel as HardwareModel
    from slimbit.measure.hardware import hardware_names as hardware_names
    from slimbit.numerics.walk import predicted_signal_to_noise as predicted_signal_to_noise
    from slimbit.records.accuracy import Accuracy as Accuracy
    from slimbit.records.config import PruneConfig as PruneConfig
    from slimbit.records.config import QuantConfig as QuantConfig
    from slimbit.records.config import RunConfig as RunConfig
    from slimbit.records.config import TuneConfig as TuneConfig
    from slimbit.records.cost import CostReport as CostReport
    from slimbit.records.errors import InputError as InputError
    from slimbit.records.errors import MissingExtraError as MissingExtraError
    from slimbit.records.errors import SlimbitError as SlimbitError
    from slimbit.records.files import StoreError as StoreError
    from slimbit.records.learning import LearnConfig as LearnConfig
    from slimbit.records.point import FrontierPoint as FrontierPoint
    from slimbit.records.signal import EpochSignal as EpochSignal
    from slimbit.records.training import TrainConfig as TrainConfig
    from slimbit.records.training_run import TrainingRun as TrainingRun
    from slimbit.records.training_run import read_training_run as read_training_run
    from slimbit.records.verification import Verification as Verification
    from slimbit.training.tracker import SignalTracker as SignalTracker
    from slimbit.zoo import network as network
    from slimbit.zoo import open_data as open_data

__version__ = "0.1.0"

_HOMES = {
    "Accuracy": "slimbit.records.accuracy",
    "CompressedModel": "slimbit.compress.model",
    "CostReport": "slimbit.records.cost",
    "EpochSignal": "slimbit.records.signal",
    "Frontier": "slimbit.frontier.frontier",
    "FrontierPoint": "slimbit.records.point",
    "HardwareModel": "slimbit.measure.hardware",
    "InputError": "slimbit.records.errors",
    "LearnConfig": "slimbit.records.learning",
    "MissingExtraError": "slimbit.records.errors",
    "PreparedNetwork": "slimbit.compress.prepared",
    "PruneConfig": "slimbit.records.config",
    "QuantConfig": "slimbit.records.config",
    "RunConfig": "slimbit.records.config",
    "SignalTracker": "slimbit.training.tracker",
    "SlimbitError": "slimbit.records.errors",
    "StoreError": "slimbit.records.files",
    "TrainConfig": "slimbit.records.training",
    "TrainingRun": "slimbit.records.training_run",
    "TuneConfig": "slimbit.records.config",
    "Verification": "slimbit.records.verification",
    "cost": "slimbit.compress.cost",
    "hardware_names": "slimbit.measure.hardware",
    "load": "slimbit.compress.load",
    "network": "slimbit.zoo",
    "open_data": "slimbit.zoo",
    "open_run": "slimbit.frontier.frontier",
    "predicted_signal_to_noise": "slimbit.numerics.walk",
    "prepare": "slimbit.compress.prepared",
    "prune": "slimbit.compress.prune",
    "quantize": "slimbit.compress.quantize",
    "read_training_run": "slimbit.records.training_run",
    "trace_frontier": "slimbit.frontier.trace",
    "train": "slimbit.compress.train",
    "verify": "slimbit.compress.verify",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - the table above is the list

_ROOMS = (
    "apply", "artifacts", "cli", "compress", "frontier", "measure", "numerics", "plan", "records", "report", "sources",
    "survey", "training", "zoo",
)  # fmt: skip
"""Packages inside; nothing in them is promised, but ``slimbit.zoo`` works whatever was imported before."""

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__, rooms=_ROOMS)
