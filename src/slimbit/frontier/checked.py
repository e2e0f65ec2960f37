"""Records read from a run that may be damaged: every field must be of its type, every number finite."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from slimbit.records.errors import InputError

Record = TypeVar("Record")
LONGEST_SHOWN = 80


def checked(kind: Callable[..., Record], values: Mapping[str, Any], where: str) -> Record:
    """The record of these values.

    Args:
        kind: A dataclass; its annotations are the rules. Nothing is converted: ``"7"`` and ``true`` are no numbers.
        values: By field.
        where: What is read, for the message.

    Raises:
        InputError: An unknown field, a missing one, or one of another type; the first is named.

    >>> from slimbit.records.sensitivity import Sensitivity
    >>> checked(Sensitivity, {"filters": {}, "images": "seven"}, "run.json")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: images of run.json must be a valid integer, got 'seven'
    """
    try:
        _model(kind).model_validate(dict(values))
    except ValidationError as error:
        raise InputError(_first_fault(error, where)) from error
    return kind(**values)


@cache
def _model(kind: Any) -> type[BaseModel]:
    hints = get_type_hints(kind)
    rules: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is MISSING and f.default_factory is MISSING else None)
        for f in fields(kind)
    }
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return create_model(kind.__name__, __config__=config, **rules)


def _first_fault(error: ValidationError, where: str) -> str:
    fault = error.errors(include_url=False)[0]
    path = ".".join(map(str, fault["loc"]))[:LONGEST_SHOWN]
    if fault["type"] == "extra_forbidden":
        return f"{where} must hold only known keys, got {path}"
    if fault["type"] == "missing":
        return f"{where} must hold {path}, got none"
    return f"{path} of {where} must be {fault['msg'].removeprefix('Input should be ')}, got {_shown(fault['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
