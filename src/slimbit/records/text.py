"""Names that come from files, on their way to a terminal."""


def printable(text: str) -> str:
    r"""The text with everything escaped that a terminal would obey or not show: names come from files of others.

    >>> printable("conv\x1b[31m\n1")
    'conv\\x1b[31m\\n1'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
