"""What pruning decided: which filters stay, and with them which inputs, norm channels and scales."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from slimbit.records.codec import digest, record
from slimbit.records.config import Constants
from slimbit.records.errors import InputError, check_choice
from slimbit.records.groups import FilterGroups, Fit, Member, Role
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.text import clipped

SCHEMA = 1
PRUNED = "prune.json"
"""The file by which a folder of a pruned network is known."""
PRUNED_WEIGHTS = "model.safetensors"
"""Its weights."""


@record
class AxisKeep:
    """What stays of one axis of one module or parameter.

    Attributes:
        name: Module path, or the key of a free parameter; as in `slimbit.records.groups.Member`.
        role: Which axis.
        size: Its length before.
        kept: Places that stay, in the order in which they then lie: rising, but for channels that the code shuffles.
        dim: Dimension of a free parameter that is the axis; None: the first of that size. Of a window and an
            order: how many dimensions of the input lie behind it.
    """

    name: str
    role: Role
    size: int
    kept: tuple[int, ...]
    dim: int | None = None

    def __post_init__(self) -> None:
        where = f"{self.role} of {self.name!r}"
        check_choice(f"role of {self.name!r}", self.role, get_args(Role))
        given = (self.size, *self.kept, *(() if self.dim is None else (self.dim,)))
        numbers = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in given)
        if not numbers or len(self.kept) != len({k for k in self.kept if k < self.size}):
            raise InputError(f"kept {where} must be different numbers below {self.size}, got {_short(self.kept)}")
        if not self.kept and self.role != "padding":
            raise InputError(f"kept {where} must hold at least one, got none")

    @property
    def removed(self) -> tuple[int, ...]:
        """Places that go."""
        stays = set(self.kept)
        return tuple(k for k in range(self.size) if k not in stays)


@record
class KeepPlan:
    """The whole decision for a network; carried out by `slimbit.apply.mask.mask` or `slimbit.apply.surgery.prune`.

    Attributes:
        network: Name of the network, for people.
        policy: What chose: "norm", "signal", "fisher", "dead", or a name of the user's.
        axes: Every axis that loses something, in order of first use.
        setting: What turned the knob, for people: ``keep 0.5``.
        constants: What happens to the constant that a removed filter would still send on, e.g. the shift of its
            BatchNorm behind a ReLU: "fold" adds it to the bias or BatchNorm of what reads it, "zero" drops it.
    """

    network: str
    policy: str
    axes: tuple[AxisKeep, ...]
    setting: str = ""
    constants: Constants = "fold"

    def __post_init__(self) -> None:
        check_choice("constants", self.constants, get_args(Constants))
        places = [(axis.name, axis.role) for axis in self.axes]
        twice = sorted({name for name, role in places if places.count((name, role)) > 1})
        if twice:
            raise InputError(f"axes of a plan must be named once, got {', '.join(twice)} twice")

    def axis(self, name: str, role: Role) -> AxisKeep | None:
        """What stays of that axis; None if all of it."""
        return next((axis for axis in self.axes if (axis.name, axis.role) == (name, role)), None)

    def kept(self, name: str, role: Role, size: int) -> int:
        """How many entries of that axis of ``size`` stay."""
        axis = self.axis(name, role)
        return size if axis is None else len(axis.kept)

    def compose(self, later: "KeepPlan") -> "KeepPlan":
        """This plan and one for the network that it leaves, as one plan for the network before both.

        Policy and setting name both; ``constants`` are the later plan's.

        Raises:
            InputError: The later plan is for another network.

        >>> def plan(policy, size, kept):
        ...     axis = AxisKeep(name="conv", role="filters", size=size, kept=kept)
        ...     return KeepPlan(network="n", policy=policy, axes=(axis,))
        >>> first, later = plan("norm", 4, (0, 2, 3)), plan("dead", 3, (0, 2))
        >>> both = first.compose(later)
        >>> both.policy, both.axes[0].size, both.axes[0].kept
        ('norm, dead', 4, (0, 3))
        """
        axes = []
        for axis in self.axes:
            left = later.axis(axis.name, axis.role)
            if left is not None and left.size != len(axis.kept):
                where = f"{axis.role} of {axis.name!r}"
                raise InputError(f"later plan must keep some of the {len(axis.kept)} {where}, got one of {left.size}")
            stays = range(len(axis.kept)) if left is None else left.kept
            axes.append(replace(axis, kept=tuple(axis.kept[k] for k in stays)))
        fresh = (axis for axis in later.axes if self.axis(axis.name, axis.role) is None)
        policy = ", ".join(dict.fromkeys((self.policy, later.policy)))
        setting = ", ".join(filter(None, (self.setting, later.setting)))
        return replace(later, network=self.network, policy=policy, setting=setting, axes=(*axes, *fresh))

    def digest(self) -> str:
        """SHA-256 of the plan's canonical JSON, hexadecimal: equal plans, equal digests."""
        return digest(self)


def plan_of_units(
    filter_groups: FilterGroups,
    kept: Mapping[str, Iterable[int]],
    *,
    policy: str,
    setting: str = "",
    constants: Constants = "fold",
) -> KeepPlan:
    """The plan that keeps these units of these groups, and all of every other group.

    Args:
        filter_groups: Groups of the network.
        kept: Numbers of the units that stay, by group name.
        policy: As in `KeepPlan`.
        setting: As in `KeepPlan`.
        constants: As in `KeepPlan`.

    Raises:
        InputError: A unit or a group that there is not, a group that would lose its last unit, or groups of a family
            that keep numbers of units with which the code cannot follow.
    """
    fit = _fit_of(filter_groups, kept)
    gone: dict[tuple[str, Role], set[int]] = {}
    members: dict[tuple[str, Role], Member] = {}
    unknown = [name for name in kept if name not in {group.name for group in filter_groups.groups}]
    if unknown:
        raise InputError(f"kept groups must be groups of {filter_groups.network}, got {', '.join(map(repr, unknown))}")
    for group in filter_groups.groups:
        stays = set(kept.get(group.name, range(group.units)))
        if not stays <= set(range(group.units)) or not (stays or group.name in fit.counts):
            raise InputError(f"kept units of {group.name!r} must be some of {group.units}, got {_short(sorted(stays))}")
        for member in group.members:
            place = (member.name, member.role)
            lost = {c for unit in range(group.units) if unit not in stays for c in member.channels[unit]}
            if lost:
                members[place] = member
                gone.setdefault(place, set()).update(lost)
            elif place in fit.lines:
                members[place] = member
    axes = []
    for place, m in members.items():
        lost = gone.get(place, set())
        order = range(m.size) if place not in fit.lines else _in_order(filter_groups, kept, place, fit)
        left = tuple(k for k in order if k not in lost)
        if left != tuple(range(m.size)):
            axes.append(AxisKeep(name=m.name, role=m.role, size=m.size, dim=m.dim, kept=left))
    return KeepPlan(
        network=filter_groups.network, policy=policy, axes=tuple(axes), setting=setting, constants=constants
    )


def _fit_of(filter_groups: FilterGroups, kept: Mapping[str, Iterable[int]]) -> Fit:
    """What stays of the families where these units stay."""
    units = {group.name: group.units for group in filter_groups.groups}
    counts = {
        name: len({*kept.get(name, range(units[name]))}) for family in filter_groups.families for name in family.groups
    }
    if counts == {name: units[name] for name in counts}:
        return Fit(counts={}, lines={})
    shares = (
        family.steps * sum(counts[name] for name in family.groups) / sum(units[name] for name in family.groups)
        for family in filter_groups.families
    )
    fit = filter_groups.fit(tuple(max(1, round(share)) for share in shares))
    if fit is None or fit.counts != counts:
        wrong = [name for name, count in counts.items() if fit is None or fit.counts.get(name) != count]
        raise InputError(
            f"kept units of {', '.join(map(repr, wrong[:3]))} must be as many as fit together (see FilterGroups.fit), "
            f"got {', '.join(str(counts[name]) for name in wrong[:3])}"
        )
    return fit


def _in_order(
    filter_groups: FilterGroups, kept: Mapping[str, Iterable[int]], place: tuple[str, Role], fit: Fit
) -> list[int]:
    """The places of an axis in their new order, with those that are removed for another group's sake."""
    stays, places = {}, {}
    for group in filter_groups.groups:
        for member in group.members:
            if (member.name, member.role) == place:
                stays[group.name] = sorted({*kept.get(group.name, range(group.units))})
                places[group.name] = member.channels
    return [
        number if not name else places[name][stays[name][number]][occurrence]
        for name, number, occurrence in fit.lines[place]
    ]


def kept_macs(spec: NetworkSpec, plan: KeepPlan) -> dict[str, int]:
    """Multiply-accumulates per image that each layer has after surgery, by layer name.

    ``positions * kept filters * kept inputs per group * kernel``; where a grouped convolution loses whole groups, its
    filters read as many inputs as before.
    """
    return {layer.name: _macs(layer, plan) for layer in spec.layers}


def _macs(layer: LayerSpec, plan: KeepPlan) -> int:
    path = layer.weight_key.removesuffix(".weight")
    inputs = layer.shape[1] if len(layer.shape) > 1 else 1
    axis = plan.axis(path, "inputs")
    if axis is not None:
        inputs = len(axis.kept) // len({place // inputs for place in axis.kept} if layer.groups > 1 else {0})
    return layer.positions * plan.kept(path, "filters", layer.filters) * inputs * math.prod(layer.shape[2:])


def _short(value: Any) -> str:
    return clipped(str(value))
