"""A frontier from one training: points of policy ``learned``, loaded, continued exactly, guarded by their settings."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import frontier_case as case
import slimbit
from slimbit.compress import learning
from slimbit.records.config import QuantConfig, RunConfig
from slimbit.records.errors import InputError
from slimbit.records.learning import LearnConfig
from slimbit.training.images import TrainImages
from slimbit.training.task import TrainTask

LEARN = LearnConfig(
    epochs=4, points=4, distill=True, learning_rate=0.02,
    train={"batch_size": 24, "validation_images": 0, "augment": {"crop": 0, "flip": False}},
)  # fmt: skip


def task() -> TrainTask:
    pixels = (case.images(96, seed=4) * 30 + 128).clamp(0, 255).byte().numpy()
    return TrainTask(
        images=TrainImages(pixels=pixels, mean=(128 / 255,), std=(30 / 255,), full_scale=255),
        example_input=torch.zeros(1, 1, 6, 6),
    )


def trace(out: Path, learn: LearnConfig | None = LEARN, **more: Any) -> slimbit.Frontier:
    config = RunConfig(points=4, baselines=(), learn=learn, **more)
    return slimbit.trace_frontier(case.prepared(), evaluate=case.Agreement(), out=out, config=config, data=task())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> slimbit.Frontier:
    return trace(tmp_path_factory.mktemp("learned"))


def learned(frontier: slimbit.Frontier) -> list[Any]:
    return [point for point in frontier.points if point.policy == "learned"]


def test_one_training_gives_points_from_dear_to_cheap(run: slimbit.Frontier) -> None:
    points = learned(run)
    costs = [point.costs["esn_digital"] for point in points]
    assert len(points) >= 3
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.6 * costs[0]
    passed = [point.setting.value for point in points]
    assert passed == sorted(passed)
    assert points[0].accuracy > 80


def test_a_point_is_loaded_and_computes_what_was_scored(run: slimbit.Frontier) -> None:
    point = learned(run)[1]
    small = slimbit.open_run(run.path).load(point, model=case.network())
    assert small.plan.policy == "learned"
    assert case.Agreement()(small.model) == point.accuracy
    assert small.cost.total.esn_digital == point.costs["esn_digital"]


def test_a_finished_run_gets_learned_points(run: slimbit.Frontier, tmp_path: Path) -> None:
    first = trace(tmp_path / "run", learn=None)
    assert not learned(first)
    assert case.outcome(trace(tmp_path / "run")) == case.outcome(run)


def test_a_point_that_matters_gets_epochs_of_its_own(run: slimbit.Frontier, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    dear, cheap = learned(run)[0].costs["esn_digital"], learned(run)[-1].costs["esn_digital"]
    goal = math.sqrt(dear * cheap)
    more = trace(tmp_path / "run", LEARN.model_copy(update={"epochs": 3}), near={"esn_digital": goal})
    (added,) = (point for point in learned(more) if point.key not in {known.key for known in run.points})
    assert 0.6 * goal < added.costs["esn_digital"] < 1.5 * goal
    assert (added.setting.value, added.setting.epochs) == (3, 3)
    assert len(learned(more)) == len(learned(run)) + 1
    assert not [point for point in more.points if point.key.startswith("near-")]


def test_a_training_that_was_stopped_goes_on_exactly(
    run: slimbit.Frontier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def stop(*args: Any) -> None:
        write(*args)
        taken.append(args[1])
        if len(taken) == 3:
            raise KeyboardInterrupt

    write = learning.write_point
    monkeypatch.setattr(learning, "write_point", stop)
    with pytest.raises(KeyboardInterrupt):
        trace(tmp_path / "run")
    monkeypatch.undo()
    assert case.outcome(trace(tmp_path / "run")) == case.outcome(run)


def test_other_settings_of_the_training_are_refused(run: slimbit.Frontier) -> None:
    with pytest.raises(InputError, match=r"training of learned points of run .* must be .* as when they were made"):
        trace(run.path, learn=LEARN.model_copy(update={"epochs": 5}))


@pytest.mark.parametrize("metric", ["esn_analog", "esn_filterwise", "bit_operations"])
def test_any_cost_can_be_the_price(metric: str, tmp_path: Path) -> None:
    points = learned(trace(tmp_path, metric=metric))
    costs = [point.costs[metric] for point in points]
    assert len(points) >= 2
    assert costs[-1] < costs[0]


def test_activations_are_quantized_behind_the_training(tmp_path: Path) -> None:
    point = learned(trace(tmp_path, quant=QuantConfig(activation_bits=8)))[0]
    assert point.state == "done", point.error
    assert point.costs["bit_operations"] > 0


def test_a_network_without_data_is_told_so(tmp_path: Path) -> None:
    config = RunConfig(points=4, baselines=(), learn=LEARN)
    with pytest.raises(InputError, match="data must be given to learn a frontier"):
        slimbit.trace_frontier(case.prepared(), evaluate=case.Agreement(), out=tmp_path, config=config)


def test_labels_are_needed_unless_it_is_distilled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="training images must have labels, got none"):
        trace(tmp_path, learn=LEARN.model_copy(update={"distill": False}))


def test_the_report_draws_what_was_learned_beside_the_rest(run: slimbit.Frontier) -> None:
    page = run.report().read_text()
    assert "quantize only" in page
    assert "Learning for 4 epochs gives" in page
    assert '"name":"learn"' in page.replace(": ", ":")
