"""A traced frontier: its points, the one that fits, and the model behind it."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit.frontier.select import best_within, cheapest_at_accuracy, pareto_front
from slimbit.frontier.store import RunStore, open_store
from slimbit.frontier.sweep_plan import missing_points, plans_of
from slimbit.measure.hardware import HardwareLike, hardware_names, load_hardware
from slimbit.measure.named_cost import CostLike, NamedCost, load_cost
from slimbit.records.codec import from_json
from slimbit.records.cost import METRICS, CostReport
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.terminal import score_text
from slimbit.records.verification import ExportedFile

if TYPE_CHECKING:
    from torch import nn

    from slimbit.compress.model import CompressedModel
    from slimbit.report.page import ReportSource


class Frontier:
    """The points of a run; made by `slimbit.trace_frontier` and `slimbit.open_run`. Reading needs no torch.

    Attributes:
        points: Every point that was finished when it was opened, failed ones included, in order of their numbers.

    >>> import slimbit, tempfile, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(32, 1, 8, 8)
    >>> def contrast(model):
    ...     return float(model(images).detach().std())
    >>> frontier = slimbit.trace_frontier(net, images[:1], images, contrast, out=tempfile.mkdtemp(), points=1)
    >>> point = frontier.best(within={"esn_digital": 1e9})
    >>> slimbit.open_run(frontier.path).load(point).cost.total.esn_digital == point.costs["esn_digital"]
    True
    """

    def __init__(
        self,
        store: RunStore,
        *,
        form: "nn.Module | None" = None,
        machines: tuple[NamedCost, ...] = (),
        given: tuple[str, ...] = (),
    ) -> None:
        self._store, self._form, self._machines, self._given = store, form, machines, given
        self.points: tuple[FrontierPoint, ...] = tuple(self._on_machines(point) for point in store.points())

    @property
    def info(self) -> RunInfo:
        """What the run is about."""
        assert self._store.info is not None, "a frontier is made of a run that began"
        return self._store.info

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self._store.folder

    @property
    def network(self) -> str:
        """Name of the network."""
        return self.info.network

    @property
    def metric(self) -> str:
        """Cost that the sweep was for: a metric, or ``hardware:`` and the name of a machine."""
        return self.info.metric

    @property
    def costs(self) -> tuple[str, ...]:
        """Names of the costs that points have: all metrics, and the machines of the run or of `with_hardware`."""
        return tuple(dict.fromkeys((*METRICS, *(name for point in self.points for name in point.costs))))

    @property
    def float_accuracy(self) -> float:
        """Accuracy of the network before compression."""
        return self.info.float_accuracy

    def refresh(self) -> "Frontier":
        """The same run with the points that are finished by now."""
        return Frontier(self._store, form=self._form, machines=self._machines, given=self._given)

    def with_hardware(self, *machines: HardwareLike) -> "Frontier":
        """The same run with the costs of its points on further machines, from their stored cost reports: no new sweep.

        Args:
            machines: As `slimbit.cost` takes them: names, ``.toml`` files, functions, `slimbit.HardwareModel`.

        Returns:
            A frontier whose points have the costs ``hardware:NAME``; None for points with widths that the machine does
            not run.

        Raises:
            InputError: There is no such machine, it fails on a layer, or it is another one than that of its name which
                the run was swept for or which was given before.
        """
        named: list[NamedCost] = []
        for given_machine in machines:
            one = NamedCost(HARDWARE + (model := load_hardware(given_machine)).name, model)
            text = f" of {os.fspath(given_machine)}" if isinstance(given_machine, str | os.PathLike) else ""
            is_swept = one.name == self.metric and model.name not in hardware_names()
            if is_swept and self.info.machine not in ("", one.definition):
                raise InputError(
                    f"machine {model.name!r}{text} must be the one that run {self.path} was swept for, got another "
                    "description: give the changed machine another name"
                )
            twins = [other for other in (*self._machines, *named) if other.name == one.name]
            if any(not one.is_same(twin) for twin in twins):
                raise InputError(
                    f"names of different machines must differ, got {model.name!r}{text} beside another {model.name!r}: "
                    "give one another name"
                )
            named += [] if twins else [one]
        given = tuple(os.fspath(one) for one in machines if isinstance(one, str | os.PathLike))
        return Frontier(self._store, form=self._form, machines=(*self._machines, *named), given=(*self._given, *given))

    def with_costs(self, costs: Iterable[CostLike]) -> "tuple[Frontier, list[str]]":
        """The same run with whatever machines these costs name, and the names under which its points have them.

        Args:
            costs: As in `best`.

        Raises:
            InputError: There is no such cost; the sentence lists what there is.
        """
        frontier, names = self, []
        for cost in costs:
            # what the run says of itself is taken by name: opening a run of somebody else runs no code
            known = [NamedCost(name) for name in (self.metric, *frontier.costs) if name not in METRICS]
            named = load_cost(cost, (*frontier._machines, *known))
            if named.model is not None and not any(named.is_same(machine) for machine in frontier._machines):
                frontier = frontier.with_hardware(named.model)
            names.append(named.name)
        return frontier, names

    def pareto(self, metric: CostLike | None = None) -> tuple[FrontierPoint, ...]:
        """The points that no other point dominates, from the cheapest to the dearest.

        Args:
            metric: A cost as in `best`; default: the run's.
        """
        frontier, (name,) = self.with_costs([metric or self.metric])
        return pareto_front(frontier.points, name)

    def best(self, within: Mapping[CostLike, float]) -> FrontierPoint:
        """The most accurate point that costs at most so much in every cost named.

        Args:
            within: Largest amount by cost: a metric, the machine of the run or of `with_hardware` as
                ``hardware:NAME``, a built-in machine, or any other as a ``.toml`` file, a function or a
                `slimbit.HardwareModel`, e.g. ``{"esn_digital": 31e6, "edge-npu.toml": 2e6}``.

        Raises:
            InputError: No point fits; the message names the cheapest one. Or there is no such cost.
        """
        if not isinstance(within, Mapping) or not within:
            raise InputError(f"within must map costs to amounts, like {{'esn_digital': 20e6}}, got {within!r}")
        frontier, names = self.with_costs(within)
        return best_within(
            frontier._loadable(), dict(zip(names, within.values(), strict=True)), score_name=self.info.score_name
        )

    def cheapest(
        self, accuracy: float | None = None, metric: CostLike | None = None, *, max_drop: float | None = None
    ) -> FrontierPoint:
        """The cheapest point of at least that accuracy, or of one not much below the float network's.

        Args:
            accuracy: As ``evaluate`` returns it.
            metric: A cost as in `best`; default: the run's.
            max_drop: Instead of an accuracy: by how much it may be below that of the float network, in units of
                ``evaluate``: 1.0 is one point where that returns percent, 0.01 where it returns a number up to 1.

        Raises:
            InputError: Neither or both are given, a drop to 0, or no point is that accurate; the message names the
                most accurate one.
        """
        if (accuracy is None) == (max_drop is None):
            raise InputError(f"accuracy or max_drop must be given, got {'none' if accuracy is None else 'both'}")
        if max_drop is not None:
            if not math.isfinite(max_drop) or max_drop < 0:
                raise InputError(f"max_drop must be 0 or more, in units of {self.info.score_name}, got {max_drop}")
            if 0 < self.info.float_accuracy <= max_drop:
                raise InputError(
                    f"max_drop must be below the float network's {self.info.score_name} of "
                    f"{self.info.float_accuracy:g}, whose unit it has, got {max_drop:g}"
                )
            accuracy = self.info.float_accuracy - max_drop
        assert accuracy is not None
        frontier, (name,) = self.with_costs([metric or self.metric])
        return cheapest_at_accuracy(frontier._loadable(), name, accuracy, score_name=self.info.score_name)

    def load(
        self, point: FrontierPoint, *, model: "nn.Module | None" = None, allow_code: bool = False
    ) -> "CompressedModel":
        """The model of a point, from what the run keeps of it; every object is checked by its hash.

        Args:
            point: One of `points`.
            model: A network of the original's form, whose weights do not matter. Needed for a run that was opened
                later, where the network is neither in the zoo nor in timm.
            allow_code: Whether a network that the run names as ``package.module:callable`` may be imported and called.

        Raises:
            InputError: A failed point, a missing or damaged object, or a network that cannot be built.
        """
        from slimbit.compress.restore import restored_point

        if not isinstance(point, FrontierPoint):
            raise InputError(f"point must be one of frontier.points, got {point!r}")
        form = model if model is not None else self._form
        return restored_point(self.info, point, self._store.read, form=form, allow_code=allow_code)

    def pruned(
        self, keep_ratio: float, *, model: "nn.Module | None" = None, allow_code: bool = False
    ) -> "CompressedModel":
        """The pruned network of a keep ratio as it was before quantization, tuned where the run tunes.

        Args:
            keep_ratio: One of the run's ``keep_ratios`` below 1, with a finished point.
            model: As for `load`.
            allow_code: As for `load`.

        Raises:
            InputError: No such keep ratio, a missing or damaged object, or a network that cannot be built.
        """
        from slimbit.compress.restore import restored_pruned
        from slimbit.frontier.width_sweep import pruned_objects

        found = pruned_objects(self._store, self.points, keep_ratio)
        form = model if model is not None else self._form
        return restored_pruned(self.info, *found, form=form, allow_code=allow_code)

    def check_weights(self, model: "nn.Module") -> None:
        """Raise `InputError` unless a network has the weights that the run began with."""
        from slimbit.compress.prepared import digest_of

        if digest_of(model.state_dict()) != self.info.network_digest:
            raise InputError(f"network must have the weights that run {self.path} began with, got others")

    def read_object(self, digest: str, kind: Any) -> bytes:
        """Content of an object, verified by its hash.

        Args:
            digest: From `FrontierPoint.objects`.
            kind: "json", "safetensors" or "bin".

        Raises:
            InputError: The file is missing or damaged; it is named.
        """
        return self._store.read(digest, kind)

    def exported(self) -> tuple[ExportedFile, ...]:
        """What was proved of the files that ``slimbit pick --export`` wrote of points; the report shows it."""
        return self._store.exported()

    def add_exported(self, file: ExportedFile) -> None:
        """Keep in the run what was proved of a point's file.

        Args:
            file: Of one of `points`.

        Raises:
            InputError: There is no such point.
        """
        if file.point not in {point.number for point in self.points}:
            raise InputError(f"point of an exported file must be one of the run's, got {file.point}")
        self._store.add_exported(file)

    def report(self, out: str | Path | None = None, *, versus: "Frontier | None" = None) -> Path:
        """Write the report: one HTML file that needs no network.

        Args:
            out: File to write; default: ``report.html`` in the run's folder, ``versus.html`` with two runs.
            versus: Another run, to show both side by side instead.

        Raises:
            InputError: No point is finished, a cost report is damaged, or the file cannot be written.
        """
        from slimbit.report.page import write_comparison, write_report

        if versus is None:
            return write_report(self.report_source(), out)
        return write_comparison(self.report_source(), versus.report_source(), out)

    def report_source(self) -> "ReportSource":
        """What the report is made from: points, their costs on every built-in machine, and what is still missing."""
        from slimbit.report.page import ReportSource

        builtin = [NamedCost(HARDWARE + name, load_hardware(name)) for name in hardware_names()]

        def on_machines(point: FrontierPoint) -> CostReport:
            report = self._cost_report(point)
            for machine in builtin:
                if machine.name.removeprefix(HARDWARE) not in report.hardware:
                    report = machine.in_report_or_not(report)
            return report

        self._store.refresh()
        plans = plans_of(self._store)
        sensitivity = {plan.keep_ratio: self._store.noted(plan.key("sensitivity"), Sensitivity) for plan in plans}
        return ReportSource(
            info=self.info,
            points=self.points,
            read=self._store.read,
            read_cost=on_machines,
            run=str(self.path),
            exported=self.exported(),
            hardware=self._given,
            sensitivity={ratio: found for ratio, found in sensitivity.items() if found is not None},
            missing=missing_points(plans, self.points),
        )

    def to_pandas(self) -> Any:
        """The points as a ``pandas.DataFrame``, a row each, every cost metric a column.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas", "to_pandas") from error
        return pd.DataFrame([point.to_dict() for point in self.points])

    def _on_machines(self, point: FrontierPoint) -> FrontierPoint:
        """A point with its costs on the machines that were added."""
        if not self._machines or "cost" not in point.objects:
            return point
        report = self._cost_report(point)
        names = [(machine.name, machine.name.removeprefix(HARDWARE)) for machine in self._machines]
        found = {name: report.hardware[short].total if short in report.hardware else None for name, short in names}
        return replace(point, costs={**point.costs, **found})

    def _cost_report(self, point: FrontierPoint) -> CostReport:
        """The stored cost report of a point, with the machines that run its widths."""
        where = f"cost of point {point.number} of run {self.path}"
        report = from_json(CostReport, self._store.read(point.objects["cost"], "json"), where=where, schema=COST_SCHEMA)
        for machine in self._machines:
            report = machine.in_report_or_not(report)
        return report

    def _loadable(self) -> list[FrontierPoint]:
        """A failed point has no levels."""
        return [point for point in self.points if "levels" in point.objects]

    def __repr__(self) -> str:
        score = f"{self.info.score_name} {score_text(self.float_accuracy, self.float_accuracy)}"
        front = f"{len(pareto_front(self.points, self.metric))} on the Pareto front"
        return f"Frontier({self.network}, {len(self.points)} points, {front}, by {self.metric}, float {score})"


def open_run(path: str | Path, *, storage: str | None = None, artifacts: str | None = None) -> Frontier:
    """Open a run that `slimbit.trace_frontier` or ``slimbit frontier`` made or is still at.

    Args:
        path: Its folder.
        storage: Address of its study, where that is not ``study.db`` in the folder.
        artifacts: Where its objects are, where that is not what ``run.json`` says.

    Raises:
        InputError: The folder, ``run.json`` or the study is missing or damaged; the sentence names the file.

    >>> open_run("nowhere")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: run must be a folder with a run.json, got nowhere
    """
    if not isinstance(path, str | Path):
        raise InputError(f"run must be the path of a folder, got {type(path).__name__}")
    return Frontier(open_store(path, storage=storage, artifacts=artifacts))
