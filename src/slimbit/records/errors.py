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


def closest(name: str, known: "list[str] | tuple[str, ...]", count: int = 3) -> str:
    """Names most like a misspelt one, as the tail of a sentence ("" when none is close).

    >>> closest("resnet2O", ("resnet20", "resnet50", "vgg7"))
    '; did you mean resnet20 or resnet50?'
    """
    import difflib

    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""
