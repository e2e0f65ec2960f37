"""Kill the workers of a shared run at random, crash its database, and check that nothing is lost, doubled or different.

    python tests/chaos/cluster_kills.py [--rounds 20] [--seed 0]

A round is a run of its own on a PostgreSQL server and an S3-compatible server, both started here on the loopback. Two
to six workers, each in a folder of its own, share it; each is killed (SIGKILL) at random moments and started again, and
the database is crashed and restarted once. When the run is finished, its trials are counted in the database itself and
its points are compared with those of one worker that nobody disturbed. Needs ``slimbit[cluster]``, ``moto[server]`` and
the programs of PostgreSQL.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
import frontier_case as case
from slimbit.frontier import study as studies
from slimbit.frontier.frontier import open_run
from slimbit.frontier.server import open_table

TAKEOVER_SECONDS = 6
SETTINGS: dict[str, Any] = {"points": 6, "baselines": True}
KILLS_PER_WORKER = 2


def work(out: str, settings: dict[str, Any]) -> None:
    case.trace(out, pause=0.05, **settings, **SETTINGS)


@dataclass
class Crew:
    """Workers of one round, each followed by another in the same folder when it is killed."""

    folder: Path
    settings: dict[str, Any]
    chance: random.Random
    kills: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[int | None] = field(default_factory=list)

    def start(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        for number in range(count):
            moments = [self.chance.uniform(0.5, 15) for _ in range(KILLS_PER_WORKER)]
            thread = threading.Thread(target=self._keep, args=(context, f"worker-{number}", moments))
            self.threads.append(thread)
            thread.start()

    def _keep(self, context: Any, name: str, moments: list[float]) -> None:
        for moment in [*moments, None]:
            process = context.Process(target=work, args=(str(self.folder / name), self.settings))
            process.start()
            process.join(moment)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                self.kills += 1
            elif process.exitcode != 0:
                self.failures.append(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "optuna", "sqlalchemy", "psycopg", "slimbit.frontier.trace"])
    totals: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as name,
        cluster.postgres() as postgres,
        cluster.s3() as environment,
    ):
        os.environ.update(environment)
        folder = Path(name)
        expected = case.outcome(case.trace(folder / "alone", **SETTINGS))
        for number in range(arguments.rounds):
            found = one_round(folder / f"round-{number}", postgres, random.Random(arguments.seed + number), expected)
            totals.update(found)
            print(f"round {number}: " + ", ".join(f"{count} {what}" for what, count in found.items()), flush=True)
    print(f"{arguments.rounds} rounds: " + ", ".join(f"{count} {what}" for what, count in totals.items()))
    wrong = totals["lost"] + totals["doubled"] + totals["different"] + totals["workers that failed"]
    sys.exit(1 if wrong else 0)


def one_round(
    folder: Path, postgres: cluster.Postgres, chance: random.Random, expected: dict[str, Any]
) -> dict[str, int]:
    url = cluster.new_database(postgres)
    settings = {
        "storage": url,
        "artifacts": f"s3://{cluster.BUCKET}/{folder.name}",
        "takeover_seconds": TAKEOVER_SECONDS,
    }
    workers = chance.randint(2, 6)
    crew = Crew(folder, settings, chance)
    crew.start(workers)
    time.sleep(chance.uniform(3, 20))
    postgres.stop()
    time.sleep(chance.uniform(0.1, 3))
    postgres.start()
    for thread in crew.threads:
        thread.join()
    opened = open_run(folder / "worker-0", storage=url)
    table = open_table(url, opened.info.study, metric=None, takeover_seconds=None)
    counts = Counter(studies.point_of(row, url).key for row in table.finished())
    outcome = case.outcome(opened)
    return {
        "workers": workers,
        "kills": crew.kills,
        "workers that failed": len(crew.failures),
        "points": len(counts),
        "lost": len(expected.keys() - counts.keys()),
        "doubled": sum(count - 1 for count in counts.values()),
        "different": sum(outcome[key] != expected[key] for key in outcome.keys() & expected.keys()),
    }


if __name__ == "__main__":
    main()
