"""`slimbit frontier` and `slimbit points` on the embedded digits."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import slimbit.cli
from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError

pytest.importorskip("sklearn")
runner = CliRunner()

SOURCE = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
                         nn.Linear(54, 10))
"""


def trained(folder: Path) -> Path:
    """A small network for digits, trained for a second; its source and weights lie in the folder."""
    from slimbit.zoo.data import open_data

    (folder / "digitnet.py").write_text(SOURCE)
    spaces: dict[str, Any] = {}
    exec(SOURCE, spaces)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net: nn.Module = spaces["net"]()
        data = open_data("digits")
        x = torch.cat(list(data.calibration(1200)))
        labels = torch.from_numpy(data.train.labels)
        import numpy as np

        y = labels[np.random.default_rng(0).permutation(len(labels))[:1200]]
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    save_file(net.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    trained(folder)
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))


OPTIONS = ["digitnet:net", "--weights", "net.safetensors", "--data", "digits", "--points", "4",
           "--calibration-images", "100", "--evaluate-images", "200"]  # fmt: skip


@pytest.fixture(scope="module")
def run(place: Path) -> tuple[Path, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        result = runner.invoke(slimbit.cli.app, ["frontier", *OPTIONS, "--out", "run"], catch_exceptions=False)
    assert result.exit_code == 0
    return place / "run", result.output


def test_it_says_what_it_does(run: tuple[Path, str]) -> None:
    lines = run[1].splitlines()
    outlook = next(i for i, line in enumerate(lines) if line.startswith("11 points to measure, about "))
    first = next(i for i, line in enumerate(lines) if line.startswith("1/11 "))
    assert outlook < first
    assert any(line.startswith("11/11 max_abs, 2 bits: accuracy") for line in lines)
    assert "accuracy against esn_digital, float" in run[1]


def test_points_json_is_the_contract(run: tuple[Path, str]) -> None:
    result = runner.invoke(slimbit.cli.app, ["points", str(run[0]), "--json"], catch_exceptions=False)
    data = json.loads(result.output)
    assert data["schema"] == 1
    assert len(data["points"]) == 11
    for point in data["points"]:
        assert {"accuracy", "policy", "plan", "pareto", *METRICS} <= point.keys()
        assert 0 <= point["accuracy"] <= 100
    best = max(p["accuracy"] for p in data["points"])
    assert any(p["pareto"] for p in data["points"] if p["accuracy"] == best)
    assert any(not p["pareto"] for p in data["points"])


def test_pareto_leaves_the_dominated_out(run: tuple[Path, str]) -> None:
    options = ["points", str(run[0]), "--csv", "--pareto", "--metric", "esn_analog"]
    result = runner.invoke(slimbit.cli.app, options, catch_exceptions=False)
    rows = list(csv.DictReader(io.StringIO(result.output)))
    # points that are equal in both stay together
    rising = sorted({(float(row["esn_analog"]), float(row["accuracy"])) for row in rows})
    assert rising
    assert [a for _, a in rising] == sorted({a for _, a in rising})


def test_the_same_command_continues(run: tuple[Path, str]) -> None:
    before = sorted(path.stat().st_mtime_ns for path in run[0].rglob("*.json"))
    result = runner.invoke(slimbit.cli.app, ["frontier", *OPTIONS, "--out", str(run[0])], catch_exceptions=False)
    assert result.exit_code == 0
    assert "0 points to measure" in result.output
    assert sorted(path.stat().st_mtime_ns for path in run[0].rglob("*.json")) == before


def test_a_configuration_does_what_options_do(run: tuple[Path, str], place: Path) -> None:
    (place / "slimbit.toml").write_text(
        'network = "digitnet:net"\nweights = "net.safetensors"\ndata = "digits"\npoints = 9\n'
        "calibration_images = 100\nevaluate_images = 200\n"
    )
    options = ["frontier", "--config", "slimbit.toml", "--points", "4", "--allow-code", "--out", str(run[0])]
    result = runner.invoke(slimbit.cli.app, options, catch_exceptions=False)
    assert "0 points to measure" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x"], "NETWORK must be given"),
        (["net.onnx", "--data", "digits", "--out", "x"], "NETWORK must be a network that can be run and changed here"),
        (["digitnet:net", "--out", "x"], "--data must be given"),
        (["resnet8", "--data", "digits", "--out", "x"], "--weights must be given for resnet8"),
        (
            [*OPTIONS, "--metric", "parameters", "--out", "x"],
            "metric must be a cost that bit widths or dropped filters change, got 'parameters'",
        ),
        ([*OPTIONS, "--evaluate-images", "501", "--out", "x"], "at most the 500 test images"),
        ([*OPTIONS, "--config", "none.toml", "--out", "x"], "configuration must exist, got none at none.toml"),
    ],
)
def test_wrong_commands(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        runner.invoke(slimbit.cli.app, ["frontier", *arguments], catch_exceptions=False)


def test_ctrl_c_says_how_far_it_came(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from slimbit.zoo.data import Evaluator

    real, calls = Evaluator.__call__, []

    def impatient(self: Evaluator, model: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, model)

    monkeypatch.setattr(Evaluator, "__call__", impatient)
    monkeypatch.setattr(sys, "argv", ["slimbit", "frontier", *OPTIONS, "--out", "stopped"])
    with pytest.raises(SystemExit) as stopped:
        slimbit.cli.main()
    assert stopped.value.code == 130
    assert "stopped with 2 of 11 points done in stopped; the same command continues" in capsys.readouterr().out


def test_a_run_whose_points_all_fail_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from slimbit.zoo.data import Evaluator

    real, calls = Evaluator.__call__, []

    def broken(self: Evaluator, model: nn.Module) -> float:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("[bold]no[/] memory")
        return real(self, model)

    monkeypatch.setattr(Evaluator, "__call__", broken)
    monkeypatch.setattr(sys, "argv", ["slimbit", "frontier", *OPTIONS, "--no-baselines", "--out", "failed"])
    with pytest.raises(SystemExit) as stopped:
        slimbit.cli.main()
    told = capsys.readouterr()
    assert stopped.value.code == 2
    assert "failed: RuntimeError: [bold]no[/] memory" in told.err.replace("\n", "")
    assert "every point of failed failed" in told.err


def test_live_screen_shows_points_and_time_left() -> None:
    from rich.console import Console

    from slimbit.cli.live import Screen
    from slimbit.frontier.progress import Progress
    from slimbit.records.point import FrontierPoint
    from slimbit.records.setting import Price

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, height=30)
    point = FrontierPoint(
        number=0, key="sweep-00", state="done", policy="optimal [1]", setting=Price(2e-9, "esn_digital"),
        accuracy=91.25, accuracy_low=90.1, accuracy_high=92.3, costs={"esn_digital": 2e7}, seconds={"evaluate": 2.0},
    )  # fmt: skip
    with Screen(console, metric="esn_digital", folder="run") as screen:
        screen(Progress(stage="start", total=3, seconds_left=75, trainings_left=2, message="3 points to measure"))
        screen(Progress(stage="point", done=1, total=3, seconds_left=60, point=point, points=(point,)))
    shown = stream.getvalue()
    for piece in (
        "3 points to measure, about 1 min 15 s and 2 trainings left",
        "91.25",
        "90.1-92.3",
        "20M",
        "optimal [1]",
        "price 2e-09",
        "1/3",
        "1 min 0 s left",
    ):
        assert piece in shown


def test_batch_size_and_memory_are_options_and_settings_that_do_not_change_results(run, tmp_path):
    from slimbit.frontier.frontier import open_run

    (tmp_path / "settings.toml").write_text("batch_size = 7\nmemory_gib = 0.5\n")
    given = runner.invoke(
        slimbit.cli.app,
        ["frontier", *OPTIONS, "--out", str(tmp_path / "run"), "--config", str(tmp_path / "settings.toml"),
         "--no-baselines"],
    )  # fmt: skip
    assert given.exit_code == 0, given.output
    assert "100 calibration images, 7 at a time" in " ".join(given.output.split())

    def results(folder: Path) -> dict[str, tuple[Any, ...]]:
        return {p.key: (p.accuracy, p.costs) for p in open_run(folder).points if not p.baseline}

    assert results(tmp_path / "run") == results(run[0])
    wrong = runner.invoke(slimbit.cli.app, ["frontier", *OPTIONS, "--out", str(tmp_path / "other"), "--memory", "0"])
    assert isinstance(wrong.exception, InputError)
    assert str(wrong.exception) == "memory_gib must be greater than 0, got 0.0"
