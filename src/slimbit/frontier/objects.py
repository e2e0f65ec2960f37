"""Files that are whole or not there, and files named by the hash of their content."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal, get_args

from slimbit.records.errors import InputError, SlimbitError

Kind = Literal["json", "safetensors"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class StoreError(SlimbitError):
    """Something could not be written; what was written before is whole, and the run can be continued."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it, not even after a crash.

    The content goes to another name in the same folder and is renamed when it is on the disk.

    Raises:
        StoreError: The disk is full, or the folder cannot be written; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:16]}-")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the tests make this very call fail
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - beside os.replace above


def not_written(path: Path | str, error: BaseException) -> StoreError:
    """The one sentence about a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return StoreError(f"{path} could not be written: {reason}; everything before it is kept, run the command again")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def object_path(folder: Path, digest: str, kind: Kind) -> Path:
    """``objects/<first two digits>/<digest>.<kind>`` below a run's folder.

    Raises:
        InputError: Something that is no digest, so that a damaged study cannot name other files.
    """
    if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
        raise InputError(f"digest of an object must be 64 hexadecimal digits, got {str(digest)[:80]!r}")
    if kind not in KINDS:
        raise InputError(f"kind of an object must be one of {', '.join(KINDS)}, got {kind!r}")
    return folder / "objects" / digest[:2] / f"{digest}.{kind}"


def write_object(folder: Path, content: bytes, kind: Kind) -> str:
    """Keep content under its SHA-256 and return that; a whole copy that is there already is left alone."""
    digest = hashlib.sha256(content).hexdigest()
    path = object_path(folder, digest, kind)
    if not _holds(path, digest):
        write_whole(path, content)
    return digest


def _holds(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False


def read_object(folder: Path, digest: str, kind: Kind) -> bytes:
    """The content of that hash.

    Raises:
        InputError: The file is missing, or its content has another hash; the file is named.
    """
    path = object_path(folder, digest, kind)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"object {path} must be readable, got {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise InputError(f"object {path} must have the hash in its name, got {found}: the file is damaged")
    return content
