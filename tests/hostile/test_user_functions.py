"""Functions that users give: what they do wrong is undone, refused or said in one sentence."""

import io
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from slimbit.cli import app
from slimbit.cli.live import Screen
from slimbit.cli.points import points_table
from slimbit.cli.show import described
from slimbit.compress.load import load
from slimbit.compress.prepared import prepare
from slimbit.frontier.points import Scorer
from slimbit.frontier.time_limit import time_limit
from slimbit.frontier.trace import trace_frontier
from slimbit.numerics import batches
from slimbit.records.config import RunConfig
from slimbit.records.errors import InputError

SMALL: dict[str, Any] = {"points": 2, "baselines": False}


class UnspeakableError(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def edits_a_weight(model: nn.Module) -> float:
    with torch.no_grad():
        model[0].weight.data.mul_(0.5)
    return 50.0


def learns_statistics(model: nn.Module) -> float:
    model.train()(case.images(seed=5) + 1)
    return 50.0


def halves(model: nn.Module) -> float:
    model.half()
    return 50.0


@pytest.mark.parametrize("evaluate", [edits_a_weight, learns_statistics, halves])
def test_an_evaluate_that_changes_the_network_is_refused(
    evaluate: Callable[[nn.Module], float], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"evaluate must leave the network as it is, got '[01]\S+' changed"):
        case.trace(tmp_path, evaluate=evaluate, **SMALL)


def test_training_mode_is_put_back() -> None:
    model = case.network()

    def leaves_it_on(network: nn.Module) -> float:
        network.train()
        return 50.0

    assert Scorer(leaves_it_on).score(model) == 50.0
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("91.5", "must return a number, got str"),
        (None, "must return a number, got NoneType"),
        (torch.ones(3), "must return a number, got Tensor"),
        ([1.0], "must return a number, got list"),
        (True, "must return a number, got bool"),
        (float("nan"), "must return a finite number, got nan"),
    ],
)
def test_what_is_no_score(value: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^evaluate {match}$"):
        case.trace(tmp_path, evaluate=lambda _: value, **SMALL)


def test_an_evaluate_that_is_random_is_told(tmp_path: Path) -> None:
    chance = random.Random(0)
    with pytest.warns(UserWarning, match="evaluate scores the same network with .* and then .*: points differ"):
        case.trace(tmp_path, evaluate=lambda _: 50 + chance.random(), **SMALL)


def test_a_score_has_its_own_name(tmp_path: Path) -> None:
    class Overlap(case.Agreement):
        name = "IoU"

    frontier = case.trace(tmp_path / "run", evaluate=Overlap(), **SMALL)
    assert frontier.info.score_name == "IoU"
    page = frontier.report().read_text()
    assert '"title":{"text":"IoU (%)"}' in page.replace(", ", ",").replace(": ", ":").replace("\\u0025", "%")
    assert "IoU against cost" in page
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(points_table(frontier, frontier.points, frontier.metric))
    table = console.export_text()
    assert "IoU against esn_digital" in table
    assert "accuracy" not in table
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["report"]
    sentences = [*data["assumptions"], *(text for one in data["headlines"] for text in (one["text"], *one["notes"]))]
    assert any("IoU" in text for text in sentences)
    assert not any(re.search("accura", text, re.IGNORECASE) for text in sentences)
    with pytest.raises(InputError, match=r"^IoU must be one that a point reaches, got 101: .* at IoU ") as raised:
        frontier.cheapest(101)
    assert "accuracy" not in str(raised.value)


def test_the_given_name_counts_before_that_of_evaluate(tmp_path: Path) -> None:
    class Overlap(case.Agreement):
        name = "IoU"

    frontier = case.trace(tmp_path / "run", evaluate=Overlap(), metric_name="Dice", **SMALL)
    assert frontier.info.score_name == "Dice"
    with pytest.raises(
        InputError, match=r"name of the score of run \S+ must be Dice .*, got IoU: .* metric_name='Dice'"
    ):
        case.trace(tmp_path / "run", evaluate=Overlap(), **SMALL)
    assert case.trace(tmp_path / "run", evaluate=Overlap(), metric_name="Dice", **SMALL).points == frontier.points


def test_a_function_gives_the_score_its_name_unless_that_says_nothing() -> None:
    def macro_f1(_: nn.Module) -> float:
        return 0.5

    def evaluate(_: nn.Module) -> float:
        return 0.5

    assert [Scorer(one).name for one in (macro_f1, evaluate, lambda _: 0.5)] == ["macro_f1", "accuracy", "accuracy"]
    assert Scorer(macro_f1, "F1").name == "F1"
    macro_f1.name = "macro F1"  # type: ignore[attr-defined]
    assert Scorer(macro_f1).name == "macro F1"


def test_a_changed_metric_is_refused_in_the_folder_of_the_old_one(tmp_path: Path) -> None:
    agreement, factor = case.Agreement(), 0.01

    def evaluate(network: nn.Module) -> float:
        return factor * agreement(network)

    frontier = case.trace(tmp_path / "run", evaluate=evaluate, **SMALL)
    assert frontier.float_accuracy == 1
    factor = 1.0
    with pytest.raises(
        InputError, match=r"score the float network with 1 as when run \S+ began, got 100: .* another --out"
    ):
        case.trace(tmp_path / "run", evaluate=evaluate, **SMALL)
    factor = 0.00999
    with pytest.warns(UserWarning, match=r"scores the float network with 0\.999, with 1 when run \S+ began"):
        assert case.trace(tmp_path / "run", evaluate=evaluate, **SMALL).points == frontier.points


def test_a_random_metric_continues_where_only_chance_tells_it_from_the_old_one(tmp_path: Path) -> None:
    chance = random.Random(0)
    with pytest.warns(UserWarning, match="points differ"):
        case.trace(tmp_path / "run", evaluate=lambda _: 50 + 10 * chance.random(), **SMALL)
    with pytest.warns(UserWarning, match="scores the float network with"):
        case.trace(tmp_path / "run", evaluate=lambda _: 50 + 10 * chance.random(), **SMALL)
    with pytest.raises(InputError, match="must score the float network"):
        case.trace(tmp_path / "run", evaluate=lambda _: 0.5 + 0.1 * chance.random(), **SMALL)


def test_what_to_do_next_with_a_network_of_ones_own(tmp_path: Path) -> None:
    case.trace(tmp_path / "run", origin="frontier_case:network", **SMALL)
    command = described(tmp_path / "run").commands[1]
    assert command.endswith("--max-drop 1 --out small --allow-code")
    arguments = [*command.replace("--max-drop 1 ", "--max-drop 50 ").split()[1:-2], str(tmp_path / "small")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, InputError)
    assert "run.json names a network that is built by running code, frontier_case:network: add --allow-code" in str(
        refused.exception
    )
    told = CliRunner().invoke(app, [*arguments, "--allow-code"], catch_exceptions=False).output
    assert "the run was made in Python and does not say which data it was scored on; score it there on images" in told
    with pytest.raises(InputError, match=r"must be given for this artifact, or allow_code=True where you trust it"):
        load(tmp_path / "small")
    export = ["export", str(tmp_path / "small"), "--float", "--out", str(tmp_path / "small.onnx")]
    refused = CliRunner().invoke(app, export)
    assert "slimbit.json names a network that is built by running code" in str(refused.exception)


def test_scores_up_to_one_have_digits_and_a_drop_of_their_scale(tmp_path: Path) -> None:
    agreement = case.Agreement()
    frontier = case.trace(tmp_path / "run", evaluate=lambda network: agreement(network) / 100, **SMALL)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(points_table(frontier, frontier.points, frontier.metric))
    assert "float 1.0000" in (table := console.export_text())
    assert all(f" {point.accuracy:.4f} " in table for point in frontier.points)
    about = described(tmp_path / "run")
    assert about.facts["float accuracy"] == "1.0000"  # the lambda does not say on how many images
    assert about.commands[1].endswith("--max-drop 0.01 --out small --network MODULE:CALLABLE")
    with pytest.raises(InputError, match=r"max_drop must be below the float network's accuracy of 1, .* got 1"):
        frontier.cheapest(max_drop=1)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_live_view_has_the_name_of_the_score(tmp_path: Path, terminal: bool) -> None:
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=terminal)
    with Screen(console, metric="esn_digital", folder="run", score_name="IoU") as screen:
        case.trace(tmp_path / "run", progress=screen, metric_name="IoU", **SMALL)
        shown = console.file.getvalue()
    assert "IoU" in shown
    assert "accuracy" not in shown


def test_what_is_picked_has_the_name_of_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quick = ["--points", "1", "--no-baselines", "--calibration-images", "20", "--evaluate-images", "50"]
    said = ""
    for command in (
        ["frontier", "digits_resnet", "--data", "digits", "--metric-name", "Dice", *quick, "--out", "run"],
        ["points", "run"],
        ["pick", "run", "--max-drop", "50", "--out", "picked"],
    ):
        said += CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "Dice 9" in said
    assert "accuracy" not in said


def test_an_evaluate_that_hangs_ends_in_time(tmp_path: Path) -> None:
    def hangs(_: nn.Module) -> float:
        time.sleep(600)
        return 50.0

    with pytest.raises(InputError, match=r"^evaluate must end within 0\.2 s, got no end$"):
        case.trace(tmp_path / "float", evaluate=hangs, timeout_seconds=0.2, **SMALL)
    calls: list[int] = []

    def hangs_later(model: nn.Module) -> float:
        calls.append(1)
        return hangs(model) if len(calls) == 3 else 50.0

    points = case.trace(tmp_path / "run", evaluate=hangs_later, timeout_seconds=0.2, **SMALL).points
    assert [p.error for p in points if p.state == "failed"] == [
        "InputError: evaluate must end within 0.2 s, got no end"
    ]
    assert [p.state for p in points].count("done") == len(points) - 1


def test_calibration_that_hangs_ends_in_time(tmp_path: Path) -> None:
    def blocks() -> Iterator[Tensor]:
        yield case.images(seed=3)
        time.sleep(600)

    with pytest.raises(InputError, match=r"^calibration must end within 0\.2 s, got no end$"):
        trace_frontier(
            case.network(), torch.zeros(1, 1, 6, 6), blocks(), case.Agreement(), out=tmp_path / "run",
            config=RunConfig(timeout_seconds=0.2, **SMALL),
        )  # fmt: skip


def test_a_time_limit_ends_what_catches_everything_and_what_is_not_in_the_main_thread() -> None:
    found: list[str] = []

    def never() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001 - as a careless loop does
                continue

    def limited() -> None:
        try:
            with time_limit(0.1, "evaluate"):
                never()
        except InputError as error:
            found.append(str(error))

    limited()
    thread = threading.Thread(target=limited, daemon=True)
    thread.start()
    thread.join(10)
    assert found == ["evaluate must end within 0.1 s, got no end"] * 2
    with time_limit(0.05, "evaluate"):
        pass
    time.sleep(0.1)  # nothing comes after the end


def test_an_error_without_text_fails_its_point_only(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(_: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise UnspeakableError
        return 50.0

    points = case.trace(tmp_path / "run", evaluate=evaluate, **SMALL).points
    failed = [point.error for point in points if point.state == "failed"]
    assert failed == ["UnspeakableError: its text cannot be made"]

    def always(_: nn.Module) -> float:
        raise UnspeakableError

    with pytest.raises(InputError, match="evaluate must score the float network, got UnspeakableError: its text"):
        case.trace(tmp_path / "other", evaluate=always, **SMALL)


def test_calibration_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(50, 1, 6, 6)

    monkeypatch.setattr(batches, "MOST_IMAGES", 1000)
    with pytest.raises(InputError, match="calibration must end after at most 1,000 images, got more: some hundred"):
        prepare(case.network(), torch.zeros(1, 1, 6, 6), endless())
