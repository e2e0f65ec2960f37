"""`slimbit pick`: from a run to a folder that gives the measured network back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from slimbit import zoo
from slimbit.artifacts.manifest import read_manifest
from slimbit.cli.pick import parse_budget, pick
from slimbit.compress.load import load
from slimbit.compress.prepared import prepare
from slimbit.frontier.frontier import open_run
from slimbit.frontier.trace import trace_frontier
from slimbit.records.config import RunConfig
from slimbit.records.errors import InputError
from slimbit.records.origin import NetworkOrigin, Normalization
from slimbit.records.point import FrontierPoint

SOURCE = "resnet8@0.25"


class Agreement:
    """Percentage of images on which a network decides as the float network does; fails once, on the fifth call."""

    def __init__(self, images: Tensor, model: nn.Module) -> None:
        self.inputs, self.calls = images, 0
        self.wanted = model(images).argmax(dim=1)

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == 5:
            raise RuntimeError("out of luck")
        with torch.no_grad():
            return 100 * float((model(self.inputs).argmax(dim=1) == self.wanted).double().mean())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Agreement]:
    """A run with two points of the sweep, seven baselines, and one failure among them."""
    folder = tmp_path_factory.mktemp("pick")
    torch.manual_seed(0)
    model = zoo.network(SOURCE)
    # coarse patterns of different strength, so that the random network tells the images apart
    images = torch.randn(64, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) * torch.rand(64, 1, 1, 1) * 3
    with torch.no_grad():
        model.train()(images)  # statistics that fit
    save_file(model.eval().state_dict(), folder / "net.safetensors")
    with torch.no_grad():
        evaluate = Agreement(images, model)
    origin = NetworkOrigin(
        source=SOURCE,
        input_shape=(3, 32, 32),
        weights=str(folder / "net.safetensors"),
        data="cifar10:/home/somebody/data,normalize=imagenet",
        normalization=Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    prepared = prepare(model, torch.zeros(1, 3, 32, 32), images, name=SOURCE, origin=origin)
    trace_frontier(prepared, evaluate=evaluate, out=folder / "run", config=RunConfig(points=2))
    return folder / "run", evaluate


@pytest.fixture
def ask(made: tuple[Path, Agreement], tmp_path: Path) -> Callable[..., Any]:
    """Run the command; an error comes as an exception."""
    app = typer.Typer()
    app.command()(pick)

    def run(*options: str) -> Any:
        arguments = [str(made[0]), "--out", str(tmp_path / "net"), *options]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run


def done(run: Path) -> list[FrontierPoint]:
    points = open_run(run).points
    assert [p.state for p in points].count("failed") == 1
    return [p for p in points if p.state == "done"]


def test_every_point_comes_back_with_the_accuracy_it_was_measured_with(
    made: tuple[Path, Agreement], tmp_path: Path
) -> None:
    run, evaluate = made
    app = typer.Typer()
    app.command()(pick)
    for point in done(run):
        folder = tmp_path / str(point.number)
        budget = f"esn_digital={point.costs['esn_digital']}"
        CliRunner().invoke(app, [str(run), "--out", str(folder), "--budget", budget], catch_exceptions=False)
        accuracy = read_manifest(folder).accuracy
        assert accuracy is not None
        assert evaluate(load(folder).model) == accuracy.value


def test_most_accurate_within_the_budget(made: tuple[Path, Agreement], ask: Callable[..., Any], tmp_path: Path) -> None:
    points = sorted(done(made[0]), key=lambda p: p.costs["esn_digital"] or 0)
    budget = points[3].costs["esn_digital"]
    answer = json.loads(ask("--budget", f"esn_digital={budget}", "--json").stdout)
    assert answer["point"]["accuracy"] == max(p.accuracy for p in points[:4])
    assert answer["point"]["esn_digital"] <= budget
    assert answer["bytes"] == {
        p.name: p.stat().st_size for p in (tmp_path / "net").iterdir() if p.name != "slimbit.json"
    }


def test_cheapest_at_the_accuracy_may_be_a_baseline(made: tuple[Path, Agreement], ask: Callable[..., Any]) -> None:
    points = done(made[0])
    best = max(p.accuracy or 0 for p in points)
    answer = json.loads(ask("--min-accuracy", str(best), "--json").stdout)
    assert answer["point"]["esn_digital"] == min(p.costs["esn_digital"] or 0 for p in points if p.accuracy == best)
    assert answer["point"]["baseline"] == (answer["point"]["policy"] == "max_abs")


def test_what_the_folder_says(made: tuple[Path, Agreement], ask: Callable[..., Any], tmp_path: Path) -> None:
    said = ask("--budget", "macs=1G").stdout
    manifest = read_manifest(tmp_path / "net")
    chosen = max(done(made[0]), key=lambda p: p.accuracy or 0)
    assert f"accuracy {chosen.accuracy:g}" in said
    assert f"in Python: model = slimbit.load({str(tmp_path / 'net')!r}).model\n" in said
    assert (manifest.network.source, manifest.network.input_shape) == (SOURCE, (3, 32, 32))
    assert manifest.normalization is not None
    assert manifest.normalization.mean == (0.485, 0.456, 0.406)
    assert manifest.accuracy is not None
    assert manifest.accuracy.measured_on == "cifar10:data,normalize=imagenet"
    assert manifest.accuracy.uncompressed == 100.0
    assert manifest.provenance["seed"] == 0
    assert "somebody" not in (tmp_path / "net" / "slimbit.json").read_text()
    assert ask("--budget", "macs=1G").exit_code == 0  # the same again


def test_nothing_fits(made: tuple[Path, Agreement], ask: Callable[..., Any], tmp_path: Path) -> None:
    cheapest = min(done(made[0]), key=lambda p: p.costs["esn_digital"] or 0)
    named = rf"point {cheapest.number} \({cheapest.policy}, {cheapest.setting}\) with esn_digital"
    with pytest.raises(InputError, match=f"got esn_digital 1: the cheapest is {named}"):
        ask("--budget", "esn_digital=1")
    with pytest.raises(InputError, match=r"got 100\.5: the most accurate is point"):
        ask("--min-accuracy", "100.5")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "one of --budget, --min-accuracy, --max-drop must be given, got none"),
        (("--budget", "macs=1", "--min-accuracy", "1"), "must be given, got --budget and --min-accuracy"),
        (("--budget", "esn_digitl=20M"), "did you mean esn_digital"),
        (("--budget", "20M"), "must be COST=VALUE"),
        (("--budget", "macs=20 bananas"), "must be COST=VALUE"),
        (("--budget", "macs=-1"), "must be COST=VALUE"),
        (("--budget", "macs=1G", "--network", "resnet8"), r"of the network of point \d+ of resnet8@0.25 must be"),
        (("--budget", "macs=1G", "--weights", "nowhere.pth"), "weights file must exist"),
    ],
)
def test_bad_questions(ask: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(*options)
    assert not (tmp_path / "net").exists()


def test_other_weights_than_the_runs_are_refused(ask: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(9)
    save_file(zoo.network(SOURCE).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"weights that run .* began with, got others from .* with .*other"):
        ask("--budget", "macs=1G", "--weights", str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("m=20M", 2e7),
        ("m=1.5G", 1.5e9),
        ("m=300k", 3e5),
        ("m=300K", 3e5),
        ("m=2e6", 2e6),
        ("m=.5T", 5e11),
        ("m = 7", 7),
    ],
)
def test_amounts(text: str, amount: float) -> None:
    assert parse_budget(text) == ("m", amount)


@pytest.mark.parametrize("text", ["", "m", "=1", "m=", "m=nan", "m=inf", "m=1e999", "m=1m", "m=1_0", "m=0x1", "m=1M=2"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(InputError, match="COST=VALUE"):
        parse_budget(text)
