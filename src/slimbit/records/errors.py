"""Errors that a caller may want to catch. Everything else is a bug and shows its traceback."""


class SlimbitError(Exception):
    """Base of every error that Slimbit raises on purpose."""


class InputError(SlimbitError, ValueError):
    """Something the user gave is wrong; the message says what must be, what was given, and where.

    The command line prints it as one sentence and exits with code 2.

    >>> raise InputError("bits must be a whole number from 1 to 16, got 99")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: bits must be a whole number from 1 to 16, got 99
    """


class MissingExtraError(InputError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: install it with  pip install 'slimbit[{extra}]'")


def check_choice(what: str, value: object, known: tuple[str, ...]) -> None:
    """Raise `InputError` unless the value is one of those known.

    >>> check_choice("per", "mac", ("mac", "parameter"))
    """
    if value not in known:
        raise InputError(f"{what} must be one of {', '.join(known)}, got {value!r}")


def closest(name: str, known: "list[str] | tuple[str, ...]", count: int = 3) -> str:
    """Names most like a misspelt one, as the tail of a sentence ("" when none is close).

    Of equally close ones those come first that begin as it does.

    >>> closest("resnet21", ("resnet32", "resnet20", "vgg7"))
    '; did you mean resnet20 or resnet32?'
    """
    import difflib
    from itertools import takewhile

    def likeness(other: str) -> tuple[float, int]:
        start = [*takewhile(lambda pair: pair[0] == pair[1], zip(other, name, strict=False))]
        return difflib.SequenceMatcher(None, other, name).ratio(), len(start)

    close = difflib.get_close_matches(name, known, n=max(1, len(known)), cutoff=0.6)
    matches = sorted(close, key=likeness, reverse=True)[:count]
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
