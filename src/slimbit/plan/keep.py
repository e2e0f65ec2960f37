"""Decide which filters stay: by norm, by sensitivity, or because the norms of the others collapsed during training."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from slimbit.records.config import Constants, PruneConfig, matching
from slimbit.records.errors import InputError
from slimbit.records.groups import FilterGroup, FilterGroups
from slimbit.records.keep import KeepPlan, plan_of_units
from slimbit.records.signal import PERCENTILE, EpochSignal, percentile

Scores = Mapping[str, Sequence[float]]
"""One number per unit, by group name: what removing the unit is thought to cost."""
MOST_TOLD = 4
DEAD = 0.05
"""A filter is dead below this share of its layer's 90th percentile of filter norms (`slimbit.records.signal`)."""


def keep_by_norm(
    filter_groups: FilterGroups,
    weights: Mapping[str, Tensor],
    config: PruneConfig | None = None,
    *,
    signal: EpochSignal | None = None,
) -> KeepPlan:
    """Remove the units with the smallest norm first: policy ``norm``, or ``signal`` of the paper's section 5.

    A unit's score is the sum of ``||W_m||^2`` over its filters, or of the signal ``S_m = mean_i ||W_m,i||^2`` of a
    training epoch, Eq. (5): the mean over the epoch is what the paper ranks by.

    Args:
        filter_groups: Groups of the network.
        weights: Weight of each layer by name, filters first.
        config: How much stays, scope, protected layers, constants; default: half of each group.
        signal: An epoch of training to rank by.

    Raises:
        InputError: Weights or signal of another network, a pattern that names nothing, or a layer that cannot lose
            filters given a ratio.
    """
    if signal is None:
        norms = {name: weight.double().flatten(1).square().sum(1).tolist() for name, weight in weights.items()}
    else:
        norms = {layer.name: list(layer.filter_signal) for layer in signal.layers}
    scores = {group.name: _summed(group, norms) for group in filter_groups.groups}
    return keep_by_score(filter_groups, scores, config, policy="norm" if signal is None else "signal")


def keep_by_fisher(filter_groups: FilterGroups, scores: Scores, config: PruneConfig | None = None) -> KeepPlan:
    """Remove the units first that the outputs depend on least: policy ``fisher``.

    Args:
        filter_groups: Groups of the network.
        scores: From `slimbit.measure.group_sensitivity`.
        config: How much stays, scope, protected layers, constants; default: half of each group.
    """
    return keep_by_score(filter_groups, scores, config, policy="fisher")


def keep_by_score(
    filter_groups: FilterGroups, scores: Scores, config: PruneConfig | None = None, *, policy: str
) -> KeepPlan:
    """Remove the units with the smallest score first; of equal ones the later.

    Args:
        filter_groups: Groups of the network.
        scores: One finite number per unit of every group.
        config: How much stays, scope, protected layers, constants; default: half of each group.
        policy: Name for the plan.

    Raises:
        InputError: Scores of another network, a pattern that names nothing, or nothing that can be removed.
    """
    config = config or PruneConfig()
    _check_scores(filter_groups, scores)
    free = _unprotected(filter_groups, config.protect)
    ratios = _ratios(filter_groups, free, config)
    alone = [(group, ratio) for group, ratio in ratios if filter_groups.family_of(group.name) is None]
    if config.scope == "global":
        kept = _global([group for group, _ in alone], scores, float(config.keep))  # type: ignore[arg-type] # a number
        setting = f"keep {config.keep:g} of all"
    else:
        kept = {group.name: _best(scores[group.name], _count(ratio, group.units)) for group, ratio in alone}
        setting = f"keep {_told(config.keep)}"
    kept |= {name: _best(scores[name], count) for name, count in _family_counts(filter_groups, ratios).items()}
    return plan_of_units(filter_groups, kept, policy=policy, setting=setting, constants=config.constants)


def keep_live_filters(
    filter_groups: FilterGroups,
    weights: Mapping[str, Tensor],
    *,
    threshold: float = DEAD,
    protect: tuple[str, ...] = (),
    constants: Constants = "fold",
) -> KeepPlan:
    """Remove the filters whose norm collapsed during training: policy ``dead``.

    A filter is dead if its norm is below ``threshold`` times the 90th percentile of its layer's; a unit, if all of
    its filters are. Of a group that is dead altogether, the unit with the largest norm stays.

    Args:
        filter_groups: Groups of the network.
        weights: Weight of each layer by name, filters first.
        threshold: Between 0 and 1.
        protect: Layers that lose no filter, by name or pattern.
        constants: What happens to the constants of removed filters.

    Raises:
        InputError: A threshold out of range, weights of another network, or a pattern that names nothing.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold must be above 0 and below 1, got {threshold!r}")
    norms = {name: weight.double().flatten(1).norm(dim=1).tolist() for name, weight in weights.items()}
    limits = {name: threshold * percentile(values, PERCENTILE) for name, values in norms.items()}
    kept, energies = {}, {}
    for group in _unprotected(filter_groups, protect):
        energy = _summed(group, {name: [v * v for v in values] for name, values in norms.items()})
        alive = [unit for unit in range(group.units) if _is_alive(group, unit, norms, limits)]
        kept[group.name], energies[group.name] = alive or _best(energy, 1), energy
    for name, count in _enough(filter_groups, {name: len(alive) for name, alive in kept.items()}).items():
        kept[name] = _best(energies[name], count) if name in energies else list(range(count))
    return plan_of_units(filter_groups, kept, policy="dead", setting=f"threshold {threshold:g}", constants=constants)


def _enough(filter_groups: FilterGroups, least: Mapping[str, int]) -> dict[str, int]:
    """The fewest units of each group of a family with which the code follows and which are as many as these."""
    if not filter_groups.families:
        return {}
    units = {group.name: group.units for group in filter_groups.groups}
    steps = [family.steps for family in filter_groups.families]
    for number, family in enumerate(filter_groups.families):
        wanted = {name: least.get(name, units[name]) for name in family.groups}
        for size in range(1, family.steps):
            fit = filter_groups.fit(
                (*steps[:number], size, *(other.steps for other in filter_groups.families[number + 1 :]))
            )
            if fit is not None and all(fit.counts[name] >= count for name, count in wanted.items()):
                steps[number] = size
                break
    return dict(filter_groups.fit_near(steps).counts)


def match_counts(
    filter_groups: FilterGroups, weights: Mapping[str, Tensor], plan: KeepPlan, *, policy: str
) -> KeepPlan:
    """Of every group as many units as a plan keeps, those with the largest norm: a projection onto such networks.

    Args:
        filter_groups: Groups of the network.
        weights: Weight of each layer by name, filters first; layers of groups that lose nothing may be missing.
        plan: Says how many; its other settings stay.
        policy: Name for the plan.

    Raises:
        InputError: Weights of another network.
    """
    norms = {name: weight.double().flatten(1).square().sum(1).tolist() for name, weight in weights.items()}
    losing = [group for group in filter_groups.groups if len(_kept_units(group, plan)) < group.units]
    kept = {group.name: _best(_summed(group, norms), len(_kept_units(group, plan))) for group in losing}
    return plan_of_units(filter_groups, kept, policy=policy, setting=plan.setting, constants=plan.constants)


def _kept_units(group: FilterGroup, plan: KeepPlan) -> list[int]:
    gone: set[int] = set()
    for member in group.of("filters"):
        axis = plan.axis(member.name, "filters")
        lost = set() if axis is None else set(axis.removed)
        gone |= {unit for unit, channels in enumerate(member.channels) if not lost.isdisjoint(channels)}
    return [unit for unit in range(group.units) if unit not in gone]


def keep_within(
    make: Callable[[float], KeepPlan], cost: Callable[[KeepPlan], float], limit: float, *, steps: int = 24
) -> KeepPlan:
    """The plan of the largest keep ratio whose cost is within a limit, by bisection.

    Args:
        make: From a ratio in (0, 1] to a plan, e.g. ``lambda r: keep_by_norm(groups, weights, PruneConfig(keep=r))``.
        cost: From a plan to its cost, which does not grow when the ratio falls.
        limit: Largest cost.
        steps: Halvings; the ratio is found to ``2**-steps``.

    Raises:
        InputError: Even one unit per group costs more, and how much.

    >>> from slimbit.records.groups import Member
    >>> units = tuple((k,) for k in range(8))
    >>> member = Member(name="conv", role="filters", size=8, channels=units)
    >>> groups = FilterGroups(network="n", groups=(FilterGroup(name="conv", units=8, members=(member,)),), fixed={})
    >>> make = lambda ratio: keep_by_score(groups, {"conv": range(8)}, PruneConfig(keep=ratio), policy="rank")
    >>> keep_within(make, lambda plan: 10.0 * plan.kept("conv", "filters", 8), 45.0).axes[0].kept
    (4, 5, 6, 7)
    """
    if not (isinstance(limit, int | float) and math.isfinite(limit) and limit > 0):
        raise InputError(f"budget must be a positive number, got {limit!r}")
    whole = make(1.0)
    if cost(whole) <= limit:
        return whole
    low, high = 2.0**-steps, 1.0
    best = make(low)
    least = cost(best)
    if least > limit:
        raise InputError(f"budget must be at least {least:g}, the cost of one filter in every group, got {limit:g}")
    for _ in range(steps):
        middle = (low + high) / 2
        plan = make(middle)
        if cost(plan) <= limit:
            low, best = middle, plan
        else:
            high = middle
    return best


def _summed(group: FilterGroup, values: Mapping[str, Sequence[float]]) -> list[float]:
    """Sum over the filters of each unit."""
    totals = [0.0] * group.units
    for member in group.of("filters"):
        found = values.get(member.name)
        if found is None or len(found) != member.size:
            got = "none" if found is None else str(len(found))
            raise InputError(f"filters of layer {member.name!r} must have {member.size} norms, got {got}")
        for unit, channels in enumerate(member.channels):
            totals[unit] += math.fsum(found[c] for c in channels)
    return totals


def _is_alive(group: FilterGroup, unit: int, norms: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> bool:
    filters = ((norms[m.name][c], limits[m.name]) for m in group.of("filters") for c in m.channels[unit])
    return any(norm >= limit and norm > 0 for norm, limit in filters)


def _check_scores(filter_groups: FilterGroups, scores: Scores) -> None:
    if not filter_groups.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(filter_groups.fixed.items())[:3])
        raise InputError(
            f"{filter_groups.network} must have filters that can be removed, got none ({why or 'no layers'})"
        )
    for group in filter_groups.groups:
        found = scores.get(group.name)
        if found is None or len(found) != group.units or not all(map(math.isfinite, found)):
            got = "none" if found is None else f"{len(found)}, or some that are not finite"
            raise InputError(f"scores of {group.name!r} must be {group.units} finite numbers, got {got}")


def _unprotected(filter_groups: FilterGroups, protect: Iterable[str]) -> list[FilterGroup]:
    kept = {name for pattern in protect for name in matching(pattern, filter_groups.layers)}
    return [group for group in filter_groups.groups if kept.isdisjoint(group.layers)]


def _ratios(
    filter_groups: FilterGroups, free: Sequence[FilterGroup], config: PruneConfig
) -> list[tuple[FilterGroup, float]]:
    """Each group that may lose units with its ratio."""
    if not isinstance(config.keep, Mapping):
        return [(group, config.keep) for group in free]
    named: dict[str, float] = {}
    losing = {name for group in free for name in group.layers}
    for pattern, ratio in config.keep.items():
        names = matching(pattern, filter_groups.layers)
        if ratio < 1 and losing.isdisjoint(names):
            why = filter_groups.fixed.get(names[0], "it is protected")
            raise InputError(f"keep ratio of {pattern!r} must be 1, got {ratio:g}: {why}")
        named |= dict.fromkeys(names, ratio)
    found = []
    for group in free:
        ratios = {named[name] for name in group.layers if name in named}
        if len(ratios) > 1:
            tied = ", ".join(group.layers)
            raise InputError(f"keep ratios must agree for the tied layers {tied}, got {sorted(ratios)}")
        if ratios:
            found.append((group, ratios.pop()))
    return found


def _family_counts(filter_groups: FilterGroups, ratios: Sequence[tuple[FilterGroup, float]]) -> dict[str, int]:
    """How many units each group of a family keeps, so that the code follows; as near as possible to its ratio."""
    found: dict[int, set[float]] = {}
    for group, ratio in ratios:
        number = filter_groups.family_of(group.name)
        if number is not None:
            found.setdefault(number, set()).add(ratio)
    for number, values in found.items():
        if len(values) > 1:
            names = ", ".join(filter_groups.families[number].groups[:MOST_TOLD])
            raise InputError(
                f"keep ratios must agree for groups whose channels are shuffled ({names}), got {sorted(values)}"
            )
    losing = {number: values.pop() for number, values in found.items()}
    if all(ratio == 1 for ratio in losing.values()):
        return {}
    steps = [_count(losing.get(number, 1.0), family.steps) for number, family in enumerate(filter_groups.families)]
    return dict(filter_groups.fit_near(steps).counts)


def _told(ratio: float | Mapping[str, float]) -> str:
    """For people; of many layers only that it is by layer."""
    if not isinstance(ratio, Mapping):
        return f"{ratio:g}"
    return ", ".join(f"{name} {part:g}" for name, part in ratio.items()) if len(ratio) <= MOST_TOLD else "by layer"


def _count(ratio: float, units: int) -> int:
    return max(1, math.floor(ratio * units + 0.5))


def _best(scores: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))[:count])


def _global(groups: Sequence[FilterGroup], scores: Scores, ratio: float) -> dict[str, list[int]]:
    """The best unit of every group, and the best of all others until the ratio of all units is reached."""
    kept = {group.name: _best(scores[group.name], 1) for group in groups}
    total = sum(group.units for group in groups)
    rest = [
        (-scores[g.name][unit], g.name, unit) for g in groups for unit in range(g.units) if unit not in kept[g.name]
    ]
    for _, name, unit in sorted(rest)[: max(0, _count(ratio, total) - len(kept))]:
        kept[name].append(unit)
    return {name: sorted(units) for name, units in kept.items()}
