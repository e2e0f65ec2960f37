"""Files named by the hash of their content."""

from pathlib import Path
from typing import Literal, get_args

from slimbit.records.codec import sha256
from slimbit.records.errors import InputError
from slimbit.records.files import read_regular, write_whole

Kind = Literal["json", "safetensors", "bin"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST_OBJECT = 1 << 34


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
    digest = sha256(content)
    path = object_path(folder, digest, kind)
    if not _holds(path, digest):
        write_whole(path, content)
    return digest


def _holds(path: Path, digest: str) -> bool:
    try:
        return sha256(read_regular(path, "object", limit=LARGEST_OBJECT)) == digest
    except InputError:
        return False


def read_object(folder: Path, digest: str, kind: Kind) -> bytes:
    """The content of that hash.

    Raises:
        InputError: The file is missing, or its content has another hash; the file is named.
    """
    path = object_path(folder, digest, kind)
    content = read_regular(path, "object", limit=LARGEST_OBJECT)
    found = sha256(content)
    if found != digest:
        raise InputError(f"object {path} must have the hash in its name, got {found}: the file is damaged")
    return content
