"""One process at work on a run: measure points until none is left."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

from slimbit.compress.learning import Learning
from slimbit.compress.prepared import PreparedNetwork
from slimbit.compress.prune import Pruner
from slimbit.frontier.points import Scorer, measure_point
from slimbit.frontier.progress import Listener, Progress, Stage
from slimbit.frontier.store import FIRST_WAIT, LONGEST_WAIT, RunStore
from slimbit.frontier.sweep_plan import SweepPlan
from slimbit.frontier.table import Claim, ClaimLost
from slimbit.frontier.width_sweep import WidthSweep, is_pruned
from slimbit.measure.named_cost import NamedCost
from slimbit.records.config import RunConfig
from slimbit.records.point import FrontierPoint, PlannedPoint, keep_label
from slimbit.records.run import RunInfo
from slimbit.records.signal import EpochSignal

MOST_NAMED = 3
"""Workers that a message names."""


class Worker:
    """State of this process on a run whose float network was scored.

    Args:
        store: The run.
        info: What it is about.
        root: The network as it was given.
        config: What the run consists of.
        cost: Cost that it saves.
        signal: Training epochs that give further points.
        pruner: Makes the networks of smaller keep ratios.
        learning: Gives further points from one training of each network.
        stages: Folder of what is pruned and tuned.
        scorer: How a network is scored.
        listener: Called with every `Progress`.
    """

    def __init__(  # noqa: PLR0913 - what a run consists of, each of it once
        self,
        store: RunStore,
        info: RunInfo,
        root: PreparedNetwork,
        config: RunConfig,
        *,
        cost: NamedCost,
        signal: Sequence[EpochSignal],
        pruner: Pruner | None,
        learning: Learning | None,
        stages: Path,
        scorer: Scorer,
        listener: Listener,
    ) -> None:
        self.store, self.info, self.root, self.config = store, info, root, config
        self.signal, self.pruner, self.learning, self.stages = signal, pruner, learning, stages
        self.scorer, self.listener = scorer, listener
        self._plans = [SweepPlan(store, config, ratio, cost) for ratio in config.keep_ratios]
        self._sweeps: dict[float, WidthSweep] = {}
        self._tries: list[float] = []
        self._noted: set[str] = set()
        self._points = store.points()
        self._again: set[str] = set()
        if config.retry_failed:
            self._again = {failed.key for failed in self._points if failed.state == "failed"}
        self._started, self._begun_with = time.perf_counter(), len(self._finished())
        self._prepared_for, self._said = 0.0, ""

    def work(self) -> None:
        """Measure points until every point of the run is finished, by this process or by others."""
        if self.learning is not None:
            for plan in self._plans:
                plan.check_learning(self.learning.name)
        left = [plan for plan in self._plans if not plan.is_done(self._finished())]
        if self._begun_with or not left:
            self._report_start()
        pause = FIRST_WAIT
        while left:
            before = len(self._points)
            moved = [self._move(plan) for plan in left]
            self._refresh()
            left = [plan for plan in left if not plan.is_done(self._finished())]
            if any(moved) or len(self._points) > before:
                pause = FIRST_WAIT
            if left and not any(moved):
                self._report("waiting", self._waited_for())
                time.sleep(pause)
                pause = min(1.5 * pause, LONGEST_WAIT)
                self._refresh()
        self._report("done")

    def _waited_for(self) -> str:
        """What other workers are at, and when somebody else may have it."""
        table = self.store.table
        found = [str(holder) for holder in table.holders()]
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        names = "; ".join(found[:MOST_NAMED]) + more if found else "other workers"
        return f"waiting for {names} (a worker that is gone loses its claim {table.takeover})"

    def _move(self, plan: SweepPlan) -> bool:
        """Do whatever of a keep ratio no other process is at; whether there was anything."""
        if plan.is_done(self._finished()):
            return False
        sweep = self._sweeps.get(plan.keep_ratio) or self._open(plan)
        if sweep is None:
            return False
        moved = False
        while True:
            self._refine(sweep)
            finished = self._finished()
            if self._advance(sweep, [point for point in plan.decided() if point.key not in finished]):
                moved = True
            elif not (self._plan_sweep(sweep) or self._learn(sweep)):
                break
        if plan.is_done(self._finished()):
            sweep.prepared.forget()
        return moved

    def _open(self, plan: SweepPlan) -> WidthSweep | None:
        """Make the network of a keep ratio and decide on its sweep; None while another process does."""
        what = ": ".join(filter(None, (keep_label(plan.keep_ratio), "sensitivity")))
        with self.store.claim(plan.key("prepare"), what) as claim:
            if claim is None:
                return None
            with self._preparing():
                sweep = WidthSweep(
                    plan, self.root, pruner=self.pruner, stages=self.stages, report=partial(self._report_made, plan)
                )
                if plan.planned("sweep") is None and plan.planned("first") is None:
                    sweep.plan_first()
        self._sweeps[plan.keep_ratio] = sweep
        if plan.decided():
            self._report_start()
        return sweep

    def _plan_sweep(self, sweep: WidthSweep) -> bool:
        """Look for the range of prices, the first points being under way, and decide on the sweep; whether it did."""
        plan = sweep.plan
        if plan.planned("sweep") is not None:
            return False
        with self.store.claim(
            plan.key("prepare"), ": ".join(filter(None, (keep_label(plan.keep_ratio), "range of prices")))
        ) as claim:
            if claim is None or plan.planned("sweep") is not None:
                return False
            with self._preparing():
                sweep.plan_sweep(self.signal, self._report_try)
        if plan.planned("first") is None:
            self._report_start()
        return True

    def _learn(self, sweep: WidthSweep) -> bool:
        """Train for the learned points, once everything else is measured or under way; whether it did."""
        plan = sweep.plan
        if self.learning is None or plan.planned(plan.learned_stage) is not None or plan.planned("sweep") is None:
            return False
        swept = plan.swept()
        if not swept <= self._finished():
            return False
        what = ": ".join(filter(None, (keep_label(plan.keep_ratio), "learning")))
        with self.store.claim(plan.key(plan.learned_stage), what) as claim:
            if claim is None or plan.planned(plan.learned_stage) is not None:
                return False
            with self._preparing():
                count = sweep.plan_learned(self.learning, self._measured(swept), partial(self._report_learned, plan))
        self._report("refine", f"{count} learned points")
        return True

    def _advance(self, sweep: WidthSweep, left: list[PlannedPoint]) -> bool:
        """Measure the first point that no other worker is at; whether there was one."""
        for planned in self.store.table.next_points(left):
            with self.store.claim_point(planned) as claim:
                if claim is None:
                    continue
                self._points = self.store.points()  # another worker may have finished it before it could be claimed
                if planned.key not in self._finished():
                    self._measure(sweep, planned, claim)
                return True
        return False

    def _measure(self, sweep: WidthSweep, planned: PlannedPoint, claim: Claim) -> None:
        self._report("point", planned.label)
        found = measure_point(planned, sweep, self.scorer)
        try:
            point = self.store.add(found, self.config.metric, claim)
        except ClaimLost as lost:
            self._report("note", f"{lost}: this worker's result is dropped")
            return
        self._again.discard(planned.key)
        self._refresh()
        self._report("point", point=point)
        division = (sweep.prepared.division,) if sweep.prepared.division else ()
        for note in dict.fromkeys((*division, *sweep.prepared.calibration_notes)):
            if note not in self._noted:
                self._noted.add(note)
                self._report("note", note)

    def _refine(self, sweep: WidthSweep) -> None:
        """Decide on further points of a keep ratio once those are measured that tell where they should go."""
        plan, finished = sweep.plan, self._finished()
        if plan.planned("sweep") is None:
            return
        swept = plan.swept()
        if plan.refinement and plan.planned("refine") is None:
            if swept <= finished:
                with self.store.claim(plan.key("refine"), plan.key("refine")) as claim:
                    if claim is not None and plan.planned("refine") is None:
                        count = sweep.plan_refinement(self._measured(swept))
                        self._report("refine", f"{count} more points where the curve bends")
            return
        for stage, number in plan.wanted().items():
            own = {planned.key for planned in plan.decided() if planned.price is not None}
            if stage in plan.added() or not own <= finished:
                continue  # a stage is decided on when the one before it is measured
            with self.store.claim(plan.key("refine"), plan.key("refine")) as claim:
                if claim is None or stage in plan.added():
                    continue
                count = sweep.plan_added(stage, number, self._measured(own))
            self._report("refine", f"{count} more points{plan.place_of(stage)}")

    def _measured(self, keys: set[str]) -> list[FrontierPoint]:
        return [point for point in self._points if point.key in keys and point.state == "done"]

    def _refresh(self) -> None:
        self._points = self.store.points()
        self.store.refresh()

    def _finished(self) -> set[str]:
        return {p.key for p in self._points if p.state == "done" or p.key not in self._again}

    # --- reporting ---

    def _report_made(self, plan: SweepPlan, text: str) -> None:
        stage: Stage = "sensitivity" if plan.keep_ratio == 1 else "prune"
        self._report(stage, ": ".join(filter(None, (keep_label(plan.keep_ratio), text))))

    def _report_learned(self, plan: SweepPlan, text: str) -> None:
        self._report("learn", ": ".join(filter(None, (keep_label(plan.keep_ratio), text))))

    def _report_try(self, text: str) -> None:
        self._tries.append(time.perf_counter())
        self._report("range", f"finding prices from nearly float to collapse: {text}")

    def _report(self, stage: Stage, message: str = "", *, point: FrontierPoint | None = None) -> None:
        done, total = len(self._finished()), sum(plan.size(len(self.signal)) for plan in self._plans)
        left = self._seconds_left(done, total)
        self.listener(
            Progress(
                stage=stage,
                done=done,
                total=total,
                seconds_left=left,
                trainings_left=self._trainings_left(),
                point=point,
                points=self._points,
                message=message,
            )
        )

    def _report_start(self) -> None:
        done, total = len(self._finished()), sum(plan.size(len(self.signal)) for plan in self._plans)
        message = f"{total - done} points to measure" + (f", {done} of {total} are there" if done else "")
        if message != self._said:
            self._report("start", message)
        self._said = message

    def _trainings_left(self) -> int:
        """Trainings that nobody has finished: of pruned networks, and of learned points."""
        tunes = self.pruner is not None and self.pruner.tuning is not None
        pruned = [plan for plan in self._plans if tunes and plan.keep_ratio < 1 and not is_pruned(plan)]
        learned = [plan for plan in self._plans if self.learning and plan.planned(plan.learned_stage) is None]
        return len(pruned) + len(learned)

    @contextmanager
    def _preparing(self) -> Iterator[None]:
        """Time that is no point's."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._prepared_for += time.perf_counter() - begun

    def _seconds_left(self, done: int, total: int) -> float | None:
        """By the pace of points so far, of all processes; before that by what one point took or is likely to take.

        Where pruned networks are made meanwhile, the pace says nothing, and their training is not counted.
        """
        fresh = done - self._begun_with
        if fresh > 0 and self.pruner is None:
            return (time.perf_counter() - self._started - self._prepared_for) / fresh * (total - done)
        seconds = [sum(point.seconds.values()) for point in self._points if point.state == "done"]
        if seconds:
            return sum(seconds) / len(seconds) * (total - done)
        if len(self._tries) > 1:  # a try is a compression on fewer images; the longest was no repetition
            longest = max(later - earlier for earlier, later in pairwise(self._tries))
            return (longest + self.info.evaluate_seconds) * (total - done)
        return None
