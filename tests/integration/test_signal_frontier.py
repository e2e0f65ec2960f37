"""Points of policy ``signal`` beside a sweep: planned, measured, kept, continued, refused, shown."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import frontier_case as case
from signal_case import epoch_signal, write_signal
from slimbit.cli.points import point_rows
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.plan.signal import target_of
from slimbit.records.codec import from_json
from slimbit.records.config import PAPER, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
from slimbit.records.setting import Epoch
from slimbit.records.signal import EpochSignal
from slimbit.survey.module import survey_network

SMALL: dict[str, Any] = {"points": 3, "baselines": False}
SPEC = survey_network(case.network(), torch.zeros(1, 1, 6, 6)).spec
EPOCHS = (
    epoch_signal(SPEC, 12.0, epoch=5, but={"0": 2.0}),
    epoch_signal(SPEC, 60.0, epoch=10),
    epoch_signal(SPEC, 400.0, epoch=20, but={"7": math.inf}),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Frontier]:
    out = tmp_path_factory.mktemp("signal") / "run"
    return out, trace(out, EPOCHS)


def trace(out: Path, epochs: Sequence[EpochSignal], **changed: Any) -> Frontier:
    """A run with points of these epochs, from a training run beside it."""
    signal = write_signal(out.with_name(f"{out.name}-training"), list(epochs))
    return case.trace(out, signal=str(signal), **(SMALL | changed))


def signal_points(frontier: Frontier) -> list[Any]:
    return [point for point in frontier.points if point.policy == "signal"]


def test_a_point_per_epoch_beside_the_sweep(run: tuple[Path, Frontier]) -> None:
    points = signal_points(run[1])
    assert [(p.key, p.setting, p.baseline) for p in points] == [
        ("signal-5", Epoch(5), True), ("signal-10", Epoch(10), True), ("signal-20", Epoch(20), True),
    ]  # fmt: skip
    assert all(p.state == "done" for p in points)
    assert len(run[1].points) == 3 + 3
    assert points[-1].accuracy > 95 > points[0].accuracy - 1  # S/N 400 is nearly float


def test_they_cost_what_training_showed(run: tuple[Path, Frontier]) -> None:
    opened = open_run(run[0])
    for point, epoch in zip(signal_points(run[1]), EPOCHS, strict=True):
        plan = from_json(CompressionPlan, opened.read_object(point.plan, "json"), where="plan")
        assert plan.config == PAPER
        assert {layer.grid for layer in plan.layers} == {"midrise"}
        report = json.loads(opened.read_object(point.objects["cost"], "json"))
        for layer, spec in zip(report["layers"], SPEC.layers, strict=True):
            target = spec.positions * target_of(epoch.layer(spec.name))
            if spec.name not in point.clamped:
                assert layer["esn_analog"] <= target
                assert layer["esn_analog"] == pytest.approx(target, rel=0.15)  # 54 weights make large jumps


def test_layers_out_of_reach_are_told_everywhere(run: tuple[Path, Frontier]) -> None:
    assert [p.clamped for p in signal_points(run[1])] == [("0",), (), ("7",)]
    again = open_run(run[0])
    assert [p.clamped for p in signal_points(again)] == [("0",), (), ("7",)]
    rows = {row["key"]: row for row in point_rows(again, "esn_digital")}
    assert rows["signal-5"]["clamped"] == ["0"]
    assert rows["sweep-00"]["clamped"] == []
    labels = [p.label for p in signal_points(again)]
    assert labels == ["signal, epoch 5 (1 layer clamped)", "signal, epoch 10", "signal, epoch 20 (1 layer clamped)"]


def test_what_is_kept(run: tuple[Path, Frontier]) -> None:
    info = open_run(run[0]).info
    assert info.signal_epochs == (5, 10, 20)
    assert len(info.signal_digest) == 64
    study = optuna.load_study(study_name=info.study, storage=f"sqlite:///{run[0] / 'study.db'}")
    assert [t.params for t in study.trials if "epoch" in t.params] == [{"epoch": e} for e in (5.0, 10.0, 20.0)]


def test_the_same_call_repeats_nothing(run: tuple[Path, Frontier]) -> None:
    evaluate = case.Agreement()
    assert trace(run[0], EPOCHS, evaluate=evaluate).points == run[1].points
    assert evaluate.calls == 1  # of the float network


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"signal_epochs": (5, 10)},
            r"training epochs \(signal\) of run .* must be 5, 10, 20 as when it began, got 5, 10: give another",
        ),
        ({"signal": None}, r"training epochs \(signal\) of run .* must be 5, 10, 20 as when it began, got none"),
        (
            {"signal": (*EPOCHS[:2], epoch_signal(SPEC, 401.0, epoch=20))},
            r"training signal's content of run .* must be [0-9a-f]{12}\.\.\. as when it began",
        ),
    ],
)
def test_a_run_is_continued_with_its_own_epochs(
    run: tuple[Path, Frontier], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    epochs = changed.get("signal", EPOCHS)
    signal = None if epochs is None else str(write_signal(tmp_path, list(epochs)))
    with pytest.raises(InputError, match=said):
        case.trace(run[0], **{**SMALL, **changed, "signal": signal})


def test_a_signal_adds_points_and_changes_none(tmp_path: Path) -> None:
    plain = case.trace(tmp_path / "plain", **SMALL)
    beside = trace(tmp_path / "beside", EPOCHS[:1])
    assert [p for p in case.outcome(beside).items() if p[0] != "signal-5"] == list(case.outcome(plain).items())


def test_skipped_layers_stay_float(tmp_path: Path) -> None:
    frontier = trace(tmp_path / "run", EPOCHS[:1], quant=QuantConfig(skip=("7",)))
    (point,) = signal_points(frontier)
    plan = from_json(CompressionPlan, open_run(tmp_path / "run").read_object(point.plan, "json"), where="plan")
    assert [layer.name for layer in plan.layers] == ["0", "3"]


@pytest.mark.parametrize(
    ("epochs", "changed", "said"),
    [
        (EPOCHS, {"signal_epochs": (5, 5)}, r"signal_epochs must name each epoch once, got \[5, 5\]"),
        (EPOCHS, {"signal_epochs": (5, 6)}, "signal_epochs must be epochs of .*, from 5 to 20, got 6"),
        (EPOCHS, {"signal_epochs": (0,)}, r"signal_epochs\.0 must be greater than or equal to 1, got 0"),
        ((EPOCHS[0], EPOCHS[0]), {}, "epochs? .*5"),
        (
            (EpochSignal(epoch=2, iterations=9, layers=()),),
            {},
            "signal of epoch 2 must cover every layer .* got none for 0, 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_scored(
    tmp_path: Path, epochs: Sequence[EpochSignal], changed: dict[str, Any], said: str
) -> None:
    evaluate = case.Agreement()
    with pytest.raises(InputError, match=said):
        trace(tmp_path / "run", epochs, evaluate=evaluate, **changed)
    assert evaluate.calls == 0
    assert not (tmp_path / "run").exists()
