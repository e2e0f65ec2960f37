"""What is decided about the points of a run, from its store: read without torch, and without the network."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from slimbit.frontier.store import RunStore
from slimbit.measure.named_cost import NamedCost
from slimbit.records.codec import record as stored_record
from slimbit.records.config import NEAR_POINTS, RunConfig
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint, PlannedPoint, keep_label
from slimbit.records.terminal import quantity

PLAN_STAGES = ("first", "sweep", "refine", "baselines", "prune_only", "signal", "learned")
"""In the order of work: points for comparison wait until the places of the refinement are known."""
BASELINE_BITS = (8, 7, 6, 5, 4, 3, 2)
LEARNING = "learning"
"""Under this name a run notes what learned points were trained with."""
REFINED_SHARE = 4
"""One point in so many is placed where the curve bends."""


def sweep_size(points: int) -> int:
    """How many of so many points the even sweep gets; the others refine it.

    >>> sweep_size(16), sweep_size(3)
    (12, 3)
    """
    return points - points // REFINED_SHARE


def near_stage(name: str, amount: float) -> str:
    """Name of the points near an accuracy or a cost; it is also part of file names.

    >>> near_stage("accuracy", 91.0), near_stage("hardware:chips/edge.py:cost", 2e6)
    ('near-accuracy-91', 'near-hardware_chips_edge.py_cost-2e+06')
    """
    return f"near-{re.sub(r'[^A-Za-z0-9_.]+', '_', name)}-{amount:g}"


def key_of(keep_ratio: float, name: str) -> str:
    """The name of something of a keep ratio within its run."""
    return name if keep_ratio == 1 else f"width-{keep_ratio:g}-{name}"


@stored_record
class _LearnedNote:
    """Settings of the training that gave the learned points."""

    training: str


@dataclass(frozen=True)
class SweepPlan:
    """What is decided about the points of a keep ratio, as it stands in the run's study.

    Attributes:
        store: The run.
        config: What the run consists of.
        keep_ratio: Share of the filters that is kept; 1 = the network as it was given.
        cost: Cost that the run saves, `RunConfig.metric`.
    """

    store: RunStore
    config: RunConfig
    keep_ratio: float
    cost: NamedCost

    def key(self, name: str) -> str:
        """The name of something of this keep ratio within the run."""
        return key_of(self.keep_ratio, name)

    def planned(self, stage: str) -> tuple[PlannedPoint, ...] | None:
        """The points of a stage, or None before they were decided on."""
        return self.store.planned(self.key(stage))

    def decided(self) -> list[PlannedPoint]:
        """Every point so far, in the order of work."""
        return [point for stage in (*PLAN_STAGES, *self.added()) for point in self.planned(stage) or ()]

    def swept(self) -> set[str]:
        """Names of the points of the even sweep, as far as they are decided."""
        return {planned.key for stage in ("first", "sweep") for planned in self.planned(stage) or ()}

    @property
    def begun_with(self) -> int:
        """Points that were asked for when the run began."""
        assert self.store.info is not None, "a run is planned once its float network was scored"
        return self.store.info.points

    @property
    def refinement(self) -> int:
        """Number of points that refine the sweep."""
        return self.begun_with - sweep_size(self.begun_with)

    def added(self) -> tuple[str, ...]:
        """Stages that were added to the run after it began, in order."""
        return self.store.noted(self.key("added"), tuple[str, ...]) or ()

    def wanted(self) -> dict[str, int]:
        """Stages beyond sweep and refinement that the settings ask for, with their number of points."""
        more = self.config.points - self.begun_with
        stages = {f"more-{self.config.points}": more} if more > 0 else {}
        near = self.config.near.items()
        return stages | {near_stage(*place): NEAR_POINTS for place in near if not self._is_goal(place[0])}

    def place_of(self, stage: str) -> str:
        """Where the points of an added stage go, for people; "" where no place was given."""
        places = (place for place in self.config.near.items() if near_stage(*place) == stage)
        return next((f" near {name}={quantity(amount)}" for name, amount in places), "")

    def _is_goal(self, name: str) -> bool:
        return self.config.learn is not None and name == self.cost.name

    @property
    def goal(self) -> float | None:
        """The cost near which a point is to be learned; None: a whole frontier, or nothing."""
        return self.config.near.get(self.cost.name) if self._is_goal(self.cost.name) else None

    @property
    def learned_stage(self) -> str:
        """Name of the stage of the points that are learned."""
        return "learned" if self.goal is None else f"learned-{near_stage(self.cost.name, self.goal)}"

    def is_done(self, finished: set[str]) -> bool:
        """Whether every point is decided on and finished."""
        refined = self.refinement == 0 or self.planned("refine") is not None
        learned = self.config.learn is None or self.planned(self.learned_stage) is not None
        known = self.planned("sweep") is not None and refined and learned and {*self.wanted()} <= {*self.added()}
        return known and {p.key for p in self.decided()} <= finished

    @property
    def _note_name(self) -> str:
        return LEARNING + self.learned_stage.removeprefix("learned")

    def note_learning(self, training: str) -> None:
        """Keep what learned points were trained with."""
        self.store.note(self.key(self._note_name), _LearnedNote(training=training))

    def check_learning(self, training: str) -> None:
        """Raise `InputError` where learned points were made with other settings than these."""
        noted = self.store.noted(self.key(self._note_name), _LearnedNote)
        if noted is not None and noted.training != training:
            raise InputError(
                f"training of learned points of run {self.store.folder} must be {noted.training} as when they were "
                f"made, got {training}: give another --out for a new run"
            )

    def size(self, signal_epochs: int) -> int:
        """Points in all: as many as were asked for until they are decided."""
        added = self.added()
        left = sum(count for stage, count in self.wanted().items() if stage not in added)
        if self.config.learn is not None and self.planned(self.learned_stage) is None:
            left += self.config.learn.points if self.goal is None else 1
        if self.planned("sweep") is None:
            signal = signal_epochs if self.keep_ratio == 1 else 0
            baselines = len(BASELINE_BITS) * len(self.config.baselines)
            return self.begun_with + left + signal + baselines + (len(self.config.keep_ratios) > 1)
        return len(self.decided()) + left + (self.refinement if self.planned("refine") is None else 0)


def plans_of(store: RunStore) -> tuple[SweepPlan, ...]:
    """The plans of a run as it began, one for each keep ratio; points asked for later count once they are decided."""
    info = store.info
    assert info is not None, "a run is planned once its float network was scored"
    config = RunConfig(points=info.points, baselines=info.baselines, keep_ratios=info.keep_ratios)
    return tuple(SweepPlan(store, config, ratio, NamedCost(info.metric)) for ratio in info.keep_ratios)


def missing_points(plans: Sequence[SweepPlan], points: Sequence[FrontierPoint]) -> str:
    """What a run that is not finished still lacks, in a sentence; "" for a finished one.

    Args:
        plans: From `plans_of`.
        points: The run's finished points, failed ones included.
    """
    finished = {point.key for point in points}
    parts = []
    for plan in plans:
        left = [planned for planned in plan.decided() if planned.key not in finished]
        compared = sum(planned.baseline for planned in left)
        ours = len(left) - compared
        if plan.planned("sweep") is None:
            assert plan.store.info is not None
            done = len(plan.decided()) - len(left)
            ours = plan.begun_with - done
            compared = plan.size(len(plan.store.info.signal_epochs)) - plan.begun_with
        elif plan.planned("refine") is None:
            ours += plan.refinement
        counts = [_counted(ours, "point"), _counted(compared, "point", " for comparison")]
        if ours or compared:
            parts.append(": ".join(filter(None, (keep_label(plan.keep_ratio), " and ".join(filter(None, counts))))))
    if not parts:
        return ""
    return f"Not finished, still to be measured: {'; '.join(parts)}. The command that began the run continues it."


def _counted(count: int, noun: str, rest: str = "") -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}{rest}" if count else ""
