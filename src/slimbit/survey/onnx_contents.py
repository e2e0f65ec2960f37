"""What an ONNX file that Slimbit wrote says of its stored integers, so that reading it gives the artifact's own costs.

Mid-rise levels q are stored as integers 2q, and a BatchNorm that stands alone as a layer of one weight per channel;
the file says so in its metadata, because its integers alone cannot.
"""

from collections.abc import Iterable
from dataclasses import field, replace
from typing import Any

from slimbit.records.codec import canonical, from_json, record
from slimbit.records.config import Grid

CONTENTS = "slimbit.contents"
"""Key of the metadata."""


@record
class Contents:
    """What is known of stored tensors.

    Attributes:
        grids: Grid of each stored weight's levels; integers of mid-rise grids are twice the levels.
        norms: Names of nodes that only scale and shift channels.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    norms: tuple[str, ...] = ()

    def to_text(self) -> str:
        """JSON for the metadata."""
        return canonical(replace(self, norms=tuple(sorted(self.norms)))).decode()


def read_contents(metadata: Iterable[Any]) -> Contents:
    """What a file says, nothing where it says nothing.

    Args:
        metadata: Entries with ``key`` and ``value``.

    Raises:
        InputError: The entry is damaged.
    """
    text = next((entry.value for entry in metadata if entry.key == CONTENTS), None)
    if text is None:
        return Contents()
    return from_json(Contents, text, where=f"metadata {CONTENTS} of the ONNX file")
