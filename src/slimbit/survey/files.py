"""Opening files that may be missing, damaged, or something else: every failure becomes one sentence."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimbit.records.errors import InputError


def existing_file(path: str | Path, kind: str) -> Path:
    """The path, if there is a file with something in it.

    Args:
        path: File to look at.
        kind: What it should hold, for the message, e.g. ``"ONNX"``.

    Raises:
        InputError: Nothing is there, or it is not a file, or it is empty.

    >>> existing_file("no/such.onnx", "ONNX")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: the ONNX file must exist, got no/such.onnx
    """
    file = Path(path)
    try:
        if file.is_file():
            if file.stat().st_size == 0:
                raise InputError(f"the {kind} file must not be empty, got {file}, which has 0 bytes")
            return file
        there = file.exists()
    except OSError as error:
        raise InputError(f"the {kind} file must be readable, got {file}: {one_line(error)}") from error
    if there:
        raise InputError(f"the {kind} file must be a file, got {file}, which is a folder or a device")
    raise InputError(f"the {kind} file must exist, got {file}")


@contextmanager
def reading(source: str | Path, kind: str) -> Iterator[None]:
    """Turns whatever a parsing library raises inside the block into an `InputError` that names the file.

    Warnings of the libraries are dropped: what they warn about either does not matter to a cost or ends
    in an error.

    Args:
        source: What is being read, for the message.
        kind: What it should hold, e.g. ``"ONNX"``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:  # the parsers behind this raise anything at all on damaged bytes
        raise InputError(f"{source} must be a readable {kind} file, got {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The type and first line of an error, for use inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
