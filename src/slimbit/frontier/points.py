"""One point: carry out its plan, keep what came out, score it."""

import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from inspect import isfunction
from typing import Any

import torch
from torch import nn

from slimbit.compress.quantize import quantized
from slimbit.frontier.time_limit import time_limit
from slimbit.frontier.width_sweep import WidthSweep
from slimbit.records.accuracy import Accuracy, wilson_interval
from slimbit.records.codec import canonical, from_json, with_schema
from slimbit.records.config import LONGEST_NAME
from slimbit.records.cost import METRICS
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError
from slimbit.records.files import StoreError
from slimbit.records.plan import CompressionPlan
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.text import clipped, fault_of

Evaluate = Callable[[nn.Module], Any]
LONGEST_REASON = 500
UNNAMED = ("<lambda>", "evaluate", "score", "metric")
"""Names of functions that say nothing of what they measure."""


@dataclass(frozen=True)
class Scorer:
    """The user's ``evaluate``, checked.

    Attributes:
        evaluate: From a network to a number, higher is better, or to an `Accuracy`. It may also say as attributes how
            many ``images`` and ``classes`` it scores; then the number is a percentage.
        given_name: What the score is called, over the ``name`` attribute and the name of a function; None: not given.
        timeout_seconds: Most wall time of one call; None: no limit.
    """

    evaluate: Evaluate
    given_name: str | None = None
    timeout_seconds: float | None = None

    @property
    def images(self) -> int | None:
        """Number of images it scores, where it says so beforehand."""
        return _count(self.evaluate, "images")

    @property
    def classes(self) -> int | None:
        """Number of classes, where it says so."""
        return _count(self.evaluate, "classes")

    @property
    def digest(self) -> str:
        """SHA-256 of the images and labels it scores on, "" where it does not say."""
        value = getattr(self.evaluate, "digest", "")
        return value if isinstance(value, str) else ""

    @property
    def name(self) -> str:
        """What the score is called in tables and on axes: as it was given, else as ``evaluate`` calls itself."""
        value = self.given_name or getattr(self.evaluate, "name", None)
        if value is None and isfunction(self.evaluate) and self.evaluate.__name__ not in UNNAMED:
            value = self.evaluate.__name__
        return clipped(value, LONGEST_NAME) if isinstance(value, str) and value.strip() else "accuracy"

    @property
    def description(self) -> str:
        """What it measures, "" where it does not say."""
        return str(getattr(self.evaluate, "description", ""))

    def score(self, network: nn.Module) -> float:
        """The accuracy of a network; an `Accuracy` where the number of images is known.

        A network that ``evaluate`` leaves in training mode, as loops that train as well do, is put back.

        Raises:
            InputError: ``evaluate`` returned something else than a finite number, did not end in time, or changed
                weights or statistics: its score would be that of another network than the one that is kept.
        """
        modes, before = {module: module.training for module in network.modules()}, _checksums(network)
        try:
            with time_limit(self.timeout_seconds, "evaluate"):
                value = self.evaluate(network)
        finally:
            for module, mode in modes.items():
                module.training = mode
        after = _checksums(network)
        changed = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
        if changed is not None:
            raise InputError(
                f"evaluate must leave the network as it is, got {changed!r} changed: call model.eval() in it, train "
                "nothing, and convert a copy"
            )
        return self._checked(value)

    def _checked(self, value: Any) -> float:
        if isinstance(value, Accuracy):
            return value
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
        try:
            number = None if isinstance(value, bool | str | bytes) else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = None
        if number is None:
            raise InputError(f"evaluate must return a number, got {type(value).__name__}")
        if not math.isfinite(number):
            raise InputError(f"evaluate must return a finite number, got {number}")
        if self.images and 0 <= number <= 100:
            return Accuracy(number, self.images)
        return number


def _checksums(network: nn.Module) -> dict[str, int]:
    """Of every floating tensor of a network; whole numbers count batches, which does not change what it computes."""
    tensors = {
        name: tensor.detach()
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    return {
        name: zlib.crc32(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def interval_of(score: float) -> tuple[float | None, float | None]:
    """95 % confidence interval, where the number of images is known."""
    return wilson_interval(score, score.images) if isinstance(score, Accuracy) else (None, None)


def _count(evaluate: Evaluate, name: str) -> int | None:
    value = getattr(evaluate, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def measure_point(planned: PlannedPoint, sweep: WidthSweep, scorer: Scorer) -> FrontierPoint:
    """Compress, keep, evaluate; a fault of the plan or of ``evaluate`` makes the point a failed one.

    Args:
        planned: What to do; its plan is read from the run and verified.
        sweep: The keep ratio that it belongs to.
        scorer: How it is scored.

    Returns:
        The point, not yet in the study.

    Raises:
        InputError: The plan's object is missing or damaged.
        StoreError: An object could not be written.
    """
    content = sweep.plan.store.read(planned.plan, "json")
    plan = from_json(CompressionPlan, content, where=f"plan of point {planned.key}")
    keep = {"keep": sweep.keep_object} if sweep.keep_object else {}
    point = FrontierPoint(
        **{f.name: getattr(planned, f.name) for f in fields(PlannedPoint)},
        number=-1,
        state="done",
        clamped=plan.clamped,
        objects={"plan": planned.plan, **keep},
        provenance={**provenance(_device_of(sweep.prepared.model)), "seed": sweep.prepared.seed},
    )
    clock = _Clock()
    try:
        return _measured(point, plan, sweep, scorer, clock=clock)
    except StoreError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's evaluate raises: recorded, the rest goes on
        return replace(point, state="failed", error=fault_of(error, LONGEST_REASON), seconds=clock.seconds)


def _measured(
    point: FrontierPoint, plan: CompressionPlan, sweep: WidthSweep, scorer: Scorer, *, clock: "_Clock"
) -> FrontierPoint:
    store = sweep.plan.store
    with clock.stage("compress"):
        result = quantized(sweep.network_for(point), plan)
    with clock.stage("store"):
        packed, machine = result.packed(), sweep.plan.cost
        cost = machine.in_report_or_not(result.cost)  # a baseline may have widths that the machine does not run
        objects = {
            **point.objects,
            "cost": store.write(canonical(with_schema(cost, COST_SCHEMA)), "json"),
            "layers": store.write(canonical(list(packed.entries)), "json"),
            "levels": store.write(packed.levels, "bin"),
            "state": store.write(packed.state, "safetensors"),
        }
    with clock.stage("evaluate"):
        score = scorer.score(result.model)
    low, high = interval_of(score)
    return replace(
        point,
        accuracy=float(score),
        accuracy_low=low,
        accuracy_high=high,
        images=score.images if isinstance(score, Accuracy) else None,
        hits=score.hits if isinstance(score, Accuracy) else "",
        costs={name: result.cost.total[name] for name in METRICS}
        | {HARDWARE + name: found.total for name, found in cost.hardware.items()},
        objects=objects,
        seconds=clock.seconds,
    )


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 4)


@cache
def versions() -> Mapping[str, str]:
    """Versions that results depend on."""
    return {
        "slimbit": version("slimbit"),
        "torch": str(torch.__version__),
        "optuna": version("optuna"),
        "python": platform.python_version(),
    }


def provenance(device: torch.device) -> dict[str, Any]:
    """Where a point was made."""
    hardware = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count() or 0}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    named = {} if device.type == "cpu" else {"device": gpu}
    return {"versions": dict(versions()), "hardware": {**hardware, "threads": torch.get_num_threads(), **named}}


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
