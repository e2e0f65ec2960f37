"""Model cards: what one must know to feed images to somebody's weights."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    return _checked(json.dumps({"normalize": metadata["normalize"]}), file) if "normalize" in metadata else None


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
    from pydantic import BaseModel, ConfigDict, Field, ValidationError

    class Numbers(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        mean: list[float] = Field(min_length=1, max_length=1024)
        std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, max_length=1024)

    class Card(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
        network: str | None = None
        data: str | None = None
        normalize: str | Numbers | None = None
        size: int | None = Field(default=None, ge=1, le=4096)
        classes: int | None = Field(default=None, ge=1)
        held_out: int | None = Field(default=None, ge=0)
        accuracy: float | None = Field(default=None, ge=0, le=100)
        description: str | None = None
        license: str | None = None
        source: str | None = None

    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[-1]  # of the two forms of normalize, the numbers come last
        entry = ".".join(str(step) for step in first["loc"])[:80] or "the card"
        raise InputError(f"model card of {str(where)!r} must be valid, got {entry}: {first['msg']}") from error
    _check_name(card.normalize, where)
    return card.model_dump(exclude_none=True)


def _check_name(normalize: object, where: Path) -> None:
    from slimbit.zoo.data.normalization import named

    if isinstance(normalize, str):
        try:
            named(normalize)
        except InputError as error:
            raise InputError(f"model card of {str(where)!r}: {error}") from error
    elif normalize is not None and len(normalize.mean) != len(normalize.std):  # type: ignore[attr-defined] # Numbers
        raise InputError(f"model card of {str(where)!r} must have as many numbers in mean as in std")
