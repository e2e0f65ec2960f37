"""Data sets of the Hugging Face Hub, through the ``datasets`` package (extra ``hub``)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from slimbit.records.errors import InputError, MissingExtraError, closest
from slimbit.zoo.data.arrays import as_labels
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.pictures import Pictures, Shaping, shaping
from slimbit.zoo.data.request import Request

TEST_SPLITS = ("test", "validation", "valid", "val")


def open_hub(request: Request) -> DataSet:
    """The splits ``train`` and ``test`` (else ``validation``) of a data set with a picture and a class column.

    Options: ``config`` (configuration), ``train`` and ``test`` (names of splits), ``image`` and ``label`` (columns).
    Code in a data set is not run.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", f"data spec hub:{request.location}") from error
    how = shaping(request)
    normalization = resolve(request, how.channels)
    try:
        found = datasets.load_dataset(request.location, request.options.get("config"))
    # Not found, no network, needs a configuration, needs code: each in a type of its own.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(f"hub:{request.location} must be a data set that can be loaded, got {text}") from error
    train = _split(found, request, "train", ("train",))
    test = _split(found, request, "test", TEST_SPLITS)
    label = _column(test.features, request, "label", "ClassLabel")
    names = tuple(str(name) for name in getattr(test.features[label], "names", ()) or ())
    parts = [_part(part, request, label, how) for part in (train, test)]
    classes = len(names) or 1 + max(int(part.labels.max()) for part in parts if part.labels is not None)
    return DataSet(
        name=f"hub:{request.location}",
        train=parts[0],
        test=parts[1],
        classes=classes,
        normalization=normalization,
        class_names=names,
        open_classes=not names,
    )


def _split(found: Mapping[str, Any], request: Request, key: str, usual: tuple[str, ...]) -> Any:
    wanted = (request.options[key],) if key in request.options else usual
    for name in wanted:
        if name in found:
            return found[name]
    there = ", ".join(found)
    raise InputError(f"hub:{request.location} must have a split {' or '.join(wanted)}, got {there}: choose with {key}=")


def _column(features: Mapping[str, Any], request: Request, key: str, kind: str) -> str:
    """The column that an option names, else the only one of its kind."""
    if key in request.options:
        name = request.options[key]
        if name not in features:
            raise InputError(
                f"{key}= must name a column of hub:{request.location}, got {name!r}{closest(name, list(features))}"
            )
        return name
    fitting = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(fitting) != 1:
        there = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        raise InputError(f"hub:{request.location} must have one {kind} column, got {there}: choose with {key}=")
    return fitting[0]


def _part(rows: Any, request: Request, label: str, how: Shaping) -> Part:
    image = _column(rows.features, request, "image", "Image")

    def load(number: int) -> Image.Image:
        picture = rows[number][image]
        if not isinstance(picture, Image.Image):
            raise ValueError(f"column {image} holds {type(picture).__name__}, not pictures")  # noqa: TRY004 - Pictures names the row and makes an InputError of it
        return picture

    count = len(rows)
    if not count:
        raise InputError(f"splits of hub:{request.location} must hold images, got an empty one")
    labels = as_labels(np.asarray(list(rows[label])), count, f"column {label} of hub:{request.location}")
    return Part(Pictures([f"hub:{request.location} row {n}" for n in range(count)], load, how), labels)
