"""The Optuna study of a run: one trial per point, written in one transaction when the point is finished.

Optuna's own queue (``enqueue_trial`` and ``ask``) is not used to share work between processes: on SQLite it reads
that a trial is waiting and marks it as running in two steps, so that two processes may get the same one, and a
killed process leaves a running trial behind. Here a trial exists only when it is complete (`create_trial` and
`add_trial`), and who works on what is decided by locks that the system releases when a process ends
(`slimbit.frontier.store`).
"""

import math
import os
import sqlite3
import urllib.parse
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from slimbit.records.codec import from_plain, plain
from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.files import not_written
from slimbit.records.point import FrontierPoint
from slimbit.records.text import fault_of

NAME = "study.db"
STUDY = "frontier"
PATIENCE_SECONDS = 120
"""How long a process waits for others to finish writing; each write takes milliseconds."""

_FAULTS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)
_FIELDS = tuple(f.name for f in fields(FrontierPoint) if f.name not in ("number", "state", "costs"))
_KNOBS: dict[str, BaseDistribution] = {
    "price": FloatDistribution(1e-60, 1e60, log=True),
    "bits": FloatDistribution(1, 16),
    "epoch": FloatDistribution(1, 1e9),
    "sigma": FloatDistribution(1e-60, 1e60, log=True),
    "keep_ratio": FloatDistribution(0, 1),
}
"""What turned the knob, as parameters that Optuna's dashboard can draw."""


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


def create_study(url: str, name: str, metric: str) -> optuna.Study:
    """A new study with the directions "accuracy up, cost down", or the one that is there already.

    Raises:
        StoreError: It cannot be written.
        InputError: The address is none, or what is there is damaged.
    """
    _check_sound(url)
    with _quiet(), _writing(url):
        study = optuna.create_study(
            storage=_storage(url), study_name=name, directions=["maximize", "minimize"], load_if_exists=True
        )
        if not study.metric_names:
            study.set_metric_names(["accuracy", metric])
        return study


def load_study(url: str, name: str) -> optuna.Study:
    """The study of that name.

    Raises:
        InputError: The study is missing or damaged; the file or address is named.
    """
    _check_sound(url)
    with _quiet(), _reading(url):
        try:
            return optuna.load_study(storage=_storage(url, create=False), study_name=name)
        except KeyError:
            raise InputError(f"{_where(url)} must hold the study {name!r}, got none") from None


def read_trials(study: optuna.Study, url: str) -> list[FrozenTrial]:
    """Every trial, in order of numbers.

    Raises:
        InputError: The study is damaged.
    """
    with _quiet(), _reading(url):
        return list(study.get_trials(deepcopy=False))


def point_of(trial: FrozenTrial, url: str) -> FrontierPoint:
    """The point that a trial stands for.

    Raises:
        InputError: It is none of ours; the trial is named.
    """
    where = f"trial {trial.number} of {_where(url)}"
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        raise InputError(f"{where} must be finished, got one that is {trial.state.name.lower()}")
    known = {name: value for name, value in trial.user_attrs.items() if name in _FIELDS}
    costs = {name: value for name, value in trial.user_attrs.items() if name in METRICS}
    state = "done" if trial.state == TrialState.COMPLETE else "failed"
    values = {**known, "number": trial.number, "state": state, "costs": costs}
    point = from_plain(FrontierPoint, values, where=where)
    missing = [name for name in ("key", "plan", "objects") if not getattr(point, name)]
    if missing:
        raise InputError(f"{where} must hold {missing[0]}, got none")
    return point


def add_point(study: optuna.Study, point: FrontierPoint, *, metric: str, url: str) -> FrontierPoint:
    """Keep a finished point as a trial, in one transaction; returns it with its number.

    Raises:
        StoreError: The disk is full or the storage cannot be reached.
    """
    data = plain(point)
    attributes = {name: data[name] for name in _FIELDS} | dict(point.costs)
    knobs: dict[str, float] = {} if point.setting is None else {point.setting.kind: float(point.setting.value)}
    knobs |= {"keep_ratio": point.keep_ratio} if point.keep_ratio != 1 else {}
    values = [float(value) for value in (point.accuracy, point.costs.get(metric)) if value is not None]
    done = point.state == "done"
    trial = optuna.create_trial(
        state=TrialState.COMPLETE if done else TrialState.FAIL,
        values=values if done and len(values) == 2 else [float(point.accuracy or 0.0), math.inf] if done else None,
        params=knobs,
        distributions={name: _KNOBS[name] for name in knobs},
        user_attrs=attributes,
    )
    with _quiet(), _writing(url):
        study.add_trial(trial)
        trials = study.get_trials(deepcopy=False)
    number = max(t.number for t in trials if t.user_attrs.get("key") == point.key)
    return replace(point, number=number)


def note(study: optuna.Study, name: str, url: str) -> Any:
    """What was noted in the study under a name, or None."""
    with _quiet(), _reading(url):
        return study.user_attrs.get(name)


def set_note(study: optuna.Study, name: str, value: Any, url: str) -> None:
    """Note something in the study, in one transaction."""
    with _quiet(), _writing(url):
        study.set_user_attr(name, value)


def _storage(url: str, *, create: bool = True) -> optuna.storages.RDBStorage:
    sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": PATIENCE_SECONDS}} if sqlite else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=options, skip_table_creation=not create)
    except (sqlalchemy.exc.ArgumentError, ImportError, ValueError) as error:  # ValueError: a port that is no number
        raise InputError(f"storage must be an address of a database, got {_where(url)}: {_reason(error)}") from error


def _check_sound(url: str) -> None:
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


def _where(url: str) -> str:
    """The storage for people, without a password."""
    file = sqlite_file(url)
    if file is not None:
        return f"study {file}"
    try:
        return f"storage {sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)}"
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return f"storage {url.rsplit('@', maxsplit=1)[-1][:80]!r}"


@contextmanager
def _reading(url: str) -> Iterator[None]:
    try:
        yield
    except SlimbitError:
        raise
    except Exception as error:  # of an edited study Optuna raises anything: KeyError, AssertionError, JSONDecodeError
        raise _damaged(url, error) from error


@contextmanager
def _writing(url: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise not_written(_where(url), OSError(0, _reason(error))) from error
    except SlimbitError:
        raise
    except Exception as error:
        raise _damaged(url, error) from error


def _damaged(url: str, error: Exception) -> InputError:
    found = _reason(error) if isinstance(error, _FAULTS) else fault_of(error)
    return InputError(
        f"{_where(url)} must be readable and whole, as Optuna {optuna.__version__} writes it, got {found}"
    )


def _reason(error: BaseException) -> str:
    """The database's own words, which Optuna and SQLAlchemy wrap."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither Optuna's log of every trial nor its notes about experimental features, and no lasting change."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
