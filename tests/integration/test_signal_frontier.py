"""Points of policy ``signal`` beside a sweep: planned, measured, kept, continued, refused, shown."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import frontier_case as case
from signal_case import epoch_signal
from slimbit.cli.points import point_rows
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.plan.signal import target_of
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
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
    return out, case.trace(out, signal=EPOCHS, **SMALL)


def signal_points(frontier: Frontier) -> list[Any]:
    return [point for point in frontier.points if point.policy == "signal"]


def test_a_point_per_epoch_beside_the_sweep(run: tuple[Path, Frontier]) -> None:
    points = signal_points(run[1])
    assert [(p.key, p.setting, p.baseline) for p in points] == [
        ("signal-5", "epoch 5", True), ("signal-10", "epoch 10", True), ("signal-20", "epoch 20", True),
    ]  # fmt: skip
    assert all(p.state == "done" for p in points)
    assert len(run[1].points) == 3 + 3
    assert points[-1].accuracy > 95 > points[0].accuracy - 1  # S/N 400 is nearly float


def test_they_cost_what_training_showed(run: tuple[Path, Frontier]) -> None:
    opened = open_run(run[0])
    for point, epoch in zip(signal_points(run[1]), EPOCHS, strict=True):
        plan = CompressionPlan.from_dict(json.loads(opened.read_object(point.plan, "json")))
        assert (plan.compensation, plan.statistics) == (False, "absolute")
        assert {layer.grid for layer in plan.layers} == {"midrise"}
        report = json.loads(opened.read_object(point.objects["cost"], "json"))
        for layer, spec in zip(report["layers"], SPEC.layers, strict=True):
            target = spec.positions * target_of(epoch.layer(spec.name))
            if spec.name not in point.clamped:
                assert layer["esn_analog"] <= target
                assert layer["esn_analog"] == pytest.approx(target, rel=0.15)  # 54 weights make large jumps


def test_layers_out_of_reach_are_told_everywhere(run: tuple[Path, Frontier]) -> None:
    assert [p.clamped for p in signal_points(run[1])] == [("0",), (), ("7",)]
    again = open_run(run[0]).frontier()
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
    assert case.trace(run[0], evaluate=evaluate, signal=list(EPOCHS), **SMALL) == run[1]
    assert evaluate.calls == 0


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        (
            EPOCHS[:2],
            r"training epochs \(signal\) of run .* must be 5, 10, 20 as when it began, got 5, 10: give another",
        ),
        ((), r"training epochs \(signal\) of run .* must be 5, 10, 20 as when it began, got none"),
        (
            (*EPOCHS[:2], epoch_signal(SPEC, 401.0, epoch=20)),
            r"training signal's content of run .* must be [0-9a-f]{12}\.\.\. as when it began",
        ),
    ],
)
def test_a_run_is_continued_with_its_own_epochs(
    run: tuple[Path, Frontier], signal: tuple[EpochSignal, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        case.trace(run[0], signal=signal, **SMALL)


def test_runs_without_signal_stay_what_they_were(tmp_path: Path) -> None:
    plain = case.trace(tmp_path / "plain", **SMALL)
    data = json.loads((tmp_path / "plain" / "run.json").read_text())
    del data["signal_epochs"], data["signal_digest"]  # as an earlier version wrote it
    (tmp_path / "plain" / "run.json").write_text(json.dumps(data))
    assert case.trace(tmp_path / "plain", **SMALL) == plain
    beside = case.trace(tmp_path / "beside", signal=EPOCHS[:1], **SMALL)
    assert [p for p in case.outcome(beside).items() if p[0] != "signal-5"] == list(case.outcome(plain).items())


def test_skipped_layers_stay_float(tmp_path: Path) -> None:
    layout = Layout(skip=("7",))
    frontier = case.trace(tmp_path / "run", signal=EPOCHS[:1], layout=layout, **SMALL)
    (point,) = signal_points(frontier)
    plan = CompressionPlan.from_dict(json.loads(open_run(tmp_path / "run").read_object(point.plan, "json")))
    assert [layer.name for layer in plan.layers] == ["0", "3"]


@pytest.mark.parametrize(
    ("signal", "said"),
    [
        ((EPOCHS[0], EPOCHS[0]), r"signal must hold epochs from 1, each once, got \[5, 5\]"),
        ((epoch_signal(SPEC, 12.0, epoch=0),), "signal must hold epochs from 1"),
        (("signal.jsonl",), "signal must hold EpochSignal records, got str"),
        (
            (EpochSignal(epoch=2, iterations=9, layers=()),),
            "signal of epoch 2 must cover every layer .* got none for 0, 3",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_scored(tmp_path: Path, signal: Any, said: str) -> None:
    evaluate = case.Agreement()
    with pytest.raises(InputError, match=said):
        case.trace(tmp_path / "run", evaluate=evaluate, signal=signal, **SMALL)
    assert evaluate.calls == 0
    assert not (tmp_path / "run").exists()
