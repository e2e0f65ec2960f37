"""Data specs: one line of text to a `DataSet`, without torch or numpy until the data are opened."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import InputError, closest
from slimbit.records.files import expanded

if TYPE_CHECKING:
    from slimbit.zoo.data.dataset import DataSet

OPTION = re.compile(r"[a-z_]+=[^,]*")
"""What counts as an option at the end of a spec; any other comma belongs to the path."""
LARGEST_SIZE = 4096
LONGEST_SHOWN = 200
_NORMALIZE = ("normalize", "mean", "std", "held_out")
_PICTURES = (*_NORMALIZE, "size", "resize", "interpolation", "channels")


@dataclass(frozen=True)
class _Kind:
    """One kind of spec: who opens it, how it is written, which options it takes."""

    opener: str
    form: str
    options: tuple[str, ...]


KINDS: Mapping[str, _Kind] = {
    "digits": _Kind("digits:open_digits", "digits", _NORMALIZE),
    "cifar10": _Kind("cifar:open_cifar", "cifar10:DIR", _NORMALIZE),
    "cifar100": _Kind("cifar:open_cifar", "cifar100:DIR", _NORMALIZE),
    "images": _Kind("folder:open_folder", "images:DIR", (*_PICTURES, "test")),
    "npz": _Kind("npz:open_npz", "npz:FILE", (*_NORMALIZE, "classes", "layout", "test")),
    "hub": _Kind("hub:open_hub", "hub:NAME", (*_PICTURES, "config", "image", "label", "train", "test")),
    "callable": _Kind("own:open_own", "package.module:callable", (*_NORMALIZE, "classes")),
}


@dataclass(frozen=True)
class Request:
    """A data spec, taken apart.

    Attributes:
        spec: As given.
        kind: One of `KINDS`.
        location: Folder, file, name or callable; "" for embedded data.
        options: What stands after the commas.
        card: The model card of the weights that the data are for, if there is one.
    """

    spec: str
    kind: str
    location: str
    options: Mapping[str, str]
    card: Mapping[str, Any] | None = None

    @property
    def path(self) -> Path:
        """The location as a path, ``~`` and ``$VARIABLES`` expanded.

        Raises:
            InputError: ``~name`` of somebody who does not exist.
        """
        return expanded(self.location, "data spec")

    def whole(self, key: str) -> int | None:
        """A whole number from 1 to 4096 among the options; None where it is not given."""
        text = self.options.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LARGEST_SIZE:
            raise InputError(f"{key} of data spec must be a whole number from 1 to {LARGEST_SIZE}, got {text!r}")
        return int(text)

    def share(self, key: str, default: float) -> float:
        """A number between 0 and 1, both excluded, among the options."""
        text = self.options.get(key)
        if text is None:
            return default
        if not re.fullmatch(r"0?\.[0-9]{1,9}", text) or float(text) == 0:
            raise InputError(f"{key} of data spec must be a share between 0 and 1, e.g. 0.2, got {text!r}")
        return float(text)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words among the options."""
        text = self.options.get(key, default)
        if text not in choices:
            raise InputError(f"{key} of data spec must be {' or '.join(choices)}, got {text!r}{closest(text, choices)}")
        return text


def open_data(spec: str, *, card: Mapping[str, Any] | None = None) -> "DataSet":
    """Open a data set by a short text.

    ==========================  ===================================================================================
    ``digits``                  8x8 handwritten digits that scikit-learn embeds (extra ``demo``)
    ``cifar10:DIR``             the original files, binary or python; ``cifar100:DIR`` likewise
    ``images:DIR``              class folders in ``train/`` and ``test/`` or ``val/``, or at the top (split here)
    ``npz:FILE``                ``train_images``, ``train_labels``, ``test_...``, or ``images`` and ``labels``
    ``hub:NAME``                a data set of the Hugging Face Hub (extra ``hub``)
    ``package.module:callable`` your code: a `DataSet`, or calibration images, test images and test labels
    ==========================  ===================================================================================

    Options follow after commas: ``cifar10:DIR,normalize=imagenet``. Normalization is never assumed: for ``cifar10``,
    ``cifar100``, ``images`` and ``hub`` it stands in the spec (``normalize=`` a name, or ``mean=`` and ``std=``) or in
    the weights' card; the spec wins. The others are used as stored (whole numbers scaled to 0..1) unless one says more.

    ``held_out=5000`` says that so many training images, the first in the balanced order that ``slimbit train`` uses,
    were not trained on: models are then chosen by them (`DataSet.selection`). The card of weights that it trained
    says it.

    Args:
        spec: The text.
        card: Model card of the weights, from `slimbit.zoo.read_card`.

    Raises:
        InputError: The spec, the files or the card are wrong; the message says what and where.
        MissingExtraError: The data need a package that is not installed.

    >>> data = open_data("digits")
    >>> data.input_shape, data.classes, len(data.train.images), len(data.test.images)
    ((1, 8, 8), 10, 1297, 500)
    """
    request = parse(spec, card=card)
    module, function = KINDS[request.kind].opener.split(":")
    opened: DataSet = getattr(import_module(f"slimbit.zoo.data.{module}"), function)(request)
    told = request.options.get("held_out")
    held = (card or {}).get("held_out") if told is None else _count(told)
    return replace(opened, held_out=held) if held else opened


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InputError(f"held_out of data spec must be a whole number of images, got {shown(text)}")
    return int(text)


def parse(spec: str, *, card: Mapping[str, Any] | None = None) -> Request:
    """Take a spec apart and check its kind and the names of its options; nothing is opened.

    Raises:
        InputError: No such kind or option, an option twice, no location.

    >>> parse("cifar10:/data/a,b,normalize=none")
    Request(spec='cifar10:/data/a,b,normalize=none', kind='cifar10', location='/data/a,b', \
options={'normalize': 'none'}, card=None)
    """
    if not isinstance(spec, str):
        raise InputError(f"data spec must be text, got {spec!r}")
    parts, options = spec.split(","), dict[str, str]()
    while len(parts) > 1 and OPTION.fullmatch(parts[-1].strip()):
        key, _, value = parts.pop().strip().partition("=")
        if key in options:
            raise InputError(f"option {key} must be given once, got it twice in data spec {shown(spec)}")
        options[key] = value
    kind, location = _kind(",".join(parts).strip(), spec)
    known = KINDS[kind].options
    for key in options:
        if key not in known:
            raise InputError(
                f"option of {KINDS[kind].form} must be one of {', '.join(known)}, got {key!r}{closest(key, known)}"
            )
    return Request(spec, kind, location, options, card)


def _kind(head: str, spec: str) -> tuple[str, str]:
    """Kind and location."""
    kind, _, location = head.partition(":")
    if kind == "digits" and head != kind:
        raise InputError(f"data spec digits must stand alone or before a comma, got {shown(spec)}")
    if kind in KINDS and kind != "callable":
        if not location and kind != "digits":
            raise InputError(f"data spec must name a place as in {KINDS[kind].form}, got {shown(spec)}")
        return kind, location
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", head):
        return "callable", head
    forms = ", ".join(entry.form for entry in KINDS.values())
    raise InputError(
        f"data spec must be one of {forms}, options after commas, got {shown(spec)}{closest(kind, tuple(KINDS))}"
    )


def shown(text: str) -> str:
    """A text of any length, quoted, short enough for a message."""
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}...")
