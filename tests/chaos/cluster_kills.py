"""Kill the workers of a shared run at random, crash its database, and check that nothing is lost, doubled or different.

    python tests/chaos/cluster_kills.py [--rounds 20] [--seed 0] [--kills 2] [--away 3]

A round is a run of its own on a PostgreSQL server and an S3-compatible server that refuses three requests in ten, both
started here on the loopback. Two to six workers, each in a folder of its own, share it; each is killed (SIGKILL) at
random moments and started again, or stopped until it counts as gone, and the database is crashed and restarted once,
after up to ``--away`` seconds. When the run is finished, its trials are counted in the database itself and its points
are compared with those of one worker that nobody disturbed. With ``--kills 0`` the workers' messages about the servers
are shown. Needs the environment of ``make test`` and the programs of PostgreSQL.
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
REFUSED = 0.3
"""Share of requests that the artifact store refuses; boto3 tries three times, so that one in 37 comes back to us."""
CUT_OFF = 0.25
"""Share of the moments at which a worker is not killed, but stopped until it counts as gone, and then goes on."""
SETTINGS: dict[str, Any] = {"points": 6, "baselines": True}


def work(out: str, settings: dict[str, Any]) -> None:
    """Target of a worker; what it says about the servers goes to a file beside its folder."""

    def tell(progress: Any) -> None:
        if progress.stage == "note" and " answer" in progress.message:
            with Path(f"{out}.txt").open("a") as stream:
                stream.write(f"{Path(out).name}: {progress.message}\n")

    case.trace(out, pause=0.05, progress=tell, **settings, **SETTINGS)


@dataclass
class Crew:
    """Workers of one round, each followed by another in the same folder when it is killed."""

    folder: Path
    settings: dict[str, Any]
    chance: random.Random
    kills_of_each: int
    kills: int = 0
    cut_off: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[int | None] = field(default_factory=list)

    def start(self, count: int) -> None:
        context = multiprocessing.get_context("forkserver")
        for number in range(count):
            moments = [
                (self.chance.uniform(0.5, 15), self.chance.random() < CUT_OFF) for _ in range(self.kills_of_each)
            ]
            thread = threading.Thread(target=self._keep, args=(context, f"worker-{number}", moments))
            self.threads.append(thread)
            thread.start()

    def _keep(self, context: Any, name: str, moments: list[tuple[float, bool]]) -> None:
        for moment, is_cut_off in [*moments, (None, False)]:
            process = context.Process(target=work, args=(str(self.folder / name), self.settings))
            process.start()
            process.join(moment)
            if process.is_alive() and is_cut_off:
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(2 * TAKEOVER_SECONDS)
                os.kill(process.pid, signal.SIGCONT)
                process.join()
                self.cut_off += 1
            elif process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                self.kills += 1
            if process.exitcode not in (0, -signal.SIGKILL):
                self.failures.append(process.exitcode)
                print(f"{name} ended with {process.exitcode} ({moment=}, {is_cut_off=})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=2, help="of each worker")
    parser.add_argument("--away", type=float, default=3.0, help="most seconds between crash and start of the database")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "optuna", "sqlalchemy", "psycopg", "slimbit.frontier.trace"])
    totals: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as name,
        cluster.postgres() as postgres,
        cluster.s3(refused=REFUSED) as environment,
    ):
        os.environ.update(environment)
        folder = Path(name)
        expected = case.outcome(case.trace(folder / "alone", **SETTINGS))
        for number in range(arguments.rounds):
            chance = random.Random(arguments.seed + number)
            place = folder / f"round-{number}"
            found = one_round(place, postgres, chance, expected, kills=arguments.kills, away=arguments.away)
            if not arguments.kills:
                print("".join(file.read_text() for file in sorted(place.glob("*.txt"))), end="")
            totals.update(found)
            print(f"round {number}: " + ", ".join(f"{count} {what}" for what, count in found.items()), flush=True)
    print(f"{arguments.rounds} rounds: " + ", ".join(f"{count} {what}" for what, count in totals.items()))
    wrong = totals["lost"] + totals["doubled"] + totals["different"] + totals["workers that failed"]
    sys.exit(1 if wrong else 0)


def one_round(
    folder: Path,
    postgres: cluster.Postgres,
    chance: random.Random,
    expected: dict[str, Any],
    *,
    kills: int,
    away: float,
) -> dict[str, int]:
    url = cluster.new_database(postgres)
    settings = {
        "storage": url,
        "artifacts": f"s3://{cluster.BUCKET}/{folder.name}",
        "takeover_seconds": TAKEOVER_SECONDS,
    }
    workers = chance.randint(2, 6)
    crew = Crew(folder, settings, chance, kills)
    crew.start(workers)
    time.sleep(chance.uniform(3, 20))
    postgres.stop()
    time.sleep(away * chance.uniform(0.03, 1) if kills else away)
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
        "cut off": crew.cut_off,
        "workers that failed": len(crew.failures),
        "points": len(counts),
        "lost": len(expected.keys() - counts.keys()),
        "doubled": sum(count - 1 for count in counts.values()),
        "different": sum(outcome[key] != expected[key] for key in outcome.keys() & expected.keys()),
    }


if __name__ == "__main__":
    main()
