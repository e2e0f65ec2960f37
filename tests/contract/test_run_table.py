"""What `slimbit.frontier.table.RunTable` promises, held against every one there is: a folder and PostgreSQL."""

import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import cluster_case as cluster
from slimbit.frontier import study as studies
from slimbit.frontier.server import open_table
from slimbit.frontier.table import ClaimLost, FolderTable, RunTable, worker_name
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.setting import Bits

KEYS = [f"sweep-{number:02d}" for number in range(12)]
Opened = Callable[[], RunTable]


def planned(key: str) -> PlannedPoint:
    return PlannedPoint(key=key, plan="0" * 64, policy="optimal", setting=Bits(4))


def measured(key: str, **changed: object) -> FrontierPoint:
    about = {
        "number": -1,
        "state": "done",
        "accuracy": 90.0,
        "costs": {"esn_digital": 2.0},
        "objects": {"plan": "0" * 64},
    }
    return FrontierPoint(**{**vars(planned(key)), **about, **changed})  # type: ignore[arg-type]


def open_folder(folder: str) -> RunTable:
    url = studies.url_of(Path(folder), None)
    return FolderTable(Path(folder), studies.create_study(url, "frontier", "esn_digital"))


def open_server(url: str) -> RunTable:
    return open_table(url, "frontier-case", metric="esn_digital", takeover_seconds=60)


@pytest.fixture(params=["folder", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[str], RunTable], str]:
    if request.param == "folder":
        return open_folder, str(tmp_path)
    return open_server, cluster.new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def opened(where: tuple[Callable[[str], RunTable], str]) -> Opened:
    return lambda: where[0](where[1])


def test_one_worker_at_a_time_has_a_point(opened: Opened) -> None:
    one, two = opened(), opened()
    with one.claim_point(planned("sweep-00")) as mine:
        assert mine is not None
        with two.claim_point(planned("sweep-00")) as theirs:
            assert theirs is None
        with two.claim_point(planned("sweep-01")) as other:
            assert other is not None


def test_one_worker_at_a_time_has_a_task(opened: Opened) -> None:
    one, two = opened(), opened()
    for _ in range(2):  # a task may be done again
        with one.claim("prepare") as mine, two.claim("prepare") as theirs, two.claim("refine") as other:
            assert (mine is None, theirs is None, other is None) == (False, True, False)
    with two.claim("prepare") as theirs:
        assert theirs is not None


def test_an_error_ends_a_claim(opened: Opened) -> None:
    one, two = opened(), opened()
    with pytest.raises(ZeroDivisionError), one.claim_point(planned("sweep-00")):
        _ = 1 / 0
    with pytest.raises(ZeroDivisionError), one.claim("prepare"):
        _ = 1 / 0
    two.finished()
    with two.claim_point(planned("sweep-00")) as claim, two.claim("prepare") as task:
        assert claim is not None
        assert task is not None
    assert not opened().finished()


def test_a_point_that_was_added_is_there_for_everyone_once(opened: Opened) -> None:
    one, two = opened(), opened()
    with one.claim_point(planned("sweep-00")) as claim:
        added = one.add(measured("sweep-00"), claim, "esn_digital")
    assert added.number >= 0
    for table in (one, two, opened()):
        (row,) = table.finished()
        assert studies.point_of(row, "") == added


def test_a_failed_point_is_kept_and_can_be_tried_again(opened: Opened) -> None:
    one, two = opened(), opened()
    with one.claim_point(planned("sweep-00")) as claim:
        one.add(measured("sweep-00", state="failed", accuracy=None, error="too hot"), claim, "esn_digital")
    assert [studies.point_of(row, "").error for row in two.finished()] == ["too hot"]
    with two.claim_point(planned("sweep-00")) as claim:
        two.add(measured("sweep-00"), claim, "esn_digital")
    assert [studies.point_of(row, "").state for row in one.finished()] == ["failed", "done"]


def test_a_decision_is_kept(opened: Opened) -> None:
    one, two = opened(), opened()
    with one.claim("prepare"):
        one.note("sweep", "a" * 64)
        one.note("added", "b" * 64, grows=True)
        one.note("added", "c" * 64, grows=True)
    assert (two.notes()["sweep"], two.notes()["added"]) == ("a" * 64, "c" * 64)


def test_holders_are_named_while_they_hold(opened: Opened) -> None:
    one, two = opened(), opened()
    with one.claim_point(planned("sweep-00")), one.claim("prepare", "range of prices"):
        found = {holder.what: holder for holder in two.holders()}
        assert found.keys() == {"point sweep-00 (optimal, 4 bits)", "range of prices"}
        assert {holder.worker for holder in found.values()} == {worker_name()}
        assert all(holder.since.endswith("UTC") for holder in found.values())
    assert two.holders() == ()


def work(opened: Callable[[str], RunTable], address: str, log: str) -> None:
    """Target of a worker: measures whatever is left until nothing is."""
    table = opened(address)
    while True:
        done = {studies.point_of(row, "").key for row in table.finished()}
        left = [planned(key) for key in KEYS if key not in done]
        if not left:
            return
        for point in table.next_points(left):
            with table.claim_point(point) as claim:
                if claim is None or point.key in {studies.point_of(row, "").key for row in table.finished()}:
                    continue
                with Path(log).open("a") as stream:
                    stream.write(f"{point.key}\n")
                time.sleep(0.005)
                table.add(measured(point.key), claim, "esn_digital")
                break
        else:
            time.sleep(0.01)


def test_workers_side_by_side_lose_and_double_nothing(
    where: tuple[Callable[[str], RunTable], str], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optuna", "sqlalchemy", "slimbit.frontier.server"])
    where[0](where[1])
    log = tmp_path / "log"
    workers = [context.Process(target=work, args=(*where, str(log))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 2
    keys = Counter(studies.point_of(row, "").key for row in where[0](where[1]).finished())
    assert keys == Counter(KEYS)
    assert Counter(log.read_text().split()) == Counter(KEYS)


def test_the_first_decision_counts_where_workers_can_be_cut_off(postgres: cluster.Postgres) -> None:
    url = cluster.new_database(postgres)
    one, two = open_server(url), open_server(url)
    two.note("sweep", "a" * 64)
    one.note("sweep", "b" * 64)  # it was cut off while it decided
    assert one.notes() == two.notes() == {"sweep": "a" * 64}


def test_without_a_claim_nothing_is_added(postgres: cluster.Postgres) -> None:
    table = open_server(cluster.new_database(postgres))
    with pytest.raises(ClaimLost, match="not claimed"):
        table.add(measured("sweep-00"), None, "esn_digital")
