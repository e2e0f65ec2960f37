"""Costs of a run's points on hardware cost models, for the report's table of machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slimbit.records.terminal import quantity

CostData = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MachineFrame:
    """What the points cost on one machine, by number; points with widths that it does not run are left out."""

    name: str
    unit: str
    text: str
    costs: dict[int, float]
    texts: dict[int, str]


def machine_frames(reports: Mapping[int, CostData]) -> tuple[MachineFrame, ...]:
    """The machines of cost reports, in their order.

    Args:
        reports: JSON data of cost reports by point number.
    """
    names = dict.fromkeys(name for report in reports.values() for name in report["hardware"])
    frames = []
    for name in names:
        found = {number: report["hardware"][name] for number, report in reports.items() if name in report["hardware"]}
        first = next(iter(found.values()))
        costs = {number: float(f"{one['total']:.6g}") for number, one in found.items()}
        texts = {number: quantity(cost) for number, cost in costs.items()}
        frames.append(
            MachineFrame(name=name, unit=first["unit"], text=first.get("source") or "", costs=costs, texts=texts)
        )
    return tuple(frames)
