"""Pictures from files: decoded, resized and cropped when first asked for, then kept as bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from slimbit.records.errors import InputError
from slimbit.zoo.data.request import Request

USUAL_CROP = 0.875
"""The crop's side over the resized shorter side: 224 of 256, as in most ImageNet evaluations."""
MOST_KEPT_BYTES = 1 << 30
"""Decoded pixels that one part keeps, 7,000 images of 224x224; more are decoded again when needed."""
LONGEST = 50
"""Longer side over shorter side; resizing a line of pixels would fill the memory."""
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Shaping:
    """What happens to a picture.

    Attributes:
        size: Side of the square that is cut from the middle; None: pictures stay as they are.
        resize: Length of the shorter side before that.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        channels: 3 (RGB) or 1 (gray).
    """

    size: int | None
    resize: int | None
    interpolation: str = "bilinear"
    channels: int = 3

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Pixels ``(channels, height, width)``; a picture that already is ``size`` by ``size`` is not resized."""
        shaped = picture.convert("RGB" if self.channels == 3 else "L")
        if self.size is not None and shaped.size != (self.size, self.size):
            shaped = self._cropped(shaped, self.size)
        pixels = np.array(shaped, dtype=np.uint8)
        return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _cropped(self, picture: Image.Image, size: int) -> Image.Image:
        side = self.resize or round(size / USUAL_CROP)
        width, height = picture.size
        shorter = min(width, height)
        if max(width, height) > LONGEST * shorter:
            raise ValueError(f"it is {width}x{height}, too narrow to be cut to a square")
        width, height = side * width // shorter, side * height // shorter
        resized = picture.resize((width, height), INTERPOLATIONS[self.interpolation])
        left, top = round((width - size) / 2), round((height - size) / 2)
        return resized.crop((left, top, left + size, top + size))


def shaping(request: Request) -> Shaping:
    """The options ``size``, ``resize``, ``interpolation`` and ``channels`` of a spec, else ``size`` of the card.

    Raises:
        InputError: ``resize`` is smaller than ``size``, or given without it.
    """
    size, resize = request.whole("size"), request.whole("resize")
    if size is None and request.card is not None:
        size = request.card.get("size")
    if resize is not None and (size is None or resize < size):
        raise InputError(f"resize of data spec must be at least size, got {resize} with size {size}")
    return Shaping(
        size,
        resize,
        request.choice("interpolation", tuple(INTERPOLATIONS), "bilinear"),
        int(request.choice("channels", ("1", "3"), "3")),
    )


class Pictures:
    """Images that behave like an array ``(images, channels, height, width)`` of ``uint8``, indexed by arrays.

    Args:
        names: One per picture, for messages.
        load: Number of a picture to the picture.
        shape_as: What happens to each.
        source: Number of a picture to the bytes of its file, where there is one.
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[int], Image.Image],
        shape_as: Shaping,
        source: Callable[[int], bytes] | None = None,
    ) -> None:
        self._names, self._load, self._shaping, self._source = names, load, shape_as, source
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self._kept_bytes = 0
        self._one: tuple[int, ...] | None = None
        self._one = self._decoded(0).shape

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, channels, height, width."""
        assert self._one is not None  # set above
        return (len(self._names), *self._one)

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8``."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: NDArray[np.intp]) -> NDArray[np.uint8]:
        return np.stack([self._picture(int(number)) for number in index])

    def content(self, number: int) -> bytes:
        """What the pixels of a picture follow from: its file and its shaping, or else the pixels themselves.

        Reading a file is many times faster than decoding it.
        """
        if self._source is None:
            return self._picture(number).tobytes()
        try:
            return repr(self._shaping).encode() + self._source(number)
        except OSError as error:
            raise InputError(f"picture must be readable, got {self._names[number]!r}: {error.strerror}") from error

    def _picture(self, number: int) -> NDArray[np.uint8]:
        if number in self._kept:
            return self._kept[number]
        pixels = self._decoded(number)
        if self._kept_bytes + pixels.nbytes <= MOST_KEPT_BYTES:
            self._kept[number] = pixels
            self._kept_bytes += pixels.nbytes
        return pixels

    def _decoded(self, number: int) -> NDArray[np.uint8]:
        name = self._names[number]
        try:
            with self._load(number) as picture:
                pixels = self._shaping(picture)
        except InputError:
            raise
        # What Pillow raises at damaged files, by format; a bomb is a picture too large to be one.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise InputError(f"picture must be readable, got {name!r}: {reason}") from error
        if self._one is not None and pixels.shape != self._one:
            sizes = " and ".join(f"{shape[2]}x{shape[1]}" for shape in (self._one, pixels.shape))
            raise InputError(
                f"pictures must have one size unless size= is given, got {sizes} (width x height) at {name!r}"
            )
        return pixels
