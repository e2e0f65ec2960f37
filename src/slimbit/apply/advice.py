"""What to protect where a network's code does not follow a plan."""

from collections.abc import Callable, Sequence

from torch import nn

from slimbit.records.groups import FilterGroup, FilterGroups
from slimbit.records.keep import KeepPlan, plan_of_units
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.trace import Inputs


def layers_to_protect(
    model: nn.Module, plan: KeepPlan, example_input: Inputs, works: Callable[[KeepPlan], bool]
) -> list[str]:
    """Layers of a plan that fails without which the rest of it works.

    Groups are tried each on its own, and then those together that work on their own.

    Args:
        model: The network.
        plan: What stays.
        example_input: One example with its batch dimension.
        works: Whether a plan does.

    Returns:
        Names of layers; none where the plan does not remove whole units of the network's groups, so that it is the plan
        that is wrong.
    """
    filter_groups = find_filter_groups(model, example_input)
    kept = {group.name: _kept(group, plan) for group in filter_groups.groups}
    losing = [group for group in filter_groups.groups if len(kept[group.name]) < group.units]
    if not all(kept.values()) or _removed(_part(filter_groups, plan, losing, kept)) != _removed(plan):
        return []
    clusters: dict[object, list[FilterGroup]] = {}
    for group in losing:
        family = filter_groups.family_of(group.name)
        clusters.setdefault(group.name if family is None else family, []).append(group)
    failing = [groups for groups in clusters.values() if not works(_part(filter_groups, plan, groups, kept))]
    rest = [groups for groups in clusters.values() if groups not in failing]
    while rest and not works(_part(filter_groups, plan, [group for groups in rest for group in groups], kept)):
        failing.append(rest.pop())
    return list(dict.fromkeys(layer for groups in failing for group in groups for layer in group.layers))


def _kept(group: FilterGroup, plan: KeepPlan) -> list[int]:
    """Units of a group of which a plan removes nothing."""
    units = set(range(group.units))
    for member in group.members:
        axis = plan.axis(member.name, member.role)
        lost = set() if axis is None else {*axis.removed}
        units -= {unit for unit, channels in enumerate(member.channels) if not lost.isdisjoint(channels)}
    return sorted(units)


def _part(
    filter_groups: FilterGroups, plan: KeepPlan, groups: Sequence[FilterGroup], kept: dict[str, list[int]]
) -> KeepPlan:
    """The part of a plan that concerns some groups."""
    some = {group.name: kept[group.name] for group in groups}
    return plan_of_units(filter_groups, some, policy=plan.policy, constants=plan.constants)


def _removed(plan: KeepPlan) -> dict[tuple[str, str], set[int]]:
    return {(axis.name, axis.role): {*axis.removed} for axis in plan.axes if axis.removed}
