"""The python batches of CIFAR are pickles: read without running anything that a file names."""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbit.records.errors import InputError
from slimbit.records.files import read_regular
from slimbit.records.pickles import check_pickle

INTEGER = re.compile(r"[|<>=]?[iu][1248]")
LARGEST_FILE = 1 << 30


def read_python_batch(file: Path, label_key: bytes, pixels: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of one python batch.

    Args:
        file: The pickle, as Python 2 or Python 3 wrote it.
        label_key: Entry that holds the classes.
        pixels: Values per image.

    Returns:
        Images ``(images, pixels)`` and labels ``(images,)``.

    Raises:
        InputError: Damaged, truncated, another data set, or naming anything but integer arrays, bytes, lists,
            dictionaries, text and numbers.
    """
    content = _load(file)
    entries = {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
    images, labels = _array(entries.get(b"data")), _array(entries.get(label_key))
    if images is None or labels is None:
        got = ", ".join(repr(key)[:40] for key in list(entries)[:8]) or "nothing"
        raise InputError(f"python batch {str(file)!r} must hold data and {label_key.decode()}, got {got}")
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != pixels or not len(images):
        got = f"{images.dtype} of shape {images.shape}"
        raise InputError(f"data in {str(file)!r} must be bytes of shape (images, {pixels}), got {got}")
    if labels.shape != (len(images),):
        raise InputError(
            f"labels in {str(file)!r} must be one for each of {len(images):,} images, got shape {labels.shape}"
        )
    return images, labels.astype(np.int64)


def _load(file: Path) -> dict[Any, Any]:
    stored = read_regular(file, "python batch", limit=LARGEST_FILE)
    check_pickle(io.BytesIO(stored), f"python batch {str(file)!r}")
    try:
        content = _Unpickler(io.BytesIO(stored), encoding="bytes").load()
    # A damaged pickle makes the reader raise anything (KeyError, struct.error, MemoryError, ...).
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"python batch {str(file)!r} must be complete and hold only arrays, got {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"python batch {str(file)!r} must hold a dictionary, got {type(content).__name__}")
    return content


def _array(value: object) -> NDArray[Any] | None:
    """An array, or a list of whole numbers as one."""
    value = getattr(value, "array", value)
    if isinstance(value, list) and value and all(type(entry) is int and abs(entry) < 1 << 31 for entry in value):
        return np.array(value, dtype=np.int64)
    return value if isinstance(value, np.ndarray) else None


class _Unpickler(pickle._Unpickler):  # the one in C takes 32 GB of memory where five bytes of a file ask for it
    """Knows only stand-ins for the few names that a pickled integer array needs.

    They are made anew for every file: a pickle can set attributes on whatever it names.
    """

    def __init__(self, stream: Any, *, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("numpy._core", "numpy.core"), name)
        if key not in self._known:
            raise pickle.UnpicklingError(f"the name {f'{module}.{name}'[:80]!r}, which is refused")
        return self._known[key]


def _stand_ins() -> dict[tuple[str, str], Any]:
    class Kind:
        """``numpy.dtype`` of whole numbers."""

        def __init__(self, code: str | bytes, *_: object) -> None:
            self.code = code.decode() if isinstance(code, bytes) else code
            if not INTEGER.fullmatch(self.code):
                raise pickle.UnpicklingError(f"an array of type {self.code[:20]!r}, which is refused")

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            order = state[1].decode() if isinstance(state[1], bytes) else state[1]
            self.code = ("<" if order == "|" else order) + self.code.lstrip("|<>=")

    class Array:
        """``numpy.ndarray``; the real one is in ``array``."""

        array: NDArray[Any] | None = None

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            _, shape, kind, fortran, content = state
            self.array = filled(content, kind, shape, "F" if fortran else "C").array

    def filled(content: bytes, kind: Kind, shape: tuple[int, ...], order: str) -> Array:
        made = Array()
        # A copy: bytes cannot be written to, and torch asks for memory that can.
        made.array = np.frombuffer(content, dtype=np.dtype(kind.code)).reshape(shape, order=order).copy()  # type: ignore[call-overload] # "C" or "F" as text from the file; numpy refuses others
        return made

    def latin1(text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes in an unusual encoding, which is refused")
        return text.encode("latin1")

    return {
        ("numpy.core.multiarray", "_reconstruct"): lambda *_: Array(),
        ("numpy.core.numeric", "_frombuffer"): filled,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): Kind,
        ("_codecs", "encode"): latin1,
    }
