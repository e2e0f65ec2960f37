"""Cost of a network on a machine: find the hardware model, apply it to every layer, check what it says."""

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimbit._imports import import_named
from slimbit.measure.hardware_models import MODELS, CostFunction, HardwareModel, sparse_model
from slimbit.measure.hardware_toml import read_hardware_toml
from slimbit.records.cost import HardwareCost, LayerCost
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError, closest
from slimbit.records.text import fault_of

__all__ = [
    "HardwareLike",
    "HardwareModel",
    "hardware_cost",
    "hardware_names",
    "load_hardware",
    "sparse_model",
]

HardwareLike = str | os.PathLike[str] | HardwareModel | CostFunction
"""What names a hardware model: see `load_hardware`."""


def hardware_names() -> tuple[str, ...]:
    """Names of the built-in hardware cost models, in the order of tables.

    >>> hardware_names()[:3]
    ('scalar_cpu', 'simd', 'int8_array')
    """
    return tuple(MODELS)


def load_hardware(model: HardwareLike) -> HardwareModel:
    """Find a hardware cost model.

    Args:
        model: A built-in name, also as ``hardware:NAME``; the path of a ``.toml`` file
            (docs/how-to/own-hardware-model.md); a Python function from `LayerCost` to a number; where to import one
            from, ``package.module:function`` or ``path/to/file.py:function``, which runs that code; or a
            `HardwareModel`, returned as it is.

    Raises:
        InputError: If there is no such model, or the file or function cannot be used.

    >>> load_hardware("stripes").unit
    '16-bit MAC cycles'
    >>> load_hardware("strips")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: unknown hardware model 'strips'; did you mean stripes? It must be \
a .toml file, package.module:function or one of scalar_cpu, simd, int8_array, stripes, loom, bit_fusion, \
filterwise, sparse, analog_class_a, analog_class_b, ideal_digital
    """
    if isinstance(model, HardwareModel):
        return model
    if isinstance(model, str | os.PathLike):
        return _by_text(os.fspath(model))
    if callable(model):
        return _wrap(model, _qualified_name(model))
    raise InputError(f"hardware model must be a name, a .toml file or a function, got {model!r}")


def hardware_cost(model: HardwareModel, layers: Sequence[LayerCost]) -> HardwareCost:
    """What a machine pays for a network: the sum over its layers.

    Args:
        model: From `load_hardware`.
        layers: Cost of every layer, per image; `CostReport.layers`.

    Returns:
        The cost in the model's unit, per layer and in total, and the energy in picojoules per image, None
        unless the model tells it for every layer.

    Raises:
        InputError: If the model fails on a layer or its answer is not a finite number of 0 or more.
    """
    costs = tuple(_ask(model, layer) for layer in layers)
    energies = [_ask_energy(model, layer) for layer in layers]
    known = [energy for energy in energies if energy is not None]
    return HardwareCost(
        model=model.name,
        unit=model.unit,
        total=_total(model, costs),
        layers=costs,
        picojoules=_total(model, known) if model.energy and len(known) == len(energies) else None,
        source=model.source,
    )


def _by_text(text: str) -> HardwareModel:
    text = text.removeprefix(HARDWARE)
    if text in MODELS:
        return MODELS[text]
    if text.lower().endswith(".toml"):
        return read_hardware_toml(Path(text))
    if ":" in text:
        return _wrap(import_named(text, "hardware model"), text)
    raise InputError(
        f"unknown hardware model {text!r}{closest(text, hardware_names()) or '.'}"
        f" It must be a .toml file, package.module:function or one of {', '.join(MODELS)}"
    )


def _wrap(function: CostFunction | HardwareModel, name: str) -> HardwareModel:
    if isinstance(function, HardwareModel):
        return function
    if not callable(function):
        raise InputError(f"hardware model {name!r} must be a function, got {type(function).__name__}")
    return HardwareModel(name, "units", function, source=f"Python function {name}")


def _qualified_name(function: Any) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _ask(model: HardwareModel, layer: LayerCost) -> float:
    try:
        answer = model.function(layer)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        # The function may be the user's, and may raise anything at all.
        raise InputError(_blame(model, layer, "cost", fault_of(error))) from error
    return _checked(answer, model, layer, "cost")


def _ask_energy(model: HardwareModel, layer: LayerCost) -> float | None:
    try:
        answer = model.energy(layer) if model.energy else None
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(_blame(model, layer, "energy", fault_of(error))) from error
    return None if answer is None else _checked(answer, model, layer, "energy")


def _checked(answer: Any, model: HardwareModel, layer: LayerCost, what: str) -> float:
    if not isinstance(answer, bool) and isinstance(answer, numbers.Real):
        try:
            value = float(answer)
        except OverflowError:  # a whole number beyond float64
            value = math.inf
        if 0 <= value < math.inf:
            return value
    raise InputError(_blame(model, layer, what, repr(answer)))


def _blame(model: HardwareModel, layer: LayerCost, what: str, got: str) -> str:
    return (
        f"{what} of layer {layer.name!r} on hardware model {model.name!r} must be a finite number"
        f" of 0 or more, got {got if len(got) <= 200 else got[:200] + '...'}"
    )


def _total(model: HardwareModel, values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        raise InputError(f"cost of the network on hardware model {model.name!r} must be finite, got inf") from None
