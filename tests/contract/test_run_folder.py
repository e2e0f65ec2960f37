"""The run folder as written down in docs/reference/run-folder.md, and the store that reads it."""

import hashlib
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.records.cost import METRICS
from slimbit.records.point import FrontierPoint
from slimbit.records.run import SCHEMA, RunInfo

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "run-folder.md"


@pytest.fixture(scope="module", params=["own", "external"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Frontier:
    """The same promises whatever holds the study."""
    folder = tmp_path_factory.mktemp(request.param)
    storage = None if request.param == "own" else f"sqlite:///{folder / 'else.db'}"
    case.trace(folder / "run", storage=storage, points=4)
    found = open_run(folder / "run", storage=storage)
    found.storage = storage or f"sqlite:///{folder / 'run' / 'study.db'}"
    return found


def test_nothing_else_lies_in_the_folder(opened: Frontier) -> None:
    allowed = {"run.json", "study.db", "objects", "locks"}
    assert {path.name for path in opened.path.iterdir()} <= allowed
    objects = [path for path in (opened.path / "objects").rglob("*") if path.is_file()]
    for path in objects:
        assert re.fullmatch(r"[0-9a-f]{64}\.(json|safetensors|bin)", path.name)
        assert path.parent.name == path.name[:2]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_run_json_has_every_key_of_the_page(opened: Frontier) -> None:
    data = json.loads((opened.path / "run.json").read_text())
    assert data["schema"] == SCHEMA
    assert set(data) == {"schema", *RunInfo.__dataclass_fields__}
    table = PAGE.read_text().split("## `run.json`")[1].split("##")[0]
    named = {
        key
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == set(data)


def test_a_trial_per_point_with_both_values(opened: Frontier) -> None:
    study = optuna.load_study(study_name=opened.info.study, storage=opened.storage)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    points = opened.points
    assert len(study.trials) == len(points) == 4 + case.BASELINES
    for trial, point in zip(study.trials, points, strict=True):
        assert trial.state.name == "COMPLETE"
        assert trial.values == [point.accuracy, point.costs["esn_digital"]]
        assert trial.user_attrs.keys() == {"key", "point"}
        assert trial.user_attrs["key"] == point.key
        stored = trial.user_attrs["point"]
        assert stored.keys() == {f.name for f in fields(FrontierPoint)} - {"number", "state"}
        assert stored["objects"].keys() == {"plan", "cost", "layers", "levels", "state"}
        assert stored["costs"].keys() == set(METRICS)
        assert stored["provenance"]["versions"].keys() == {"slimbit", "torch", "optuna", "python"}
        assert stored["seconds"].keys() == {"compress", "store", "evaluate"}
        assert trial.params == ({"price": point.price} if point.price else {"bits": float(point.key[-1])})


def test_own_studies_are_called_frontier(opened: Frontier) -> None:
    own = (opened.path / "study.db").exists()
    assert (opened.info.study == "frontier") == own


def test_opening_writes_nothing(opened: Frontier) -> None:
    before = {path: path.stat().st_mtime_ns for path in opened.path.rglob("*")}
    again = open_run(opened.path, storage=opened.storage)
    again.best({"esn_digital": 1e9})
    again.load(again.points[0], model=case.network())
    assert {path: path.stat().st_mtime_ns for path in opened.path.rglob("*")} == before


def test_points_come_back_as_they_were(opened: Frontier) -> None:
    frontier = open_run(opened.path, storage=opened.storage)
    assert frontier.points == opened.points
    assert (frontier.network, frontier.metric, frontier.float_accuracy) == ("case", "esn_digital", 100.0)
    for point in frontier.points:
        assert json.loads(json.dumps(point.to_dict()))["plan"] == point.objects["plan"]
        assert set(point.costs) == set(METRICS)
