"""Examples in docstrings are code blocks on the site.

Griffe reads Google-style sections; our examples stand at the end of a docstring without a heading, which Markdown
would take for quotations.
"""

from typing import Any

import griffe


class DoctestBlocks(griffe.Extension):
    """Puts fences around every run of lines that begins with ``>>>``."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    r"""The text with its doctests in fences.

    >>> fenced("Sum.\n\n>>> 1 + 1\n2").splitlines()
    ['Sum.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    lines: list[str] = []
    inside = False
    for line in [*text.splitlines(), ""]:
        if line.startswith(">>>") and not inside:
            inside = True
            lines.append("```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append("```")
        lines.append(line)
    return "\n".join(lines[:-1])
