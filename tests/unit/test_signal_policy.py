"""Policy ``signal``: steps that cost what training showed, layers out of reach, and records that do not fit."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from signal_case import epoch_signal
from slimbit.apply.compress import compress
from slimbit.apply.layers import weights_of
from slimbit.numerics.grid import to_levels
from slimbit.numerics.steps import signal_step
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.signal import check_signal, step_by_signal, target_of
from slimbit.records.codec import canonical, from_json, from_plain, plain
from slimbit.records.config import PAPER, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Epoch
from slimbit.records.signal import EpochSignal, LayerSignal
from slimbit.survey.module import survey_network


def network() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 5)
        ).eval()


def inputs() -> PlanInputs:
    model = network()
    spec = survey_network(model, torch.zeros(1, 1, 6, 6)).spec
    return PlanInputs(spec=spec, weights=weights_of(model, spec))


def epoch_of(found: PlanInputs, ratio: float = 20.0, **but: float) -> EpochSignal:
    return epoch_signal(found.spec, ratio, epoch=3, but={name.strip("_"): value for name, value in but.items()})


def spent(weights: Tensor, step: float, grid: str = "midrise") -> float:
    return float(to_levels(weights, torch.tensor(step), grid=grid).double().square().sum())


def test_target_is_the_analog_cost_of_one_position() -> None:
    record = LayerSignal(name="a", epoch=1, nonzero_weights=120, positions=9, filter_signal=(6.0,), filter_noise=(2.0,))
    assert target_of(record) == 120 * 3 / 12
    assert record.esn_analog_estimate == 9 * target_of(record)
    # all zero: no weight, however still it stands, costs anything
    still = LayerSignal(name="a", epoch=1, nonzero_weights=0, positions=9, filter_signal=(1.0,), filter_noise=(0.0,))
    assert target_of(still) == 0


def test_step_by_hand() -> None:
    weights = torch.tensor([-0.3, 0.5, 0.9])
    # above 0.9 all levels are +-0.5: 0.75; from 0.9 / 2 on one is 1.5; at 0.5 exactly 0.5 becomes 1.5 as well
    assert signal_step(weights, 0.75) == (pytest.approx(0.9, rel=1e-6), True)
    step, reached = signal_step(weights, 4.75)
    assert reached
    assert step == pytest.approx(0.45, rel=1e-6)
    assert spent(weights, step) == 4.75
    assert signal_step(weights, 4.74)[0] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("weights", [torch.tensor([2.0]), torch.tensor([-2.0]), torch.full((4, 3), -0.25)])
def test_single_and_equal_weights(weights: Tensor) -> None:
    for target in (0.25, 0.3, 2.25, 100.0, 3000.7):
        total = target * weights.numel()
        step, reached = signal_step(weights, total)
        assert reached
        assert spent(weights, step) <= total


def test_ends_of_the_reach() -> None:
    weights = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    step, reached = signal_step(weights, 0.2499 * weights.numel())
    assert not reached
    assert set(to_levels(weights, torch.tensor(step)).unique().tolist()) == {-0.5, 0.5}
    assert step == pytest.approx(float(weights.abs().max()), rel=1e-6)  # not larger than need be
    step, reached = signal_step(weights, math.inf)
    assert not reached
    assert step == float(weights.abs().max()) / 2**13
    for grid in ("midrise_zero", "midtread"):
        step, reached = signal_step(weights, 0.0, grid=grid)
        assert reached
        assert spent(weights, step, grid) == 0


def test_no_weights_at_all() -> None:
    assert signal_step(torch.zeros(3, 2), 0.0) == (1.0, True)
    assert signal_step(torch.zeros(3, 2), 5.0) == (1.0, False)
    assert signal_step(torch.zeros(0, 2), 0.0) == (1.0, True)


@pytest.mark.parametrize("target", [math.nan, -1.0])
def test_a_target_that_is_none(target: float) -> None:
    with pytest.raises(InputError, match="target of a step must be zero or more"):
        signal_step(torch.ones(2), target)


def test_a_plan_costs_what_training_showed() -> None:
    found = inputs()
    epoch = epoch_of(found, 40.0, _2=25.0)
    plan = step_by_signal(found, epoch)
    assert (plan.policy, plan.setting, plan.clamped) == ("signal", Epoch(3), ())
    assert plan.config == PAPER
    stored = replace(plan, config=PAPER.model_copy(update={"statistics": "stored"}))
    layers = compress(network(), stored, found.spec).layers
    for layer in found.spec.layers:
        target = target_of(epoch.layer(layer.name))
        (step,) = plan.layer(layer.name).steps
        finer = math.nextafter(step, 0) * (1 - 2**-23)
        weights = found.weight(layer)
        assert spent(weights, step) <= target < spent(weights, finer)
        assert float(layers[layer.name].levels.double().square().sum()) == spent(weights, step)  # as carried out
        assert spent(weights, step) == pytest.approx(target, rel=0.05)  # fifty weights make jumps of some percent


def test_layers_out_of_reach_are_named() -> None:
    found = inputs()
    plan = step_by_signal(found, epoch_of(found, _0=2.9, _2=math.inf, _4=3.1))
    assert plan.clamped == ("0", "2")
    assert plan.layer("2").steps[0] == pytest.approx(float(found.weights["2"].abs().max()) / 2**13)
    assert step_by_signal(found, epoch_of(found, 0.0)).clamped == ("0", "2", "4")


def test_dead_filters_take_no_part() -> None:
    found = inputs()
    weights = {name: value.clone() for name, value in found.weights.items()}
    weights["2"][:4] = 0
    alive = PlanInputs(spec=found.spec, weights=weights)
    plan = step_by_signal(alive, epoch_of(found))
    assert plan.layer("2").kept == (4, 5, 6, 7)
    step = plan.layer("2").steps[0]
    assert spent(weights["2"][4:], step) == pytest.approx(20 * weights["2"].numel() / 12, rel=0.02)
    weights["2"][:] = 0
    assert step_by_signal(alive, epoch_of(found)).clamped == ("2",)


def test_skipped_layers_need_no_record() -> None:
    found = inputs()
    epoch = epoch_of(found)
    fewer = replace(epoch, layers=epoch.layers[:2])
    plan = step_by_signal(found, fewer, QuantConfig(grid="midrise", skip=("4",)))
    assert [layer.name for layer in plan.layers] == ["0", "2"]
    with pytest.raises(InputError, match="signal of epoch 3 must cover every layer to quantize, got none for 4"):
        step_by_signal(found, fewer)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "conv9"}, "must be of layers of Sequential, got 'conv9'"),
        ({"filter_signal": (1.0,) * 5}, "layer '0', must have 6 filters, got 5"),
        ({"filter_noise": (math.nan,) * 6}, "layer '0', must have finite powers from 0, got nan"),
        ({"filter_signal": (math.inf,) * 6}, "layer '0', must have finite powers from 0, got inf"),
        ({"filter_noise": (-1.0,) * 6}, "layer '0', must have finite powers from 0, got -1.0"),
        ({"nonzero_weights": 55}, "layer '0', must have at most 54 non-zero weights, got 55"),
        ({"name": "2"}, "must name each layer once, got 3 records of 2 layers"),
    ],
)
def test_records_of_another_network_are_refused(changed: dict, said: str) -> None:
    found = inputs()
    epoch = epoch_of(found)
    first, *others = epoch.layers
    with pytest.raises(InputError, match=said):
        step_by_signal(found, replace(epoch, layers=(replace(first, **changed), *others)))


def test_other_misuse_is_refused() -> None:
    found = inputs()
    with pytest.raises(InputError, match="signal must hold EpochSignal records, got dict"):
        check_signal(found.spec, QuantConfig(), {})
    with pytest.raises(InputError, match="granularity must be layer for policy signal, got filter"):
        step_by_signal(found, epoch_of(found), QuantConfig(grid="midrise", granularity="filter"))


def test_clamped_layers_are_part_of_a_plan_and_of_its_digest() -> None:
    plan = CompressionPlan(network="n", policy="signal", layers=(LayerPlan(name="fc", steps=(0.5,)),))
    # runs name their plans by it: another number here makes every run begin anew
    assert plan.digest() == "f46fdf4b180b228214f19713d23cf3121e684cdd38ce4950bbc3fe8e726b90cb"
    clamped = replace(plan, clamped=("fc",))
    assert clamped.digest() != plan.digest()
    assert from_json(CompressionPlan, canonical(clamped), where="x") == clamped
    with pytest.raises(InputError, match="clamped must name layers of the plan, got 'conv'"):
        replace(plan, clamped=("conv",))
    with pytest.raises(InputError, match=r"clamped of plan\.json must be a list, got 'fc'"):
        from_plain(CompressionPlan, {**plain(plan), "clamped": "fc"}, where="plan.json")
