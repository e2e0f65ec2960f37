"""Zip archives and safetensors files, looked at before a library opens them: how large they are and will be."""

import struct
import zipfile
from pathlib import Path
from typing import IO

from slimbit.records.errors import InputError
from slimbit.records.files import check_regular

LARGEST_HEADER = 1 << 25
"""Bytes of the header of a safetensors file, names, shapes and metadata; ten thousand tensors need about 2 million."""


def check_safetensors(path: str | Path, what: str) -> None:
    """Before a safetensors file is opened by its name: it is a regular file whose header is not too large.

    Whether the file is whole is left to its library.

    Args:
        path: The file.
        what: What it is, as the subject of an error.

    Raises:
        InputError: It is missing, is a folder, a pipe or a device, or has a header of more than `LARGEST_HEADER` bytes.

    >>> check_safetensors("no/such.safetensors", "weights file")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: weights file must exist, got none at no/such.safetensors
    """
    size = check_regular(path, what)
    try:
        with Path(path).open("rb") as stream:
            check_safetensors_header(stream.read(8), size, f"{what} {path}")
    except OSError as error:
        raise InputError(f"{what} must be readable, got {path}: {error.strerror}") from error


def check_safetensors_header(begin: bytes, size: int, where: str) -> None:
    """The same of a file that is read already, from its first eight bytes.

    Args:
        begin: They hold the length of the header.
        size: Bytes of the whole.
        where: What it is, as the subject of an error.

    >>> check_safetensors_header((1 << 30).to_bytes(8, "little"), 1 << 31, "state of net")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: state of net must have a header of at most 33,554,432 bytes, got 1,073,741,824
    """
    length = int.from_bytes(begin, "little")
    if LARGEST_HEADER < length <= size - 8:
        raise InputError(f"{where} must have a header of at most {LARGEST_HEADER:,} bytes, got {length:,}")


def check_inflation(file: Path | IO[bytes], size: int, what: str, *, times: int, always: int) -> None:
    """Before a zip archive is read: what it holds is not too many times as large as itself.

    What is no archive, or a damaged one, is left to the library that reads it.

    Args:
        file: The archive.
        size: Its bytes.
        what: What it is, with its name, as the subject of an error.
        times: Most bytes that it may hold over its own.
        always: Bytes that any may hold.

    Raises:
        InputError: It holds more.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return
    if total > max(always, times * size):
        raise InputError(f"{what} must inflate to at most {times} times its {size:,} bytes, got {total:,}")
