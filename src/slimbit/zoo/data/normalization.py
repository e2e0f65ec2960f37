"""How pixel values become network inputs: said by the spec or by the weights' card, never guessed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slimbit.records.errors import InputError, closest
from slimbit.records.origin import Normalization
from slimbit.zoo.data.request import Request, shown

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


NAMED: Mapping[str, Normalization] = {
    entry.name: entry
    for entry in (
        Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet"),
        Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar10"),
        Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar100"),
        Normalization((0.5,), (0.5,), "half"),
        Normalization((0.0,), (1.0,), "none"),
    )
}
"""``half`` maps 0..1 to -1..1; ``none`` leaves 0..1. The CIFAR figures are those of the training images."""


def resolve(request: Request, channels: int, *, default: str | None = None) -> Normalization:
    """The normalization of a data set: from the spec, else from the card, else ``default``.

    Args:
        request: The spec and the card.
        channels: Channels of the images.
        default: One of `NAMED`, for data that are used as stored; None where somebody has to say it.

    Raises:
        InputError: Nobody says it, or what is said is wrong.
    """
    found = _from_options(request.options) or _from_card(request.card)
    if found is None and default is None:
        names = ", ".join(f"normalize={name}" for name in NAMED)
        raise InputError(
            f"data spec {shown(request.spec)} must say how the network's images were normalized: add one of {names}, "
            "or mean=R/G/B,std=R/G/B after a comma, got neither that nor weights whose card says it"
        )
    return (found or NAMED[str(default)]).fitted(channels)


def _from_options(options: Mapping[str, str]) -> Normalization | None:
    numbers = [key for key in ("mean", "std") if key in options]
    if "normalize" in options:
        if numbers:
            raise InputError(f"normalize= must not be given together with {numbers[0]}=, got both")
        return named(options["normalize"])
    if len(numbers) == 1:
        raise InputError(f"mean= and std= must be given together, got only {numbers[0]}=")
    if not numbers:
        return None
    mean, std = (tuple(_numbers(key, options[key])) for key in ("mean", "std"))
    return Normalization(mean, std)


def _from_card(card: Mapping[str, Any] | None) -> Normalization | None:
    said = None if card is None else card.get("normalize")
    if said is None:
        return None
    if isinstance(said, str):
        return named(said)
    if not isinstance(said, Mapping) or set(said) != {"mean", "std"}:
        raise InputError(f"normalize of the model card must be a name or mean and std, got {said!r}")
    mean, std = (_listed(key, said[key]) for key in ("mean", "std"))
    return Normalization(mean, std)


def named(name: str) -> Normalization:
    """One of `NAMED`.

    Raises:
        InputError: There is no such one.
    """
    if name not in NAMED:
        known = tuple(NAMED)
        raise InputError(f"normalize must be one of {', '.join(known)}, got {shown(name)}{closest(name, known)}")
    return NAMED[name]


def _numbers(key: str, text: str) -> list[float]:
    parts = text.split("/")
    if not all(NUMBER.fullmatch(part) for part in parts):
        raise InputError(f"{key}= must be numbers between slashes like 0.49/0.48/0.45, got {shown(text)}")
    return [float(part) for part in parts]


def _listed(key: str, values: object) -> tuple[float, ...]:
    numeric = isinstance(values, Sequence) and not isinstance(values, str)
    if not numeric or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):  # type: ignore[attr-defined] # a Sequence, see above
        raise InputError(f"normalize.{key} of the model card must be a list of numbers, got {values!r}")
    return tuple(float(v) for v in values)  # type: ignore[attr-defined] # as above
