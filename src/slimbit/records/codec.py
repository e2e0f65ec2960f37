"""Records as JSON and TOML, and back: the only place that does it.

Reading is strict: nothing is converted (``"7"`` and ``true`` are no numbers), unknown keys are refused, every number
is finite. A fault is one sentence that names the place, the rule and what was found.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, dataclass_transform, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from slimbit.records.errors import InputError, closest
from slimbit.records.files import DEEPEST, parse_json, read_toml_table
from slimbit.records.text import clipped

Record = TypeVar("Record")
MOST_KNOWN = 300
"""Characters of a list of known keys."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_keyword_only_argument")
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(kind: type[Record]) -> type[Record]:
    """A frozen dataclass with keyword arguments that this module can read: the decorator of every stored record."""
    return dataclass(frozen=True, kw_only=True)(strict(kind))


def strict(kind: type[Record]) -> type[Record]:
    """Let this module read a dataclass strictly; below its own decorator."""
    kind.__pydantic_config__ = _STRICT  # type: ignore[attr-defined] # pydantic looks for it there
    return kind


class ConfigTable(BaseModel):
    """Settings: immutable, nothing unknown, nothing converted, validated by whoever builds them.

    Python, TOML files and the command line make the same object, so a wrong value gives the same sentence everywhere.

    Raises:
        InputError: An unknown setting, or a wrong value.
    """

    model_config = ConfigDict(**_STRICT, frozen=True)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise InputError(_sentence(error, type(self), settings, where="")) from error

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """The settings in a TOML file.

        Raises:
            InputError: The file cannot be read or is no TOML, or a key is unknown or has a wrong value; the sentence
                names file and key.
        """
        data = read_toml_table(path, "configuration")
        try:
            return cls(**data)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def with_options(self, options: Mapping[str, Any]) -> Any:
        """The settings with others put over them; None means not given, an inner mapping is put over its table.

        Raises:
            InputError: A wrong value.
        """
        return type(self)(**_over(_given(self), options))


def plain(value: Any) -> Any:
    """A record, or any nesting of records, as data that JSON knows; tuples become lists.

    >>> from slimbit.records.setting import Price
    >>> plain({"setting": Price(2e-9, "esn_digital")})
    {'setting': {'value': 2e-09, 'metric': 'esn_digital', 'kind': 'price'}}
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(part) for name, part in vars(value).items() if not name.startswith("_")}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def canonical(value: Any) -> bytes:
    """JSON whose bytes depend on nothing but the value: what digests are taken of, and what is kept by content.

    >>> canonical({"b": 1, "a": (2.5,)})
    b'{"a":[2.5],"b":1}'
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def pretty(value: Any, *, indent: int | None = 2) -> str:
    """JSON for people and for files, in the order of the fields.

    Args:
        value: A record, or plain data.
        indent: Spaces of each level; None = all on one line.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def json_file(value: Any, *, indent: int = 2) -> bytes:
    """`pretty` JSON as a file has it: UTF-8, with a line feed at its end."""
    return (pretty(value, indent=indent) + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256 of `canonical` JSON, hexadecimal: equal values, equal digests."""
    return sha256(canonical(value))


def sha256(*parts: bytes | Iterable[bytes]) -> str:
    """SHA-256 of bytes, one part after the other, hexadecimal.

    >>> sha256(b"ab") == sha256(b"a", [b"b"])
    True
    """
    total = hashlib.sha256()
    for part in parts:
        for content in (part,) if isinstance(part, bytes) else part:
            total.update(content)
    return total.hexdigest()


def from_json(kind: type[Record], content: bytes | str, *, where: str, schema: int | None = None) -> Record:
    """The record that JSON text holds; see `from_plain`."""
    return from_plain(kind, parse_json(content, where), where=where, schema=schema)


def from_plain(kind: type[Record], data: Any, *, where: str, schema: int | None = None) -> Record:
    """The record that plain data stand for, checked.

    Args:
        kind: A class made by `record`, a pydantic model, or any type of such.
        data: From JSON, TOML or a study; lists where the record has tuples.
        where: What is read, for the message.
        schema: Number that the data must have under ``schema``, which is no field of the record; None = it has none.

    Raises:
        InputError: Another schema, an unknown key, a missing one, or a value out of its range; the first is named.

    >>> from slimbit.records.sensitivity import Sensitivity
    >>> from_plain(Sensitivity, {"filters": {}, "images": "seven"}, where="run.json")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: images of run.json must be a valid integer, got 'seven'
    """
    if schema is not None:
        if not isinstance(data, Mapping) or data.get("schema") != schema:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"{where} must have schema {schema}, got {clipped(repr(found))}")
        data = {key: value for key, value in data.items() if key != "schema"}
    try:
        # through JSON text, since a strict reader takes a list for a tuple only there
        text = json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        place = next(_not_json(data), None)
        what = clipped(str(error)) if place is None else f"{clipped(repr(place[1]))} at {clipped(place[0])}"
        raise InputError(f"{where} must hold finite numbers and text only, got {what}") from error
    try:
        read: Record = _adapter(kind).validate_json(text)  # type: ignore[arg-type] # every type can be a key
    except ValidationError as error:
        raise InputError(_sentence(error, kind, data, where=where)) from error
    return read


def _not_json(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Place and value of what JSON cannot hold."""
    if isinstance(data, Mapping) and len(path) < DEEPEST:
        for key, value in data.items():
            yield from _not_json(value, (*path, str(key)))
    elif isinstance(data, list | tuple) and len(path) < DEEPEST:
        for place, value in enumerate(data):
            yield from _not_json(value, (*path, str(place)))
    elif not isinstance(data, str | int | float | None) or (isinstance(data, float) and not math.isfinite(data)):
        yield ".".join(path) or "the top", data


def with_schema(value: Any, schema: int) -> dict[str, Any]:
    """Plain data of a record with the number of its format in front."""
    return {"schema": schema, **plain(value)}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _given(table: ConfigTable) -> dict[str, Any]:
    """The settings that were given, as the objects they are."""
    return {name: getattr(table, name) for name in table.model_fields_set}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name, {})
        inner = _given(inner) if isinstance(inner, ConfigTable) else inner
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            both = _over(inner, value)
            merged |= {name: both} if both else {}
        elif value is not None:
            merged[name] = value
    return merged


def _sentence(error: ValidationError, kind: Any, data: Any, *, where: str) -> str:
    """The first fault: the place, the rule, what was found."""
    steps, fault = _first_fault(error, data)
    path, of = clipped(".".join(steps)), f" of {where}" if where else ""
    if fault["type"] == "union_tag_invalid":
        return f"kind of {path}{of} must be one of {fault['ctx']['expected_tags']}, got {fault['ctx']['tag']!r}"
    if fault["type"] in _UNKNOWN:
        known = _keys(kind, steps[:-1])
        hint = closest(steps[-1], known) or (f"; known: {clipped(', '.join(known), MOST_KNOWN)}" if known else "")
        return f"{where or 'settings'} must hold only known keys, got {path}{hint}"
    if fault["type"] in _MISSING:
        return f"{where or 'settings'} must hold {path}, got none"
    if fault["type"] == "value_error":  # a sentence of ours
        said = fault["msg"].removeprefix("Value error, ")
        return f"{path}: {said}" if path and not where else f"{where}: {said}" if where else said
    return f"{path or 'value'}{of} must be {_rule(fault)}, got {clipped(repr(fault['input']))}"


def _first_fault(error: ValidationError, data: Any) -> tuple[list[str], ErrorDetails]:
    """The path to the first fault and the fault; of a value that fits no type of a union, what is wrong deepest in it.

    Settings within settings are objects of their own, whose errors hold a path of their own.
    """
    found = [(_path(fault, data), fault) for fault in error.errors(include_url=False)]
    path, fault = found[0]
    inside = [(steps, one) for steps, one in found if steps[: len(path)] == path]
    path, fault = max(inside, key=lambda pair: len(pair[0]))
    # a misspelt key is also missing under its right name: the misspelling is what helps
    path, fault = next(((steps, one) for steps, one in found if one["type"] in _UNKNOWN), (path, fault))
    cause = getattr(fault.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(cause, ValidationError):
        inner, fault = _first_fault(cause, fault["input"])
        path = [*path, *inner]
    return path, fault


def _path(fault: ErrorDetails, data: Any) -> list[str]:
    """Keys and positions that lead to a fault, without pydantic's names for the types of a union."""
    path = []
    for place, step in enumerate(fault["loc"]):
        is_key = isinstance(data, Mapping) and step in data
        is_position = isinstance(data, list | tuple) and isinstance(step, int) and step < len(data)
        if is_key or is_position:
            data = data[step]
        elif not (fault["type"] in _MISSING and place == len(fault["loc"]) - 1):
            continue
        path.append(str(step))
    return path


def _rule(fault: ErrorDetails) -> str:
    """What a value must be, in our words where pydantic's do not follow "must be"."""
    context = fault.get("ctx", {})
    if fault["type"] in ("tuple_type", "list_type"):
        return "a list"
    if fault["type"] in ("model_type", "dataclass_type"):
        name = context.get("class_name", "_")
        return "a table (a JSON object)" if name.startswith("_") else f"a table with the fields of {name}"
    if fault["type"] in ("string_too_short", "string_too_long"):
        bound = context.get("min_length"), context.get("max_length")
        return f"text of at {f'most {bound[1]}' if bound[0] is None else f'least {bound[0]}'} characters"
    if fault["type"] in ("too_short", "too_long"):
        least = fault["type"] == "too_short"
        length = f"at least {context['min_length']}" if least else f"at most {context['max_length']}"
        return f"a list of {length}"
    return fault["msg"].removeprefix("Input should be ").replace("Input should", "a value that should")


def _keys(kind: Any, path: list[str]) -> tuple[str, ...]:
    """Fields of the record at a path of inner ones."""
    for step in path:
        known = _fields(kind)
        kind = known.get(step) if known else _inner(kind)
    return tuple(_fields(kind))


def _inner(kind: Any) -> Any:
    """Type of the elements of a tuple, or of the values of a mapping, in a union or with limits or without."""
    if get_origin(kind) in (Annotated, Union, UnionType):
        return next((found for arm in get_args(kind) if (found := _inner(arm)) is not None), None)
    arms = [arm for arm in get_args(kind) if arm is not Ellipsis]
    return arms[-1] if arms else None


def _fields(kind: Any) -> dict[str, Any]:
    """Type of each field of a record, or of the record in a union; empty for anything else."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        return {one.name: one.type for one in fields(kind)}
    arms = get_args(kind) if get_origin(kind) in (Annotated, Union, UnionType) else ()
    return next((found for arm in arms if (found := _fields(arm))), {})
