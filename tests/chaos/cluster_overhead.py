"""What sharing a run costs: overhead of a point with 1, 2 and 4 workers, time to read a run, CPU of waiting.

    python tests/chaos/cluster_overhead.py [--points 50] [--wait 30]

Workers claim points, sleep 0.1 to 0.3 s instead of computing, keep one object and finish the point, with the very table
and store of a real run: in a folder, and on a PostgreSQL server that is started here, where it is installed. The
overhead of a point is the time that a worker needs for it beyond its sleep. Then 1,000 points are read, and a whole run
waits for a point of another worker. On a busy machine wall-clock times are those of its scheduler unless this has the
right of way (``chrt --rr 10 python ...``). Results: benchmarks/RESULTS.md.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
import frontier_case as case
from slimbit.frontier import study as studies
from slimbit.frontier.objects import open_objects
from slimbit.frontier.server import open_table
from slimbit.frontier.store import RunStore
from slimbit.frontier.table import FolderTable, RunTable
from slimbit.records.cost import METRICS
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.setting import Price

SLEEP_SECONDS = 0.1, 0.3
"""Points take different times, so that workers do not move in step."""
READ = 1000
AIMS = {"folder": 0.020, "server": 0.050}
READ_AIM = 0.5


def planned(number: int) -> PlannedPoint:
    setting = Price(1e-9 * (number + 1), "esn_digital")
    return PlannedPoint(key=f"sweep-{number:04d}", plan="0" * 64, policy="optimal", setting=setting)


def measured(point: PlannedPoint, objects: dict[str, str]) -> FrontierPoint:
    """A point with everything that a real one has."""
    return FrontierPoint(
        **{f.name: getattr(point, f.name) for f in fields(PlannedPoint)},
        number=-1,
        state="done",
        accuracy=91.25,
        accuracy_low=90.7,
        accuracy_high=91.8,
        images=10_000,
        hits="A" * 1668,
        costs=dict.fromkeys(METRICS, 1e6),
        objects={**objects, **dict.fromkeys(("cost", "layers", "state", "plan"), "0" * 64)},
        seconds={"compress": 1.0, "store": 0.1, "evaluate": 2.0},
        provenance={"versions": {"slimbit": "0.1.0"}, "seed": 0},
    )


def opened(folder: Path, url: str | None, name: str) -> RunStore:
    if url is None:
        table: RunTable = FolderTable(
            folder, studies.create_study(studies.url_of(folder, None), "frontier", "esn_digital")
        )
    else:
        table = open_table(url, name, metric="esn_digital", takeover_seconds=120)
    return RunStore(folder, url or studies.url_of(folder, None), table, open_objects(folder, None), None)


def work(folder: Path, url: str | None, name: str, count: int, barrier: Any, answer: Any) -> None:
    """One worker: sleep through points until none is left; answers with seconds beyond that, CPU seconds and points."""
    store = opened(folder, url, name)
    store.points()
    barrier.wait()
    begun, spent, slept, own = time.perf_counter(), time.process_time(), 0.0, 0
    while True:
        finished = {point.key for point in store.points()}
        left = [point for point in map(planned, range(count)) if point.key not in finished]
        if not left:
            break
        for point in store.table.next_points(left):
            with store.claim_point(point) as claim:
                if claim is None:
                    continue
                if point.key in {found.key for found in store.points()}:
                    break
                pause = random.uniform(*SLEEP_SECONDS)
                time.sleep(pause)
                slept += pause
                digest = store.write(f"levels of {point.key}".encode(), "bin")
                store.add(measured(point, {"levels": digest}), "esn_digital", claim)
                own += 1
                break
        else:
            time.sleep(0.02)
            break  # what is left is being worked on
    answer.put((time.perf_counter() - begun - slept, time.process_time() - spent, own))


def throughput(url: str | None, workers: int, count: int) -> tuple[float, float]:
    """Overhead and CPU seconds of a point."""
    context = multiprocessing.get_context("spawn")
    barrier, answer, name = context.Barrier(workers), context.Queue(), f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        opened(folder, url, name)
        processes = [
            context.Process(target=work, args=(folder, url, name, count, barrier, answer)) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        answers = [answer.get() for _ in processes]
        for process in processes:
            process.join()
        points = len(opened(folder, url, name).points())
    assert points == count == sum(own for _, _, own in answers), (points, answers)
    seconds, cpu = sum(found[0] for found in answers), sum(found[1] for found in answers)
    return seconds / count, cpu / count


def reading(url: str | None) -> tuple[float, float, float]:
    """Seconds and CPU seconds to open and read a run of `READ` points, and to look again when nothing has changed."""
    name = f"bench-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as text:
        store = opened(Path(text), url, name)
        point = measured(planned(0), {})
        for number in range(READ):
            with store.claim_point(planned(number)) as claim:
                store.add(FrontierPoint(**{**vars(point), "key": f"sweep-{number:04d}"}), "esn_digital", claim)
        again = opened(Path(text), url, name)
        begun, spent = time.perf_counter(), time.process_time()
        assert len(again.points()) == READ
        first = time.perf_counter() - begun, time.process_time() - spent
        begun = time.perf_counter()
        assert len(again.points()) == READ
        return *first, time.perf_counter() - begun


def wait(out: Path, settings: dict[str, Any], answer: Any) -> None:
    """A worker of a whole run; answers with its CPU seconds whenever it says that it waits."""

    def tell(progress: Any) -> None:
        if progress.stage == "waiting":
            answer.put(time.process_time())

    case.trace(out, progress=tell, points=3, baselines=False, **settings)


def waiting(url: str | None, seconds: float) -> float:
    """CPU seconds of a worker that waits so long for a point of another one."""
    context = multiprocessing.get_context("spawn")
    answer, run = context.Queue(), f"waiting-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "run"
        settings: dict[str, Any] = {}
        table: RunTable = FolderTable(folder)
        if url is not None:
            settings = {"storage": url, "artifacts": f"{text}/objects", "run_name": run}
            table = open_table(url, f"frontier-{run}", metric="esn_digital", takeover_seconds=120)
        worker = context.Process(target=wait, args=(folder, settings, answer))
        with table.claim_point(replace(planned(0), key="sweep-00")):
            worker.start()
            first = last = answer.get()
            time.sleep(seconds)
            while not answer.empty():
                last = answer.get()
        worker.join()
    assert worker.exitcode == 0
    return float(last - first)


@contextlib.contextmanager
def servers() -> Iterator[dict[str, str | None]]:
    """Where the table of a run is: a folder, and a new database where PostgreSQL is installed."""
    missing = cluster.why_no_postgres()
    if missing:
        print(f"no server: {missing}")
        yield {"folder": None}
        return
    with cluster.postgres() as postgres:
        yield {"folder": None, "server": cluster.new_database(postgres)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50, help="of each worker")
    parser.add_argument("--wait", type=float, default=30.0, help="seconds")
    arguments = parser.parse_args()
    with servers() as found:
        for kind, url in found.items():
            for workers in (1, 2, 4):
                overhead, cpu = throughput(url, workers, workers * arguments.points)
                print(f"{kind}, {workers} workers: {1000 * overhead:.1f} ms a point (aim {1000 * AIMS[kind]:.0f} ms), "
                      f"{1000 * cpu:.1f} ms of CPU", flush=True)  # fmt: skip
            seconds, cpu, again = reading(url)
            print(f"{kind}: {READ} points read in {seconds:.3f} s ({cpu:.3f} s of CPU; aim {READ_AIM} s), again in "
                  f"{1000 * again:.1f} ms", flush=True)  # fmt: skip
            if arguments.wait:
                print(f"{kind}: {waiting(url, arguments.wait):.3f} s of CPU in {arguments.wait:.0f} s of waiting",
                      flush=True)  # fmt: skip
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
