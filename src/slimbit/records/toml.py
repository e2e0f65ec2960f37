"""Settings as TOML files: data in, unknown keys refused, errors with the path of the key."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from slimbit.records.errors import InputError, closest
from slimbit.records.files import read_toml_table


class ConfigTable(BaseModel):
    """A table of settings: nothing unknown, nothing converted, never changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Config = TypeVar("Config", bound=ConfigTable)


def read_toml(path: str | Path, kind: type[Config]) -> Config:
    """Read a TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML, or a key is unknown or has a wrong value; the sentence
            names file and key.
    """
    return validated(kind, read_toml_table(path, "configuration"), where=f"{path}: ")


def validated(kind: type[Config], data: Mapping[str, Any], *, where: str) -> Config:
    """Settings from plain data.

    Args:
        kind: The table.
        data: Its keys and values, inner tables as mappings.
        where: What the error begins with, to say where the data stands.

    Raises:
        InputError: A key is unknown or has a wrong value.
    """
    try:
        return kind.model_validate(dict(data))
    except ValidationError as error:
        raise InputError(f"{where}{'; '.join(_faults(error, kind))}") from error


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """Settings with options of a command put over them; None means not given, an inner mapping is put over its table.

    Raises:
        InputError: An option has a wrong value.
    """
    return validated(type(config), _over(config.model_dump(exclude_unset=True), options), where="option ")


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        if isinstance(value, Mapping):
            inner = _over(merged.get(name, {}), value)
            merged |= {name: inner} if inner else {}
        elif value is not None:
            merged[name] = value
    return merged


def _faults(error: ValidationError, kind: type[ConfigTable]) -> Iterator[str]:
    """Each fault as a clause, unknown keys with the known one that is most like them."""
    for fault in error.errors(include_url=False):
        path = ".".join(str(step) for step in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _keys(kind, fault["loc"][:-1])
            yield f"{path} must be a known key, got an unknown one{closest(str(fault['loc'][-1]), known)}"
        elif fault["type"] == "value_error":  # a sentence of ours about several keys
            yield fault["msg"].removeprefix("Value error, ")
        else:
            rule = fault["msg"].removeprefix("Input should be ")
            yield f"{path} must be {rule}, got {repr(fault['input'])[:80]}"


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Keys of the table at a path of inner tables."""
    for step in path:
        inner = kind.model_fields[str(step)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return ()
        kind = inner
    return tuple(kind.model_fields)
