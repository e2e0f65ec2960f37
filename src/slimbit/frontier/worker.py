"""One process at work on a run: prepare it or find it prepared, then measure points until none is left."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from slimbit.frontier.branch import Branch
from slimbit.frontier.decide import plan_refinement, plan_sweep, swept
from slimbit.frontier.info import RunInfo, cautions, check_same
from slimbit.frontier.interval import is_near_chance
from slimbit.frontier.measure_point import Scorer, measure_point, versions
from slimbit.frontier.progress import Listener, Progress, Stage
from slimbit.frontier.subject import BASELINE_BITS
from slimbit.frontier.workspace import POLL_SECONDS, PlannedPoint, Workspace
from slimbit.records.errors import InputError
from slimbit.records.point import Frontier, FrontierPoint, point_label, width_label


@dataclass
class Worker:
    """State of this process.

    Attributes:
        branches: The widths, in the order of work.
        scorer: How a network is scored.
        workspace: The run.
        settings: What a continued run must repeat, names as in `RunInfo`.
        about: Other entries of `RunInfo`.
        listener: Called with every `Progress`.
        info: Known once the float network was scored.
    """

    branches: tuple[Branch, ...]
    scorer: Scorer
    workspace: Workspace
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    listener: Listener
    info: RunInfo | None = None
    _ticks: list[float] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)
    _begun_with: int = 0
    _again: set[str] = field(default_factory=set)

    # --- preparation: one process does it, the others wait and find it done ---

    def prepare(self) -> None:
        """Score the float network and open the study, unless that is done."""
        with self.workspace.waiting_lock("prepare", lambda: self._tell("waiting", "another process prepares the run")):
            info = self.workspace.info()
            if info is not None:
                check_same(info, self.settings, self.workspace.folder)
                for caution in cautions(info, self.settings, versions()):
                    self._tell("note", caution)
            self.workspace.begin(info.study if info else self.workspace.study_name, self.settings["metric"])
            self.info = info or self._begin()

    def _begin(self) -> RunInfo:
        self._tell("float accuracy", "scoring the float network")
        start = time.perf_counter()
        try:
            accuracy = self.scorer.score(copy.deepcopy(self.branches[0].root.model).eval())
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"evaluate must score the float network, got {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - start
        _refuse_chance(accuracy, self.scorer.classes)
        low, high = self.scorer.interval(accuracy)
        info = RunInfo(
            **self.settings,
            **self.about,
            classes=self.scorer.classes,
            float_accuracy=accuracy,
            float_low=low,
            float_high=high,
            evaluate_seconds=round(seconds, 4),
            study=self.workspace.study_name,
            versions=dict(versions()),
        )
        self.workspace.write_info(info)
        return info

    # --- work ---

    def work(self, *, retry_failed: bool = False) -> None:
        """Measure points until every point of the run is finished, by this process or by others."""
        if retry_failed:
            self._again = {point.key for point in self.workspace.points() if point.state == "failed"}
        self._started, self._begun_with = time.perf_counter(), len(self._finished())
        left = [branch for branch in self.branches if not self._is_done(branch)]
        if not left:
            self._tell_start()
        while left:
            moved = [self._move(branch) for branch in left]
            left = [branch for branch in left if not self._is_done(branch)]
            if left and not any(moved):
                self._tell("waiting", "other processes work on what is left")
                time.sleep(POLL_SECONDS)
        self._tell("done")

    def _move(self, branch: Branch) -> bool:
        """Do whatever of a width no other process is at; whether there was anything."""
        if self._is_done(branch):
            return False
        if not branch.is_open and not self._open(branch):
            return False
        moved = False
        while True:
            self._refine(branch)
            finished = self._finished()
            if not self._advance(branch, [point for point in branch.decided() if point.key not in finished]):
                break
            moved = True
        if self._is_done(branch):
            branch.subject.forget()
        return moved

    def _is_done(self, branch: Branch) -> bool:
        """Whether every point of a width is decided on and finished."""
        refined = self._asked == swept(self._asked) or branch.planned("refine") is not None
        known = branch.planned("sweep") is not None and refined
        return known and {point.key for point in branch.decided()} <= self._finished()

    def _open(self, branch: Branch) -> bool:
        """Make the network of a width and decide on its sweep; False while another process does."""
        with branch.lock("prepare") as mine:
            if not mine:
                return False
            branch.open(partial(self._tell_made, branch))
            if branch.planned("sweep") is None:
                plan_sweep(
                    branch,
                    swept(self._asked),
                    baselines=self.settings["baselines"],
                    pruned_only=len(self.branches) > 1,
                    tell=self._tell_try,
                )
        self._tell_start()
        return True

    def _advance(self, branch: Branch, left: list[PlannedPoint]) -> bool:
        """Measure the first point that no other process is at; whether there was one."""
        for planned in left:
            with self.workspace.lock(planned.key) as mine:
                if not mine:
                    continue
                if planned.key not in self._finished():
                    self._measure(branch, planned)
                return True
        return False

    def _measure(self, branch: Branch, planned: PlannedPoint) -> None:
        self._tell("point", point_label(planned.width, planned.policy, planned.setting))
        point = self.workspace.add(measure_point(planned, branch, self.scorer), self.settings["metric"])
        self._again.discard(planned.key)
        self._tell("point", point=point)

    def _refine(self, branch: Branch) -> None:
        """Decide on the refinement of a width once its whole sweep is measured."""
        count = self._asked - swept(self._asked)
        sweep = {planned.key for planned in branch.planned("sweep") or ()}
        if count == 0 or branch.planned("refine") is not None or not sweep <= self._finished():
            return
        with branch.lock("refine") as mine:
            if not mine or branch.planned("refine") is not None:
                return
            measured = [p for p in self.workspace.points() if p.key in sweep and p.state == "done"]
            chosen = plan_refinement(branch, count, measured=measured)
        self._tell("refine", f"{len(chosen)} more points where the curve bends")

    def _finished(self) -> set[str]:
        return {p.key for p in self.workspace.points() if p.state == "done" or p.key not in self._again}

    def frontier(self) -> Frontier:
        """All points."""
        assert self.info is not None, "prepare comes first"
        points = self.workspace.points()
        return Frontier(
            str(self.workspace.folder), self.info.network, self.info.metric, self.info.float_accuracy, points
        )

    # --- telling ---

    def _tell_made(self, branch: Branch, text: str) -> None:
        stage: Stage = "sensitivity" if branch.width == 1 else "slim"
        self._tell(stage, ": ".join(filter(None, (width_label(branch.width), text))))

    def _tell_try(self, text: str) -> None:
        self._ticks.append(time.perf_counter())
        self._tell("range", f"looking for the ends of the range: {text}")

    def _tell(self, stage: Stage, message: str = "", *, point: FrontierPoint | None = None) -> None:
        done, total = self._count()
        left = self._seconds_left(done, total)
        self.listener(Progress(stage=stage, done=done, total=total, seconds_left=left, point=point, message=message))

    @property
    def _asked(self) -> int:
        points: int = self.settings["points"]
        return points

    def _count(self) -> tuple[int, int]:
        """Points that are finished, and points in all: as many as were asked for until they are decided."""
        if self.info is None:
            return 0, sum(self._expected(branch) for branch in self.branches)
        return len(self._finished()), sum(map(self._known, self.branches))

    def _expected(self, branch: Branch) -> int:
        """Points that a width is likely to have."""
        signal = len(branch.root.signal) if branch.width == 1 else 0
        baselines = len(BASELINE_BITS) if self.settings["baselines"] else 0
        return self._asked + signal + baselines + (len(self.branches) > 1)

    def _known(self, branch: Branch) -> int:
        """Points of a width, as far as they are decided on."""
        if branch.planned("sweep") is None:
            return self._expected(branch)
        undecided = self._asked - swept(self._asked) if branch.planned("refine") is None else 0
        return len(branch.decided()) + undecided

    def _seconds_left(self, done: int, total: int) -> float | None:
        """By the pace so far, of all processes; before that by what one point took or is likely to take.

        Where narrower networks are made meanwhile, the pace says nothing, and their training is not counted.
        """
        fresh = done - self._begun_with
        if fresh > 0 and all(branch.slimmer is None for branch in self.branches):
            return (time.perf_counter() - self._started) / fresh * (total - done)
        each = None if self.info is None else self._seconds_each(self.info)
        return None if each is None else (total - done) * each

    def _seconds_each(self, info: RunInfo) -> float | None:
        """The mean of earlier points, else the longest try of a price and an evaluation; None before any try."""
        seconds = [sum(point.seconds.values()) for point in self.workspace.points() if point.state == "done"]
        if seconds:
            return sum(seconds) / len(seconds)
        if len(self._ticks) > 1:  # a try is a compression on fewer images; the longest was no repetition
            return max(later - earlier for earlier, later in pairwise(self._ticks)) + info.evaluate_seconds
        return None

    def _tell_start(self) -> None:
        assert self.info is not None, "prepare comes first"
        done, total = self._count()
        self._tell("start", f"{total - done} evaluations of about {self.info.evaluate_seconds:.3g} s each are left")


def _refuse_chance(accuracy: float, classes: int | None) -> None:
    if classes is not None and is_near_chance(accuracy, classes):
        raise InputError(
            f"float accuracy must be well above chance ({100 / classes:.3g} % for {classes} classes), got "
            f"{accuracy:.4g} %: check that the data's normalization (normalize=... in the data spec) and the order "
            "of classes are those the network was trained with, and that its weights were loaded"
        )
