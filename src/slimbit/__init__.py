"""Slimbit: what a CNN costs, accuracy against cost, and the model that fits.

The public names are here and nowhere else; each is imported when first used, so that ``import slimbit`` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimbit.measure.cost import cost as cost
    from slimbit.measure.hardware import HardwareModel as HardwareModel
    from slimbit.measure.hardware import hardware_names as hardware_names
    from slimbit.measure.hardware import load_hardware as load_hardware
    from slimbit.records.cost import CostReport as CostReport
    from slimbit.records.errors import InputError as InputError
    from slimbit.records.errors import SlimbitError as SlimbitError
    from slimbit.survey.module import survey_network as survey_network
    from slimbit.zoo import load_weights as load_weights
    from slimbit.zoo import network as network

__version__ = "0.1.0"

_HOMES = {
    "CostReport": "slimbit.records.cost",
    "HardwareModel": "slimbit.measure.hardware",
    "InputError": "slimbit.records.errors",
    "SlimbitError": "slimbit.records.errors",
    "cost": "slimbit.measure.cost",
    "hardware_names": "slimbit.measure.hardware",
    "load_hardware": "slimbit.measure.hardware",
    "load_weights": "slimbit.zoo",
    "network": "slimbit.zoo",
    "survey_network": "slimbit.survey.module",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - the table above is the list


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slimbit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
