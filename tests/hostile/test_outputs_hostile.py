"""Files go where they were asked for, whatever the name means elsewhere, and replace only files."""

import errno
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from slimbit.frontier.frontier import open_run
from slimbit.frontier.study import sqlite_file, url_of
from slimbit.records.files import StoreError, append_whole, write_whole

ODD = ["run?1", "run?2", "r%41n", "r%2Fn", "run#1", "{run}", "run 1&uri=false", "rün", "run%"]
"""Names of folders that mean something in an address, in a template or in a percent encoding."""


def test_runs_with_odd_names_stay_apart(tmp_path: Path) -> None:
    for name in ODD[:3]:
        case.trace(tmp_path / name, points=1 + ODD.index(name), baselines=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(ODD[:3])
    for name in ODD[:3]:
        assert (tmp_path / name / "study.db").is_file()
        assert len(open_run(tmp_path / name).points) == 1 + ODD.index(name)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_one_folder_and_comes_back(tmp_path: Path, name: str) -> None:
    from slimbit.frontier import study

    folder = tmp_path / name
    folder.mkdir()
    url = url_of(folder, None)
    assert sqlite_file(url) == folder / "study.db"
    study.create_study(url, "frontier", "esn_digital")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert [entry.name for entry in folder.iterdir()] == ["study.db"]
    assert study.load_study(url, "frontier").study.study_name == "frontier"


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path, Path(os.devnull)):
        with pytest.raises(ValueError, match="must be a file that can be replaced"):
            write_whole(place, b"new")
    assert pipe.is_fifo()


def test_a_link_keeps_pointing_at_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_an_append_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "signal.jsonl"
    append_whole(file, b"one\n")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        append_whole(file, b"two\n")
    monkeypatch.undo()
    append_whole(file, b"three\n")
    assert file.read_bytes() == b"one\nthree\n"
