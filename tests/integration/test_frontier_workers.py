"""Workers that are killed, workers side by side, workers that are interrupted: always the same points, each once."""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from slimbit.frontier.frontier import open_run
from slimbit.records.errors import InputError


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Processes that start at once: everything heavy was imported by the server they fork from."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["torch._dynamo", "optuna", "sqlalchemy", "slimbit.frontier.trace"])
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    start = time.perf_counter()
    frontier = case.trace(out, baselines=False)
    return case.outcome(frontier), time.perf_counter() - start


def start(
    context: ForkServerContext,
    out: Path,
    log: Path,
    *,
    pause: float = 0.0,
    keep_ratios: tuple[float, ...] = (1.0,),
    together: bool = False,
) -> Any:
    process = context.Process(
        target=case.work, args=(str(out), str(log), pause, keep_ratios), kwargs={"together": together}
    )
    process.start()
    return process


def killed_and_continued(
    context: ForkServerContext, folder: Path, expected: dict[str, Any], *, kills: int, seconds: float, seed: int
) -> None:
    """Kill a run at random moments, then let it finish."""
    moment = random.Random(seed)
    out, log = folder / "run", folder / "log"
    for _ in range(kills):
        process = start(context, out, log)
        process.join(moment.uniform(0.05, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert case.outcome(case.trace(out, baselines=False)) == expected
    files = [p.name for p in out.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert len(files) <= kills  # at most the file that was being written is left, under a name that nobody reads


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(
    context: ForkServerContext, tmp_path: Path, undisturbed: tuple[dict[str, Any], float], seed: int
) -> None:
    expected, seconds = undisturbed
    killed_and_continued(context, tmp_path, expected, kills=2, seconds=0.6 * seconds, seed=seed)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(
    context: ForkServerContext, tmp_path: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    expected, seconds = undisturbed
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        killed_and_continued(context, folder, expected, kills=1, seconds=1.2 * seconds, seed=100 + seed)


def test_four_workers_share_the_points(
    context: ForkServerContext, tmp_path: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    workers = [start(context, out, log, together=True) for _ in range(4)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    lines = [line.split() for line in log.read_text().splitlines()]
    assert max(Counter(key for _, key in lines).values()) == 1  # nobody measured what another did
    assert len(case.measured_by(log)) > 1
    assert case.outcome(open_run(out)) == undisturbed[0]


def test_workers_share_the_keep_ratios(context: ForkServerContext, tmp_path: Path) -> None:
    keep_ratios = (1.0, 0.75, 0.5)
    alone = case.trace(tmp_path / "alone", baselines=False, keep_ratios=keep_ratios)
    out, log = tmp_path / "run", tmp_path / "log"
    killed = start(context, out, log, keep_ratios=keep_ratios)
    killed.join(1.5)
    if killed.is_alive():
        os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    workers = [start(context, out, log, pause=0.05, keep_ratios=keep_ratios) for _ in range(3)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 3
    lines = [line.split() for line in log.read_text().splitlines()]
    assert max(Counter(key for _, key in lines).values()) == 1
    assert case.outcome(open_run(out)) == case.outcome(alone)


def test_a_killed_workers_point_is_taken_over_at_once(
    context: ForkServerContext, tmp_path: Path, undisturbed: tuple[dict[str, Any], float]
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    case_pause = 120.0
    process = start(context, out, log, pause=case_pause)
    locks = out / "locks"
    while not (locks / "prepare.lock").exists():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    begun = time.perf_counter()
    assert case.outcome(case.trace(out, baselines=False)) == undisturbed[0]
    assert time.perf_counter() - begun < case_pause  # no lease had to run out


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, undisturbed: tuple[dict[str, Any], float]) -> None:
    class Impatient(case.Agreement):
        def __call__(self, model: nn.Module) -> float:
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().__call__(model)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        case.trace(out, evaluate=Impatient(), baselines=False)
    assert len(open_run(out).points) == 4  # six evaluations, the first two of the float network
    evaluate = case.Agreement()
    assert case.outcome(case.trace(out, evaluate=evaluate, baselines=False)) == undisturbed[0]
    assert evaluate.calls == 1 + case.POINTS - 4  # once of the float network, as when the run began


def test_a_worker_with_other_settings_is_refused_while_others_work(tmp_path: Path) -> None:
    case.trace(tmp_path / "run", points=2, baselines=False)
    with pytest.raises(InputError, match="seed of run"):
        case.trace(tmp_path / "run", points=2, baselines=False, seed=1)


def test_an_external_storage_holds_several_runs(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    one = case.trace(tmp_path / "one", storage=url, points=2, baselines=False)
    two = case.trace(tmp_path / "two", storage=url, points=3, baselines=False)
    assert not (tmp_path / "one" / "study.db").exists()
    assert open_run(tmp_path / "one", storage=url).points == one.points
    assert open_run(tmp_path / "two", storage=url).points == two.points
    with pytest.raises(InputError, match="give --storage"):
        open_run(tmp_path / "one")
