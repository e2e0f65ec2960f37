"""The Optuna study of a run: one trial per point, and what was decided as the study's own attributes.

A point is added as a whole: one attribute holds it, so that a trial has all of it or none. Trials are read with one
query of our own: Optuna's reader makes objects of every attribute, which takes 1.5 s of CPU for a run of 1,000 points
where this takes 0.1 s. The tables are Optuna's, whose version it checks whenever a storage is opened.
"""

import math
import os
import sqlite3
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from slimbit.frontier.patience import Patience
from slimbit.frontier.trials import insert_trial
from slimbit.records.codec import from_plain, plain
from slimbit.records.errors import InputError, MissingExtraError, SlimbitError
from slimbit.records.files import not_written, parse_json
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.text import fault_of

NAME = "study.db"
STUDY = "frontier"
POINT = "point"
"""Attribute of a trial that holds its point."""
PATIENCE_SECONDS = 120
"""How long a process waits for others to finish writing to a SQLite file; each write takes milliseconds."""

Result = TypeVar("Result")
FAULTS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
_FIELDS = tuple(f.name for f in fields(FrontierPoint) if f.name not in ("number", "state"))
_KNOBS: dict[str, BaseDistribution] = {
    "price": FloatDistribution(1e-60, 1e60, log=True),
    "bits": FloatDistribution(1, 16),
    "epoch": FloatDistribution(1, 1e9),
    "sigma": FloatDistribution(1e-60, 1e60, log=True),
    "learned": FloatDistribution(0, 1e9),
    "keep_ratio": FloatDistribution(0, 1),
}
"""What turned the knob, as parameters that Optuna's dashboard can draw."""
_TRIALS = sqlalchemy.text(
    "SELECT t.trial_id, t.number, t.state, a.key, a.value_json FROM trials t "
    "LEFT JOIN trial_user_attributes a ON a.trial_id = t.trial_id "
    "WHERE t.study_id = :study AND (t.trial_id > :last OR t.trial_id IN :unfinished) ORDER BY t.trial_id"
).bindparams(sqlalchemy.bindparam("unfinished", expanding=True))
_NOTES = sqlalchemy.text("SELECT key, value_json FROM study_user_attributes WHERE study_id = :study")


@dataclass(frozen=True)
class TrialRow:
    """A trial as it stands in the storage.

    Attributes:
        id: Its number among the trials of all studies of the storage.
        number: Its number in its study.
        state: Of Optuna.
        attributes: Its user attributes.
    """

    id: int
    number: int
    state: TrialState
    attributes: dict[str, Any]


class RunStudy:
    """An Optuna study, opened; make it with `create_study` or `load_study`.

    Attributes:
        storage: Where it is.
        study: Optuna's own view of it.
        url: Address of the storage.
        patience: What carries out its queries.
    """

    def __init__(self, storage: optuna.storages.RDBStorage, study: optuna.Study, url: str, patience: Patience) -> None:
        self.storage, self.study, self.url, self.patience = storage, study, url, patience
        self.id: int = storage.get_study_id_from_name(study.study_name)
        self._rows: dict[int, TrialRow] = {}

    def rows(self) -> list[TrialRow]:
        """Every trial, in the order in which they were made; a finished one is read once, however often this is called.

        Raises:
            InputError: The study is damaged.
        """
        unfinished = [row.id for row in self._rows.values() if not row.state.is_finished()]
        # trials are made one after the other under a lock of the study: none appears before one that is there
        found: dict[int, TrialRow] = {}
        with reading(self.url):
            for trial, number, state, key, value in self._query(
                _TRIALS, last=max(self._rows, default=-1), unfinished=unfinished
            ):
                row = found.setdefault(trial, TrialRow(trial, number, TrialState[state], {}))
                if key is not None:
                    row.attributes[key] = _value(value)
        self._rows |= found
        return self.known()

    def known(self) -> list[TrialRow]:
        """Every trial as it was at the last reading."""
        return [self._rows[trial] for trial in sorted(self._rows)]

    def notes(self) -> dict[str, Any]:
        """The attributes of the study."""
        with reading(self.url):
            return {key: _value(value) for key, value in self._query(_NOTES)}

    def set_note(self, name: str, value: Any) -> None:
        """Note something in the study, in one transaction."""
        self.write(lambda: self.storage.set_study_user_attr(self.id, name, value))

    def add_trial(self, trial: FrozenTrial) -> TrialRow:
        """Add a trial in one transaction; `known` has it after the next reading, which finds earlier ones of others."""
        made, number = self.write(lambda: insert_trial(self.storage.engine, self.id, trial))
        return TrialRow(made, number, trial.state, trial.user_attrs)

    def write(self, action: Callable[[], Result]) -> Result:
        """The result of something that writes.

        Raises:
            StoreError: The disk is full or the storage cannot be reached.
        """
        with writing(self.url):
            return self.patience(action)

    def _query(self, statement: sqlalchemy.TextClause, **parameters: Any) -> list[Any]:
        def answer() -> list[Any]:
            with self.storage.engine.connect() as connection:
                return list(connection.execute(statement, {"study": self.id, **parameters}))

        return self.patience(answer)


def url_of(folder: Path, storage: str | None) -> str:
    """The storage's address: the one given, or the run's own SQLite file.

    The file is named as a SQLite URI, where ``?``, ``%``, ``#`` and braces of a folder's name are escaped: in a plain
    address they would mean something, and the database would lie elsewhere. SQLAlchemy escapes what it unescapes.
    """
    if storage:
        return storage
    path = urllib.parse.quote(os.fsencode(folder.resolve() / NAME))
    url = sqlalchemy.engine.URL.create("sqlite", database=f"file:{path}", query={"uri": "true"})
    return url.render_as_string(hide_password=False)


def create_study(url: str, name: str, metric: str, *, storage: optuna.storages.RDBStorage | None = None) -> RunStudy:
    """A new study with the directions "accuracy up, cost down", or the one that is there already.

    Args:
        url: Address of the storage.
        name: Name of the study.
        metric: What the cost is.
        storage: The storage, where it was opened by somebody else, who also sees to faults of its server.

    Raises:
        StoreError: It cannot be written.
        InputError: The address is none, or what is there is damaged.
    """
    check_sound(url)
    with quiet(), writing(url):
        opened = storage or open_storage(url)
        study = optuna.create_study(
            storage=opened, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
        )
        if not study.metric_names:
            study.set_metric_names(["accuracy", metric])
        return RunStudy(opened, study, url, patience_for(url))


def load_study(url: str, name: str, *, storage: optuna.storages.RDBStorage | None = None) -> RunStudy:
    """The study of that name.

    Raises:
        InputError: The study is missing or damaged; the file or address is named.
    """
    check_sound(url)
    with quiet(), reading(url):
        try:
            opened = storage or open_storage(url, create=False)
            return RunStudy(opened, optuna.load_study(storage=opened, study_name=name), url, patience_for(url))
        except KeyError:
            raise InputError(f"{where(url)} must hold the study {name!r}, got none") from None


def point_of(row: TrialRow, url: str) -> FrontierPoint:
    """The point that a finished trial stands for.

    Raises:
        InputError: It is none of ours; the trial is named.
    """
    named = f"trial {row.number} of {where(url)}"
    if not row.state.is_finished() or row.state == TrialState.PRUNED:
        raise InputError(f"{named} must be finished, got one that is {row.state.name.lower()}")
    stored = row.attributes.get(POINT)
    if not isinstance(stored, dict):
        raise InputError(f"{named} must hold a point, got none")
    state = "done" if row.state == TrialState.COMPLETE else "failed"
    point = from_plain(FrontierPoint, {**stored, "number": row.number, "state": state}, where=named)
    missing = [name for name in ("key", "plan", "objects") if not getattr(point, name)]
    if missing:
        raise InputError(f"{named} must hold {missing[0]}, got none")
    return point


def attributes_of(point: FrontierPoint) -> dict[str, Any]:
    """User attributes of the trial of a point: its name, and all of it."""
    data = plain(point)
    return {"key": point.key, POINT: {name: data[name] for name in _FIELDS}}


def knobs_of(point: PlannedPoint) -> dict[str, Any]:
    """Parameters of a trial and their distributions: what was varied, for Optuna's dashboard."""
    knobs: dict[str, float] = {} if point.setting is None else {point.setting.kind: float(point.setting.value)}
    knobs |= {"keep_ratio": point.keep_ratio} if point.keep_ratio != 1 else {}
    return {"params": knobs, "distributions": {name: _KNOBS[name] for name in knobs}}


def values_of(point: FrontierPoint, metric: str) -> list[float] | None:
    """Accuracy and cost of a point that did not fail; without a cost of that metric it is infinite."""
    if point.state != "done":
        return None
    cost = point.costs.get(metric)
    return [float(point.accuracy or 0.0), math.inf if cost is None or point.accuracy is None else float(cost)]


def add_point(study: RunStudy, point: FrontierPoint, *, metric: str) -> FrontierPoint:
    """Keep a finished point as a trial, in one transaction; returns it with its number.

    Raises:
        StoreError: The disk is full or the storage cannot be reached.
    """
    with quiet():
        trial = optuna.create_trial(
            state=TrialState.COMPLETE if point.state == "done" else TrialState.FAIL,
            values=values_of(point, metric),
            user_attrs=attributes_of(point),
            **knobs_of(point),
        )
    return replace(point, number=study.add_trial(trial).number)


def open_storage(url: str, *, create: bool = True, **options: Any) -> optuna.storages.RDBStorage:
    """Optuna's storage at an address.

    Args:
        url: The address.
        create: Whether its tables are made where there are none.
        options: Others of `optuna.storages.RDBStorage`.

    Raises:
        InputError: It is no address.
        MissingExtraError: The driver of the database is not installed.
    """
    engine = {"connect_args": {"timeout": PATIENCE_SECONDS}} if url.startswith("sqlite") else {}
    if _is_split_wrong(url):
        raise InputError(f"password of {where(url)} must be percent-encoded (%40 for @), got one with an @ in it")
    try:
        return optuna.storages.RDBStorage(
            url, **{"engine_kwargs": engine, "skip_table_creation": not create, **options}
        )
    except ImportError as error:
        found = url.split(":", 1)[0]
        if found in ("postgresql", "postgresql+psycopg"):
            raise MissingExtraError("psycopg 3", "cluster", where(url)) from error
        raise InputError(
            f"{where(url)} must name a driver that is installed, got {found}: {reason(error, url)}"
        ) from error
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise InputError(f"storage must be an address of a database, got {where(url)}: {reason(error, url)}") from error


def patience_for(url: str) -> Patience:
    """None with a file: SQLite itself waits for others, and what else fails does not pass."""
    return Patience(where(url), is_passing=lambda _: False, reason=lambda error: reason(error, url))


def check_sound(url: str) -> None:
    """Let SQLite check the file as a whole: a truncated one may answer some questions and not others."""
    file = sqlite_file(url)
    if file is None or not file.exists():
        return
    try:
        with closing(sqlite3.connect(file, timeout=PATIENCE_SECONDS)) as connection:
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        raise InputError(f"study {file} must be a whole SQLite database, got {error}") from error
    if verdict != "ok":
        raise InputError(f"study {file} must be a whole SQLite database, got {' '.join(str(verdict).split())[:200]}")


def is_server(storage: str | None) -> bool:
    """Whether an address is of a database server, not of a file.

    >>> is_server("postgresql://me@db/slimbit"), is_server("sqlite:///study.db"), is_server(None)
    (True, False, False)
    """
    return bool(storage) and not str(storage).startswith("sqlite")


def sqlite_file(url: str) -> Path | None:
    """The file behind a SQLite address; None for any other."""
    try:
        parts = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None
    if not parts.drivername.startswith("sqlite") or not parts.database or ":memory:" in parts.database:
        return None
    if "uri" not in parts.query:
        return Path(parts.database)
    return Path(os.fsdecode(urllib.parse.unquote_to_bytes(parts.database.removeprefix("file:"))))


def where(url: str) -> str:
    """The storage for people, without a password and without options, which may hold one.

    >>> where("postgresql://me:secret@db/slimbit?sslpassword=secret")
    'storage postgresql://me:***@db/slimbit'
    """
    file = sqlite_file(url)
    if file is not None:
        return f"study {file}"
    try:
        parts = sqlalchemy.engine.make_url(url).set(query={})
        if not _is_split_wrong(url):
            return f"storage {parts.render_as_string(hide_password=True)}"
    except (sqlalchemy.exc.ArgumentError, ValueError):
        pass
    return f"storage {url.rsplit('@', maxsplit=1)[-1].split('?', maxsplit=1)[0][:80]!r}"


def _is_split_wrong(url: str) -> bool:
    """Whether an ``@`` of a password is taken for its end, so that the rest would be shown as the server's name.

    >>> _is_split_wrong("postgresql://me:p@ss@db/slimbit"), _is_split_wrong("postgresql://me:p%40ss@db/slimbit")
    (True, False)
    """
    try:
        return "@" in (sqlalchemy.engine.make_url(url).host or "")
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return False


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn what goes wrong with reading a study into one sentence about it."""
    try:
        yield
    except SlimbitError:
        raise
    except Exception as error:  # of an edited study Optuna raises anything: KeyError, AssertionError, JSONDecodeError
        raise _damaged(url, error) from error


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Turn what goes wrong with writing a study into one sentence about it."""
    try:
        yield
    except FAULTS as error:
        raise not_written(where(url), OSError(0, reason(error, url))) from error
    except SlimbitError:
        raise
    except Exception as error:
        raise _damaged(url, error) from error


def _damaged(url: str, error: Exception) -> InputError:
    found = reason(error, url) if isinstance(error, FAULTS) else _without_passwords(fault_of(error), url)
    return InputError(f"{where(url)} must be readable and whole, as Optuna {optuna.__version__} writes it, got {found}")


def reason(error: BaseException, url: str) -> str:
    """The database's own words, which Optuna and SQLAlchemy wrap, without a password of the address."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _without_passwords(" ".join(str(getattr(error, "orig", None) or error).split())[:200], url)


def _without_passwords(text: str, url: str) -> str:
    """A text with the address and every secret in it replaced: some errors quote what they were given."""
    _, _, rest = url.partition("://")
    user, _, _ = rest.rpartition("@")
    _, _, query = rest.partition("?")
    given = [user.partition(":")[2], *(part.partition("=")[2] for part in query.split("&") if "password" in part)]
    text = text.replace(url, where(url)) if given else text
    for secret in {found for value in given for found in (value, urllib.parse.unquote(value)) if found}:
        text = text.replace(secret, "***")
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Neither Optuna's log of every trial nor its notes about experimental features, and no lasting change."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _value(text: str) -> Any:
    """The value of an attribute; `ValueError`, of which `reading` makes a sentence on the study, where it is none."""
    try:
        return parse_json(text, "an attribute")
    except InputError as error:
        raise ValueError(str(error)) from error
