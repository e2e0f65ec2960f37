"""Which filters of a network live or die together, and what reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Role = Literal["filters", "inputs", "norm", "parameter", "padding", "size"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where the units of a group sit along one axis of one module or parameter.

    Attributes:
        name: Path of the module; of a parameter or buffer that belongs to no counted layer its state-dict key; of a
            number that a module keeps as an attribute its path and name, ``stage.0.sizes[1]`` in a list.
        role: "filters" of a layer, its "inputs", channels of a "norm", entries of a free "parameter" (a scale per
            channel), zeros that a module puts beside channels ("padding"), or the channels that a number in a
            module's attributes counts ("size").
        size: Length of the axis before anything is removed.
        channels: For each unit its places on the axis.
        dim: Dimension of a free parameter that is the axis; None for modules.
    """

    name: str
    role: Role
    size: int
    channels: tuple[tuple[int, ...], ...]
    dim: int | None = None


@dataclass(frozen=True, kw_only=True)
class FilterGroup:
    """Units of filters that the same layers make and read; a unit is removed as a whole or stays as a whole.

    A unit of an ordinary layer is one filter. A residual sum ties one filter of each summand together, a depthwise
    convolution its channel, a grouped convolution all filters and inputs of one of its groups, a channel shuffle one
    filter of each group.

    Attributes:
        name: The first of the layers that make the units.
        units: Number of units.
        members: Everything that loses entries with a unit, in order of first use.
    """

    name: str
    units: int
    members: tuple[Member, ...]

    def of(self, *roles: Role) -> Iterator[Member]:
        """Members of these roles."""
        return (member for member in self.members if member.role in roles)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that make the units."""
        return tuple(member.name for member in self.of("filters"))


@dataclass(frozen=True, kw_only=True)
class Ties:
    """All groups of a network; see `slimbit.survey.ties.tied_filters`.

    Attributes:
        network: Name of the network.
        groups: In order of first use.
        fixed: Why filters of a layer cannot be removed (all, or those that are in no group), by layer name.
    """

    network: str
    groups: tuple[FilterGroup, ...]
    fixed: dict[str, str]

    def group(self, name: str) -> FilterGroup:
        """The group of that name; ``KeyError`` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers with filters, removable or not."""
        return tuple(dict.fromkeys([*(layer for group in self.groups for layer in group.layers), *self.fixed]))
