"""Points of a frontier: one compressed network each, with its accuracy, its costs, and where its parts are kept."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from slimbit.records.accuracy import Accuracy
from slimbit.records.codec import plain, record
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError
from slimbit.records.setting import Price, Setting
from slimbit.records.terminal import quantity, score_text

PointState = Literal["done", "failed"]
SHOWN_COSTS = ("esn_digital", "esn_analog")
"""Costs in the line of a point, beside that of its price and those of machines."""


@record
class PlannedPoint:
    """A point that was decided on.

    Attributes:
        key: Its name within the run (``sweep-03``, ``refine-00``, ``max_abs-4``, of a pruned network
            ``width-0.5-sweep-03``): the same in every attempt.
        plan: Digest of its `CompressionPlan`, an object of the run.
        policy: As in the plan, or "prune_only" where a pruned network got 8 bits and no more.
        setting: As in the plan.
        baseline: Whether it is there for comparison (the paper's quantize-only), not a proposal.
        keep_ratio: Share of the filters that was kept before quantization; 1 = the network as it was given.
        network: Digest of the weights that the plan rounds, an object of the run; "" = those of the network as it was
            given or pruned.
    """

    key: str = ""
    plan: str = ""
    policy: str
    setting: Setting | None = None
    baseline: bool = False
    keep_ratio: float = 1.0
    network: str = ""

    @property
    def price(self) -> float | None:
        """The price of its steps, where there is one."""
        return self.setting.value if isinstance(self.setting, Price) else None

    @property
    def metric(self) -> str | None:
        """Cost metric that the price is for."""
        return self.setting.metric if isinstance(self.setting, Price) else None

    @property
    def label(self) -> str:
        """Keep ratio, policy and setting, for people."""
        return point_label(self.keep_ratio, self.policy, self.setting)


@record
class FrontierPoint(PlannedPoint):
    """One measured point.

    Attributes:
        number: Trial number in the study.
        state: "done", or "failed" with the reason in ``error``.
        accuracy: What ``evaluate`` returned: percent for the built-in data, higher is better.
        accuracy_low: Lower end of its 95 % confidence interval, where the number of images is known.
        accuracy_high: Upper end.
        images: Number of images it rests on, where known.
        hits: Which of them were right, as in `Accuracy`; "" where that is not known.
        costs: Every cost metric under its name.
        objects: Content hash by role: "plan", "cost" and "layers" (JSON), "levels" (bytes), "state" (safetensors); of a
            pruned network also "keep" (JSON of its `KeepPlan`).
        seconds: Wall time by stage.
        provenance: Versions, seed, hardware.
        error: Why a point failed.
        clamped: Layers that could not get the step which the policy asked for, see `CompressionPlan`.

    >>> point = FrontierPoint(number=7, state="done", policy="optimal", accuracy=91.0, keep_ratio=0.5, images=500,
    ...                       costs={"esn_digital": 10.3e6, "macs": 41e6})
    >>> point.label
    'keep 0.5, optimal'
    >>> print(point)
    point 7 (keep 0.5, optimal): 91.00 on 500 images, esn_digital 10.3M
    """

    number: int
    state: PointState
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    images: int | None = None
    hits: str = field(default="", repr=False)
    costs: Mapping[str, float | None] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    error: str = ""
    clamped: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Keep ratio, policy, setting, and how many layers were clamped, for people."""
        count = len(self.clamped)
        note = f" ({count} layer{'' if count == 1 else 's'} clamped)" if count else ""
        return point_label(self.keep_ratio, self.policy, self.setting) + note

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"point {self.number} ({self.label}): {self.state}{self.error and f': {self.error}'}"
        on = "" if self.images is None else f" on {self.images:,} images"
        named = [name for name in self.costs if name in SHOWN_COSTS or name == self.metric or name.startswith(HARDWARE)]
        costs = "".join(f", {name} {quantity(self.costs[name])}" for name in named if self.costs[name] is not None)
        return f"point {self.number} ({self.label}): {score_text(self.accuracy, self.accuracy)}{on}{costs}"

    def __repr__(self) -> str:
        return f"FrontierPoint({self})"

    def measured(self) -> Accuracy:
        """The accuracy with the images it rests on.

        Raises:
            InputError: That is not known.
        """
        if self.accuracy is None or self.images is None:
            raise InputError(f"point {self.number} must know how many images it was scored on, got none")
        return Accuracy(self.accuracy, self.images, self.hits)

    def to_dict(self) -> dict[str, Any]:
        """Flat data for ``slimbit points --json``: every cost metric under its own name."""
        data = plain(self)
        del data["hits"]
        said = {
            "setting": "" if self.setting is None else str(self.setting),
            "metric": self.metric,
            "price": self.price,
            "width": data.pop("keep_ratio"),
        }
        return {**data.pop("costs"), **data, **said}


def keep_label(keep_ratio: float) -> str:
    """How a pruned network is named, "" for the network as it was given.

    >>> keep_label(0.75), keep_label(1.0)
    ('keep 0.75', '')
    """
    return "" if keep_ratio == 1 else f"keep {keep_ratio:g}"


def point_label(keep_ratio: float, policy: str, setting: object) -> str:
    """How a point is named.

    >>> point_label(0.5, "max_abs", "4 bits"), point_label(1.0, "mine", None)
    ('keep 0.5, max_abs, 4 bits', 'mine')
    """
    return ", ".join(filter(None, (keep_label(keep_ratio), policy, str(setting or ""))))
