"""Points of a frontier: one compressed network each, with its accuracy, its costs, and where its parts are kept."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SCHEMA = 1

PointState = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One measured point.

    Attributes:
        number: Trial number in the study.
        key: Name of the point within its run (``sweep-03``, ``refine-00``, ``max_abs-4``, of a narrower network
            ``width-0.5-sweep-03``): the same in every attempt.
        state: "done", or "failed" with the reason in ``error``.
        policy: What chose the steps: "optimal" at a price, "max_abs" of the baselines, "signal" of a training epoch,
            or "prune_only" where a narrower network got 8 bits and no more.
        setting: What turned the knob, for people: ``price 2.1e-09``, ``4 bits``, ``epoch 10``.
        baseline: Whether it is there for comparison (the paper's quantize-only), not a proposal.
        metric: Cost metric that the price is for.
        price: Accuracy loss one is willing to pay per unit of ``metric``.
        accuracy: What ``evaluate`` returned: percent for the built-in data, higher is better.
        accuracy_low: Lower end of its 95 % confidence interval, where the number of images is known.
        accuracy_high: Upper end.
        costs: Every cost metric under its name.
        plan: Digest of the `CompressionPlan`.
        objects: Content hash by role: "plan" (JSON), "cost" (JSON of the `CostReport`), "levels" (safetensors); of a
            narrower network also "keep" (JSON of its `KeepPlan`) and "network" (safetensors of its float weights).
        seconds: Wall time by stage.
        provenance: Versions, seed, hardware.
        error: Why a point failed.
        clamped: Layers that could not get the step which the policy asked for, see `CompressionPlan`.
        width: Share of the filters that was kept before quantization; 1 = the network as it was given.
    """

    number: int
    key: str = ""
    state: PointState
    policy: str
    setting: str
    baseline: bool = False
    metric: str | None = None
    price: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    costs: Mapping[str, float | None] = field(default_factory=dict)
    plan: str = ""
    objects: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    clamped: tuple[str, ...] = ()
    width: float = 1.0

    @property
    def label(self) -> str:
        """Width, policy, setting, and how many layers were clamped, for people."""
        count = len(self.clamped)
        note = f" ({count} layer{'' if count == 1 else 's'} clamped)" if count else ""
        return point_label(self.width, self.policy, self.setting) + note

    def to_dict(self) -> dict[str, Any]:
        """Flat data for ``slimbit points --json``: every cost metric under its own name."""
        data = asdict(self)
        return {**data.pop("costs"), **data, "clamped": list(self.clamped)}


def width_label(width: float) -> str:
    """How a narrower network is named, "" for the full width.

    >>> width_label(0.75), width_label(1.0)
    ('width 0.75', '')
    """
    return "" if width == 1 else f"width {width:g}"


def point_label(width: float, policy: str, setting: str) -> str:
    """How a point is named.

    >>> point_label(0.5, "max_abs", "4 bits"), point_label(1.0, "mine", "")
    ('width 0.5, max_abs, 4 bits', 'mine')
    """
    return ", ".join(filter(None, (width_label(width), policy, setting)))


@dataclass(frozen=True)
class Frontier:
    """All points of a run.

    Attributes:
        run: Folder of the run.
        network: Name of the network.
        metric: Cost metric that the sweep was for.
        float_accuracy: Accuracy of the network before compression.
        points: Every point, failed ones included, in order of their numbers.
    """

    run: str
    network: str
    metric: str
    float_accuracy: float
    points: tuple[FrontierPoint, ...]
