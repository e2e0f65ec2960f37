"""From a run on disk to the file: `Frontier.report` and `slimbit report`."""

import errno
import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slimbit.cli.report import report
from slimbit.frontier.frontier import open_run
from slimbit.frontier.store import begin_store, check_folder
from slimbit.frontier.table import FolderTable
from slimbit.records.codec import canonical
from slimbit.records.config import PAPER, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.files import StoreError
from slimbit.records.origin import NetworkOrigin
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo


def shown_by(file: Path):
    """The data inside a report."""
    return json.loads(file.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])["report"]


@pytest.fixture
def stored_run(tmp_path, invented_run):
    """The invented run's 4-bit baseline, two of its points and its failure, in a real store."""
    folder = tmp_path / "a run"
    check_folder(folder)
    store = begin_store(FolderTable(folder), storage=None, metric="esn_digital", check=lambda _: None)
    for chosen in (invented_run.points[i] for i in (3, 12, 15, 18)):
        plan = CompressionPlan(
            network="resnet20",
            policy=chosen.policy,
            setting=chosen.setting,
            layers=(LayerPlan(name="conv1", steps=(0.1,)),),
            config=PAPER if chosen.baseline else QuantConfig(),
        )
        objects = {"plan": store.write(canonical(plan), "json")}
        if chosen.state == "done":
            objects["cost"] = store.write(canonical(invented_run.read_cost(chosen)), "json")
        provenance = {"versions": {"slimbit": "0.1.0"}, "hardware": {"machine": "x86_64", "cores": 2}}
        kept = {
            "key": f"{chosen.policy}-{chosen.number}",
            "plan": plan.digest(),
            "objects": objects,
            "provenance": provenance,
        }
        store.add(FrontierPoint(**{**vars(chosen), **kept}), "esn_digital")
    store.write_info(
        RunInfo(
            network="resnet20",
            network_digest="a" * 64,
            origin=NetworkOrigin(data="cifar10:cifar-10"),
            metric="esn_digital",
            points=2,
            baselines=True,
            calibration_images=500,
            calibration_digest="b" * 64,
            evaluate_images=10_000,
            classes=10,
            seed=0,
            quant=QuantConfig(grid="midrise_zero"),
            float_accuracy=91.73,
            float_low=91.17,
            float_high=92.25,
            evaluate_seconds=9.1,
            study="frontier",
        )
    )
    return folder


def test_report_of_a_run(stored_run):
    file = open_run(stored_run).report()
    assert file == stored_run / "report.html"
    data = shown_by(file)
    assert [(p["number"], p["kind"]) for p in data["points"]] == [
        (0, "baseline"), (1, "ours"), (2, "ours"), (3, "failed"),
    ]  # fmt: skip
    # five points below float, 86.73, lies between 90.0 and 84.5, so it is interpolated; one point, 90.73, beyond both
    assert [found["drop"] for found in data["headlines"]] == [0.5, 1, 2, 3, 5]
    assert data["headlines"][-1]["factors"][0]["reached"] == "exact"
    assert data["headlines"][1]["factors"] == []
    assert data["about"]["unit"] == "%"
    assert data["about"]["scoring"]["images scored"] == "10,000"
    assert data["about"]["scoring"]["interval"] == "95 %, Wilson: float 91.17 to 92.25"
    assert "statistics absolute" in data["about"]["provenance"]["of baselines"]
    assert data["about"]["provenance"]["hardware"] == "machine x86_64, cores 2"
    assert {"loom", "simd", "ideal_digital"} <= {machine["name"] for machine in data["machines"]}


def test_a_run_that_is_not_finished_says_what_is_missing(stored_run):
    # nothing was decided: the 2 points that run.json asks for, and 8 to 2 bits for comparison
    text = "Not finished, still to be measured: 2 points and 7 points for comparison."
    assert shown_by(open_run(stored_run).report())["about"]["missing"].startswith(text)


def test_the_same_run_gives_the_same_bytes(stored_run, tmp_path):
    first, second = (open_run(stored_run).report(tmp_path / name) for name in ("1.html", "2.html"))
    assert first.read_bytes() == second.read_bytes()


def test_command_quotes_a_folder_with_a_space(stored_run):
    text = open_run(stored_run).report().read_text(encoding="utf-8")
    assert f"slimbit pick '{stored_run}'" in text


def test_command_line(stored_run, tmp_path):
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(stored_run), "--out", str(tmp_path / "out.html")])
    assert result.exit_code == 0
    assert "out.html" in result.stdout
    assert shown_by(tmp_path / "out.html")["about"]["network"] == "resnet20"


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=r"run must be a folder with a run.json"):
        open_run(tmp_path)


def test_a_damaged_cost_report_is_named_and_nothing_is_written(stored_run):
    costs = [file for file in (stored_run / "objects").rglob("*.json") if b'"filter_bits"' in file.read_bytes()]
    costs[0].write_bytes(costs[0].read_bytes()[:-1])
    with pytest.raises(InputError, match=costs[0].stem):
        open_run(stored_run).report()
    assert not (stored_run / "report.html").exists()


def test_a_file_that_cannot_be_written_is_one_sentence(stored_run, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"out.html could not be written: "):
        open_run(stored_run).report(tmp_path / "taken" / "out.html")


def test_a_full_disk_leaves_the_old_report(stored_run, tmp_path, monkeypatch):
    page = open_run(stored_run).report(tmp_path / "out.html")
    whole = page.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        open_run(stored_run).report(page)
    assert page.read_bytes() == whole
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a run", "out.html"]
