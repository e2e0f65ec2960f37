"""What an ONNX file that Slimbit wrote says of its stored integers, so that reading it gives the artifact's own costs.

Mid-rise levels q are stored as integers 2q, and a BatchNorm that stands alone as a layer of one weight per channel;
the file says so in its metadata, because its integers alone cannot.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from slimbit.records.config import Grid
from slimbit.records.errors import InputError

CONTENTS = "slimbit.contents"
"""Key of the metadata."""


@dataclass(frozen=True)
class Contents:
    """What is known of stored tensors.

    Attributes:
        grids: Grid of each stored weight's levels; integers of mid-rise grids are twice the levels.
        norms: Names of nodes that only scale and shift channels.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    norms: frozenset[str] = frozenset()

    def to_text(self) -> str:
        """JSON for the metadata."""
        return json.dumps({"grids": dict(self.grids), "norms": sorted(self.norms)}, sort_keys=True)


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
    try:
        data = json.loads(text)
        grids, norms = data["grids"], data["norms"]
        fits = isinstance(grids, dict) and isinstance(norms, list) and {*grids.values()} <= {*get_args(Grid)}
        fits = fits and all(isinstance(name, str) for name in (*grids, *norms))
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise InputError(f"metadata {CONTENTS} of the ONNX file must be as Slimbit writes it, got {text[:60]!r}")
    return Contents(grids, frozenset(norms))
