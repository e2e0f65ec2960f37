"""The table of a run on a database server, for workers that share nothing else but an artifact store.

Two Optuna studies: one has a trial per point, the other one a trial per task and per decision.

* A point that somebody begins is queued as a waiting trial; who sets it from waiting to running has claimed it, and the
  storage lets one do so. Of several trials of a point the first that is not finished counts.
* A claim gives a sign every few seconds (Optuna's heartbeat, by the server's clock). A trial without one for
  `ServerTable.takeover_seconds` is failed by whoever sees it, and queued again. A worker that was only cut off cannot
  finish a trial that has failed: its result is dropped.
* Decisions are trials that are added as a whole and numbered by the storage: the first of a name counts, for everyone.
* Clocks of machines take no part: the server's tells how old a sign is.
* A server that is away is asked again for ten minutes. For two signs after it was away, no worker counts as gone.
"""

import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from slimbit.frontier import study as studies
from slimbit.frontier.patience import Patience, silent
from slimbit.frontier.table import Claim, ClaimLost, Holder, RunTable, holder_of, this_worker, worker_name
from slimbit.frontier.trials import finish_trial, start_trial
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint, PlannedPoint

PROTOCOL = 1
"""How workers share a run; a worker of another protocol is refused."""
SIGNS = 8
"""Signs of life in the time after which a worker counts as gone: it may miss most of them."""
OPENING_SECONDS = 60.0
"""How long a server that does not answer at the start is waited for."""
BEGINNERS = {"42P07", "42710", "23505"}
"""States of SQL where workers that begin at the same time make the same tables or the same study."""


class ServerTable(RunTable):
    """The table of a run on a database server; make it with `open_table`.

    Attributes:
        points: The study with a trial per point.
        tasks: The study with a trial per task and per decision.
        takeover_seconds: After so long without a sign a worker counts as gone.
    """

    def __init__(
        self, points: studies.RunStudy, tasks: studies.RunStudy, takeover_seconds: int, tell: Callable[[str], None]
    ) -> None:
        self.points, self.tasks, self.takeover_seconds, self._tell = points, tasks, takeover_seconds, tell
        self.takeover = f"{takeover_seconds} s after its last sign"
        self._sign_seconds = max(1, takeover_seconds // SIGNS)
        storage = points.storage
        storage.heartbeat_interval, storage.grace_period = self._sign_seconds, takeover_seconds
        storage.heartbeat_stale_trial_callback = self._queue_again
        self._next_check = time.monotonic() + 2 * self._sign_seconds
        weakref.finalize(self, storage.engine.dispose)  # drivers warn of connections that nobody closed

    def finished(self) -> list[studies.TrialRow]:
        """The trials of finished points; those of workers that are gone have failed without a point."""
        self._take_over()
        return [row for row in self.points.rows() if row.state.is_finished() and _has_result(row)]

    def notes(self) -> dict[str, Any]:
        """Digest of every decision by its name."""
        found: dict[str, Any] = {}
        for row in self.tasks.rows():
            name, digest = row.attributes.get("note"), row.attributes.get("digest")
            if name is not None and (name not in found or row.attributes.get("grows")):
                found[name] = digest
        return found

    def note(self, name: str, digest: str, *, grows: bool = False) -> None:
        """Note a decision as a finished trial: whatever its number, the first of that name counts."""
        said = {"note": name, "digest": digest, "grows": grows, "worker": worker_name()}
        self.tasks.add_trial(_trial(TrialState.COMPLETE, said, value=0.0))

    @contextmanager
    def claim(self, name: str, what: str = "") -> Iterator[Claim | None]:
        """Claim a task; what it took is the value of its trial."""
        self._take_over()
        self.tasks.rows()
        begun = time.monotonic()
        with self._claimed(self.tasks, name, what or name, {}) as claim:
            yield claim
            if claim is not None and claim.trial is not None:
                claim.is_finished = True
                self._finish(self.tasks, claim.trial, TrialState.COMPLETE, [time.monotonic() - begun])

    def claim_point(self, planned: PlannedPoint) -> AbstractContextManager[Claim | None]:
        """Claim a point by its trial."""
        what = f"point {planned.key} ({planned.label})"
        return self._claimed(self.points, planned.key, what, studies.knobs_of(planned))

    def add(self, point: FrontierPoint, claim: Claim | None, metric: str) -> FrontierPoint:
        """Keep a finished point: finish its trial, which only its holder can."""
        if claim is None or claim.trial is None:
            raise ClaimLost(f"point {point.key} is not claimed by this worker")
        row, content = claim.trial, studies.attributes_of(point)[studies.POINT] | {"state": point.state}
        claim.is_finished = True
        state = TrialState.COMPLETE if point.state == "done" else TrialState.FAIL
        if not self._finish(self.points, row, state, studies.values_of(point, metric), {studies.POINT: content}):
            raise ClaimLost(self._lost(point.key))
        return replace(point, number=row.number)

    def holders(self) -> tuple[Holder, ...]:
        """Who works on what, as the running trials of both studies say."""
        running = [
            row for table in (self.tasks, self.points) for row in table.rows() if row.state == TrialState.RUNNING
        ]
        return tuple(holder_of(row.attributes.get("worker")) for row in running)

    def next_points(self, left: Sequence[PlannedPoint]) -> Sequence[PlannedPoint]:
        """At random where others are at work, so that workers do not all try for the same one; those in work last."""
        running = {row.attributes.get("key") for row in self.points.rows() if row.state == TrialState.RUNNING}
        if not running:
            return left
        free = [planned for planned in left if planned.key not in running]
        random.shuffle(free)
        return free

    # --- claims ---

    @contextmanager
    def _claimed(self, study: studies.RunStudy, name: str, what: str, knobs: dict[str, Any]) -> Iterator[Claim | None]:
        row = self._won(study, name, what, knobs)
        if row is None:
            yield None
            return
        claim, ended = Claim(name, row), threading.Event()
        threading.Thread(target=self._give_signs, args=(study, row.id, ended), daemon=True).start()
        try:
            yield claim
        finally:
            ended.set()
            if not claim.is_finished:
                with contextlib.suppress(Exception):  # it only saves others the time until this worker counts as gone
                    study.storage.set_trial_state_values(row.id, TrialState.FAIL)

    def _won(self, study: studies.RunStudy, name: str, what: str, knobs: dict[str, Any]) -> studies.TrialRow | None:
        """The trial of something that this worker has got; None where another one was first."""
        me = this_worker(what)
        row = self._counting(study, name)
        if row is None:
            mine = study.add_trial(_trial(TrialState.WAITING, {"key": name, "worker": me}, **knobs))
            study.rows()
            row = self._counting(study, name)
            if row is None or row.id != mine.id:  # somebody else queued it a moment before
                if study.write(lambda: start_trial(study.storage.engine, mine.id, {})):
                    self._finish(study, mine, TrialState.FAIL)
                return None
        if row.state != TrialState.WAITING:
            return None
        changed = {} if row.attributes.get("worker") == me else {"worker": me}
        return row if study.write(lambda: start_trial(study.storage.engine, row.id, changed)) else None

    def _counting(self, study: studies.RunStudy, name: str) -> studies.TrialRow | None:
        """The trial that decides who has something: the first of its name that is not finished."""
        return next((r for r in study.known() if r.attributes.get("key") == name and not r.state.is_finished()), None)

    def _finish(
        self,
        study: studies.RunStudy,
        row: studies.TrialRow,
        state: TrialState,
        values: Sequence[float] | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Finish a trial that this worker has; whether it still had it."""
        content = result or {}
        if study.write(lambda: finish_trial(study.storage.engine, row.id, state, values, content)):
            return True
        # either another worker took it over, or the server did it and could not say so before it went away
        found = next(r for r in study.rows() if r.id == row.id)
        said = found.attributes.get("worker")
        mine = isinstance(said, dict) and said.get("worker") == worker_name()
        return mine and found.state == state and content.keys() <= found.attributes.keys()

    def _give_signs(self, study: studies.RunStudy, trial: int, ended: threading.Event) -> None:
        while not ended.wait(self._sign_seconds):
            try:
                study.storage.record_heartbeat(trial)
            except Exception:  # noqa: BLE001 - the worker itself says so when it needs the server
                study.patience.last_failure = time.monotonic()
        study.storage.remove_session()

    def _take_over(self) -> None:
        """Fail the trials of workers that are gone, at most once a sign."""
        now = time.monotonic()
        failures = [study.patience.last_failure for study in (self.points, self.tasks)]
        if now < self._next_check or any(at is not None and now - at < 2 * self._sign_seconds for at in failures):
            return
        self._next_check = now + self._sign_seconds
        for study in (self.points, self.tasks):
            with studies.quiet():
                study.write(lambda study=study: optuna.storages.fail_stale_trials(study.study))  # type: ignore[misc]

    def _queue_again(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """What follows on a trial of a worker that is gone: a point is queued again, a task when somebody needs it."""
        holder = holder_of(trial.user_attrs.get("worker"))
        self._tell(f"{holder.worker} gave no sign for {self.takeover_seconds} s: {holder.what} is taken over")
        if study.study_name == self.points.study.study_name and "key" in trial.user_attrs:
            again = _trial(
                TrialState.WAITING,
                {"key": trial.user_attrs["key"]},
                params=trial.params,
                distributions=trial.distributions,
            )
            study.add_trial(again)

    def _lost(self, key: str) -> str:
        return f"point {key} was taken over by another worker after {self.takeover_seconds} s without a sign"


def open_table(
    url: str, name: str, *, metric: str | None, takeover_seconds: int | None, tell: Callable[[str], None] = silent
) -> ServerTable:
    """The table of a run on a database server.

    Args:
        url: Address of the database.
        name: Name of the run's study.
        metric: Cost metric of a run to work on, which is made where it has not begun; None: of one to read.
        takeover_seconds: After so long without a sign a worker counts as gone, where the run is new.
        tell: Called with a sentence when the server is away and when a worker is gone.

    Raises:
        InputError: The address is none, the server does not answer or refuses, there is no such run, or other versions
            of Slimbit work on it.
        MissingExtraError: The driver of the database is not installed.
    """
    address = _with_driver(url)
    where, reason = studies.where(url), _reason_of(url)
    opening = Patience(where, is_passing=is_passing, reason=reason, tell=tell, seconds=OPENING_SECONDS)
    beginning = Patience(where, is_passing=_is_of_beginners, reason=reason, seconds=OPENING_SECONDS)

    def opened() -> ServerTable:
        storage = studies.open_storage(address, create=metric is not None, engine_kwargs=_engine_options(address))
        if storage.engine.dialect.name == "postgresql":
            sqlalchemy.event.listen(storage.engine, "connect", _prepare_session)
            storage.engine.dispose()  # the connections that opened it are not prepared
        try:
            return joined(storage)
        except BaseException:
            storage.engine.dispose()
            raise

    def joined(storage: optuna.storages.RDBStorage) -> ServerTable:
        if metric is not None:
            _begin(storage, name, metric, takeover_seconds)
        points = optuna.load_study(storage=storage, study_name=name)
        tasks = optuna.load_study(storage=storage, study_name=_tasks(name))
        found = tasks.user_attrs
        if found.get("protocol") != PROTOCOL:
            raise InputError(
                f"run {name} of {studies.where(url)} must be one that this version of Slimbit shares (protocol "
                f"{PROTOCOL}), got protocol {found.get('protocol')}: use one version on all machines"
            )
        patient = Patience(where, is_passing=is_passing, reason=reason, tell=tell)
        both = [studies.RunStudy(storage, study, url, patient) for study in (points, tasks)]
        return ServerTable(both[0], both[1], int(found["takeover_seconds"]), tell)

    with studies.quiet(), studies.reading(url):
        try:
            return opening(lambda: beginning(opened))
        except KeyError:
            raise InputError(f"{studies.where(url)} must hold the run {name!r}, got none") from None
        except studies.FAULTS as error:
            raise InputError(f"{studies.where(url)} must let workers in, got {studies.reason(error, url)}") from error


def _begin(storage: optuna.storages.RDBStorage, name: str, metric: str, takeover_seconds: int | None) -> None:
    """Make the studies of a run where another worker has not made them."""
    points = optuna.create_study(
        storage=storage, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
    )
    if not points.metric_names:
        points.set_metric_names(["accuracy", metric])
    tasks = optuna.create_study(storage=storage, study_name=_tasks(name), load_if_exists=True)
    if "protocol" not in tasks.user_attrs:
        tasks.set_user_attr("takeover_seconds", takeover_seconds)
        tasks.set_user_attr("protocol", PROTOCOL)


def run_names(table: ServerTable) -> list[str]:
    """Names of the other runs in the same database."""
    with studies.quiet():
        names = [found.study_name for found in table.points.storage.get_all_studies()]
    own = table.points.study.study_name
    return sorted(name for name in names if _tasks(name) in names and name != own)


def _tasks(name: str) -> str:
    return f"{name}-tasks"


def _has_result(row: studies.TrialRow) -> bool:
    """Whether a finished trial is a measured point; a worker that is gone leaves a failed one without."""
    point = row.attributes.get(studies.POINT)
    failed = isinstance(point, dict) and point.get("state") == "failed"
    return row.state == TrialState.COMPLETE or (row.state == TrialState.FAIL and failed)


def _trial(state: TrialState, attributes: dict[str, Any], **others: Any) -> FrozenTrial:
    with studies.quiet():
        return optuna.create_trial(state=state, user_attrs=attributes, **others)


def _with_driver(url: str) -> str:
    """PostgreSQL with psycopg 3, which is what ``slimbit[cluster]`` brings."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def _engine_options(url: str) -> dict[str, Any]:
    """A connection that is cut off ends within a minute, instead of the hours that systems wait by themselves.

    Connections are not tried before each use, which would double the round trips of a point: `Patience` makes a new one
    where one has ended.
    """
    if not url.startswith("postgresql+psycopg:"):
        return {}
    return {
        "connect_args": {
            "connect_timeout": 10, "keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3,
            "tcp_user_timeout": 30000,
        }
    }  # fmt: skip


def _prepare_session(connection: Any, _: Any) -> None:
    """Let PostgreSQL end transactions of machines that are cut off: their locks would stop every other worker.

    Signs of life are kept as local times of the session: one time zone for all, whatever a machine is set to.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '30s'")
        cursor.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def _reason_of(url: str) -> Callable[[Exception], str]:
    return lambda error: studies.reason(error, url)


def is_passing(error: Exception) -> bool:
    """Whether a database is likely to do better at the next try: it is away, restarts, or two workers were in its way.

    PostgreSQL gives reasons for refusing a connection as text only.
    """
    root = _root(error)
    state = getattr(root, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in ("08", "40", "53", "57")
    if not {"OperationalError", "InterfaceError", "DisconnectionError"} & {
        kind.__name__ for kind in type(root).__mro__
    }:
        return False
    text = str(root)
    refused = "FATAL" in text
    return not refused or any(
        word in text for word in ("starting up", "shutting down", "recovery", "too many", "termin")
    )


def _is_of_beginners(error: Exception) -> bool:
    return getattr(_root(error), "sqlstate", None) in BEGINNERS


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error
