"""Arrays in a ``.npz`` file; pickled objects in it are never loaded."""

import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbit.records.containers import check_inflation
from slimbit.records.errors import InputError
from slimbit.records.files import check_regular
from slimbit.zoo.data.arrays import as_images, as_labels
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.request import Request
from slimbit.zoo.data.splits import split

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
WHOLE = ("images", "labels")
TEST_SHARE = 0.2
ALWAYS_FINE = 1 << 30
"""Bytes of arrays that any file may hold; beyond them it must have a hundredth of that itself."""
MOST_INFLATION = 100
"""Bytes of arrays over bytes of the file: pictures reach 10, a few bytes that are made to fill the memory 1,000."""
DAMAGE = (
    ValueError, TypeError, OSError, EOFError, KeyError, MemoryError, AttributeError, SyntaxError, NotImplementedError,
    RuntimeError, IndexError, OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy, zipfile and zlib raise at damaged files; pickled objects are a ValueError."""


def open_npz(request: Request) -> DataSet:
    """Arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels``; or ``images``, ``labels``."""
    file, layout = request.path, request.choice("layout", ("auto", "nchw", "nhwc"), "auto")
    arrays = _read(file)
    if "train_images" in arrays:
        if "test" in request.options:
            raise InputError(f"test= must not be given where the arrays are split already, got it for {str(file)!r}")
        train, test = (_part(arrays, f"{word}_", file, layout) for word in ("train", "test"))
    else:
        train, test = _divided(_part(arrays, "", file, layout), request.share("test", TEST_SHARE))
    labels, known = [part.labels for part in (train, test) if part.labels is not None], request.whole("classes")
    return DataSet(
        name=f"npz:{file.name}",
        train=train,
        test=test,
        classes=known or max(2, 1 + max(int(part.max()) for part in labels)),
        open_classes=known is None,
        normalization=resolve(request, train.images.shape[1], default="none"),
    )


def _divided(whole: Part, share: float) -> tuple[Part, Part]:
    images, labels = whole
    assert labels is not None  # as_labels made them
    if len(labels) < 2:
        raise InputError(f"images must be 2 or more to be split into training and test, got {len(labels)}")
    test_images = min(len(labels) - 1, max(1, round(share * len(labels))))
    train, test = split(labels, test_images=test_images)
    return Part(images[train], labels[train]), Part(images[test], labels[test])


def _part(arrays: dict[str, NDArray[Any]], prefix: str, file: Path, layout: str) -> Part:
    images_name, labels_name = f"{prefix}images", f"{prefix}labels"
    where = f"of {str(file)!r}"
    images = as_images(arrays[images_name], f"{images_name} {where}", layout=layout)
    return Part(images, as_labels(arrays[labels_name], len(images), f"{labels_name} {where}"))


def _check_sizes(file: Path) -> None:
    """Before anything is held in memory: how much it will be, and that every array is as large as its header says."""
    what = f"FILE of npz:FILE {str(file)!r}"
    check_inflation(file, check_regular(file, "FILE of npz:FILE"), what, times=MOST_INFLATION, always=ALWAYS_FINE)
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") in (*PARTS, *WHOLE)]
        for member in members:
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, kind = read(stream)
            claimed = math.prod(shape) * kind.itemsize
            if claimed > member.file_size and not kind.hasobject:
                raise InputError(
                    f"array {member.filename} of {str(file)!r} must hold the {claimed:,} bytes of its shape {shape}, "
                    f"got {member.file_size:,}"
                )


def _read(file: Path) -> dict[str, NDArray[Any]]:
    """The arrays that are needed."""
    if not file.is_file():
        raise InputError(f"FILE of npz:FILE must be a file that exists, got {str(file)!r}")
    if not zipfile.is_zipfile(file):
        raise InputError(f"FILE of npz:FILE must be a complete .npz file of arrays, got {str(file)!r}, which is none")
    try:
        _check_sizes(file)
        with np.load(file, allow_pickle=False) as content:
            there = list(content.files)
            wanted = PARTS if "train_images" in there else WHOLE
            missing = [name for name in wanted if name not in there]
            if not missing:
                return {name: content[name] for name in wanted}
    except InputError:
        raise
    except DAMAGE as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"FILE of npz:FILE must be a complete .npz file of arrays, got {str(file)!r}: {reason}"
        ) from error
    got = ", ".join(name[:40] for name in there[:8]) or "an empty file"
    raise InputError(f"{str(file)!r} must hold {', '.join(PARTS)}, or {' and '.join(WHOLE)}, got {got}")
