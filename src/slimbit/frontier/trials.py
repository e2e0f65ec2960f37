"""Trials of an Optuna study, added, started and finished in one transaction of few statements each.

Optuna's `create_new_trial` looks every value, parameter and attribute up before it inserts it, some 15 statements
through SQLAlchemy's object mapper: 9 to 12 ms of processor time for a point, where this takes 2. Its sign of life and
each of its attributes are transactions of their own. The rows are equal to Optuna's, which a test compares; columns and
conversions are those of its own models, so that they follow its versions.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

TRIALS = models.TrialModel.__table__
VALUES = models.TrialValueModel.__table__
PARAMETERS = models.TrialParamModel.__table__
ATTRIBUTES = models.TrialUserAttributeModel.__table__
SIGNS = models.TrialHeartbeatModel.__table__


def insert_trial(engine: sqlalchemy.Engine, study: int, trial: FrozenTrial) -> tuple[int, int]:
    """Add a trial: state, times, values, parameters and user attributes.

    Args:
        engine: Of the storage.
        study: Number of the study in the storage.
        trial: From `optuna.create_trial`; it has no other content.

    Returns:
        The number of the trial in the storage, and the one in its study.
    """
    with engine.begin() as connection:
        # as in Optuna: one at a time adds to a study, so that trials are numbered without gaps. Where there are no
        # locks of rows (SQLite), the first insert locks the file.
        own = models.StudyModel.study_id == study
        connection.execute(sqlalchemy.select(models.StudyModel.study_id).where(own).with_for_update())
        columns = _columns(
            study_id=study,
            state=trial.state,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
        )
        made = connection.execute(sqlalchemy.insert(TRIALS).values(columns)).inserted_primary_key
        assert made is not None
        row = int(made[0])
        earlier = sqlalchemy.select(sqlalchemy.func.count()).where(TRIALS.c.study_id == study, TRIALS.c.trial_id < row)
        number = int(connection.execute(earlier).scalar_one())
        connection.execute(sqlalchemy.update(TRIALS).where(TRIALS.c.trial_id == row).values(number=number))
        parameters = [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": optuna.distributions.distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ]
        _insert(connection, PARAMETERS, row, parameters)
        _insert(connection, VALUES, row, _values(trial.values))
        _insert(connection, ATTRIBUTES, row, _attributes(trial.user_attrs))
    return row, number


def start_trial(engine: sqlalchemy.Engine, row: int, attributes: Mapping[str, Any]) -> bool:
    """Set a trial from waiting to running, with its first sign of life.

    The database lets one do so: of several that try, the others find that it does not wait any more. Optuna never
    counts a running trial without a sign as stale, so that a worker must not end between the two.

    Args:
        engine: Of the storage.
        row: Number of the trial in the storage.
        attributes: User attributes to be set.

    Returns:
        Whether it was waiting.
    """
    with engine.begin() as connection:
        columns = _columns(state=TrialState.RUNNING, datetime_start=datetime.now())  # noqa: DTZ005 - Optuna's are local
        waits = TRIALS.c.trial_id == row, TRIALS.c.state == TrialState.WAITING
        if connection.execute(sqlalchemy.update(TRIALS).where(*waits).values(columns)).rowcount == 0:
            return False
        connection.execute(sqlalchemy.delete(SIGNS).where(SIGNS.c.trial_id == row))
        connection.execute(sqlalchemy.insert(SIGNS).values(trial_id=row))  # the time is the server's
        for key in attributes:
            connection.execute(
                sqlalchemy.delete(ATTRIBUTES).where(ATTRIBUTES.c.trial_id == row, ATTRIBUTES.c.key == key)
            )
        _insert(connection, ATTRIBUTES, row, _attributes(attributes))
    return True


def finish_trial(
    engine: sqlalchemy.Engine,
    row: int,
    state: TrialState,
    values: Sequence[float] | None,
    attributes: Mapping[str, Any],
) -> bool:
    """Finish a trial, with all of its result or not at all.

    Args:
        engine: Of the storage.
        row: Number of the trial in the storage.
        state: How it ended.
        values: One for each direction of the study, where it is complete.
        attributes: User attributes that it does not have yet.

    Returns:
        Whether it was not finished already.
    """
    with engine.begin() as connection:
        locked = sqlalchemy.select(TRIALS.c.state).where(TRIALS.c.trial_id == row).with_for_update()
        if connection.execute(locked).scalar_one().is_finished():
            return False
        _insert(connection, VALUES, row, _values(values))
        _insert(connection, ATTRIBUTES, row, _attributes(attributes))
        columns = _columns(state=state, datetime_complete=datetime.now())  # noqa: DTZ005 - Optuna's are local
        connection.execute(sqlalchemy.update(TRIALS).where(TRIALS.c.trial_id == row).values(columns))
    return True


def _columns(**given: Any) -> dict[str, Any]:
    """Columns of a trial: Optuna's own object converts times in the way of its version."""
    made = models.TrialModel(**given)
    found = {
        attribute.columns[0].name: getattr(made, attribute.key)
        for attribute in sqlalchemy.inspect(models.TrialModel).column_attrs
    }
    return {name: value for name, value in found.items() if value is not None}


def _values(values: Sequence[float] | None) -> list[dict[str, Any]]:
    stored = map(models.TrialValueModel.value_to_stored_repr, values or ())
    return [
        {"objective": objective, "value": value, "value_type": kind} for objective, (value, kind) in enumerate(stored)
    ]


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def _insert(connection: sqlalchemy.Connection, table: sqlalchemy.Table, row: int, rows: list[dict[str, Any]]) -> None:
    if rows:
        connection.execute(sqlalchemy.insert(table), [{"trial_id": row, **content} for content in rows])
