"""Model cards: what one must know to feed images to somebody's weights."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from slimbit.records.codec import canonical, from_json, plain, record
from slimbit.records.containers import check_safetensors
from slimbit.records.errors import InputError
from slimbit.records.files import read_text

SUFFIX = ".card.json"
METADATA_KEY = "slimbit"
LARGEST_CARD = 1 << 20


def read_card(weights: str | os.PathLike[str]) -> Mapping[str, Any] | None:
    """The model card of a weight file, None if it has none.

    It is the file beside the weights with ``.card.json`` behind their whole name, else the JSON text under
    ``slimbit`` in the metadata of a safetensors file; there ``normalize`` alone does, too.

    Args:
        weights: The weight file.

    Returns:
        Those of these entries that are given: ``network``, ``data``, ``normalize`` (a name, or ``mean`` and ``std``
        as lists), ``size`` (side of the input), ``classes``, ``held_out``
        (training images that were not trained on), ``accuracy`` (percent), ``description``, ``license``,
        ``source``.

    Raises:
        InputError: The card cannot be read, or has an unknown entry or a wrong value.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "net.pth"
    >>> _ = (file.parent / "net.pth.card.json").write_text('{"normalize": "imagenet"}')
    >>> read_card(file), read_card("other.pth")
    ({'normalize': 'imagenet'}, None)
    """
    file = Path(weights)
    beside = file.with_name(file.name + SUFFIX)
    if beside.exists():
        return _checked(_read(beside), beside)
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return None
    metadata = _metadata(file)
    if METADATA_KEY in metadata:
        return _checked(metadata[METADATA_KEY], file)
    if "normalize" not in metadata:
        return None
    return _checked(canonical({"normalize": metadata["normalize"]}).decode(), file)


def _read(file: Path) -> str:
    return read_text(file, "model card", limit=LARGEST_CARD)


def _metadata(file: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    check_safetensors(file, "weights file")
    try:
        with safe_open(file, framework="np") as content:
            return content.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"weights file must be a complete safetensors file, got {str(file)!r}: {error}") from error


def _checked(text: str, where: Path) -> dict[str, Any]:
    """The entries that are given, after the check of every one."""
    card = from_json(_Card, text, where=f"model card of {str(where)!r}")
    _check_name(card.normalize, where)
    given: dict[str, Any] = plain(card)
    return {name: value for name, value in given.items() if value is not None}


@record
class _Numbers:
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=1024)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=1024)]


@record
class _Card:
    network: str | None = None
    data: str | None = None
    normalize: str | _Numbers | None = None
    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    classes: Annotated[int, Field(ge=1)] | None = None
    held_out: Annotated[int, Field(ge=0)] | None = None
    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    description: str | None = None
    license: str | None = None
    source: str | None = None


def _check_name(normalize: str | _Numbers | None, where: Path) -> None:
    from slimbit.zoo.data.normalization import named

    if isinstance(normalize, str):
        try:
            named(normalize)
        except InputError as error:
            raise InputError(f"model card of {str(where)!r}: {error}") from error
    elif normalize is not None and len(normalize.mean) != len(normalize.std):
        raise InputError(f"model card of {str(where)!r} must have as many numbers in mean as in std")
