"""One run on several machines: a database server, an artifact store, workers with folders of their own, and faults."""

import io
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
import frontier_case as case
from slimbit.cli.points import points as list_points
from slimbit.frontier import server
from slimbit.frontier import study as studies
from slimbit.frontier.frontier import open_run
from slimbit.frontier.objects import FolderObjects, StoredObjects, open_objects
from slimbit.frontier.patience import Patience
from slimbit.frontier.server import ServerTable, is_passing, open_table
from slimbit.frontier.table import ClaimLost
from slimbit.records.config import RunConfig
from slimbit.records.errors import InputError, MissingExtraError, SlimbitError
from slimbit.records.files import StoreError
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.setting import Bits

SMALL: dict[str, Any] = {"points": 3, "baselines": False}
PLANNED = PlannedPoint(key="sweep-00", plan="0" * 64, policy="optimal", setting=Bits(4))
POINT = FrontierPoint(
    **vars(PLANNED), number=-1, state="done", accuracy=90.0, costs={"esn_digital": 2.0}, objects={"plan": "0" * 64}
)


@pytest.fixture
def database(postgres: cluster.Postgres) -> str:
    return cluster.new_database(postgres)


def opened(url: str, *, seconds: int = 60, said: list[str] | None = None) -> ServerTable:
    tell = (lambda _: None) if said is None else said.append
    return open_table(url, "frontier-case", metric="esn_digital", takeover_seconds=seconds, tell=tell)


# --- a run of several machines ---


def work(out: str, log: str, settings: dict[str, Any], environment: dict[str, str]) -> None:
    """Target of a worker: each point it measured goes to the log."""
    os.environ.update(environment)

    def tell(progress: Any) -> None:
        if progress.point is not None:
            with Path(log).open("a") as stream:
                stream.write(f"{progress.point.key}\n")

    case.trace(out, pause=0.05, progress=tell, **SMALL, **settings)


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Where objects are, and the environment that it takes."""
    if request.param == "folder":
        return str(tmp_path / "objects"), {}
    return f"s3://{cluster.BUCKET}/{tmp_path.name}", request.getfixturevalue("s3")


def test_workers_with_folders_of_their_own_share_a_run(
    database: str, artifacts: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"storage": database, "artifacts": artifacts[0]}
    context, log = multiprocessing.get_context("forkserver"), tmp_path / "log"
    context.set_forkserver_preload(["optuna", "sqlalchemy", "slimbit.frontier.trace"])
    workers = [
        context.Process(target=work, args=(str(tmp_path / name), str(log), settings, artifacts[1]))
        for name in ("one", "two")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert max(Counter(log.read_text().split()).values()) == 1
    alone = case.trace(tmp_path / "alone", **SMALL)
    for name, value in artifacts[1].items():
        monkeypatch.setenv(name, value)
    for name in ("one", "two"):
        found = open_run(tmp_path / name, storage=database)
        assert case.outcome(found) == case.outcome(alone)
        assert found.load(found.points[0], model=case.network()).cost.total["esn_digital"] > 0
        files = {path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*")}
        assert files == {"run.json"}


def test_other_data_are_refused(database: str, tmp_path: Path) -> None:
    settings = {"storage": database, "artifacts": str(tmp_path / "objects"), **SMALL}
    case.trace(tmp_path / "one", **settings)
    with pytest.raises(InputError, match=r"calibration images' content of run frontier-case-.*--run-name"):
        case.trace(tmp_path / "two", calibration=case.images(240, seed=4), **settings)
    named = case.trace(tmp_path / "two", calibration=case.images(240, seed=4), run_name="other", **settings)
    assert named.info.study == "frontier-other"


def test_folders_that_are_not_shared_are_noticed(database: str, tmp_path: Path) -> None:
    case.trace(tmp_path / "one", storage=database, **SMALL)
    with pytest.raises(InputError, match=r"objects of the run must be readable by all its workers.*--artifacts"):
        case.trace(tmp_path / "two", storage=database, **SMALL)


def test_what_begins_and_what_goes_on_is_told(database: str, tmp_path: Path) -> None:
    settings = {"storage": database, "artifacts": str(tmp_path / "objects"), **SMALL}
    said: list[str] = []
    for name in ("one", "two"):
        case.trace(
            tmp_path / name, progress=lambda p: said.append(p.message) if p.stage == "note" else None, **settings
        )
    said = [text for text in said if text.startswith("run frontier-case-")]  # others are about the calibration
    assert "is new in storage postgresql://slimbit:***@" in said[0]
    assert said[1].endswith("goes on; a worker that is gone loses its point 120 s after its last sign")


def test_a_folder_of_another_run_is_refused(database: str, tmp_path: Path) -> None:
    case.trace(tmp_path / "run", **SMALL)
    with pytest.raises(InputError, match=r"must be frontier-case-\w+, which these settings make, got frontier: give"):
        case.trace(tmp_path / "run", storage=database, **SMALL)


def test_pruned_networks_and_added_points(database: str, tmp_path: Path) -> None:
    settings = {"keep_ratios": (1.0, 0.5), "points": 2, "baselines": False}
    shared = {"storage": database, "artifacts": str(tmp_path / "objects")}
    case.trace(tmp_path / "one", **shared, **settings)
    more = case.trace(tmp_path / "two", **shared, **(settings | {"points": 3}))
    case.trace(tmp_path / "alone", **settings)
    alone = case.trace(tmp_path / "alone", **(settings | {"points": 3}))
    assert case.outcome(more) == case.outcome(alone)


# --- workers that are gone ---


def test_a_worker_that_gives_no_sign_loses_its_point(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ServerTable, "_give_signs", lambda *_: None)
    gone = opened(database, seconds=2)
    monkeypatch.undo()
    monkeypatch.setattr(ServerTable, "_give_signs", lambda *_: None)
    with gone.claim_point(PLANNED) as lost:
        assert lost is not None
        other = opened(database, said=said)
        assert other.takeover_seconds == 2  # what the run began with, for all
        begun = time.monotonic()
        while True:
            other.finished()
            with other.claim_point(PLANNED) as claim:
                if claim is not None:
                    added = other.add(POINT, claim, "esn_digital")
                    break
            assert time.monotonic() - begun < 60
            time.sleep(0.1)
        assert time.monotonic() - begun > 1
        with pytest.raises(ClaimLost, match="taken over by another worker after 2 s"):
            gone.add(POINT, lost, "esn_digital")
    (row,) = opened(database).finished()
    assert studies.point_of(row, database) == added
    assert len(said) == 1
    assert "gave no sign for 2 s: point sweep-00 (optimal, 4 bits) is taken over" in said[0]


def test_clocks_that_differ_do_not_matter(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    one = opened(database, seconds=3)
    other = opened(database)
    with one.claim_point(PLANNED) as claim:
        monkeypatch.setattr("optuna.storages._rdb.storage.datetime", Tomorrow)
        begun = time.monotonic()
        while time.monotonic() - begun < 4:  # longer than it takes to lose a claim
            other.finished()
            with other.claim_point(PLANNED) as theirs:
                assert theirs is None
            time.sleep(0.2)
        one.add(POINT, claim, "esn_digital")


def test_time_zones_that_differ_do_not_matter(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(database, seconds=3600).claim_point(PLANNED):
        monkeypatch.setenv("PGTZ", "Asia/Tokyo")
        other = opened(database)
        other._next_check = 0.0
        other.finished()
        with other.claim_point(PLANNED) as theirs:
            assert theirs is None


def test_a_killed_worker_is_followed_by_the_next(database: str, tmp_path: Path) -> None:
    settings = {"storage": database, "artifacts": str(tmp_path / "objects"), "takeover_seconds": 2}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "sqlalchemy", "slimbit.frontier.trace"])
    log = tmp_path / "log"
    worker = context.Process(target=work, args=(str(tmp_path / "one"), str(log), settings, {}))
    worker.start()
    while not log.exists():
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    found = case.trace(tmp_path / "two", **settings, **SMALL)
    assert case.outcome(found) == case.outcome(case.trace(tmp_path / "alone", **SMALL))


# --- servers that are away ---


def test_a_database_that_restarts_is_waited_for(tmp_path: Path, postgres: cluster.Postgres) -> None:
    said: list[str] = []
    table = opened(cluster.new_database(postgres), said=said)
    with table.claim_point(PLANNED) as claim:
        postgres.stop()
        restart = threading.Timer(1.0, postgres.start)
        restart.start()
        table.add(POINT, claim, "esn_digital")
        restart.join()
    assert len(table.finished()) == 1
    assert "did not answer" in said[0]
    assert "trying again for up to 10 min" in said[0]
    assert "answered again after" in said[-1]
    assert cluster.PASSWORD not in " ".join(said)


def test_a_database_that_refuses_is_not_waited_for(database: str) -> None:
    begun = time.monotonic()
    for url in (database.replace(cluster.PASSWORD, "wrong-5ec2e7"), f"{database}_none"):
        with pytest.raises(InputError, match=r"storage postgresql://slimbit:\*\*\*@\S+ must let workers in") as raised:
            opened(url)
        assert "wrong-5ec2e7" not in str(raised.value)
        assert cluster.PASSWORD not in str(raised.value)
    assert time.monotonic() - begun < 30


def test_a_database_that_stays_away_ends_the_worker(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OPENING_SECONDS", 0.5)
    host, _, rest = database.rpartition(":")
    gone = f"{host}:{cluster.free_port()}/{rest.split('/')[1]}"
    with pytest.raises(InputError, match=r"must let workers in, got .*refused"):
        opened(gone)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("connection failed: Connection refused", True),
        ("connection failed: FATAL:  the database system is starting up", True),
        ("connection failed: FATAL:  sorry, too many clients already", True),
        ('connection failed: FATAL:  password authentication failed for user "me"', False),
        ('connection failed: FATAL:  database "x" does not exist', False),
    ],
)
def test_which_faults_pass(text: str, passes: bool) -> None:
    class OperationalError(Exception):
        pass

    assert is_passing(OperationalError(text)) == passes
    assert not is_passing(ValueError(text))


class Unsteady:
    """An artifact store that fails, or cuts content off, by a list of what it does next."""

    def __init__(self, *doings: str) -> None:
        self.doings, self.kept = list(doings), dict[str, bytes]()

    def _next(self) -> str:
        doing = self.doings.pop(0) if self.doings else ""
        if doing == "fail":
            raise OSError("slow down")
        return doing

    def write(self, name: str, content: Any) -> None:
        self._next()
        self.kept[name] = content.read()

    def open_reader(self, name: str) -> io.BytesIO:
        doing = self._next()
        from optuna.artifacts.exceptions import ArtifactNotFound

        if name not in self.kept:
            raise ArtifactNotFound(name)
        return io.BytesIO(self.kept[name][: 1 if doing == "cut" else None])

    def remove(self, name: str) -> None:
        del self.kept[name]


def test_an_artifact_store_that_fails_now_and_then() -> None:
    store, said = Unsteady("fail", "", "fail", "cut", "fail", ""), list[str]()
    objects = StoredObjects(store, "runs/one/", "s3://bucket/runs/one", said.append)
    digest = objects.write(b"levels", "bin")
    assert list(store.kept) == [f"runs/one/objects/{digest[:2]}/{digest}.bin"]
    assert objects.read(digest, "bin") == b"levels"
    assert said[0] == "artifact store s3://bucket/runs/one did not answer (slow down): trying again for up to 10 min"


def test_an_artifact_store_that_is_damaged_or_empty() -> None:
    store = Unsteady()
    objects = StoredObjects(store, "", "s3://bucket")
    digest = objects.write(b"levels", "bin")
    store.kept = dict.fromkeys(store.kept, b"other")
    with pytest.raises(InputError, match=rf"{digest}\.bin of artifact store s3://bucket must have the hash"):
        objects.read(digest, "bin")
    store.kept = {}
    with pytest.raises(InputError, match=rf"{digest}\.bin must exist in artifact store s3://bucket, got none"):
        objects.read(digest, "bin")


def test_an_artifact_store_that_stays_away_ends_the_worker() -> None:
    objects = StoredObjects(Unsteady(*["fail"] * 99), "", "s3://bucket")
    objects.patience.seconds = 0.2
    with pytest.raises(StoreError, match=r"of artifact store s3://bucket could not be written: slow down"):
        objects.write(b"levels", "bin")
    with pytest.raises(InputError, match="artifact store s3://bucket must be readable, got slow down"):
        objects.read("0" * 64, "bin")


def test_trying_again_takes_longer_and_longer_and_then_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = iter(range(0, 10_000, 50))
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    said: list[str] = []

    def away() -> None:
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        Patience("server", is_passing=lambda _: True, reason=str, tell=said.append)(away)
    assert said == ["server did not answer (away): trying again for up to 10 min"]  # once, not at every try
    for number, pause in enumerate(pauses):
        whole = min(0.1 * 2**number, 10)
        assert whole / 2 <= pause <= whole


# --- addresses, drivers, passwords, versions ---


@pytest.mark.parametrize(
    "address", ["s3://", "s3://me:secret@bucket/x", "s3://Bucket", "ftp://secret/x", "gs://a", "http://secret"]
)
def test_artifact_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(
        InputError, match="artifacts must be a folder, s3://bucket/prefix or gs://bucket/prefix"
    ) as raised:
        case.trace(tmp_path / "run", artifacts=address, **SMALL)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("module", "open_it", "said"),
    [
        (
            "psycopg",
            lambda: opened("postgresql://me:secret@127.0.0.1/x"),
            r"slimbit:? ?.*psycopg 3.*slimbit\[cluster\]",
        ),
        (
            "boto3",
            lambda: open_objects(Path(), "s3://bucket"),
            r"artifacts s3://bucket needs boto3.*slimbit\[cluster\]",
        ),
        ("google.cloud.storage", lambda: open_objects(Path(), "gs://bucket"), r"google-cloud-storage.*slimbit\[gcs\]"),
    ],
)
def test_a_driver_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, open_it: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=said.removeprefix("slimbit:? ?.*")) as raised:
        open_it()
    assert "secret" not in str(raised.value)


def test_objects_in_another_folder(tmp_path: Path) -> None:
    frontier = case.trace(tmp_path / "run", artifacts=str(tmp_path / "objects"), **SMALL)
    assert not (tmp_path / "run" / "objects").exists()
    found = open_run(tmp_path / "run")
    assert found.points == frontier.points
    assert found.load(found.points[0], model=case.network()).cost.total["esn_digital"] > 0
    moved = (tmp_path / "objects").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="object must exist"):
        found.load(found.points[0], model=case.network())
    again = open_run(tmp_path / "run", artifacts=str(moved))
    assert again.load(again.points[0], model=case.network()).cost.total["esn_digital"] > 0
    assert isinstance(open_objects(tmp_path, None), FolderObjects)


def test_passwords_stay_out_of_files_messages_and_reports(
    database: str,
    artifacts: tuple[str, dict[str, str]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in artifacts[1].items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    address = f"{database}?application_name=hidden-query&sslpassword=hidden-too"
    settings = {"storage": address, "artifacts": artifacts[0], **SMALL}
    frontier = case.trace(tmp_path / "run", progress=lambda p: said.append(repr(p)), **settings)
    frontier.report()
    case.trace(tmp_path / "run", progress=lambda p: said.append(repr(p)), **settings)
    list_points(tmp_path / "run", workers=True, storage=address)
    texts = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    with studies.quiet():
        table = open_table(database, frontier.info.study, metric=None, takeover_seconds=None)
    texts += [str(row) for study in (table.points, table.tasks) for row in study.rows()]
    texts += [*said, *capfd.readouterr(), repr(frontier)]
    assert len(texts) > 20
    assert not [text for text in texts if "hidden-" in text]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@db:5432/x", "storage postgresql://me:***@db:5432/x"),
        ("postgresql://me@db/x?password=secret", "storage postgresql://me@db/x"),
        ("postgresql://me:secret@db:port/x", "storage 'db:port/x'"),
    ],
)
def test_how_an_address_is_shown(url: str, shown: str) -> None:
    assert studies.where(url) == shown
    assert studies.reason(ValueError(f"cannot parse {url} or secret"), url).count("secret") == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:secret@127.0.0.1:port/x",
        "postgresql://me:se/cret@ret-secret@127.0.0.1:1/x",
        "postgresql+nodriver://me:secret@db/x",
        "mysql://me:secret@db/x",
        "me:secret@db/x",
        "postgresql://me:secret@127.0.0.1:1/x?unknown=secret",
    ],
)
def test_addresses_that_are_none_are_named_without_the_password(url: str) -> None:
    """Nor is it in the errors behind the error, which a traceback shows."""
    with pytest.raises(InputError, match="storage") as raised:
        opened(url)
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    assert len(str(raised.value).splitlines()) == 1
    assert "secret" not in repr(RunConfig(storage=url))


def test_a_worker_of_another_protocol_is_refused(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(database)
    monkeypatch.setattr(server, "PROTOCOL", 2)
    with pytest.raises(InputError, match=r"\(protocol 2\), got protocol 1: use one version on all machines"):
        opened(database)


def test_a_worker_of_another_version_is_told(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"storage": database, "artifacts": str(tmp_path / "objects"), **SMALL}
    case.trace(tmp_path / "one", **settings)
    said: list[str] = []
    found = {"slimbit": "9.9", "torch": "2", "optuna": "5", "python": "3"}
    monkeypatch.setattr("slimbit.frontier.trace.versions", lambda: found)
    case.trace(tmp_path / "two", progress=lambda p: said.append(p.message), **settings)
    assert any("(now 9.9)" in text for text in said)


def test_a_run_that_is_not_there(database: str, tmp_path: Path) -> None:
    case.trace(tmp_path / "run", **SMALL)
    with pytest.raises(InputError, match=r"storage postgresql://\S+ must hold the run 'frontier', got none"):
        open_run(tmp_path / "run", storage=cluster_with_tables(database))


def cluster_with_tables(url: str) -> str:
    opened(url)
    return url


# --- waiting and who works on what ---


def test_waiting_tells_who_is_waited_for_and_costs_next_to_nothing(tmp_path: Path) -> None:
    """A worker that waits four seconds for a point of another one."""
    frontier = case.trace(tmp_path / "run", **SMALL)
    with closing(sqlite3.connect(tmp_path / "run" / "study.db")) as connection:
        connection.execute("DELETE FROM trials WHERE number = 0")
        connection.commit()
    (key,) = {p.key for p in frontier.points} - {p.key for p in open_run(tmp_path / "run").points}
    holder = subprocess.Popen(
        [sys.executable, "-c", f"""
import sys, time
from pathlib import Path
from slimbit.frontier.table import FolderTable
with FolderTable(Path({str(tmp_path / 'run')!r})).claim({key!r}, "point {key}"):
    print("held", flush=True)
    time.sleep(4)
"""],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    said: list[str] = []
    spent: list[float] = []

    def tell(progress: Any) -> None:
        if progress.stage == "waiting":
            said.append(progress.message)
            spent.append(time.process_time())

    case.trace(tmp_path / "run", progress=tell, **SMALL)
    holder.communicate()
    assert f"waiting for point {key}: " in said[0]
    assert f":{holder.pid} since " in said[0]
    assert said[0].endswith("(a worker that is gone loses its claim at once when its process ends)")
    assert len(said) < 20
    assert spent[-1] - spent[0] < 1.0


def test_the_workers_of_a_run_are_listed(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"storage": database, "artifacts": str(tmp_path / "objects")}
    for name, settings in (("folder", {}), ("server", shared)):
        out, storage = tmp_path / name, settings.get("storage")
        frontier = case.trace(out, **settings, **SMALL)
        list_points(out, workers=True, storage=storage)
        assert "nobody works on this run" in capsys.readouterr().out
        from slimbit.frontier.store import open_store

        store = open_store(out, storage=storage)
        with store.claim("prepare", "range of prices"):
            list_points(out, workers=True, storage=storage)
            listed = capsys.readouterr().out
        assert "range of prices" in listed
        assert str(os.getpid()) in listed.replace("\n", "")
        assert frontier.info.study


def test_one_listing_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only one of --json, --csv and --workers"):
        list_points(tmp_path, workers=True, as_json=True)


def test_settings_of_a_cluster_are_checked() -> None:
    with pytest.raises(SlimbitError, match="run_name"):
        RunConfig(run_name="../x")
    with pytest.raises(SlimbitError, match="takeover_seconds"):
        RunConfig(takeover_seconds=1)
    assert json.loads(RunConfig().model_dump_json())["takeover_seconds"] == 120
