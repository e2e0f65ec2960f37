"""Files that are whole or not there."""

import contextlib
import os
import tempfile
from pathlib import Path

from slimbit.records.errors import InputError, SlimbitError


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
        os.chmod(temporary, 0o666 & ~_umask())  # noqa: PTH101 - mkstemp lets nobody else read
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


def _umask() -> int:
    """What the user takes away from new files; the system tells only when it is set."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can open folders."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, *, what: str, limit: int) -> bytes:
    """All bytes of a regular file that is not larger than a limit.

    Args:
        path: The file.
        what: What it is, as the subject of an error.
        limit: Bytes.

    Raises:
        InputError: Missing, not a regular file (a pipe or a device would block or never end), too large, unreadable.
    """
    try:
        if not path.exists():
            raise InputError(f"{what} must exist, got none at {path}")
        if not path.is_file():
            raise InputError(f"{what} must be a regular file, got {path}, which is something else")
        with path.open("rb") as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise InputError(f"{what} {path} must be readable, got {error.strerror or error}") from error
    if len(content) > limit:
        raise InputError(f"{what} {path} must be at most {limit:,} bytes, got more")
    return content
