"""From a run on disk to the file: `Frontier.report` and `slimbit report`."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from slimbit.cli.report import report
from slimbit.frontier.frontier import open_run
from slimbit.records.config import PruneConfig, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.files import StoreError
from slimbit.records.training import TrainConfig
from slimbit.report.page import about


def shown_by(file: Path):
    """The data inside a report."""
    return json.loads(file.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])["report"]


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
    compared = data["about"]["provenance"]["max_abs, for comparison"]
    assert compared.startswith("the same but for compensation no, grid midrise, ")
    assert "statistics absolute" in compared
    assert "seed" not in compared
    assert data["about"]["provenance"]["hardware"] == "machine x86_64, cores 2"
    assert {"loom", "simd", "ideal_digital"} <= {machine["name"] for machine in data["machines"]}


def test_provenance_of_a_training_is_readable(begun_run):
    tune = TuneConfig(epochs=3, distill=True, train=TrainConfig(train_images=15_000))
    pruned = {"keep_ratios": (1.0, 0.5), "prune": PruneConfig(tune=tune), "training": "settings 002383c83c93"}
    facts = about(
        dataclasses.replace(begun_run.info, **pruned), "runs/joint", baselines=[("max_abs", {"statistics": "x"})]
    )
    assert facts.provenance["training after pruning"] == (
        "3 epochs on cifar10: 15,000 images, outputs of the original network (distilled), learning rate 0.1, schedule "
        "step, batch size 64"
    )
    assert "ADMM" not in str(facts.provenance)  # filters are ranked by norm
    assert facts.trained == "3 epochs"
    assert "keep 0.5" not in facts.provenance["pruning"]  # one of the two ratios
    by_admm = dataclasses.replace(begun_run.info, **pruned | {"prune": PruneConfig(by="admm", tune=tune)})
    assert "ADMM before the cut: 4 stages of 3 epochs up to learning rate 0.05" in str(about(by_admm, "r").provenance)


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


def test_the_command_names_a_network_that_is_built_by_code(stored_run):
    file = stored_run / "run.json"
    info = json.loads(file.read_text())
    info["origin"]["source"] = "my net:build"
    file.write_text(json.dumps(info))
    text = open_run(stored_run).report().read_text(encoding="utf-8")
    assert f"slimbit pick '{stored_run}' --network 'my net:build'" in text


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
