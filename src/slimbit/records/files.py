"""Files that are whole or not there."""

import contextlib
import os
import secrets
from pathlib import Path

from slimbit.records.errors import SlimbitError


class StoreError(SlimbitError):
    """Something could not be written; what was written before is whole, and the run can be continued."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it, not even after a crash.

    The content goes to another name in the same folder and is renamed when it is on the disk.

    Raises:
        StoreError: The disk is full, or the folder cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `tempfile` makes files that only their owner may read; a file opened with "x" is new and follows the umask
        name = path.parent / f".{path.name[:16]}-{secrets.token_hex(8)}"
        with name.open("xb") as stream:
            temporary = name
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
                temporary.unlink()


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
