"""The user's own code as a data set: ``package.module:callable``."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbit._imports import import_callable
from slimbit.records.errors import InputError
from slimbit.records.text import fault_of
from slimbit.zoo.data.arrays import as_images, as_labels
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.request import KINDS, Request

RETURNS = "a DataSet, or calibration images, test images and test labels"


def open_own(request: Request) -> DataSet:
    """What the callable returns: a `DataSet` as it is, or three arrays, used as stored (``uint8`` scaled to 0..1)."""
    result = _called(import_callable(request.location, "data spec", instead=tuple(KINDS)), request.location)
    if isinstance(result, DataSet):
        if request.options:
            raise InputError(
                f"options must not be given where {request.location} returns a DataSet, got {request.spec!r}"
            )
        return result
    if not isinstance(result, tuple | list) or len(result) != 3:
        got = f"{len(result)} things" if isinstance(result, tuple | list) else type(result).__name__
        raise InputError(f"{request.location} must return {RETURNS}, got {got}")
    what = [f"{part} of {request.location}" for part in ("calibration images", "test images", "test labels")]
    calibration, test = (as_images(_array(result[n], what[n]), what[n]) for n in (0, 1))
    labels = as_labels(_array(result[2], what[2]), len(test), what[2])
    known = request.whole("classes")
    return DataSet(
        name=request.location,
        train=Part(calibration, None),
        test=Part(test, labels),
        classes=known or max(2, 1 + int(labels.max())),
        open_classes=known is None,
        normalization=resolve(request, test.shape[1], default="none"),
    )


def _array(value: Any, what: str) -> NDArray[Any]:
    """A numpy array from an array or a tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{what} must be an array or a tensor, got {type(value).__name__}") from error


def _called(function: Callable[[], Any], reference: str) -> Any:
    try:
        return function()
    # The callable is the user's: it may raise anything.
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{reference} must return {RETURNS} when called without arguments, got {fault_of(error)}"
        ) from error
