"""What a GPU changes: nothing but rounding. Skipped where there is none."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import slimbit
from slimbit.apply.layers import weights_of
from slimbit.apply.reestimate import reestimate
from slimbit.cli import app
from slimbit.plan.keep import keep_by_norm
from slimbit.records.config import PruneConfig
from slimbit.records.training import TrainConfig
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network
from slimbit.training.objectives import distillation
from slimbit.training.run import train_network

sys.path.insert(0, str(Path(__file__).parents[1]))
import frontier_case as case
from training_case import task_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*lightning.*", "ignore:.*pkg_resources.*"),
]
GPU = torch.device("cuda")


class Agreement(case.Agreement):
    def __call__(self, model: nn.Module) -> float:
        device = next(model.parameters()).device
        self._images, self._wanted = self._images.to(device), self._wanted.to(device)
        return super().__call__(model)


def test_a_frontier_is_the_same_but_for_rounding(tmp_path: Path) -> None:
    on_cpu = case.trace(tmp_path / "cpu", evaluate=Agreement(), points=3)
    on_gpu = case.trace(
        tmp_path / "gpu",
        model=case.network().to(GPU),
        calibration=case.images(240, seed=3).to(GPU),
        example_input=torch.zeros(1, 1, 6, 6, device=GPU),
        evaluate=Agreement(),
        points=3,
    )
    assert [point.key for point in on_gpu.points] == [point.key for point in on_cpu.points]
    for one, other in zip(on_gpu.points, on_cpu.points, strict=True):
        assert one.state == "done"
        assert one.costs["esn_digital"] == pytest.approx(other.costs["esn_digital"], rel=0.01)
        assert one.accuracy == pytest.approx(other.accuracy, abs=2.0)


def test_pruning_stays_on_the_device() -> None:
    network = slimbit.network("resnet8").eval().to(GPU)
    images = torch.randn(8, 3, 32, 32, device=GPU)
    filter_groups = find_filter_groups(network, images)
    plan = keep_by_norm(filter_groups, weights_of(network, survey_network(network, images).spec), PruneConfig(keep=0.5))
    small = reestimate(slimbit.prune(network, plan, images), [images], original=network, plan=plan)
    assert {value.device.type for value in small.state_dict().values()} == {"cuda"}
    assert small(images).shape == (8, 10)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_learns_and_comes_back(tmp_path: Path, compiled: bool, accumulate: int) -> None:
    data = slimbit.open_data("digits")
    network = slimbit.network("digits_resnet")
    config = TrainConfig(
        epochs=3, batch_size=32, accumulate=accumulate, validation_images=0, compile=compiled, select="last"
    )
    for name, objective in {"labels": None, "teacher": distillation(slimbit.network("digits_resnet"))}.items():
        result = train_network(network, task_of(data, objective=objective), config, tmp_path / name)
        assert result.epochs[-1].loss < result.epochs[0].loss
        assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_commands_on_a_device(tmp_path: Path) -> None:
    sweep = [
        "frontier",
        "digits_resnet",
        "--data",
        "digits",
        "--points",
        "2",
        "--widths",
        "1,0.5",
        "--tune-epochs",
        "1",
    ]
    done = CliRunner().invoke(app, [*sweep, "--device", "cuda", "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    points = slimbit.open_run(tmp_path / "run").points
    assert {point.state for point in points} == {"done"}
    assert {point.provenance["hardware"]["device"] for point in points} == {torch.cuda.get_device_name()}
    prune = ["prune", "digits_resnet", "--data", "digits", "--by", "fisher", "--device", "cuda"]
    done = CliRunner().invoke(app, [*prune, "--out", str(tmp_path / "slim")])
    assert done.exit_code == 0, done.output
