"""One point: carry out its plan, keep what came out, score it."""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from slimbit.apply.compress import compress
from slimbit.frontier.branch import Branch
from slimbit.frontier.interval import wilson_interval
from slimbit.frontier.levels import pack_levels
from slimbit.frontier.workspace import PlannedPoint, canonical
from slimbit.records.cost import METRICS
from slimbit.records.files import StoreError
from slimbit.records.plan import CompressionPlan
from slimbit.records.point import FrontierPoint

Evaluate = Callable[[nn.Module], Any]
LONGEST_REASON = 500


@dataclass(frozen=True)
class Scorer:
    """The user's ``evaluate``, checked.

    Attributes:
        evaluate: From a network to a number, higher is better. It may say how many ``images`` and ``classes`` it
            scores; then the number is a percentage. It may also give a ``digest`` of what it scores on.
    """

    evaluate: Evaluate

    @property
    def images(self) -> int | None:
        """Number of images it scores, where it says so."""
        return _count(self.evaluate, "images")

    @property
    def classes(self) -> int | None:
        """Number of classes, where it says so."""
        return _count(self.evaluate, "classes")

    @property
    def digest(self) -> str:
        """Digest of images and labels, "" where it gives none."""
        value = getattr(self.evaluate, "digest", "")
        return value if isinstance(value, str) else ""

    def score(self, network: nn.Module) -> float:
        """The accuracy of a network.

        Raises:
            ValueError: ``evaluate`` returned something else than a finite number.
        """
        value = self.evaluate(network)
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"evaluate must return a number, got {type(value).__name__}") from None
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError(f"evaluate must return a finite number, got {value}")
        return number

    def interval(self, accuracy: float) -> tuple[float | None, float | None]:
        """95 % confidence interval, where the number of images is known and the accuracy is a percentage."""
        if not self.images or not 0 <= accuracy <= 100:
            return None, None
        return wilson_interval(accuracy, self.images)


def _count(evaluate: Evaluate, name: str) -> int | None:
    value = getattr(evaluate, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def measure_point(planned: PlannedPoint, branch: Branch, scorer: Scorer) -> FrontierPoint:
    """Compress, keep, evaluate; a fault of the plan or of ``evaluate`` makes the point a failed one.

    Args:
        planned: What to do; its plan is read from the run and verified.
        branch: The width that it belongs to, opened.
        scorer: How it is scored.

    Returns:
        The point, not yet in the study.

    Raises:
        InputError: The plan's object is missing or damaged.
        StoreError: An object could not be written.
    """
    plan = CompressionPlan.from_dict(_json(branch.workspace.read(planned.plan, "json")))
    point = FrontierPoint(
        number=-1,
        key=planned.key,
        state="done",
        policy=planned.policy,
        setting=planned.setting,
        baseline=planned.baseline,
        metric=planned.metric,
        price=planned.price,
        plan=planned.plan,
        clamped=plan.clamped,
        objects={"plan": planned.plan, **branch.objects},
        provenance={**provenance(_device_of(branch.subject.model)), "seed": branch.subject.seed},
        width=planned.width,
    )
    clock = _Clock()
    try:
        return _measured(point, plan, branch, scorer, clock=clock)
    except StoreError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's evaluate raises: recorded, the rest goes on
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]
        return replace(point, state="failed", error=reason, seconds=clock.seconds)


def _measured(
    point: FrontierPoint, plan: CompressionPlan, branch: Branch, scorer: Scorer, *, clock: "_Clock"
) -> FrontierPoint:
    subject, workspace = branch.subject, branch.workspace
    with clock.stage("compress"):
        result = compress(subject.model, plan, subject.survey.spec, subject.calibration)
    with clock.stage("store"):
        report = subject.cost_of(result)
        objects = {
            **point.objects,
            "cost": workspace.write(canonical(report.to_dict()), "json"),
            "levels": workspace.write(pack_levels(subject.stored(result)), "safetensors"),
        }
    with clock.stage("evaluate"):
        accuracy = scorer.score(result.model)
    low, high = scorer.interval(accuracy)
    return replace(
        point,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        costs={name: report.total[name] for name in METRICS},
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


def _json(content: bytes) -> Any:
    import json

    return json.loads(content)


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
