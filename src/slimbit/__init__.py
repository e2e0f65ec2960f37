"""Slimbit: what a CNN costs, accuracy against cost, and the model that fits.

The public names are here and nowhere else; each is imported when first used, so that ``import slimbit`` is instant.
"""

from typing import TYPE_CHECKING

from slimbit._imports import lazy_names

if TYPE_CHECKING:
    from slimbit.apply.compress import compress as compress
    from slimbit.apply.mask import mask as mask
    from slimbit.apply.surgery import prune as prune
    from slimbit.export.load import load as load
    from slimbit.export.pruned import load_pruned as load_pruned
    from slimbit.frontier.select import best_within_budget as best_within_budget
    from slimbit.frontier.select import cheapest_at_accuracy as cheapest_at_accuracy
    from slimbit.frontier.select import pareto_front as pareto_front
    from slimbit.frontier.slim import Slimming as Slimming
    from slimbit.frontier.store import open_run as open_run
    from slimbit.frontier.trace import trace_frontier as trace_frontier
    from slimbit.measure.cost import cost as cost
    from slimbit.measure.hardware import HardwareModel as HardwareModel
    from slimbit.measure.hardware import hardware_names as hardware_names
    from slimbit.measure.hardware import load_hardware as load_hardware
    from slimbit.plan.inputs import Layout as Layout
    from slimbit.plan.keep import Keeping as Keeping
    from slimbit.plan.keep import keep_by_fisher as keep_by_fisher
    from slimbit.plan.keep import keep_by_norm as keep_by_norm
    from slimbit.records.cost import CostReport as CostReport
    from slimbit.records.errors import InputError as InputError
    from slimbit.records.errors import SlimbitError as SlimbitError
    from slimbit.records.keep import KeepPlan as KeepPlan
    from slimbit.records.plan import CompressionPlan as CompressionPlan
    from slimbit.records.plan import Recipe as Recipe
    from slimbit.records.point import Frontier as Frontier
    from slimbit.records.point import FrontierPoint as FrontierPoint
    from slimbit.records.signal import EpochSignal as EpochSignal
    from slimbit.records.training import TrainConfig as TrainConfig
    from slimbit.records.training_run import read_training_run as read_training_run
    from slimbit.report.page import write_report as write_report
    from slimbit.survey.module import survey_network as survey_network
    from slimbit.survey.ties import tied_filters as tied_filters
    from slimbit.train.images import TrainImages as TrainImages
    from slimbit.train.run import train_network as train_network
    from slimbit.train.task import TrainTask as TrainTask
    from slimbit.train.tracker import SignalTracker as SignalTracker
    from slimbit.train.tune import Tuning as Tuning
    from slimbit.zoo import load_weights as load_weights
    from slimbit.zoo import network as network
    from slimbit.zoo import open_data as open_data

__version__ = "0.1.0"

_HOMES = {
    "pareto_front": "slimbit.frontier.select",
    "cheapest_at_accuracy": "slimbit.frontier.select",
    "best_within_budget": "slimbit.frontier.select",
    "CompressionPlan": "slimbit.records.plan",
    "CostReport": "slimbit.records.cost",
    "Frontier": "slimbit.records.point",
    "FrontierPoint": "slimbit.records.point",
    "HardwareModel": "slimbit.measure.hardware",
    "InputError": "slimbit.records.errors",
    "Layout": "slimbit.plan.inputs",
    "Recipe": "slimbit.records.plan",
    "SlimbitError": "slimbit.records.errors",
    "compress": "slimbit.apply.compress",
    "cost": "slimbit.measure.cost",
    "hardware_names": "slimbit.measure.hardware",
    "load": "slimbit.export.load",
    "load_hardware": "slimbit.measure.hardware",
    "load_weights": "slimbit.zoo",
    "network": "slimbit.zoo",
    "open_data": "slimbit.zoo",
    "open_run": "slimbit.frontier.store",
    "tied_filters": "slimbit.survey.ties",
    "KeepPlan": "slimbit.records.keep",
    "Keeping": "slimbit.plan.keep",
    "keep_by_norm": "slimbit.plan.keep",
    "keep_by_fisher": "slimbit.plan.keep",
    "prune": "slimbit.apply.surgery",
    "mask": "slimbit.apply.mask",
    "load_pruned": "slimbit.export.pruned",
    "survey_network": "slimbit.survey.module",
    "EpochSignal": "slimbit.records.signal",
    "SignalTracker": "slimbit.train.tracker",
    "Slimming": "slimbit.frontier.slim",
    "Tuning": "slimbit.train.tune",
    "TrainConfig": "slimbit.records.training",
    "TrainImages": "slimbit.train.images",
    "TrainTask": "slimbit.train.task",
    "read_training_run": "slimbit.records.training_run",
    "train_network": "slimbit.train.run",
    "trace_frontier": "slimbit.frontier.trace",
    "write_report": "slimbit.report.page",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - the table above is the list

__getattr__, __dir__ = lazy_names(__name__, _HOMES, __all__)
