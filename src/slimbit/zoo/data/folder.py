"""Pictures in class folders, as ImageNet and most people's own data come."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from slimbit.records.errors import InputError
from slimbit.records.files import check_regular, read_regular
from slimbit.records.text import clipped
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.pictures import Pictures, Shaping, shaping
from slimbit.zoo.data.request import Request
from slimbit.zoo.data.splits import Indices, split

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
TEST_FOLDERS = ("test", "val")
TEST_SHARE = 0.2
LARGEST_PICTURE = 1 << 30

Labelled = tuple[list[Path], list[int]]


def open_folder(request: Request) -> DataSet:
    """Class folders in ``train/`` and ``test/`` (else ``val/``), or at the top, split by seed 0.

    Classes are numbered in the alphabetical order of their folders. Hidden files and files that are no pictures
    are passed over.
    """
    root, how = request.path, shaping(request)
    normalization = resolve(request, how.channels)
    if not root.is_dir():
        what = "a folder, got the file" if root.exists() else "a folder that exists, got"
        raise InputError(f"DIR of images:DIR must be {what} {str(root)!r}")
    classes, train, test = _parts(root, request)
    if how.size is None:
        _check_sizes([*train[0], *test[0]])
    return DataSet(
        name=f"images:{root.name}",
        train=_part(train, how),
        test=_part(test, how),
        classes=len(classes),
        normalization=normalization,
        class_names=tuple(classes),
    )


def _parts(root: Path, request: Request) -> tuple[list[str], Labelled, Labelled]:
    """Class names, training and test files."""
    if not (root / "train").is_dir():
        classes = _classes(root)
        files, labels = _labelled(root, classes)
        share = request.share("test", TEST_SHARE)
        train, test = split(np.array(labels), test_images=max(1, round(share * len(files))))
        return classes, _taken(files, labels, train), _taken(files, labels, test)
    if "test" in request.options:
        raise InputError(f"test= must not be given where train/ and test/ are split already, got it for {str(root)!r}")
    scored = [root / name for name in TEST_FOLDERS if (root / name).is_dir() and _subfolders(root / name)]
    if not scored:
        raise InputError(f"{str(root)!r} must have class folders in test/ or val/ beside train/, got none")
    classes, there = _classes(root / "train"), _subfolders(scored[0])
    if there != classes:
        odd = sorted(set(classes) ^ set(there))[:5]
        both = f"train/ and {scored[0].name}/ of {str(root)!r}"
        raise InputError(f"{both} must have the same class folders, got only in one: {', '.join(odd)}")
    return classes, _labelled(root / "train", classes), _labelled(scored[0], classes)


def _taken(files: list[Path], labels: list[int], chosen: Indices) -> Labelled:
    return [files[number] for number in chosen], [labels[number] for number in chosen]


def _classes(folder: Path) -> list[str]:
    classes = _subfolders(folder)
    if len(classes) < 2:
        raise InputError(f"{str(folder)!r} must hold a folder for each of 2 or more classes, got {len(classes)}")
    return classes


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _labelled(folder: Path, classes: list[str]) -> Labelled:
    """Files with their labels, in alphabetical order within each class."""
    files, labels = list[Path](), list[int]()
    for label, name in enumerate(classes):
        pictures = sorted(
            entry
            for entry in (folder / name).iterdir()
            if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".")
        )
        if not pictures:
            raise InputError(f"class folder must hold pictures, got {str(folder / name)!r} without")
        files += pictures
        labels += [label] * len(pictures)
    return files, labels


def _part(part: Labelled, how: Shaping) -> Part:
    files, labels = part
    names = [str(file) for file in files]
    return Part(Pictures(names, partial(_open, files), how, partial(_bytes, files)), np.array(labels, dtype=np.int64))


def _open(files: list[Path], number: int) -> Image.Image:
    check_regular(files[number], "picture")
    return Image.open(files[number])


def _bytes(files: list[Path], number: int) -> bytes:
    return read_regular(files[number], "picture", limit=LARGEST_PICTURE)


def _check_sizes(files: list[Path]) -> None:
    """All pictures have one size; only their headers are read."""
    first: tuple[int, int] | None = None
    for file in files:
        try:
            check_regular(file, "picture")
            with Image.open(file) as picture:
                size = picture.size
        except InputError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = f": {clipped(str(error), 120)}" if isinstance(error, Image.DecompressionBombError) else ""
            raise InputError(f"picture must be readable, got {str(file)!r}{reason}") from error
        first = first or size
        if size != first:
            sizes = " and ".join(f"{width}x{height}" for width, height in (first, size))
            raise InputError(
                f"pictures must have one size unless size= is given, got {sizes} (width x height) at {str(file)!r}"
            )
