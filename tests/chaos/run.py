"""Runs that are killed at random moments and continued: ``make chaos``, or ``python tests/chaos/run.py --help``.

Frontiers, joint frontiers (prune, tune, then quantize), learned ones, and trainings, each with one thread and with two.
A run is killed a few times, then left to finish, and compared with one that nobody disturbed: every point and epoch is
there, once, and equal in every bit. Not a gate: it takes half an hour.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning_fabric  # noqa: F401 - what every run imports is imported once, before processes are forked
import optuna  # noqa: F401
import torch
import torch._dynamo

import frontier_case as case
import slimbit
from slimbit.frontier.frontier import open_run
from slimbit.frontier.objects import object_path, read_object
from slimbit.records.config import PruneConfig, TuneConfig
from slimbit.records.learning import LearnConfig
from slimbit.records.training import TrainConfig
from slimbit.training.images import TrainImages
from slimbit.training.run import train_network
from slimbit.training.task import TrainTask
from training_case import task_of

KILLS_OF_A_RUN = 5
LEARNING = LearnConfig(
    epochs=4, train={"batch_size": 24, "validation_images": 0, "augment": {"crop": 0, "flip": False}}
)
TUNING = TuneConfig(epochs=2, train={"validation_images": 0, "augment": {"crop": 0, "flip": False}})


def frontier(out: Path, **more: Any) -> None:
    """Six points of a network of two convolutions."""
    case.trace(out, points=6, baselines=False, **more)


def data() -> TrainTask:
    """What it learns from."""
    pixels = case.images(96, seed=4)
    return TrainTask(
        images=TrainImages(
            pixels=((pixels * 30 + 128).clamp(0, 255).byte()).numpy(), labels=(torch.arange(96) % 5).numpy(),
            mean=(0.5,), std=(0.25,), full_scale=255, chosen=torch.arange(96).numpy(),
        ),
        example_input=torch.zeros(1, 1, 6, 6),
    )  # fmt: skip


def joint(out: Path) -> None:
    """The same of it and of a half of it, tuned for two epochs."""
    frontier(out, keep_ratios=(1.0, 0.5), prune=PruneConfig(tune=TUNING), data=data())


def learned(out: Path) -> None:
    """Six points, and as many again from a training of four epochs."""
    frontier(out, learn=LEARNING, data=data())


def training(out: Path) -> None:
    """Four epochs of a narrow residual network on some digits."""
    torch.manual_seed(0)
    config = TrainConfig(epochs=4, batch_size=32, validation_images=0, augment={"crop": 1, "flip": False})
    train_network(slimbit.network("digits_resnet@0.25"), task_of(slimbit.open_data("digits"), 96), config, out)


def of_frontier(out: Path) -> dict[str, Any]:
    """Every point, each object checked by its hash; a point that is there twice is an error."""
    found = open_run(out)
    names = Counter(point.key for point in found.points)
    for point in found.points:
        for digest in point.objects.values():
            kind = next(kind for kind in ("json", "bin", "safetensors") if object_path(out, digest, kind).exists())
            read_object(out, digest, kind)
    return {"doubled": [name for name, count in names.items() if count > 1], **case.outcome(found)}


def of_training(out: Path) -> dict[str, Any]:
    """Epochs without their times, weights, checkpoint."""
    epochs = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    signals = [json.loads(line) for line in (out / "signal.jsonl").read_text().splitlines()]
    numbers = Counter(one["epoch"] for one in epochs) + Counter(one["epoch"] for one in signals)
    kept = {f"{name} {one['epoch']}": {k: v for k, v in one.items() if k != "seconds"}
            for name, rows in (("epoch", epochs), ("signal", signals)) for one in rows}  # fmt: skip
    kept |= {name: (out / name).read_bytes() for name in ("model.safetensors", "checkpoint.safetensors")}
    return {"doubled": [str(number) for number, count in numbers.items() if count > 2], **kept}


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], dict[str, Any]]]] = {
    "frontier": (frontier, of_frontier),
    "joint frontier": (joint, of_frontier),
    "learned frontier": (learned, of_frontier),
    "training": (training, of_training),
}


def start(work: Callable[[Path], None], out: Path, log: Path, threads: int) -> int:
    """The run in a process of its own; what it says goes to the log."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        torch.set_num_threads(threads)
        torch.set_num_threads = lambda _: None  # the case wants one
        work(out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int, seconds: float | None = None) -> bool:
    """Whether it ended by itself; after so many seconds it is killed."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return not os.WIFSIGNALED(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            return not os.WIFSIGNALED(os.waitpid(child, 0)[1])
        time.sleep(0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; repeatable")
    given = parser.parse_args()
    rng, found, begun = Random(given.seed), Counter[str](), time.monotonic()
    ways = [(kind, threads) for kind in given.kind or KINDS for threads in (1, 2)]
    with tempfile.TemporaryDirectory(prefix="slimbit-chaos-") as name:
        for place, (kind, threads) in enumerate(ways):
            work, outcome = KINDS[kind]
            kills = given.kills * (place + 1) // len(ways) - given.kills * place // len(ways)
            folder = Path(name) / f"{kind}-{threads}"
            folder.mkdir()
            wanted, usual = undisturbed(work, outcome, folder, threads)
            done = runs = 0
            while done < kills:
                runs += 1
                out, log = folder / f"run{runs}", folder / f"log{runs}"
                this = 0
                while this < min(KILLS_OF_A_RUN, kills - done):
                    this += not ended(start(work, out, log, threads), rng.uniform(0, usual))
                finished = ended(start(work, out, log, threads))
                done += this
                found.update(judged(outcome, out, log, wanted, finished=finished))
                log.unlink()
            found["kills"] += done
            print(f"{kind}, {threads} threads: {done} kills of {runs} runs, {usual:.1f} s each", flush=True)
    said = ", ".join(f"{found[what]} {what}" for what in ("lost", "doubled", "with other bits", "tracebacks"))
    print(f"{found['kills']} kills of seed {given.seed} in {time.monotonic() - begun:.0f} s: {said}")
    return bool(found.total() - found["kills"])


def undisturbed(
    work: Callable[[Path], None], outcome: Callable[[Path], dict[str, Any]], folder: Path, threads: int
) -> tuple[dict[str, Any], float]:
    """What a run gives that nobody disturbs, twice the same, and how long it takes."""
    results = []
    for number in range(2):
        begin = time.monotonic()
        if not ended(start(work, folder / f"whole{number}", folder / "log", threads)):
            raise SystemExit((folder / "log").read_text())
        seconds = time.monotonic() - begin
        results.append(outcome(folder / f"whole{number}"))
    if results[0] != results[1]:
        raise SystemExit(f"two runs that nobody disturbed differ: {folder.name}")
    return results[0], seconds


def judged(
    outcome: Callable[[Path], dict[str, Any]], out: Path, log: Path, wanted: dict[str, Any], *, finished: bool
) -> Counter[str]:
    """What is wrong with a run that was killed and continued."""
    text, found = log.read_text(errors="replace"), Counter[str]()
    found["tracebacks"] = text.count("Traceback (most recent call last)") or int(not finished)
    if found["tracebacks"]:
        print(text[-3000:])
        return found
    result = outcome(out)
    found["doubled"] = len(result["doubled"])
    found["lost"] = len(wanted.keys() - result.keys())
    found["with other bits"] = sum(result[name] != value for name, value in wanted.items() if name in result)
    for name, value in wanted.items():
        if result.get(name) != value:
            print(f"{out.name}: {name} is {str(result.get(name))[:200]} instead of {str(value)[:200]}")
    return found


if __name__ == "__main__":
    sys.exit(main())
