"""Arrays that somebody else made: brought to one layout and type, or refused."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slimbit.records.errors import InputError

Layout = Literal["auto", "nchw", "nhwc"]
CHANNELS = (1, 3)


def as_images(array: NDArray[Any], what: str, *, layout: str = "auto") -> NDArray[Any]:
    """Images as ``(images, channels, height, width)``, ``uint8`` or ``float32``.

    Args:
        array: Shape ``(images, height, width)`` for one channel, or four dimensions.
        what: Name for messages.
        layout: "nchw", "nhwc", or "auto": channels are where 1 or 3 stands, the second dimension first.

    Raises:
        InputError: Another shape or type, or values that are not finite.

    >>> as_images(np.zeros((5, 32, 32, 3), np.uint8), "images").shape
    (5, 3, 32, 32)
    """
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim != 4:
        raise InputError(f"{what} must have 3 or 4 dimensions, images first, got shape {array.shape}")
    elif _is_channels_last(array, what, layout):
        array = array.transpose(0, 3, 1, 2)
    if 0 in array.shape:
        raise InputError(f"{what} must not be empty, got shape {array.shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise InputError(f"{what} must be uint8 or floating point, got {array.dtype}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused below
        values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{what} must be finite as float32, got NaN or infinite values")
    return values


def _is_channels_last(array: NDArray[Any], what: str, layout: str) -> bool:
    if layout != "auto":
        return layout == "nhwc"
    if array.shape[1] in CHANNELS:
        return False
    if array.shape[3] in CHANNELS:
        return True
    raise InputError(f"{what} must have 1 or 3 channels unless layout=nchw or nhwc is given, got shape {array.shape}")


def as_labels(array: NDArray[Any], images: int, what: str) -> NDArray[np.int64]:
    """One label of 0 or more for each image, shape ``(images,)``.

    Raises:
        InputError: Another shape or type, or a negative label.
    """
    if array.shape == (images, 1):  # as some CIFAR files have it
        array = array[:, 0]
    if array.shape != (images,):
        raise InputError(f"{what} must be one for each of {images} images, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise InputError(f"{what} must be whole numbers, got {array.dtype}")
    if array.min() < 0 or array.max() >= 1 << 31:
        raise InputError(f"{what} must be 0 to 2^31 - 1, got {array.min()} to {array.max()}")
    return array.astype(np.int64)
