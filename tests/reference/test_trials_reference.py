"""Trials that `slimbit.frontier.trials` adds and finishes, against Optuna's own: every table, row by row."""

import math
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
from slimbit.frontier import study as studies
from slimbit.frontier.server import open_table
from slimbit.frontier.trials import finish_trial, insert_trial, start_trial
from slimbit.records.point import PlannedPoint
from slimbit.records.setting import Bits, Price

KNOBS = [
    studies.knobs_of(PlannedPoint(key="a", plan="0" * 64, policy="optimal", setting=setting, keep_ratio=ratio))
    for setting, ratio in ((Price(2e-9, "esn_digital"), 1.0), (Bits(4.0), 0.5))
]
CASES: list[dict[str, Any]] = [
    {"state": TrialState.COMPLETE, "values": [91.25, 1e6], "user_attrs": {"key": "a", "point": [1, "µ"]}} | KNOBS[0],
    {"state": TrialState.COMPLETE, "values": [0.0, math.inf], "user_attrs": {}} | KNOBS[1],
    {"state": TrialState.FAIL, "user_attrs": {"key": "b"}},
    {"state": TrialState.WAITING, "user_attrs": {"key": "c", "worker": None}} | KNOBS[1],
]  # fmt: skip


def everything(storage: optuna.storages.RDBStorage, study: int) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of a study's trials, without the numbers that a storage gives to rows."""
    found = {}
    tables = sqlalchemy.MetaData()
    tables.reflect(storage.engine)
    with storage.engine.connect() as connection:
        trials = [row.trial_id for row in connection.execute(
            sqlalchemy.select(tables.tables["trials"]).where(tables.tables["trials"].c.study_id == study))]  # fmt: skip
        for name, table in tables.tables.items():
            if "trial_id" not in table.c:
                continue
            kept = [c for c in table.c if not c.primary_key and c.name not in ("trial_id", "study_id")]
            for number, trial in enumerate(trials):
                rows = connection.execute(sqlalchemy.select(*kept).where(table.c.trial_id == trial))
                found[f"{name} of trial {number}"] = sorted(map(tuple, rows), key=repr)
    return found


def made(case: dict[str, Any]) -> FrozenTrial:
    with studies.quiet():
        return optuna.create_trial(**case)


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    """Some versions keep times in another zone than the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> optuna.storages.RDBStorage:
    if request.param == "sqlite":
        return studies.create_study(f"sqlite:///{tmp_path}/study.db", "run", "esn_digital").storage
    url = cluster.new_database(request.getfixturevalue("postgres"))
    return open_table(url, "run", metric="esn_digital", takeover_seconds=60).points.storage


def two_studies(storage: optuna.storages.RDBStorage) -> list[tuple[int, optuna.Study]]:
    with studies.quiet():
        made = [optuna.create_study(storage=storage, directions=["maximize", "minimize"]) for _ in range(2)]
    return [(storage.get_study_id_from_name(study.study_name), study) for study in made]


@pytest.mark.usefixtures("in_tokyo")
def test_added_trials_equal_those_that_optuna_adds(storage: optuna.storages.RDBStorage) -> None:
    (ours, one), (theirs, other) = two_studies(storage)
    for number, trial in enumerate(map(made, CASES)):
        assert insert_trial(storage.engine, ours, trial)[1] == number
        storage.create_new_trial(theirs, template_trial=trial)
    rows = everything(storage, ours)
    assert rows == everything(storage, theirs)
    trials, values, parameters, attributes = 4, 2 + 2, 1 + 2 + 2, 2 + 1 + 2
    assert sum(map(len, rows.values())) == trials + values + parameters + attributes
    for mine, optunas in zip(one.trials, other.trials, strict=True):
        optunas._trial_id = mine._trial_id
        assert mine == optunas


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize(
    ("state", "values"),
    [(TrialState.COMPLETE, [91.25, 1e6]), (TrialState.COMPLETE, [0.0, math.inf]), (TrialState.FAIL, None)],
)
def test_finished_trials_equal_those_that_optuna_finishes(
    storage: optuna.storages.RDBStorage, state: TrialState, values: list[float] | None
) -> None:
    (ours, one), (theirs, other) = two_studies(storage)
    result = {"point": {"key": "a"}, "note": "µ"}
    started = [storage.create_new_trial(study, template_trial=made(CASES[-1])) for study in (ours, theirs)]
    assert start_trial(storage.engine, started[0], {})
    assert storage.set_trial_state_values(started[1], TrialState.RUNNING)
    assert finish_trial(storage.engine, started[0], state, values, result)
    for key, value in result.items():
        storage.set_trial_user_attr(started[1], key, value)
    storage.set_trial_state_values(started[1], state, values)
    for _ in range(2):
        mine, optunas = one.trials[0], other.trials[0]
        assert (mine.state, mine.values, mine.params, mine.user_attrs) == (
            optunas.state, optunas.values, optunas.params, optunas.user_attrs)  # fmt: skip
        for name in ("datetime_start", "datetime_complete"):
            assert abs(getattr(mine, name) - getattr(optunas, name)) < timedelta(minutes=30)
        assert not finish_trial(storage.engine, started[0], TrialState.FAIL, None, {"late": True})  # changes nothing


def test_one_of_several_starts_a_trial(storage: optuna.storages.RDBStorage) -> None:
    """Its sign of life is there from the beginning: without one Optuna would never count it as stale."""
    (study, view), _ = two_studies(storage)
    trial, _ = insert_trial(storage.engine, study, made(CASES[-1]))
    assert start_trial(storage.engine, trial, {"worker": "one"})
    assert not start_trial(storage.engine, trial, {"worker": "two"})
    assert [(found.state, found.user_attrs) for found in view.trials] == [
        (TrialState.RUNNING, {"key": "c", "worker": "one"})
    ]
    storage.heartbeat_interval, storage.grace_period = 1, 3600
    assert storage._get_stale_trial_ids(study) == []
    storage.grace_period = -1
    assert storage._get_stale_trial_ids(study) == [trial]
