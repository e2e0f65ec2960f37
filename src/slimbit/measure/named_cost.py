"""Any cost by name: a metric of the report, or what a hardware cost model says of it. Needs no torch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from slimbit.measure.hardware import HardwareLike, hardware_cost, hardware_names, load_hardware
from slimbit.measure.hardware_models import HardwareModel, UnfitError
from slimbit.records.cost import METRICS, CostReport, LayerCost
from slimbit.records.cost_names import FIXED, HARDWARE, check_cost_name, check_priceable
from slimbit.records.errors import InputError, closest
from slimbit.records.terminal import UNITS

CostLike = HardwareLike
"""What names a cost: one of `slimbit.records.cost.METRICS`, ``hardware:NAME``, or what `load_hardware` takes."""


@dataclass(frozen=True)
class NamedCost:
    """A cost that a network can be compressed for, or held to; made by `load_cost`.

    Attributes:
        name: A metric, or ``hardware:`` and the name of a model.
        model: The hardware cost model; None for a metric.
    """

    name: str
    model: HardwareModel | None = None

    @property
    def unit(self) -> str:
        """What it counts."""
        return UNITS[self.name] if self.model is None else self.model.unit

    @property
    def is_priceable(self) -> bool:
        """Whether widths or dropped filters change it, so that a price can be for it."""
        return self.name not in FIXED if self.model is None else self.model.depends_on_widths

    def check_priceable(self) -> None:
        """Raise `InputError` for a cost that neither bit widths nor dropped filters change."""
        check_priceable(self.name)
        if not self.is_priceable:
            raise InputError(
                f"metric must be a cost that bit widths or dropped filters change, got {self.name!r}, which shapes "
                "alone decide: sweep pruned networks for another cost, then choose a point by this one"
            )

    def is_same(self, other: "NamedCost") -> bool:
        """Whether both are one cost: a file that is read twice gives the same machine."""
        definitions = [cost.model.definition for cost in (self, other) if cost.model is not None]
        return self == other or (self.name == other.name and len({*definitions}) == 1 and bool(definitions[0]))

    def in_report(self, report: CostReport) -> CostReport:
        """The report with the machine's cost in it, under the model's name.

        Raises:
            InputError: The machine cannot run a layer, or the model fails on one.
        """
        if self.model is None:
            return report
        costs = {**report.hardware, self.model.name: hardware_cost(self.model, report.layers)}
        return replace(report, hardware=costs)

    def in_report_or_not(self, report: CostReport) -> CostReport:
        """As `in_report`, but without the cost of a network with widths that the machine does not run."""
        try:
            return self.in_report(report)
        except UnfitError:
            assert self.model is not None
            return replace(report, hardware={k: v for k, v in report.hardware.items() if k != self.model.name})

    def total(self, report: CostReport) -> float | None:
        """Cost of a network per image; None where the metric does not exist: levels of a float network.

        Raises:
            InputError: The machine cannot run a layer, or the model fails on one.
        """
        if self.model is None:
            return report.total[self.name]
        return self.in_report(report).hardware[self.model.name].total

    def of_layer(self, layer: LayerCost) -> float | None:
        """Cost of one layer, as in `total`."""
        return layer[self.name] if self.model is None else hardware_cost(self.model, (layer,)).total


def load_cost(cost: "CostLike | NamedCost", known: Iterable[NamedCost] = (), *, what: str = "metric") -> NamedCost:
    """Find a cost.

    Args:
        cost: One of `slimbit.records.cost.METRICS`; ``hardware:NAME`` of a built-in or a known model; or a machine as
            `slimbit.cost` takes it: a ``.toml`` file, ``package.module:function``, a function, a model.
        known: Costs that ``hardware:NAME`` may mean as well.
        what: What it is for, at the beginning of an error.

    Raises:
        InputError: There is no such cost; the sentence lists what there is.

    >>> load_cost("weight_bytes").unit, load_cost("hardware:loom").unit
    ('B', '16x16-bit MAC cycles')
    >>> load_cost("hardware:lom")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: metric must be hardware:NAME of a known machine, got 'hardware:lom'; did you \
mean loom? Known: scalar_cpu, simd, int8_array, stripes, loom, bit_fusion, filterwise, sparse, analog_class_a, \
analog_class_b, ideal_digital; give others as a .toml file or package.module:function
    """
    if isinstance(cost, NamedCost):
        return cost
    if isinstance(cost, str) and cost in METRICS:
        return NamedCost(cost)
    if isinstance(cost, str) or not (isinstance(cost, HardwareModel | os.PathLike) or callable(cost)):
        check_cost_name(cost, what)
    if isinstance(cost, str):
        others = {one.name: one for one in known}
        if cost in others:
            return others[cost]
        rest = cost.removeprefix(HARDWARE)
        if rest != cost and ":" not in rest and not rest.lower().endswith(".toml") and rest not in hardware_names():
            names = tuple(dict.fromkeys((*(name.removeprefix(HARDWARE) for name in others), *hardware_names())))
            raise InputError(
                f"{what} must be {HARDWARE}NAME of a known machine, got {cost!r}{closest(rest, names) or '.'} "
                f"Known: {', '.join(names)}; give others as a .toml file or package.module:function"
            )
    model = load_hardware(cost)
    return NamedCost(HARDWARE + model.name, model)


def load_amounts(
    amounts: "Mapping[CostLike, float]", known: Iterable[NamedCost] = (), *, what: str = "budget"
) -> dict[NamedCost, float]:
    """Amounts by cost.

    Raises:
        InputError: A cost that does not exist, or that is named twice.
    """
    found: dict[NamedCost, float] = {}
    for cost, amount in amounts.items():
        named = load_cost(cost, known, what=what)
        if named.name in {one.name for one in found}:
            raise InputError(f"{what} must name each cost once, got {named.name!r} twice")
        found[named] = amount
    return found
