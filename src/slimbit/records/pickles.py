"""Pickles, looked through before they are read: keys that take all memory or time to be hashed are refused.

Python hashes a tuple by hashing what is in it, without a bound: a million of them in each other overflow the stack of
the process, and forty, each of which holds the one before twice, take hours. A few bytes of a file suffice for either.
"""

import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from slimbit.records.errors import InputError
from slimbit.records.files import DEEPEST

LARGEST_TUPLE = 1 << 20
"""Values in a tuple, those of tuples in it counted wherever they stand."""
PARTS_OF_OLD_FILES = 5
"""Pickles that ``torch.save`` wrote one behind the other, before the values."""
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "FROZENSET": None}
_MARK, _OTHER = None, (0, 1)


def check_pickle(stream: IO[bytes], where: str) -> bool:
    r"""Look through the instructions of a pickle; nothing is carried out.

    Args:
        stream: Where the pickle begins; left behind its end.
        where: The file, as the subject of an error.

    Returns:
        Whether it is complete; what is damaged is left to its reader.

    Raises:
        InputError: Tuples in tuples deeper than `DEEPEST`, or with more than `LARGEST_TUPLE` values in all.

    >>> import io, pickle
    >>> check_pickle(io.BytesIO(pickle.dumps({("a", 1): [2]})), "net.pth")
    True
    >>> check_pickle(io.BytesIO(b"]" + b"\x85" * 100 + b"."), "net.pth")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: net.pth must hold tuples nested at most 64 deep, got more
    """
    # of every value on the reader's stack: how deep its tuples are nested, and how many values they hold
    stack: list[tuple[int, int] | None] = []
    memo: dict[Any, tuple[int, int] | None] = {}
    try:
        for code, argument, _ in pickletools.genops(stream):
            name = code.name
            if name in _TUPLES:
                count = _TUPLES[name]
                parts = _to_mark(stack) if count is None else [stack.pop() for _ in range(count)]
                stack.append(_of_tuple(parts, where))
            elif name == "MARK":
                stack.append(_MARK)
            elif "PUT" in name or name == "MEMOIZE":
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo.get(argument, _OTHER))
            elif name == "DUP":
                stack.append(stack[-1])
            elif name == "POP":
                stack.pop()
            else:
                _others(stack, code)
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, EOFError, OverflowError, MemoryError):
        return False
    return True


def check_torch_file(path: Path, where: str) -> None:
    """The pickles in a file of ``torch.save``, of the zip format or of the one before.

    Args:
        path: The file; what is damaged in it is left to torch.
        where: The file, as the subject of an error.

    Raises:
        InputError: As `check_pickle`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    with archive.open(name) as stream:
                        check_pickle(stream, where)
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError, ValueError):
        pass
    else:
        return
    with path.open("rb") as stream:
        for _ in range(PARTS_OF_OLD_FILES):
            if not check_pickle(stream, where):
                return


def _of_tuple(parts: Sequence[tuple[int, int] | None], where: str) -> tuple[int, int]:
    """Nesting and values of a tuple, within bounds."""
    held = [part or _OTHER for part in parts]
    depth, size = 1 + max((d for d, _ in held), default=0), 1 + sum(n for _, n in held)
    if depth > DEEPEST:
        raise InputError(f"{where} must hold tuples nested at most {DEEPEST} deep, got more")
    if size > LARGEST_TUPLE:
        raise InputError(f"{where} must hold tuples of at most {LARGEST_TUPLE:,} values, got more")
    return depth, size


def _to_mark(stack: list[tuple[int, int] | None]) -> list[tuple[int, int] | None]:
    """What stands behind the last mark; it and the mark are taken away."""
    parts: list[tuple[int, int] | None] = []
    while (part := stack.pop()) is not _MARK:
        parts.append(part)
    return parts


def _others(stack: list[tuple[int, int] | None], code: Any) -> None:
    """Every other instruction: what it takes, and as many values, hashed as one, as it leaves."""
    if any(one.name == "mark" for one in code.stack_before):
        _to_mark(stack)
        for one in code.stack_before:
            if one.name == "mark":
                break
            stack.pop()
    else:
        for _ in code.stack_before:
            stack.pop()
    stack.extend(_OTHER for _ in code.stack_after)
