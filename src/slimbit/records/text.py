"""Text from files and users, on its way to a terminal or into a message."""

LONGEST = 80


def printable(text: str) -> str:
    r"""The text with everything escaped that a terminal would obey or not show: names come from files of others.

    >>> printable("conv\x1b[31m\n1")
    'conv\\x1b[31m\\n1'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clipped(text: str, longest: int = LONGEST) -> str:
    r"""The text on one line, cut where it is too long for a message.

    >>> clipped("one\ntwo"), clipped("12345", 3)
    ('one two', '123...')
    """
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def fault_of(error: BaseException, longest: int = 200) -> str:
    r"""Type and text of an error on one line; code of others may raise some whose text raises another.

    >>> fault_of(ValueError("two\nlines"))
    'ValueError: two lines'
    >>> class Odd(Exception):
    ...     def __str__(self):
    ...         raise RuntimeError
    >>> fault_of(Odd())
    'Odd: its text cannot be made'
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the text is made by code of others
        text = "its text cannot be made"
    return clipped(f"{type(error).__name__}: {text}", longest).rstrip(": ")
