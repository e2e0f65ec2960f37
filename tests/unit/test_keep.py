"""Policies and plans: what they keep, and what they refuse."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimbit.compress.prepared import prepare
from slimbit.compress.prune import Pruner
from slimbit.plan.keep import keep_by_fisher, keep_by_norm, keep_live_filters, keep_within
from slimbit.records.codec import from_plain, plain
from slimbit.records.config import PruneConfig, TuneConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
import slimbit
from slimbit.records.errors import InputError
from slimbit.records.groups import FilterGroup, FilterGroups, Member
from slimbit.records.keep import AxisKeep, KeepPlan, kept_macs, plan_of_units
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.signal import EpochSignal, LayerSignal


def member(name: str, role: str, size: int, *channels: tuple[int, ...]) -> Member:
    return Member(name=name, role=role, size=size, channels=channels or tuple((k,) for k in range(size)))


A = FilterGroup(
    name="a", units=4, members=(member("a", "filters", 4), member("b", "filters", 4), member("c", "inputs", 4))
)
C = FilterGroup(
    name="c", units=3, members=(member("c", "filters", 6, (0, 1), (2, 3), (4, 5)), member("d", "inputs", 3))
)
TIES = FilterGroups(network="net", groups=(A, C), fixed={"d": "it is an output of the network"})
WEIGHTS = {
    "a": torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]),  # squared norms 1, 4, 9, 0
    "b": torch.tensor([[3.0], [0.0], [0.0], [2.0]]),  # 9, 0, 0, 4: tied sums 10, 4, 9, 4
    "c": torch.tensor([[1.0], [0.0], [0.0], [0.5], [0.1], [0.1]]),  # 1, 0.25, 0.02
}


def units(plan: KeepPlan) -> dict[str, tuple[int, ...]]:
    return {axis.name: axis.kept for axis in plan.axes if axis.role == "filters"}


def test_tied_filters_rank_by_their_sum() -> None:
    plan = keep_by_norm(TIES, WEIGHTS)
    assert units(plan) == {"a": (0, 2), "b": (0, 2), "c": (0, 1, 2, 3)}  # 1.5 of 3 rounds up to 2
    assert plan.axis("d", "inputs").kept == (0, 1)
    assert plan.axis("c", "inputs").removed == (1, 3)
    assert (plan.policy, plan.setting, plan.network) == ("norm", "keep 0.5", "net")


def test_global_ranks_all_units_and_spares_the_last() -> None:
    plan = keep_by_norm(TIES, WEIGHTS, PruneConfig(keep=3 / 7, scope="global"))
    assert units(plan) == {"a": (0, 2), "b": (0, 2), "c": (0, 1)}
    assert units(keep_by_norm(TIES, WEIGHTS, PruneConfig(keep=0.01, scope="global"))) == {
        "a": (0,),
        "b": (0,),
        "c": (0, 1),
    }


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ratio_one_keeps_all(scope: str) -> None:
    assert keep_by_norm(TIES, WEIGHTS, PruneConfig(keep=1, scope=scope)).axes == ()


def test_ratios_by_pattern_and_protection() -> None:
    assert units(keep_by_norm(TIES, WEIGHTS, PruneConfig(keep={"[ab]": 0.25}))) == {"a": (0,), "b": (0,)}
    assert units(keep_by_norm(TIES, WEIGHTS, PruneConfig(keep={"b": 0.25, "c": 0.3}))) == {
        "a": (0,),
        "b": (0,),
        "c": (0, 1),
    }
    assert units(keep_by_norm(TIES, WEIGHTS, PruneConfig(protect=("b",)))) == {"c": (0, 1, 2, 3)}
    assert keep_by_norm(TIES, WEIGHTS, PruneConfig(protect=("*",))).axes == ()


@pytest.mark.parametrize(
    ("keeping", "words"),
    [
        ({"keep": {"a": 0.5, "b": 0.25}}, "keep ratios must agree for the tied layers a, b"),
        ({"keep": {"d": 0.5}}, "keep ratio of 'd' must be 1, got 0.5: it is an output of the network"),
        ({"keep": {"layer9*": 0.5}}, "must match layers, got 'layer9\\*'"),
        ({"protect": ("e",)}, "must match layers, got 'e'"),
        ({"keep": 0}, "keep must be greater than 0, got 0"),
        ({"keep": 1.5}, "keep must be less than or equal to 1, got 1.5"),
        ({"keep": math.nan}, "keep must be a finite number, got nan"),
        ({"keep": True}, "keep must be a valid number, got True"),
        ({"keep": {"a": -1}}, r"keep\.a must be greater than 0, got -1"),
        ({"keep": {"a": 0.5}, "scope": "global"}, "one number for the global scope"),
        ({"scope": "network"}, "scope must be 'layer' or 'global', got 'network'"),
        ({"constants": "keep"}, "constants must be 'fold' or 'zero', got 'keep'"),
        ({"protect": "conv1"}, "protect must be a list, got 'conv1'"),
        ({"by": "size"}, "by must be 'norm', 'signal', 'fisher', 'admm' or 'dead', got 'size'"),
        ({"by": "admm"}, r"tune \(--tune-epochs\) must be given for pruning by admm"),
        ({"by": "signal"}, r"signal \(--signal RUN\) must be given for pruning by signal"),
        ({"signal": "run"}, r"signal \(--signal RUN\) must be given for pruning by signal"),
        ({"ratio": 0.5}, "only known keys, got ratio"),
        ({"keeps": 0.5}, "only known keys, got keeps; did you mean keep"),
    ],
)
def test_refused(keeping: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        keep_by_norm(TIES, WEIGHTS, PruneConfig(**keeping))


def test_weights_and_scores_of_another_network() -> None:
    with pytest.raises(InputError, match="filters of layer 'a' must have 4 norms, got 3"):
        keep_by_norm(TIES, {**WEIGHTS, "a": torch.ones(3, 2)})
    with pytest.raises(InputError, match="scores of 'c' must be 3 finite numbers"):
        keep_by_fisher(TIES, {"a": (1.0,) * 4, "c": (1.0, math.nan, 1.0)})
    with pytest.raises(InputError, match=r"must have filters that can be removed, got none \(d: it is"):
        keep_by_norm(replace(TIES, groups=()), WEIGHTS)


def test_signal_of_training() -> None:
    def layer(name: str, *signal: float) -> LayerSignal:
        zeros = (0.0,) * len(signal)
        return LayerSignal(name=name, epoch=1, nonzero_weights=9, positions=1, filter_signal=signal, filter_noise=zeros)

    layers = (layer("a", 1, 1, 1, 1), layer("b", 0, 3, 1, 2), layer("c", 0, 1, 2, 0, 0, 5))
    plan = keep_by_norm(TIES, {}, signal=EpochSignal(epoch=1, iterations=1, layers=layers))
    assert units(plan) == {"a": (1, 3), "b": (1, 3), "c": (2, 3, 4, 5)}
    assert plan.policy == "signal"


def test_only_the_dead_go() -> None:
    weights = {"a": torch.tensor([[1.0], [0.01], [0.01], [1.0]]), "b": torch.tensor([[1.0], [0.01], [1.0], [1.0]])}
    weights["c"] = torch.zeros(6, 1)  # dead altogether: the best stays
    plan = keep_live_filters(TIES, weights)
    assert units(plan) == {"a": (0, 2, 3), "b": (0, 2, 3), "c": (0, 1)}
    wide = Member(name="wide", role="filters", size=40, channels=tuple((k,) for k in range(40)))
    many = FilterGroups(network="net", groups=(FilterGroup(name="wide", units=40, members=(wide,)),), fixed={})
    alive = torch.zeros(40, 1).index_fill_(0, torch.tensor([3, 30]), 1.0)  # fewer than the percentile can see
    assert units(keep_live_filters(many, {"wide": alive})) == {"wide": (3, 30)}
    assert keep_live_filters(TIES, weights, constants="zero").constants == "zero"
    assert units(keep_live_filters(TIES, weights, protect=("c",))) == {"a": (0, 2, 3), "b": (0, 2, 3)}
    assert "a" not in units(keep_live_filters(TIES, weights, threshold=0.001))
    with pytest.raises(InputError, match="threshold must be above 0 and below 1"):
        keep_live_filters(TIES, weights, threshold=1.0)


SPEC = NetworkSpec("net", (
    LayerSpec(name="a", kind="conv2d", weight_key="a.weight", shape=(4, 3, 3, 3), positions=16),
    LayerSpec(name="b", kind="conv2d", weight_key="b.weight", shape=(4, 3, 1, 1), positions=16),
    LayerSpec(name="c", kind="conv2d", weight_key="c.weight", shape=(6, 4, 1, 1), positions=4),
    LayerSpec(name="d", kind="linear", weight_key="d.weight", shape=(2, 3)),
))  # fmt: skip


def test_predicted_macs() -> None:
    """a: 16 * 2 * 27; b: 16 * 2 * 3; c: 4 * 4 filters * 2 inputs; d: 2 * 2."""
    assert kept_macs(SPEC, keep_by_norm(TIES, WEIGHTS)) == {"a": 864, "b": 96, "c": 32, "d": 4}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_budget_is_met_and_nothing_larger_meets_it(scope: str) -> None:
    def make(ratio: float) -> KeepPlan:
        return keep_by_norm(TIES, WEIGHTS, PruneConfig(keep=ratio, scope=scope))

    def cost(plan: KeepPlan) -> int:
        return sum(kept_macs(SPEC, plan).values())

    reachable = sorted({cost(make(k / 1000)) for k in range(1, 1001)})
    for limit in (*reachable, 10_000, reachable[0] + 1, (reachable[-1] + reachable[-2]) / 2):
        assert cost(keep_within(make, cost, limit)) == max(c for c in reachable if c <= limit)
    with pytest.raises(InputError, match=f"budget must be at least {reachable[0]}"):
        keep_within(make, cost, reachable[0] - 1)
    for limit in (0, -1, math.nan, math.inf, "20M"):
        with pytest.raises(InputError, match="budget must be a positive number"):
            keep_within(make, cost, limit)


AXIS = {"name": "a", "role": "filters", "size": 3, "kept": [0, 2]}
PLAN = {"network": "n", "policy": "p", "axes": [AXIS]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": []}, "must hold at least one"),
        ({"kept": [-1, 0]}, "different numbers below 3"),
        ({"kept": [0, 3]}, "different numbers below 3"),
        ({"kept": [0, 0]}, "different numbers below 3"),
        ({"kept": [0.0, 2]}, r"axes\.0\.kept\.0 of prune\.json must be a valid integer, got 0\.0"),
        ({"kept": ["0"]}, r"axes\.0\.kept\.0 of prune\.json must be a valid integer, got '0'"),
        ({"size": "3"}, r"axes\.0\.size of prune\.json must be a valid integer, got '3'"),
        ({"kept": 2}, r"axes\.0\.kept of prune\.json must be a list, got 2"),
        ({"role": "outputs"}, r"axes\.0\.role of prune\.json must be 'filters'"),
        ({"more": 1}, r"prune\.json must hold only known keys, got axes\.0\.more"),
        ({"siz": 3}, r"prune\.json must hold only known keys, got axes\.0\.siz; did you mean size"),
    ],
)
def test_plan_files_are_checked(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_plain(KeepPlan, PLAN | {"axes": [AXIS | change]}, where="prune.json")


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"axes": None}, {"policy": 3}, {"extra": "x"}, {"axes": [AXIS, AXIS]}, {"constants": "x"}]
)
def test_broken_plans(change: dict[str, object]) -> None:
    assert from_plain(KeepPlan, {"schema": 1} | PLAN, where="x", schema=1).axes[0].kept == (0, 2)
    with pytest.raises(InputError):
        from_plain(KeepPlan, {"schema": 1} | PLAN | change, where="x", schema=1)
    with pytest.raises(InputError, match="x must hold network, got none"):
        from_plain(KeepPlan, {"schema": 1, "axes": [AXIS]}, where="x", schema=1)


def test_round_trip_and_digest() -> None:
    plan = keep_by_norm(TIES, WEIGHTS)
    again = from_plain(KeepPlan, plain(plan), where="x")
    assert again == plan
    assert again.digest() == plan.digest() != replace(plan, constants="zero").digest()


def test_units_that_are_not_there() -> None:
    for kept in ({"a": (9,)}, {"a": ()}, {"x": (0,)}):
        with pytest.raises(InputError, match="kept"):
            plan_of_units(TIES, kept, policy="mine")
    with pytest.raises(InputError, match="twice"):
        KeepPlan(network="n", policy="p", axes=(AxisKeep(name="a", role="norm", size=2, kept=(0,)),) * 2)


@pytest.mark.parametrize("name", ["transposed", "unet"])
@pytest.mark.parametrize("by", ["norm", "admm"])
def test_pruning_ranks_filters_of_transposed_convolutions(name: str, by: str) -> None:
    model, x = case.foreign(name), case.images()[:1]
    tune = TuneConfig() if by == "admm" else None
    pruner = Pruner(prepare(model, x, None), PruneConfig(by=by, tune=tune), object() if tune else None)
    plan = pruner.plan(0.5)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.ConvTranspose2d) and module.groups == 1:
            norms = module.weight.detach().square().sum((0, 2, 3))  # stored: inputs, filters, kernel
            axis = plan.axis(path, "filters")
            assert axis is not None
            assert sorted(norms.argsort(descending=True)[: len(axis.kept)].tolist()) == list(axis.kept)
    if by == "norm":
        assert slimbit.prune(model, x, keep=0.5).keep == plan
