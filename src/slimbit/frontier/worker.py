"""One process at work on a run: prepare it or find it prepared, then measure points until none is left."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from slimbit.frontier.decide import STAGES, plan_refinement, plan_sweep, swept
from slimbit.frontier.info import RunInfo, check_same
from slimbit.frontier.interval import is_near_chance
from slimbit.frontier.measure_point import Scorer, measure_point, versions
from slimbit.frontier.progress import Listener, Progress, Stage
from slimbit.frontier.subject import BASELINE_BITS, Subject
from slimbit.frontier.workspace import POLL_SECONDS, PlannedPoint, Workspace
from slimbit.measure.sensitivity import Likelihood, measure_sensitivity
from slimbit.records.errors import InputError
from slimbit.records.point import Frontier, FrontierPoint
from slimbit.records.sensitivity import Sensitivity


@dataclass
class Worker:
    """State of this process.

    Attributes:
        subject: The network.
        scorer: How it is scored.
        workspace: The run.
        settings: What a continued run must repeat, names as in `RunInfo`.
        about: Other entries of `RunInfo`.
        listener: Called with every `Progress`.
        likelihood: What the sensitivity samples labels from; ``settings`` holds its name.
        info: Known once the float network was scored.
    """

    subject: Subject
    scorer: Scorer
    workspace: Workspace
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    listener: Listener
    likelihood: Likelihood | str = "categorical"
    info: RunInfo | None = None
    _ticks: list[float] = field(default_factory=list)
    _started: float = field(default_factory=time.perf_counter)
    _begun_with: int = 0
    _again: set[str] = field(default_factory=set)

    # --- preparation: one process does it, the others wait and find it done ---

    def prepare(self) -> None:
        """Score the float network, measure sensitivity, decide on the sweep: whatever of it is not done yet."""
        with self.workspace.waiting_lock("prepare", lambda: self._tell("waiting", "another process prepares the run")):
            info = self.workspace.info()
            if info is not None:
                check_same(info, self.settings, self.workspace.folder)
            self.workspace.begin(info.study if info else self.workspace.study_name, self.subject.metric)
            self.info = info or self._begin()
            self.subject.sensitivity = self._sensitivity()
            if self.workspace.planned("sweep") is None:
                plan_sweep(
                    self.subject,
                    self.workspace,
                    swept(self._asked),
                    baselines=self.settings["baselines"],
                    tell=self._tell_try,
                )
            self._tell("start", self._outlook(self.info))

    def _begin(self) -> RunInfo:
        self._tell("float accuracy", "scoring the float network")
        start = time.perf_counter()
        try:
            accuracy = self.scorer.score(copy.deepcopy(self.subject.model).eval())
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

    def _sensitivity(self) -> Sensitivity:
        stored = self.workspace.noted("sensitivity")
        if stored is None:
            self._tell("sensitivity", "measuring how much each filter matters")
            found = measure_sensitivity(
                self.subject.model,
                self.subject.survey.spec,
                self.subject.batches,
                generator=torch.Generator().manual_seed(self.subject.seed),
                likelihood=self.likelihood,
            )
            self.workspace.note("sensitivity", found.to_dict())
            stored = self.workspace.noted("sensitivity")
        return Sensitivity.from_dict(stored)

    # --- work ---

    def work(self, *, retry_failed: bool = False) -> None:
        """Measure points until every point of the run is finished, by this process or by others."""
        if retry_failed:
            self._again = {point.key for point in self.workspace.points() if point.state == "failed"}
        self._started, self._begun_with = time.perf_counter(), len(self._finished())
        while True:
            self._refine()
            finished = self._finished()
            left = [planned for planned in self._decided() if planned.key not in finished]
            if not left:
                break
            if not self._advance(left):
                self._tell("waiting", "other processes work on the points that are left")
                time.sleep(POLL_SECONDS)
        self._tell("done")

    def _advance(self, left: list[PlannedPoint]) -> bool:
        """Measure the first point that no other process is at; whether there was one."""
        for planned in left:
            with self.workspace.lock(planned.key) as mine:
                if not mine:
                    continue
                if planned.key not in self._finished():
                    self._measure(planned)
                return True
        return False

    def _measure(self, planned: PlannedPoint) -> None:
        self._tell("point", f"{planned.policy}, {planned.setting}")
        point = measure_point(planned, self.subject, self.scorer, self.workspace)
        point = self.workspace.add(point, self.subject.metric)
        self._again.discard(planned.key)
        self._tell("point", point=point)

    def _refine(self) -> None:
        """Decide on the refinement once the whole sweep is measured."""
        count = self._asked - swept(self._asked)
        sweep = {planned.key for planned in self.workspace.planned("sweep") or ()}
        if count == 0 or self.workspace.planned("refine") is not None or not sweep <= self._finished():
            return
        with self.workspace.lock("refine") as mine:
            if not mine or self.workspace.planned("refine") is not None:
                return
            measured = [p for p in self.workspace.points() if p.key in sweep and p.state == "done"]
            chosen = plan_refinement(self.subject, self.workspace, count, measured=measured)
        self._tell("refine", f"{len(chosen)} more points where the curve bends")

    def _decided(self) -> list[PlannedPoint]:
        return [point for stage in STAGES for point in self.workspace.planned(stage) or ()]

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
        sweep = self.workspace.planned("sweep") if self.info is not None else None
        if sweep is None:
            beside = len(self.subject.signal) + (len(BASELINE_BITS) if self.settings["baselines"] else 0)
            return 0, self._asked + beside
        refined = self.workspace.planned("refine")
        more = self._asked - swept(self._asked) if refined is None else len(refined)
        beside = sum(len(self.workspace.planned(stage) or ()) for stage in ("baselines", "signal"))
        return len(self._finished()), len(sweep) + more + beside

    def _seconds_left(self, done: int, total: int) -> float | None:
        """By the pace so far, of all processes; before that by what one point took or is likely to take."""
        fresh = done - self._begun_with
        if fresh > 0:
            return (time.perf_counter() - self._started) / fresh * (total - done)
        each = None if self.info is None else self._seconds_each(self.info)
        return None if each is None else (total - done) * each

    def _seconds_each(self, info: RunInfo) -> float | None:
        """The mean of earlier points, else the longest try of a price and an evaluation; None before any try."""
        if len(self._ticks) > 1:  # a try is a compression on fewer images; the longest was no repetition
            return max(later - earlier for earlier, later in pairwise(self._ticks)) + info.evaluate_seconds
        if self.workspace.planned("sweep") is None:
            return None
        seconds = [sum(point.seconds.values()) for point in self.workspace.points() if point.state == "done"]
        return sum(seconds) / len(seconds) if seconds else None

    def _outlook(self, info: RunInfo) -> str:
        done, total = self._count()
        return f"{total - done} evaluations of about {info.evaluate_seconds:.3g} s each are left"


def _refuse_chance(accuracy: float, classes: int | None) -> None:
    if classes is not None and is_near_chance(accuracy, classes):
        raise InputError(
            f"float accuracy must be well above chance ({100 / classes:.3g} % for {classes} classes), got "
            f"{accuracy:.4g} %: check that the data's normalization (normalize=... in the data spec) and the order "
            "of classes are those the network was trained with, and that its weights were loaded"
        )
