"""A whole run on a tiny network: what it measures, what it keeps, what it tells, how it continues."""

import json
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import frontier_case as case
from slimbit.frontier.frontier import Frontier, open_run
from slimbit.frontier.progress import Progress
from slimbit.frontier.store import open_store
from slimbit.frontier.sweep_plan import missing_points, plans_of
from slimbit.frontier.trace import trace_frontier
from slimbit.measure.sensitivity import categorical
from slimbit.records.codec import from_json
from slimbit.records.config import PAPER, QuantConfig, RunConfig
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
from slimbit.records.setting import Bits
from slimbit.report.page import data_of


@pytest.fixture(scope="module")
def told() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, told: list[Progress]) -> tuple[Path, Frontier]:
    out = tmp_path_factory.mktemp("frontier") / "run"
    return out, case.trace(out, progress=told.append)


def test_every_point_is_there_once(run: tuple[Path, Frontier]) -> None:
    frontier = run[1]
    keys = sorted(p.key for p in frontier.points)
    sweep = [f"sweep-{i:02d}" for i in range(case.SWEPT)] + [f"refine-{i:02d}" for i in range(case.REFINED)]
    assert keys == sorted(sweep + [f"max_abs-{b}" for b in range(2, 9)])
    assert [p.number for p in frontier.points] == list(range(len(keys)))
    assert all(p.state == "done" for p in frontier.points)
    assert frontier.float_accuracy == 100.0


def test_sweep_is_even_in_log_cost_from_nearly_float_to_collapse(run: tuple[Path, Frontier]) -> None:
    sweep = sorted((p for p in run[1].points if p.key.startswith("sweep")), key=lambda p: p.costs["esn_digital"])
    steps = [math.log(b.costs["esn_digital"] / a.costs["esn_digital"]) for a, b in pairwise(sweep)]
    assert max(steps) < 1.6 * min(steps)  # compensation moves costs a little from what plans predict
    assert sweep[-1].accuracy > 90
    assert 30 < sweep[0].accuracy < 75  # about half of the decisions, chance is 20


def test_baselines_are_the_papers(run: tuple[Path, Frontier]) -> None:
    opened = open_run(run[0])
    for point in (p for p in opened.points if p.baseline):
        plan = from_json(CompressionPlan, opened.read_object(point.objects["plan"], "json"), where="plan")
        assert (plan.policy, plan.config) == ("max_abs", PAPER)
        assert {layer.grid for layer in plan.layers} == {"midrise"}
        assert point.setting == Bits(float(point.key[-1]))


def test_objects_give_the_stored_accuracy_and_cost_back(run: tuple[Path, Frontier]) -> None:
    opened, evaluate = open_run(run[0]), case.Agreement()
    for point in opened.points:
        found = opened.load(point, model=case.network())
        for name, layer in found.layers.items():
            q, step = layer.levels, layer.steps
            expected = q * (step if step.ndim == 0 else step.reshape(-1, *[1] * (q.ndim - 1)))
            assert torch.equal(found.model.get_submodule(name).weight, expected)
        assert evaluate(found.model) == point.accuracy
        report = json.loads(opened.read_object(point.objects["cost"], "json"))
        assert report["total"]["esn_digital"] == point.costs["esn_digital"] == found.cost.total.esn_digital
        assert dict(point.costs) == {name: found.cost.total[name] for name in point.costs}
        assert found.plan.digest() == point.plan


def test_it_says_what_it_will_do_before_the_first_point(run: tuple[Path, Frontier], told: list[Progress]) -> None:
    stages = [p.stage for p in told]
    assert stages.index("start") < stages.index("point")
    start = told[stages.index("start")]
    assert start.total == case.POINTS + case.BASELINES
    assert start.message == "15 points to measure"
    info = open_run(run[0]).info
    assert start.seconds_left is not None
    assert start.seconds_left > start.total * info.evaluate_seconds  # compression takes time, too
    finished = [p for p in told if p.point is not None]
    assert [p.done for p in finished] == list(range(1, 16))
    assert told[-1].stage == "done"


def test_the_time_left_is_that_of_points_without_their_preparation(tmp_path: Path) -> None:
    left: list[float] = []

    def listen(progress: Progress) -> None:
        if progress.stage == "sensitivity":
            time.sleep(1.5)
        if progress.point is not None and progress.seconds_left is not None:
            left.append(progress.seconds_left)

    case.trace(tmp_path / "run", points=4, baselines=False, progress=listen)
    assert left[0] < 1.5 * 3  # three points are left


def test_a_run_that_goes_on_says_once_what_is_left_and_names_places_as_they_were_given(tmp_path: Path) -> None:
    told: list[Progress] = []
    first = case.trace(tmp_path / "run", points=3, baselines=False)
    near = {"esn_digital": 20e3, "accuracy": 50.0}
    case.trace(tmp_path / "run", points=3, baselines=False, near=near, progress=told.append)
    texts = [one.message for one in told]
    assert texts.count("8 points to measure, 3 of 11 are there") == 1
    assert sum(one.stage == "start" for one in told) == 1
    assert any(text.endswith("more points near esn_digital=20k") for text in texts)
    assert any(text.endswith("more points near accuracy=50") for text in texts)
    assert len(first.points) == 3


def test_the_same_call_repeats_nothing(run: tuple[Path, Frontier]) -> None:
    evaluate = case.Agreement()
    before = sorted((p, p.stat().st_mtime_ns) for p in run[0].rglob("*.json"))
    again = case.trace(run[0], evaluate=evaluate)
    assert evaluate.calls == 1  # of the float network: whether it is still the same metric
    assert again.points == run[1].points
    assert sorted((p, p.stat().st_mtime_ns) for p in run[0].rglob("*.json")) == before


def test_what_is_missing_is_counted_by_kind(run: tuple[Path, Frontier]) -> None:
    folder, frontier = run
    plans = plans_of(open_store(folder))
    assert missing_points(plans, frontier.points) == ""
    kept = [point for point in frontier.points if point.key not in ("sweep-00", "max_abs-8", "max_abs-7")]
    assert "1 point and 2 points for comparison." in missing_points(plans, kept)


def test_the_report_has_the_sensitivity_that_the_run_measured(run: tuple[Path, Frontier]) -> None:
    source = run[1].report_source()
    data, found = data_of(source), source.sensitivity[1.0]
    assert [value for value in data.layers[data.start].sensitivity if value is not None] == pytest.approx(
        [found.layer(name) for name in data.layer_names if name in found.filters], rel=1e-3
    )


def test_intervals_belong_to_the_number_of_images(run: tuple[Path, Frontier]) -> None:
    for point in run[1].points:
        assert point.accuracy_low <= point.accuracy <= point.accuracy_high
        assert point.accuracy_high - point.accuracy_low < 14.1  # 200 images: 2 * 1.96 * sqrt(1/4 / 200) = 13.9 %


def test_the_users_network_is_not_changed(tmp_path: Path) -> None:
    model = case.network().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    case.trace(tmp_path / "run", model=model, points=2, baselines=False)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("metric", ["esn_analog", "esn_filterwise"])
def test_other_metrics(tmp_path: Path, metric: str) -> None:
    frontier = case.trace(tmp_path / "run", metric=metric, points=5, baselines=False)
    costs = [p.costs[metric] for p in frontier.points]
    assert 4 <= len(costs) <= 5  # whole widths may make two prices one plan
    assert max(costs) > 2 * min(costs)


def test_regression_is_judged_by_its_outputs(tmp_path: Path) -> None:
    net = nn.Sequential(*case.network(), nn.Linear(5, 1)).eval()
    x = case.images(seed=9)
    wanted = net(x).detach()

    def explained(model: nn.Module) -> float:
        with torch.no_grad():
            return float(1 - (model(x) - wanted).square().mean() / wanted.var())

    frontier = case.trace(tmp_path / "r", model=net, evaluate=explained, likelihood="gaussian", points=3)
    assert frontier.float_accuracy == 1.0
    best, worst = (f(p.accuracy for p in frontier.points if not p.baseline) for f in (max, min))
    assert best > 0.9
    assert worst < 0.8
    assert all(p.accuracy_low is None for p in frontier.points)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"keep_ratios": (1.0, 0.5)}, r"keep ratios of run .* must be 1.0 as when it began, got 1.0, 0.5"),
        ({"quant": QuantConfig(skip=("0",))}, r"skip \(settings of quantization\) of run .* must be none .* got 0"),
        ({"metric": "esn_analog"}, "metric of run .* must be esn_digital as when it began, got esn_analog"),
        ({"seed": 4}, "seed of run .* must be 0"),
        ({"baselines": False}, "baselines of run .* must be max_abs"),
        ({"calibration": case.images(241, seed=3)}, "calibration images of run .* must be 240 .* got 241"),
        ({"calibration": case.images(240, seed=4)}, "calibration images' content of run"),
        ({"model": nn.Sequential(*case.network()[:7], nn.Linear(72, 5))}, "network's weights of run"),
    ],
)
def test_other_settings_are_refused(run: tuple[Path, Frontier], changed: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        case.trace(run[0], **changed)


def test_evaluate_that_fails_on_some_points(tmp_path: Path) -> None:
    agree = case.Agreement()
    answers = {3: float("nan"), 5: "many", 6: ValueError("no\nGPU")}

    class Moody:
        calls = 0

        def __call__(self, model: nn.Module) -> object:
            self.calls += 1
            answer = answers.get(self.calls, agree(model))
            if isinstance(answer, Exception):
                raise answer
            return answer

    moody = Moody()
    frontier = case.trace(tmp_path / "run", evaluate=moody, baselines=False)
    failed = {p.number: p for p in frontier.points if p.state == "failed"}
    assert sorted(failed) == [0, 2, 3]  # the first two calls were of the float network
    assert "finite number, got nan" in failed[0].error
    assert "must return a number, got str" in failed[2].error
    assert failed[3].error == "ValueError: no GPU"
    assert len(frontier.points) == case.POINTS
    assert open_run(tmp_path / "run").points == frontier.points

    calls = moody.calls
    case.trace(tmp_path / "run", evaluate=moody, baselines=False)
    assert moody.calls == calls + 1  # of the float network: a failed point is finished, too
    healed = case.trace(tmp_path / "run", evaluate=moody, baselines=False, retry_failed=True)
    assert moody.calls == calls + 1 + 1 + 3
    assert all(p.state == "done" for p in healed.points)
    assert len(healed.points) == len(frontier.points)


def test_float_accuracy_near_chance_stops_with_a_hint(tmp_path: Path) -> None:
    class Guess(case.Agreement):
        def __call__(self, model: nn.Module) -> float:
            return 21.0

    with pytest.raises(InputError, match=r"chance \(20 % for 5 classes\), got 21 %: check .*normalization"):
        case.trace(tmp_path / "run", evaluate=Guess())
    assert not (tmp_path / "run" / "run.json").exists()


def test_evaluate_that_fails_on_the_float_network_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^evaluate must return a number, got NoneType"):
        case.trace(tmp_path / "run", evaluate=lambda model: None)


@pytest.mark.parametrize("points", [0, 1001, 2.5, True])
def test_impossible_numbers_of_points(tmp_path: Path, points: object) -> None:
    with pytest.raises(InputError, match=r"^points must be "):
        case.trace(tmp_path / "run", points=points)


def test_one_point_is_enough(tmp_path: Path) -> None:
    assert [p.key for p in case.trace(tmp_path / "run", points=1, baselines=False).points] == ["sweep-00"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant": QuantConfig(skip=("6",))}, "skip must name layers of the network, got '6'"),
        ({"quant": QuantConfig(skip=("0", "3", "7"))}, "skip must leave a layer of case to compress"),
        ({"quant": QuantConfig(grid="midrise_zero"), "metric": "esn_filterwise"}, "grid must be midrise or midtread"),
        ({"quant": QuantConfig(rounding="rate_aware"), "metric": "esn_filterwise"}, "rounding must be nearest"),
        ({"quant": {"refit": 1}}, r"quant\.refit must be a valid boolean, got 1"),
        ({"quant": "midrise"}, "quant must be a table with the fields of QuantConfig, got 'midrise'"),
        ({"recipe": {"refit": True}}, "only known keys, got recipe"),
        ({"seed": "a"}, "seed must be a whole number of 0 or more, got 'a'"),
        ({"likelihood": "poisson"}, "likelihood must be categorical, gaussian or a function, got 'poisson'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_scored_or_written(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    evaluate = case.Agreement()
    with pytest.raises(InputError, match=said):
        case.trace(tmp_path / "run", evaluate=evaluate, points=4, **settings)
    assert evaluate.calls == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"grid": "midrize"}, "grid must be 'midrise', 'midrise_zero' or 'midtread', got 'midrize'"),
        ({"granularity": "weight"}, "granularity must be 'layer' or 'filter', got 'weight'"),
        ({"per": "image"}, "per must be 'mac' or 'parameter', got 'image'"),
        ({"skip": "conv1"}, "skip must be a list, got 'conv1'"),
        ({"skip": (1,)}, r"skip\.0 must be a valid string, got 1"),
    ],
)
def test_settings_are_checked_when_it_is_made(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        QuantConfig(**settings)


def confident(outputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return categorical(2 * outputs, generator)


def test_a_likelihood_may_be_a_function_and_its_name_is_kept(tmp_path: Path) -> None:
    small: dict[str, Any] = {"points": 1, "baselines": False}
    frontier = case.trace(tmp_path / "run", likelihood=confident, **small)
    assert [p.state for p in frontier.points] == ["done"]
    assert open_run(tmp_path / "run").info.likelihood == f"{__name__}:confident"
    with pytest.raises(InputError, match=r"likelihood of run .* must be .*:confident .*, got categorical"):
        case.trace(tmp_path / "run", **small)


def test_an_evaluate_that_ends_the_program_is_named(tmp_path: Path) -> None:
    class Leaving(case.Agreement):
        def __call__(self, model: object) -> float:
            if self.calls > 1:
                raise SystemExit(3)
            return super().__call__(model)

    frontier = case.trace(tmp_path / "run", evaluate=Leaving(), points=1, baselines=False)
    assert [(p.state, p.error) for p in frontier.points] == [("failed", "SystemExit: 3")]


def test_settings_of_a_run_reach_a_network_that_is_not_prepared(tmp_path: Path) -> None:
    arguments = (case.network(), torch.zeros(1, 1, 6, 6), case.images(240, seed=3), case.Agreement())
    config = RunConfig(seed=3, likelihood="gaussian", points=1, baselines=False)
    frontier = trace_frontier(*arguments, out=tmp_path / "run", config=config)
    assert (frontier.info.seed, frontier.info.likelihood) == (3, "gaussian")
    assert frontier.points[0].provenance["seed"] == 3


@pytest.mark.parametrize(("settings", "said"), [({"seed": 3}, "seed"), ({"likelihood": "gaussian"}, "likelihood")])
def test_settings_that_a_prepared_network_contradicts_are_refused(tmp_path: Path, settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=f"{said} must be given to slimbit.prepare for a prepared network"):
        trace_frontier(case.prepared(), evaluate=case.Agreement(), out=tmp_path / "run", config=RunConfig(**settings))


def test_arguments_win_over_the_settings(tmp_path: Path) -> None:
    frontier = trace_frontier(
        case.prepared(), evaluate=case.Agreement(), out=tmp_path / "run", metric="esn_analog", points=1,
        config=RunConfig(points=9, baselines=False),
    )  # fmt: skip
    assert (frontier.metric, len(frontier.points)) == ("esn_analog", 1)


@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital", "esn_filterwise"])
@pytest.mark.parametrize("skip", [("0",), ("3", "7")])
def test_layers_that_stay_float_leave_every_metric_and_are_no_part_of_the_analog_ones(
    tmp_path: Path, metric: str, skip: tuple[str, ...]
) -> None:
    frontier = case.trace(tmp_path / "run", metric=metric, quant=QuantConfig(skip=skip))
    points = frontier.points
    assert {point.state for point in points} == {"done"}
    run = open_run(tmp_path / "run")
    for point in points:
        report = json.loads(run.read_object(point.objects["cost"], "json"))
        analog = [layer["esn_analog"] for layer in report["layers"] if layer["name"] not in skip]
        assert point.costs["esn_analog"] == report["total"]["esn_analog"] == sum(analog)
        assert {layer["esn_analog"] for layer in report["layers"] if layer["name"] in skip} == {None}
        assert f"sums over {3 - len(skip)} of 3 layers" in " ".join(report["notes"])
    costs = {point.key: point.costs[metric] for point in points if not point.baseline}
    assert len(set(costs.values())) > 4
    assert all(cost is not None and cost > 0 for cost in costs.values())
    assert frontier.pareto()


def test_first_points_are_measured_before_the_range_of_prices_is_looked_for(tmp_path):
    said: list[Progress] = []
    run = case.trace(tmp_path / "run", points=10, baselines=False, progress=said.append)
    keys = [p.key for p in run.points]
    assert keys[:3] == ["first-00", "first-01", "first-02"]
    assert len(keys) == 10
    stages = [progress.stage for progress in said]
    third = [k for k, progress in enumerate(said) if progress.point is not None][2]
    assert third < stages.index("range")
    assert stages.count("start") == 1
    costs = {p.key: p.costs["esn_digital"] for p in run.points}
    assert costs["first-01"] > costs["first-00"] > costs["first-02"]  # two bits per weight, one, and half of one
    assert [p.key for p in case.trace(tmp_path / "run", points=10, baselines=False).points] == keys
