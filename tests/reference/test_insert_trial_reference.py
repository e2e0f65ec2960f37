"""Trials that `slimbit.frontier.insert` adds, against those that Optuna itself adds: every table, row by row."""

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
from slimbit.frontier import study as studies
from slimbit.frontier.insert import insert_trial
from slimbit.frontier.server import open_table
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


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_rows_equal_those_that_optuna_writes(where: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if where == "sqlite":
        storage = studies.create_study(f"sqlite:///{tmp_path}/study.db", "ours", "esn_digital").storage
    else:
        url = cluster.new_database(request.getfixturevalue("postgres"))
        storage = open_table(url, "run", metric="esn_digital", takeover_seconds=60).points.storage
    both = ["maximize", "minimize"]
    ours, theirs = (
        optuna.create_study(storage=storage, study_name=name, directions=both, load_if_exists=True)
        for name in ("ours", "theirs")
    )
    identifiers = [storage.get_study_id_from_name(study.study_name) for study in (ours, theirs)]
    for number, trial in enumerate(map(made, CASES)):
        assert insert_trial(storage.engine, identifiers[0], trial)[1] == number
        storage.create_new_trial(identifiers[1], template_trial=trial)
    mine, optunas = (everything(storage, identifier) for identifier in identifiers)
    assert mine == optunas
    trials, values, parameters, attributes = 4, 2 + 2, 1 + 2 + 2, 2 + 1 + 2
    assert sum(map(len, mine.values())) == trials + values + parameters + attributes
    for one, other in zip(ours.trials, theirs.trials, strict=True):
        other._trial_id = one._trial_id
        assert one == other
