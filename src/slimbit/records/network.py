"""What a network is made of, as far as cost is concerned: layers, positions, and what no layer explains."""

import math
from dataclasses import dataclass
from typing import Literal

from slimbit.records.codec import strict

LayerKind = Literal[
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear", "bilinear", "attention", "embedding", "tensor",
]  # fmt: skip
Per = Literal["mac", "parameter"]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One weight tensor and how often an image meets it.

    Attributes:
        name: Module path, with the parameter appended where a module has several weights
            (``encoder.attn.in_proj_weight``).
        kind: What the weight does.
        weight_key: State-dict key of the weight.
        shape: Shape *filters first*: ``(filters, inputs / groups, *kernel)``, whatever order the module stores.
        groups: Number of convolution groups.
        positions: Output positions per image ``c_l``, added up over all calls: ``positions * weights = MACs``.
            0 for weights that are looked up, not multiplied (embeddings).
        calls: How often the module ran in one forward pass.
        transposed: Whether the module stores inputs first (transposed convolution).
        bias_parameters: Elements of the layer's own bias, part of ``parameters`` and of nothing else.
        shared_with: Name of the layer that already counted this very tensor as memory ("" = none).
        rows: First and one-past-last row of the stored tensor, where one tensor holds several layers
            (query, key and value of an attention block); None = all of it.
    """

    name: str
    kind: LayerKind
    weight_key: str
    shape: tuple[int, ...]
    groups: int = 1
    positions: int = 1
    calls: int = 1
    transposed: bool = False
    bias_parameters: int = 0
    shared_with: str = ""
    rows: tuple[int, int] | None = None

    @property
    def filters(self) -> int:
        """Number of output filters."""
        return self.shape[0]

    @property
    def weights(self) -> int:
        """Number of weights (without bias)."""
        return math.prod(self.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image, ``positions * weights``."""
        return self.positions * self.weights

    @property
    def is_convolution(self) -> bool:
        """Whether the layer is a convolution of any kind."""
        return self.kind.startswith("conv")

    def multiplicity(self, per: Per) -> int:
        """``c_l`` of Eq. (1): positions for ``per="mac"``; for ``"parameter"`` 1, and 0 where already counted."""
        if per == "mac":
            return self.positions
        return 0 if self.shared_with else 1


@dataclass(frozen=True)
@strict
class OtherParameter:
    """A parameter that takes part in no counted layer (a norm's scale, a free tensor): listed, not costed."""

    name: str
    elements: int
    owner: str
    """Type of the module that holds it, e.g. ``BatchNorm2d``."""


@dataclass(frozen=True)
@strict
class OtherWork:
    """Multiply-accumulates that no counted layer explains (a functional convolution, attention scores)."""

    name: str
    """Path of the innermost module in which it ran ("" = the network itself)."""
    operation: str
    macs: int
    calls: int
    parameters: tuple[str, ...] = ()
    """Parameters among its operands."""


@dataclass(frozen=True)
class NetworkSpec:
    """A surveyed network: its counted layers in order of first use, and what is left over."""

    name: str
    layers: tuple[LayerSpec, ...]
    other_parameters: tuple[OtherParameter, ...] = ()
    other_work: tuple[OtherWork, ...] = ()
    notes: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    """Operators whose work is unknown, and not even listed: branches, loops, operators of other domains."""
    inputs: tuple[tuple[int, ...], ...] = ()
    """Shapes of the inputs that were surveyed, batch included; () where there are none (a weights file)."""

    def layer(self, name: str) -> LayerSpec:
        """The layer of that name; ``KeyError`` if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
