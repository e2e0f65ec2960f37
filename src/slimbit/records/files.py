"""Reading and writing files: a file is read within bounds, and written as a whole or not at all.

Every file that Slimbit reads may come from a stranger, and every file that it writes may meet a full disk.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import tomllib
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from slimbit.records.errors import InputError, SlimbitError

LARGEST_TEXT = 1 << 26
"""Bytes of a JSON file; the cost of a network of ten thousand layers has about 10 million."""
DEEPEST = 64
"""Levels of nested lists and tables; the deepest record of Slimbit has 8, and Python's own limit is near 1,000."""
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""Quoted text; the end is optional, so that text without one is not looked through again from every quote in it."""
_UNLESS_BRACKET = re.compile(r"[^\[\]{}]+")


LARGEST_TOML = 1 << 20
_WITHIN_KEY = re.compile(r"[^.,=\[\]{}\n#]+")


class StoreError(SlimbitError):
    """Something could not be written; what was written before is whole, and the run can be continued."""


def read_regular(path: str | Path, what: str, *, limit: int) -> bytes:
    """All bytes of a regular file.

    Args:
        path: The file.
        what: What it is, as the subject of an error: "weights file", "report".
        limit: Most bytes that it may have.

    Raises:
        InputError: It is missing, is a folder, a pipe or a device, is too large, or cannot be read.

    >>> read_regular("no/such.json", "model card", limit=1000)
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: model card must exist, got none at no/such.json
    """
    check_regular(path, what, limit=limit)
    try:
        # Another process may have put a pipe there since: opening it must not wait for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            is_regular = stat.S_ISREG(status.st_mode)
            # memory is taken for as much as is asked for: a limit of terabytes must not ask for them
            content = stream.read(min(limit, status.st_size) + 1) if is_regular else b""
    except OSError as error:
        raise InputError(f"{what} must be readable, got {_clipped(path)}: {_reason(error)}") from error
    if not is_regular:
        raise InputError(f"{what} must be a file, got {path}, which is a pipe or a device")
    if len(content) > limit:
        raise InputError(f"{what} must have at most {limit:,} bytes, got {path} with more")
    return content


def check_regular(path: str | Path, what: str, *, limit: int | None = None) -> int:
    """Size of a file that a library is about to open by its name, in bytes.

    Raises:
        InputError: It is missing, is a folder, a pipe or a device, or is too large.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - a Path is made of it only where that is needed
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{what} must exist, got none at {_clipped(path)}") from error
        raise InputError(f"{what} must be readable, got {_clipped(path)}: {_reason(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{what} must be a file, got {path}, which is {kind}")
    if limit is not None and found.st_size > limit:
        raise InputError(f"{what} must have at most {limit:,} bytes, got {path} with {found.st_size:,}")
    return found.st_size


def expanded(text: str, what: str) -> Path:
    """A path as people write it, with ``~`` and ``$VARIABLES`` replaced.

    Raises:
        InputError: ``~name`` of somebody who does not exist.
    """
    try:
        return Path(os.path.expandvars(text)).expanduser()
    except RuntimeError as error:
        raise InputError(f"{what} must be in a home folder that exists, got {_clipped(text)!r}") from error


def as_path(value: Any, what: str) -> Path:
    """What a user gave as a path.

    Raises:
        InputError: It is something else.

    >>> as_path(None, "out")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: out must be a path, got NoneType
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise InputError(f"{what} must be a path, got {type(value).__name__}")
    return Path(value)


def read_text(path: str | Path, what: str, *, limit: int = LARGEST_TEXT) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        InputError: As `read_regular`, or the bytes are no UTF-8.
    """
    try:
        return read_regular(path, what, limit=limit).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{what} must be UTF-8 text, got {path}: {error.reason} at byte {error.start}") from error


def read_json(path: str | Path, what: str, *, limit: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file.

    Raises:
        InputError: As `read_text`, or as `parse_json`.
    """
    return parse_json(read_text(path, what, limit=limit), f"{what} {path}")


def has_file(folder: str | Path, name: str) -> bool:
    """Whether a folder holds a file of that name; what cannot be a path at all, being too long, holds none.

    >>> has_file("a" * 5000, "run.json")
    False
    """
    try:
        return (Path(folder) / name).is_file()
    except (OSError, ValueError):
        return False


def parse_json(content: str | bytes, where: str) -> Any:
    """The value of a JSON text whose nesting is not deeper than `DEEPEST`.

    Args:
        content: The text, or its bytes in UTF-8.
        where: Where it stands, as the subject of an error.

    Raises:
        InputError: It is no complete JSON, or nested too deeply.

    >>> parse_json('{"points": [1, 2]}', "run.json")
    {'points': [1, 2]}
    >>> parse_json("[" * 100_000, "run.json")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: run.json must be nested at most 64 levels deep, got more
    """
    try:
        text = content.decode() if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise InputError(f"{where} must be UTF-8 text, got {error.reason} at byte {error.start}") from error
    if text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
        raise InputError(f"{where} must be nested at most {DEEPEST} levels deep, got more")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
        raise InputError(f"{where} must be complete JSON, got {_reason(error)}: it is damaged") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"the number {constant}")


def read_toml_table(path: str | Path, what: str, *, limit: int = LARGEST_TOML) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        InputError: As `read_text`, or as `parse_toml`.
    """
    return parse_toml(read_text(path, what, limit=limit), f"{what} {path}")


def parse_toml(text: str, where: str) -> dict[str, Any]:
    r"""The table of a TOML text whose keys have at most `DEEPEST` parts and whose values are not nested more deeply.

    Args:
        text: The text.
        where: Where it stands, as the subject of an error.

    Raises:
        InputError: It is no TOML, or nested too deeply.

    >>> parse_toml("[schedule]\nname = 'step'", "train.toml")
    {'schedule': {'name': 'step'}}
    >>> parse_toml("a." * 60_000 + "b = 1", "train.toml")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: train.toml must have keys of at most 64 parts, got more
    """
    # Python's reader takes a time that grows with the square of a key's parts: they are counted before it starts.
    # In a quotation dots between words count as well; no setting has a text with so many before a comma.
    if "." * DEEPEST in _WITHIN_KEY.sub("", text):
        raise InputError(f"{where} must have keys of at most {DEEPEST} parts, got more")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also whole numbers of thousands of digits
        raise InputError(f"{where} must be TOML, got {_reason(error)}") from error
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
    if level:
        raise InputError(f"{where} must be nested at most {DEEPEST} levels deep, got more")
    return table


def _depth(text: str) -> int:
    """Levels of brackets outside of quoted text."""
    brackets = _UNLESS_BRACKET.sub("", _TEXTS.sub("", text))
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it, not even after a crash.

    The content goes to another name in the same folder and is renamed when it is on the disk. Of a symbolic link the
    file that it names is replaced.

    Raises:
        InputError: A folder, a pipe or a device has that name.
        StoreError: The disk is full, or the folder cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    path = _replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `tempfile` makes files that only their owner may read; a file opened with "x" is new and follows the umask
        name = path.parent / f".{path.name[:16]}-{secrets.token_hex(8)}"
        with name.open("xb") as stream:
            temporary = name
            _write(stream, content)
        os.replace(temporary, path)  # noqa: PTH105 - the tests make this very call fail
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder with all its files, or nothing: another name beside it, then one rename.

    Args:
        folder: A name that is free, or an empty folder.
        files: Content by name.

    Raises:
        OSError: The disk is full, or the name is taken; nothing is left behind.
    """
    temporary = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        for name, content in files.items():
            with (temporary / name).open("wb") as stream:
                _write(stream, content)
        _sync_folder(temporary)
        temporary.rename(folder)  # also over an empty folder, never over one with files
        _sync_folder(folder.parent)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def append_whole(path: Path, content: bytes) -> None:
    """Add to the end of a file: all of it, or the file stays as it was, unless the machine goes down meanwhile.

    Raises:
        StoreError: The disk is full, or the file cannot be written.
    """
    try:
        with path.open("ab") as stream:
            before = stream.tell()
            try:
                _write(stream, content)
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(path, before)
                raise
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path | str, error: BaseException) -> StoreError:
    """The one sentence about a file that could not be written."""
    return StoreError(
        f"{path} could not be written: {_reason(error)}; everything before it is kept, run the command again"
    )


def _replaceable(path: Path) -> Path:
    """The file that a name leads to, which may be new."""
    try:
        found = Path(os.path.realpath(path))
        is_other = found.exists() and not found.is_file()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise not_written(_clipped(path), error) from error
    if is_other:
        raise InputError(f"{path} must be a file that can be replaced, got a folder, a pipe or a device")
    return found


def _write(stream: Any, content: bytes) -> None:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _clipped(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
