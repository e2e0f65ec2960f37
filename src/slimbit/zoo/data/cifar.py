"""CIFAR-10 and CIFAR-100 in their original files, binary or python: www.cs.toronto.edu/~kriz/cifar.html."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbit.records.errors import InputError
from slimbit.records.files import read_regular
from slimbit.zoo.data.cifar_pickle import LARGEST_FILE, read_python_batch
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.request import Request

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """How one of the two data sets is laid out.

    Attributes:
        title: For messages.
        classes: Number of classes.
        label_bytes: Bytes before the pixels of a binary record; the last one is the class.
        label_key: Where a python batch keeps the classes.
        folders: Binary folder, python folder.
        train: Files of the training part, without ending.
        test: File of the test part, without ending.
        share: Images of the training part per image of the test part.
    """

    title: str
    classes: int
    label_bytes: int
    label_key: bytes
    folders: tuple[str, str]
    train: tuple[str, ...]
    test: str
    share: int

    def files(self, *, binary: bool) -> tuple[str, ...]:
        """Names of all files, the test file last."""
        return tuple(name + (".bin" if binary else "") for name in (*self.train, self.test))


LAYOUTS = {
    "cifar10": Layout(
        title="CIFAR-10",
        classes=10,
        label_bytes=1,
        label_key=b"labels",
        folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        share=5,
    ),
    "cifar100": Layout(
        title="CIFAR-100",
        classes=100,
        label_bytes=2,  # coarse, fine
        label_key=b"fine_labels",
        folders=("cifar-100-binary", "cifar-100-python"),
        train=("train",),
        test="test",
        share=5,
    ),
}

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def open_cifar(request: Request) -> DataSet:
    """CIFAR-10 or CIFAR-100 (fine labels), images of shape ``(3, 32, 32)``."""
    layout = LAYOUTS[request.kind]
    normalization = resolve(request, 3)
    folder, binary = _find(request.path, request.kind)
    *train, test = (_read(folder / name, layout, binary=binary) for name in layout.files(binary=binary))
    _check_counts(folder, layout, [len(labels) for _, labels in train], len(test[1]))
    return DataSet(
        name=request.kind,
        train=Part(np.concatenate([part[0] for part in train]), np.concatenate([part[1] for part in train])),
        test=Part(*test),
        classes=layout.classes,
        normalization=normalization,
    )


def _find(root: Path, kind: str) -> tuple[Path, bool]:
    """The folder with the batches, and whether they are binary."""
    if not root.is_dir():
        what = "a folder, got the file" if root.exists() else "a folder that exists, got"
        raise InputError(f"DIR of {kind}:DIR must be {what} {str(root)!r}")
    layout = LAYOUTS[kind]
    found = list(_candidates(root, layout))
    for folder, binary in found:
        missing = [name for name in layout.files(binary=binary) if not (folder / name).is_file()]
        if not missing:
            return folder, binary
    other = next(name for name in LAYOUTS if name != kind)
    if not found and list(_candidates(root, LAYOUTS[other])):
        title = LAYOUTS[other].title
        raise InputError(f"DIR of {kind}:DIR must hold {layout.title}, got {str(root)!r} with {title}: use {other}:DIR")
    if found:
        raise InputError(f"{layout.title} in {str(folder)!r} must be complete, got no {', '.join(missing)}")
    folders = " or ".join(layout.folders)
    raise InputError(f"DIR of {kind}:DIR must hold {folders}, or be one of them, got {str(root)!r} without")


def _candidates(root: Path, layout: Layout) -> Iterable[tuple[Path, bool]]:
    """Folders that hold at least one of the files."""
    for folder in (root, *(root / name for name in layout.folders)):
        for binary in (True, False):
            if any((folder / name).is_file() for name in layout.files(binary=binary)):
                yield folder, binary


def _read(file: Path, layout: Layout, *, binary: bool) -> Arrays:
    """Images and labels of one file."""
    images, labels = _read_binary(file, layout) if binary else read_python_batch(file, layout.label_key, PIXELS)
    wrong = np.flatnonzero((labels < 0) | (labels >= layout.classes))
    if len(wrong):
        raise InputError(
            f"labels in {str(file)!r} must be 0 to {layout.classes - 1} as in {layout.title}, "
            f"got {labels[wrong[0]]} at image {wrong[0]}"
        )
    return images.reshape(-1, *SHAPE), labels


def _read_binary(file: Path, layout: Layout) -> Arrays:
    content = np.frombuffer(bytearray(read_regular(file, "data file", limit=LARGEST_FILE)), dtype=np.uint8)
    record = layout.label_bytes + PIXELS
    if len(content) == 0 or len(content) % record:
        raise InputError(
            f"{layout.title} file must hold whole records of {record:,} bytes, got {str(file)!r} with "
            f"{len(content):,} bytes: truncated, or another data set"
        )
    records = content.reshape(-1, record)
    return records[:, layout.label_bytes :], records[:, layout.label_bytes - 1].astype(np.int64)


def _check_counts(folder: Path, layout: Layout, train: list[int], test: int) -> None:
    # A file that was cut between two records shows only here.
    if len(set(train)) > 1 or sum(train) != layout.share * test:
        wanted = f"{layout.share} training images for each test image, equally many in each file"
        counts = ", ".join(f"{count:,}" for count in (*train, test))
        raise InputError(f"{layout.title} in {str(folder)!r} must have {wanted}, got {counts}: a file is truncated")
