"""Damaged runs and full disks: named in one sentence, never silently used, nothing half-written."""

import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from slimbit.frontier import store, study
from slimbit.frontier.frontier import open_run
from slimbit.frontier.objects import object_path, read_object, write_object
from slimbit.frontier.store import begin_store, check_folder
from slimbit.frontier.table import FolderTable
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.files import StoreError, write_whole

SMALL: dict[str, Any] = {"points": 4, "baselines": False}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    case.trace(out, **SMALL)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    changed = {
        "truncated": content[: len(content) // 2],
        "emptied": b"",
        "overwritten": b"\xff" * len(content),
    }
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten", "removed"])
@pytest.mark.parametrize("name", ["run.json", "study.db"])
def test_damaged_run_or_study_is_named(run: Path, name: str, how: str) -> None:
    damage(run / name, how)
    where = str(run) if (name, how) == ("run.json", "removed") else str(run / name)
    for use in (lambda: open_run(run).points, lambda: case.trace(run, **SMALL)):
        with pytest.raises(InputError) as raised:
            use()
        assert where in str(raised.value)
        assert len(str(raised.value)) < 400 + 2 * len(where)


@pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten", "removed"])
@pytest.mark.parametrize("role", ["plan", "cost", "layers", "levels", "state"])
def test_damaged_object_is_named_and_not_returned(run: Path, role: str, how: str) -> None:
    opened = open_run(run)
    digest = opened.points[0].objects[role]
    kind = {"levels": "bin", "state": "safetensors"}.get(role, "json")
    damage(object_path(run, digest, kind), how)
    with pytest.raises(InputError, match=digest):
        opened.read_object(digest, kind)
    with pytest.raises(InputError, match=digest):
        opened.load(opened.points[0], model=case.network())


EDITS = {
    "state of a trial": "UPDATE trials SET state = 'X'",
    "text of an entry": "UPDATE trial_user_attributes SET value_json = '{'",
    "table": "DROP TABLE trial_user_attributes",
    "column": "ALTER TABLE trial_user_attributes RENAME COLUMN value_json TO text",
    "revision": "UPDATE alembic_version SET version_num = 'v9.9.9.a'",
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_study_is_named(run: Path, what: str) -> None:
    with closing(sqlite3.connect(run / "study.db")) as connection:
        connection.execute(EDITS[what])
        connection.commit()
    with pytest.raises(InputError, match=r"study .*study\.db must be readable and whole, as Optuna \S+ writes it, got"):
        open_run(run).points  # noqa: B018 - reads them


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE trial_values SET value = NULL",
        "UPDATE trial_params SET distribution_json = '{}'",
        "UPDATE trials SET datetime_start = 'x'",
        "DROP TABLE trial_params",
    ],
)
def test_what_only_a_dashboard_reads_does_not_change_points(run: Path, edit: str) -> None:
    before = open_run(run).points
    with closing(sqlite3.connect(run / "study.db")) as connection:
        connection.execute(edit)
        connection.commit()
    assert open_run(run).points == before


@pytest.mark.parametrize("address", ["postgresql://user:secret@host:notaport/x", "nothing"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match=r"^storage") as raised:
        case.trace(tmp_path / "run", storage=address, **SMALL)
    assert "secret" not in str(raised.value)


def test_a_damaged_plan_is_not_carried_out(run: Path) -> None:
    opened = open_run(run)
    point = opened.points[-1]
    with closing(sqlite3.connect(run / "study.db")) as connection:
        connection.execute("DELETE FROM trials WHERE number = ?", (point.number,))
        connection.commit()
    plan = object_path(run, point.plan, "json")
    plan.write_text(plan.read_text().replace("0.", "1.", 1))
    with pytest.raises(InputError, match=f"{point.plan}.*damaged"):
        case.trace(run, **SMALL)


def test_a_damaged_decision_is_not_followed(run: Path) -> None:
    with closing(sqlite3.connect(run / "study.db")) as connection:
        found = connection.execute("SELECT value_json FROM study_user_attributes WHERE key = 'sweep'").fetchone()
    digest = json.loads(found[0])
    damage(object_path(run, digest, "json"), "truncated")
    with pytest.raises(InputError, match=digest):
        case.trace(run, **SMALL)


@pytest.mark.parametrize("digest", ["../../etc/passwd", "", "A" * 64, "0" * 63, None, 7])
def test_a_digest_cannot_name_other_files(run: Path, digest: object) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        read_object(run, digest, "json")


@pytest.mark.parametrize(
    "text",
    ["[]", "null", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "evil": 1}', "{" * 100_000, '{"schema": 1e999}'],
)
def test_strange_run_json_is_refused(run: Path, text: str) -> None:
    (run / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        open_run(run)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("float_accuracy", "high"),
        ("float_low", "z"),
        ("network", 7),
        ("origin", {"weights": 7}),
        ("points", True),
        ("seed", 1.5),
        ("origin", {"input_shape": "3x32x32"}),
        ("origin", {"input_shape": [1, "2"]}),
        ("quant", [1]),
        ("quant", {"grid": "midrize"}),
        ("prune", "norm"),
        ("keep_ratios", 0.5),
        ("versions", {"torch": 2}),
        ("study", None),
    ],
)
def test_wrong_types_in_run_json_are_refused_by_name(run: Path, name: str, value: object) -> None:
    data = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**data, name: value}))
    with pytest.raises(InputError, match=rf"{name}\S* of .*run\.json must be"):
        open_run(run)


def test_numbers_that_are_none_are_refused_in_run_json(run: Path) -> None:
    data = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**data, "float_accuracy": float("nan")}))
    with pytest.raises(InputError, match=r"run\.json must be complete JSON, got the number NaN"):
        open_run(run)


def change_points(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what every trial holds as its point."""
    with closing(sqlite3.connect(run / "study.db")) as connection:
        query = "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = 'point'"
        for number, text in connection.execute(query).fetchall():
            changed = json.dumps(change(json.loads(text)))
            update = "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?"
            connection.execute(update, (changed, number))
        connection.commit()


def test_numbers_that_are_none_are_refused_in_a_trial(run: Path) -> None:
    change_points(run, lambda point: {**point, "costs": {**point["costs"], "esn_analog": float("nan")}})
    said = r"study .*study\.db must be readable and whole, as Optuna \S+ writes it, got .*NaN"
    with pytest.raises(InputError, match=said):
        open_run(run).points  # noqa: B018 - reading them is what fails


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("costs", {"esn_digital": "x"}),
        ("costs", {"esn_analog": True}),
        ("accuracy", "high"),
        ("setting", {"kind": "knob"}),
        ("seconds", [1]),
        ("policy", 3),
    ],
)
def test_wrong_types_in_a_trial_are_refused_by_name(run: Path, name: str, value: object) -> None:
    change_points(run, lambda point: {**point, name: value})
    with pytest.raises(InputError, match=rf"{name}\S* of trial 0 of study .*study\.db must be"):
        open_run(run)


def test_a_trial_of_somebody_else_is_refused(run: Path) -> None:
    change_points(run, lambda point: {**point, "objects": {}})
    with pytest.raises(InputError, match=r"trial 0 of study .* must hold objects, got none"):
        open_run(run)
    change_points(run, lambda point: [])
    with pytest.raises(InputError, match=r"trial 0 of study .* must hold a point, got none"):
        open_run(run)


@pytest.mark.parametrize(
    "make", [lambda p: p.write_text("x"), lambda p: (p.mkdir(), (p / "thesis.tex").write_text("x"))]
)
def test_a_run_does_not_settle_in_somebody_elses_place(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "place")
    with pytest.raises(InputError, match="run must be a"):
        case.trace(tmp_path / "place", **SMALL)


def test_a_report_is_part_of_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    check_folder(tmp_path)
    table = FolderTable(tmp_path)
    assert begin_store(table, storage=None, metric="esn_digital", check=lambda _: None).info is None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write to")
def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="run must be a folder that can be made and read, got /proc/nothing"):
        case.trace("/proc/nothing", **SMALL)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run must be a folder with a run.json, got"):
        open_run(tmp_path / "nothing")


@pytest.mark.parametrize("url", ["nonsense", "postgres!://x", "sqlite:////nonexistent/folder/study.db"])
def test_storage_that_cannot_be(tmp_path: Path, url: str) -> None:
    with pytest.raises(SlimbitError):
        case.trace(tmp_path / "run", storage=url, **SMALL)


def test_passwords_stay_out_of_messages(tmp_path: Path) -> None:
    with pytest.raises(SlimbitError) as raised:
        case.trace(tmp_path / "run", storage="postgresql+nodriver://me:secret@localhost/x", **SMALL)
    assert "secret" not in str(raised.value)


class FullDisk:
    """`os.replace` that finds the disk full from the n-th file on."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._real = os.replace

    def __call__(self, source: Any, target: Any) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        self._real(source, target)


@pytest.mark.parametrize("room", [0, 1, 3, 8, 11])
def test_full_disk_is_one_sentence_and_the_run_continues(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(os, "replace", FullDisk(room))
    with pytest.raises(StoreError) as raised:
        case.trace(tmp_path / "run", **SMALL)
    monkeypatch.undo()
    message = str(raised.value)
    assert "could not be written: No space left on device" in message
    assert str(tmp_path / "run") in message
    hidden = [p for p in (tmp_path / "run").rglob(".*") if p.is_file()]
    assert hidden == []  # nothing half-written, not even under another name
    expected = case.outcome(open_run(finished))
    assert case.outcome(case.trace(tmp_path / "run", **SMALL)) == expected


def test_full_disk_under_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise sqlalchemy.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("slimbit.frontier.study.insert_trial", full)
    with pytest.raises(StoreError, match=r"study\.db .*: database or disk is full"):
        case.trace(tmp_path / "run", **SMALL)
    monkeypatch.undo()
    assert case.outcome(case.trace(tmp_path / "run", **SMALL)) == case.outcome(open_run(finished))


def test_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", b"old")

    def torn(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(StoreError, match="file could not be written"):
        write_whole(tmp_path / "file", b"new content")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has a umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o000])
def test_written_files_follow_the_umask_which_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    previous = os.umask(umask)
    with monkeypatch.context() as patched:
        # a umask is the process's: another thread that made a file in that moment would make it with the wrong one
        patched.setattr(os, "umask", lambda mask: pytest.fail("write_whole must leave the umask alone"))
        try:
            write_whole(tmp_path / "file", b"content")
        finally:
            patched.undo()
            os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_writing_an_object_again_heals_it(tmp_path: Path) -> None:
    digest = write_object(tmp_path, b"{}", "json")
    object_path(tmp_path, digest, "json").write_bytes(b"{")
    assert write_object(tmp_path, b"{}", "json") == digest
    assert read_object(tmp_path, digest, "json") == b"{}"


def test_evaluate_that_overflows_the_error_is_cut(tmp_path: Path) -> None:
    class Verbose(case.Agreement):
        def __call__(self, model: object) -> float:
            if self.calls > 1:  # the float network is scored twice
                raise RuntimeError("x" * 10_000_000)
            return super().__call__(model)

    frontier = case.trace(tmp_path / "run", evaluate=Verbose(), **SMALL)
    assert {p.state for p in frontier.points} == {"failed"}
    assert max(len(p.error) for p in frontier.points) == 503  # 500 characters and three dots


def replace_note(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change an object that the study refers to, and make the reference right again, as an attacker would."""
    with closing(sqlite3.connect(run / "study.db")) as connection:
        query = "SELECT value_json FROM study_user_attributes WHERE key = ?"
        (text,) = connection.execute(query, (name,)).fetchone()
        data = json.loads(read_object(run, json.loads(text), "json"))
        digest = write_object(run, json.dumps(change(data)).encode(), "json")
        update = "UPDATE study_user_attributes SET value_json = ? WHERE key = ?"
        connection.execute(update, (json.dumps(digest), name))
        connection.commit()


def with_point(**changed: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {**data, "points": [{**data["points"][0], **changed}, *data["points"][1:]]}


PRICE = {"kind": "price", "value": 1e-9, "metric": "esn_digital"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: [], "must be"),
        (lambda data: {}, "must"),
        (lambda data: {**data, "points": 3}, "must be a list, got 3"),
        (lambda data: {**data, "points": [7]}, "must be a table with the fields of PlannedPoint, got 7"),
        (lambda data: {**data, "points": [{}]}, "must hold 0.policy, got none"),
        (with_point(evil=1), "must hold only known keys, got 0.evil"),
        (with_point(kye="sweep-00"), "must hold only known keys, got 0.kye; did you mean key?"),
        (with_point(key=3), "must be a valid string, got 3"),
        (with_point(policy=None), "must be a valid string, got None"),
        (with_point(baseline="no"), "must be a valid boolean, got 'no'"),
        (with_point(keep_ratio="1"), "must be a valid number, got '1'"),
        (with_point(plan="../../etc/passwd"), "digest of an object must be 64 hexadecimal digits"),
        (with_point(plan="0" * 64), "0" * 64),
        (with_point(setting="price 1e-9"), "must be"),
        (with_point(setting={"kind": "price"}), "must hold 0.setting.value, got none"),
        (with_point(setting={**PRICE, "value": -1}), "price must be a positive number, got -1"),
        (with_point(setting={**PRICE, "value": "1e-9"}), "must be a valid number, got '1e-9'"),
        (
            with_point(setting={**PRICE, "kind": "knob"}),
            "must be one of 'bits', 'price', 'epoch', 'sigma', 'learned', got 'knob'",
        ),
        (with_point(setting={**PRICE, "more": 1}), "must hold only known keys, got 0.setting.more"),
    ],
)
def test_planned_points_are_checked_when_they_are_read(run: Path, change: Callable[[Any], Any], said: str) -> None:
    with closing(sqlite3.connect(run / "study.db")) as connection:  # so that there is something left to do
        connection.execute("DELETE FROM trials WHERE number IN (0, 1)")
        connection.commit()
    replace_note(run, "sweep", change)
    evaluate = case.Agreement()
    with pytest.raises(InputError) as raised:
        case.trace(run, evaluate=evaluate, **SMALL)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert evaluate.calls == 1  # of the float network


def test_other_notes_are_checked_as_well(run: Path) -> None:
    replace_note(run, "sensitivity", lambda data: {**data, "filters": {"0": ["much"]}})
    with closing(sqlite3.connect(run / "study.db")) as connection:
        connection.execute("DELETE FROM trials WHERE number = 0")
        connection.commit()
    with pytest.raises(
        InputError, match=r"filters\.0\.0 of 'sensitivity' of run .* must be a valid number, got 'much'"
    ):
        case.trace(run, **SMALL)


def test_finished_points_and_plans_are_validated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many checks as points, not as many per point: a run of n points is no work of n^2."""
    read: list[int] = []
    planned: list[str] = []
    point_of, from_json = study.point_of, store.from_json

    def counted(trial: Any, url: str) -> Any:
        read.append(trial.number)
        return point_of(trial, url)

    def checked(kind: Any, content: bytes, *, where: str, **more: Any) -> Any:
        planned.extend([where] if "planned points" in where else [])
        return from_json(kind, content, where=where, **more)

    monkeypatch.setattr(study, "point_of", counted)
    monkeypatch.setattr(store, "from_json", checked)
    frontier = case.trace(tmp_path / "run", points=8)
    count = len(frontier.points)
    assert count == 8 + case.BASELINES
    assert sorted(read) == list(range(count))
    assert len(planned) == len(set(planned)) <= 3  # sweep, refinement, baselines
    assert frontier.refresh().points == frontier.points
    assert len(read) == count
    assert open_run(tmp_path / "run").points == frontier.points
    assert len(read) == 2 * count


@pytest.mark.parametrize("edit", [lambda _: True, lambda data: [data], lambda data: {**data, "layers": "x"}])
def test_a_cost_object_that_holds_something_else_ends_a_report_in_one_sentence(
    run: Path, edit: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = open_run(run), store.RunStore.read
    cost = opened.points[0].objects["cost"]

    def changed(self: store.RunStore, digest: str, kind: Any) -> bytes:
        content = read(self, digest, kind)
        return json.dumps(edit(json.loads(content))).encode() if digest == cost else content

    monkeypatch.setattr(store.RunStore, "read", changed)
    with pytest.raises(InputError, match=f"cost of point {opened.points[0].number}"):
        opened.report(run / "page.html")
    assert not (run / "page.html").exists()
