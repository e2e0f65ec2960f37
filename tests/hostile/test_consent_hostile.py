"""Code that a file names runs only with consent: cards, metadata, runs, pruned folders, settings, exported programs."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from slimbit.cli import app
from slimbit.records.errors import InputError
from slimbit.zoo import shipped_weights

BAIT = """
from pathlib import Path
Path("executed").touch()
from slimbit import zoo

def build():
    return zoo.network("digits_resnet")

def data():
    from slimbit.zoo.data import open_data
    return open_data("digits")
"""
QUICK = ["--points", "1", "--no-baselines", "--calibration-images", "20", "--evaluate-images", "50"]
SHORT = ["--epochs", "1", "--batch-size", "32", "--train-images", "64", "--validation-images", "10"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module that leaves a trace when it is imported."""
    (tmp_path / "bait.py").write_text(BAIT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bait", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a pruned folder of the zoo's digits network."""
    place = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(place)
    try:
        invoke("frontier", "digits_resnet", "--data", "digits", *QUICK, "--out", "run")
        invoke("prune", "digits_resnet", "--data", "digits", "--calibration-images", "20", "--out", "slim")
    finally:
        os.chdir(before)
    return place


def invoke(*arguments: object) -> str:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False).output


def by_metadata(card: dict[str, str]) -> Callable[[Path, Path], list[str]]:
    def prepare(folder: Path, _: Path) -> list[str]:
        save_file(load_file(shipped_weights("digits_resnet")), folder / "w.safetensors", {"slimbit": json.dumps(card)})
        return ["frontier", "--weights", "w.safetensors", *QUICK, "--out", "new"]

    return prepare


def by_card(card: dict[str, str]) -> Callable[[Path, Path], list[str]]:
    def prepare(folder: Path, _: Path) -> list[str]:
        torch.save(load_file(shipped_weights("digits_resnet")), folder / "w.pth")
        (folder / "w.pth.card.json").write_text(json.dumps(card))
        return ["frontier", "--weights", "w.pth", *QUICK, "--out", "new"]

    return prepare


def by_run(folder: Path, made: Path) -> list[str]:
    shutil.copytree(made / "run", folder / "run")
    file = folder / "run" / "run.json"
    data = json.loads(file.read_text())
    data["origin"]["source"] = "bait:build"
    file.write_text(json.dumps(data))
    return ["pick", "run", "--budget", "esn_digital=1G", "--out", "picked"]


def by_pruned(*command: str) -> Callable[[Path, Path], list[str]]:
    def prepare(folder: Path, made: Path) -> list[str]:
        shutil.copytree(made / "slim", folder / "slim")
        file = folder / "slim" / "prune.json"
        data = json.loads(file.read_text())
        data["network"]["source"] = "bait:build"
        file.write_text(json.dumps(data))
        return [*command]

    return prepare


def by_settings(text: str, *command: str) -> Callable[[Path, Path], list[str]]:
    def prepare(folder: Path, _: Path) -> list[str]:
        (folder / "s.toml").write_text(text)
        return [*command, "--config", "s.toml", "--out", "new"]

    return prepare


WAYS = {
    "metadata network": by_metadata({"network": "bait:build", "data": "digits"}),
    "metadata data": by_metadata({"network": "digits_resnet", "data": "bait:data"}),
    "card network": by_card({"network": "bait:build", "data": "digits"}),
    "card data": by_card({"network": "digits_resnet", "data": "bait:data"}),
    "run": by_run,
    "pruned, cost": by_pruned("cost", "slim"),
    "pruned, frontier": by_pruned("frontier", "slim", "--data", "digits", *QUICK, "--out", "new"),
    "pruned, prune": by_pruned("prune", "slim", "--data", "digits", "--calibration-images", "20", "--out", "new"),
    "pruned, export": by_pruned("export", "slim", "--float", "--out", "new.onnx"),
    "settings network": by_settings(
        'network = "bait:build"', "frontier", "--data", "digits", "--weights", str(shipped_weights("digits_resnet")),
        *QUICK,
    ),
    "settings data": by_settings('data = "bait:data"', "frontier", "digits_resnet", *QUICK),
    "training network": by_settings('network = "bait:build"', "train", "--data", "digits", *SHORT),
    "training data": by_settings('data = "bait:data"', "train", "digits_resnet", *SHORT),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_code_named_by_a_file_runs_only_with_consent(way: str, folder: Path, made: Path) -> None:
    command = WAYS[way](folder, made)
    with pytest.raises(InputError, match=r"running code, bait:\w+: add --allow-code where you trust it"):
        invoke(*command)
    assert "bait" not in sys.modules
    assert not (folder / "executed").exists()
    invoke(*command, "--allow-code")
    assert (folder / "executed").exists()


def test_what_the_user_types_runs_and_replaces_what_the_file_says(folder: Path, made: Path) -> None:
    command = by_metadata({"network": "evil:build", "data": "evil:data"})(folder, made)
    assert "accuracy" in invoke(*command, "bait:build", "--data", "bait:data")


def test_an_exported_program_is_opened_only_with_consent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, folder / "net.pt2")

    def opened(*_: object) -> None:
        raise AssertionError("the file was opened")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "load", opened)
        with pytest.raises(InputError, match=r"must be trusted, .* got net.pt2: allow that with allow_code=True"):
            invoke("cost", "net.pt2")
    assert "6" in invoke("cost", "net.pt2", "--allow-code")
