"""A frontier run small enough to be repeated many times: no data, no training, the same in every process.

The network is random, its BatchNorm statistics are real, and its accuracy is how often it agrees with its own
float self: 100 % by definition, falling as compression bites.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.compress.prepared import PreparedNetwork, prepare
from slimbit.frontier.frontier import Frontier
from slimbit.frontier.trace import trace_frontier
from slimbit.records.config import RunConfig

CLASSES = 5
POINTS = 8
SWEPT, REFINED, BASELINES = 6, 2, 7


def network() -> nn.Module:
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Flatten(), nn.Linear(72, CLASSES),
        )  # fmt: skip
        net[1].momentum = net[4].momentum = None
        net.train()(images(seed=1))
    return net.eval()


def images(count: int = 200, *, seed: int) -> Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


class Agreement:
    """``evaluate``: percent of images on which a model decides as the float network does."""

    classes = CLASSES

    def __init__(self, *, pause: float = 0.0) -> None:
        self._images = images(seed=2)
        self.images = len(self._images)
        self._wanted = network()(self._images).argmax(1)
        self._pause = pause
        self.calls = 0

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        time.sleep(self._pause)
        with torch.no_grad():
            return 100.0 * float((model(self._images).argmax(1) == self._wanted).double().mean())


def prepared(**changed: Any) -> PreparedNetwork:
    """The network and its calibration images; changes are arguments of `prepare`."""
    settings: dict[str, Any] = {
        "model": network(),
        "example_input": torch.zeros(1, 1, 6, 6),
        "calibration": images(240, seed=3),
        "name": "case",
    }
    return prepare(**(settings | changed))


PREPARED = ("model", "example_input", "calibration", "name", "likelihood", "origin", "seed")


def trace(out: Path | str, **changed: Any) -> Frontier:
    """A run; changes are arguments of `prepare` and of `trace_frontier`, and settings of `RunConfig`."""
    evaluate = changed.pop("evaluate", None) or Agreement(pause=changed.pop("pause", 0.0))
    arguments = {name: changed.pop(name) for name in ("data", "progress") if name in changed}
    root = prepared(**{name: changed.pop(name) for name in PREPARED if name in changed})
    return trace_frontier(
        root, evaluate=evaluate, out=out, config=RunConfig(**({"points": POINTS} | changed)), **arguments
    )


def outcome(frontier: Frontier) -> dict[str, tuple[Any, ...]]:
    """What must be the same whoever measured it and however often it was interrupted."""
    return {p.key: (p.state, p.plan, p.accuracy, dict(p.objects), dict(p.costs)) for p in frontier.points}


def work(out: str, log: str, pause: float, keep_ratios: tuple[float, ...], *, together: bool) -> None:
    """Target of a worker process: each point it measured goes to the log.

    Together: after its first point it holds on until another process has measured one, too, however late that starts.
    """

    def tell(progress: Any) -> None:
        if progress.point is not None:
            with Path(log).open("a") as stream:
                stream.write(f"{os.getpid()} {progress.point.key}\n")
            deadline = time.monotonic() + 60
            while together and len(measured_by(log)) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)

    trace(out, pause=pause, progress=tell, baselines=False, keep_ratios=keep_ratios)


def measured_by(log: Path | str) -> set[str]:
    """The processes that have measured a point."""
    return {line.split()[0] for line in Path(log).read_text().splitlines()}
