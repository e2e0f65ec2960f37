"""Which filters of a network live or die together, and what reads them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from slimbit.records.codec import record

Role = Literal["filters", "inputs", "norm", "parameter", "padding", "size", "index", "values", "window", "order"]


@record
class Member:
    """Where the units of a group sit along one axis of one module or parameter.

    Attributes:
        name: Path of the module; of a parameter or buffer that belongs to no counted layer its state-dict key; of a
            number that a module keeps as an attribute its path and name, ``stage.0.sizes[1]`` in a list.
        role: "filters" of a layer, its "inputs", channels of a "norm", entries of a free "parameter" (a scale per
            channel), zeros that a module puts beside channels ("padding"), the channels that a number in a module's
            attributes counts ("size"), entries of a buffer that picks channels by number ("index"), the channels from
            which it picks ("values"), those over which the kernel of a convolution slides ("window"), or those that
            a module without weights puts in another order ("order").
        size: Length of the axis before anything is removed.
        channels: For each unit its places on the axis.
        dim: Dimension of a free parameter that is the axis; of a window and an order, how many dimensions of
            its input lie behind it; None for others.
    """

    name: str
    role: Role
    size: int
    channels: tuple[tuple[int, ...], ...]
    dim: int | None = None


@record
class FilterGroup:
    """Units of filters that the same layers make and read; a unit is removed as a whole or stays as a whole.

    A unit of an ordinary layer is one filter. A residual sum joins one filter of each summand together, a depthwise
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
class Family:
    """Groups that lose units together, because the code takes equal parts of their channels (shuffles, chunks).

    Attributes:
        groups: Names of the groups.
        steps: Sizes that the family may have: 1 to all of that many equal shares.
    """

    groups: tuple[str, ...]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What stays of families at given sizes, so that the code follows.

    Attributes:
        counts: Units that stay, by group name; which is free.
        lines: For each axis on which channels of a family lie, its entries in their new order: a group, which of its
            units that stay, and which of the unit's places; or ``""``, a place that stays, and 0.
    """

    counts: dict[str, int]
    lines: dict[tuple[str, Role], tuple[tuple[str, int, int], ...]]


@dataclass(frozen=True, kw_only=True)
class FilterGroups:
    """All groups of a network; see `slimbit.survey.filter_groups.find_filter_groups`.

    Attributes:
        network: Name of the network.
        groups: In order of first use.
        fixed: Why filters of a layer cannot be removed (all, or those that are in no group), by layer name.
        families: Groups whose numbers of units depend on one another.
        fit: From the steps that each family keeps to what stays of it; None where the code cannot follow.
    """

    network: str
    groups: tuple[FilterGroup, ...]
    fixed: dict[str, str]
    families: tuple[Family, ...] = ()
    fit: Callable[[tuple[int, ...]], Fit | None] = field(default=lambda _: None, repr=False, compare=False)

    def group(self, name: str) -> FilterGroup:
        """The group of that name; ``KeyError`` if there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def family_of(self, name: str) -> int | None:
        """Number of the family that a group belongs to; None if it is on its own."""
        return next((number for number, family in enumerate(self.families) if name in family.groups), None)

    def fit_near(self, steps: Sequence[int]) -> Fit:
        """What stays of the families at these sizes, or where the code cannot follow one at the nearest to it."""
        found = self.fit(tuple(steps))
        if found is not None:
            return found
        whole = [family.steps for family in self.families]
        near = []
        for number, wanted in enumerate(steps):
            sizes = sorted(range(1, whole[number] + 1), key=lambda n: (abs(n - wanted), -n))
            alone = ((*whole[:number], n, *whole[number + 1 :]) for n in sizes)
            near.append(next(sizes[number] for sizes in alone if self.fit(sizes) is not None))
        return self.fit(tuple(near)) or self.fit(tuple(whole)) or Fit(counts={}, lines={})

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of all layers with filters, removable or not."""
        return tuple(dict.fromkeys([*(layer for group in self.groups for layer in group.layers), *self.fixed]))
