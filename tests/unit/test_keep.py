"""Policies and plans: what they keep, and what they refuse."""

import math
from dataclasses import replace

import pytest
import torch

from slimbit.plan.keep import Keeping, keep_alive, keep_by_fisher, keep_by_norm, keep_within
from slimbit.records.errors import InputError
from slimbit.records.groups import FilterGroup, Member, Ties
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
TIES = Ties(network="net", groups=(A, C), fixed={"d": "it is an output of the network"})
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
    plan = keep_by_norm(TIES, WEIGHTS, Keeping(ratio=3 / 7, scope="global"))
    assert units(plan) == {"a": (0, 2), "b": (0, 2), "c": (0, 1)}
    assert units(keep_by_norm(TIES, WEIGHTS, Keeping(ratio=0.01, scope="global"))) == {
        "a": (0,),
        "b": (0,),
        "c": (0, 1),
    }


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ratio_one_keeps_all(scope: str) -> None:
    assert keep_by_norm(TIES, WEIGHTS, Keeping(ratio=1, scope=scope)).axes == ()


def test_ratios_by_pattern_and_protection() -> None:
    assert units(keep_by_norm(TIES, WEIGHTS, Keeping(ratio={"[ab]": 0.25}))) == {"a": (0,), "b": (0,)}
    assert units(keep_by_norm(TIES, WEIGHTS, Keeping(ratio={"b": 0.25, "c": 0.3}))) == {
        "a": (0,),
        "b": (0,),
        "c": (0, 1),
    }
    assert units(keep_by_norm(TIES, WEIGHTS, Keeping(protect=("b",)))) == {"c": (0, 1, 2, 3)}
    assert keep_by_norm(TIES, WEIGHTS, Keeping(protect=("*",))).axes == ()


@pytest.mark.parametrize(
    ("keeping", "words"),
    [
        ({"ratio": {"a": 0.5, "b": 0.25}}, "keep ratios must agree for the tied layers a, b"),
        ({"ratio": {"d": 0.5}}, "keep ratio of 'd' must be 1, got 0.5: it is an output of the network"),
        ({"ratio": {"layer9*": 0.5}}, "must match layers of net, got 'layer9\\*'"),
        ({"protect": ("e",)}, "must match layers of net, got 'e'"),
        ({"ratio": 0}, "keep ratio must be above 0 and at most 1, got 0"),
        ({"ratio": 1.5}, "keep ratio must be above 0 and at most 1, got 1.5"),
        ({"ratio": math.nan}, "keep ratio must be above 0"),
        ({"ratio": True}, "keep ratio must be above 0"),
        ({"ratio": {"a": -1}}, "keep ratio of 'a' must be above 0"),
        ({"ratio": {"a": 0.5}, "scope": "global"}, "one number for the global scope"),
        ({"scope": "network"}, "scope must be one of layer, global"),
        ({"constants": "keep"}, "constants must be one of fold, zero"),
        ({"protect": "conv1"}, "protect must be a tuple"),
    ],
)
def test_refused(keeping: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        keep_by_norm(TIES, WEIGHTS, Keeping(**keeping))


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
        return LayerSignal(layer=name, epoch=1, weights=9, positions=1, filter_signal=signal, filter_noise=zeros)

    layers = (layer("a", 1, 1, 1, 1), layer("b", 0, 3, 1, 2), layer("c", 0, 1, 2, 0, 0, 5))
    plan = keep_by_norm(TIES, {}, signal=EpochSignal(epoch=1, iterations=1, layers=layers))
    assert units(plan) == {"a": (1, 3), "b": (1, 3), "c": (2, 3, 4, 5)}
    assert plan.policy == "signal"


def test_only_the_dead_go() -> None:
    weights = {"a": torch.tensor([[1.0], [0.01], [0.01], [1.0]]), "b": torch.tensor([[1.0], [0.01], [1.0], [1.0]])}
    weights["c"] = torch.zeros(6, 1)  # dead altogether: the best stays
    plan = keep_alive(TIES, weights)
    assert units(plan) == {"a": (0, 2, 3), "b": (0, 2, 3), "c": (0, 1)}
    wide = Member(name="wide", role="filters", size=40, channels=tuple((k,) for k in range(40)))
    many = Ties(network="net", groups=(FilterGroup(name="wide", units=40, members=(wide,)),), fixed={})
    alive = torch.zeros(40, 1).index_fill_(0, torch.tensor([3, 30]), 1.0)  # fewer than the percentile can see
    assert units(keep_alive(many, {"wide": alive})) == {"wide": (3, 30)}
    assert keep_alive(TIES, weights, constants="zero").constants == "zero"
    assert units(keep_alive(TIES, weights, protect=("c",))) == {"a": (0, 2, 3), "b": (0, 2, 3)}
    assert "a" not in units(keep_alive(TIES, weights, threshold=0.001))
    with pytest.raises(InputError, match="threshold must be above 0 and below 1"):
        keep_alive(TIES, weights, threshold=1.0)


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
        return keep_by_norm(TIES, WEIGHTS, Keeping(ratio=ratio, scope=scope))

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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kept": []}, "must hold at least one"),
        ({"kept": [0, 3]}, "different numbers below 3"),
        ({"kept": [0, 0]}, "different numbers below 3"),
        ({"kept": [0.0, 2]}, "different numbers below 3"),
        ({"kept": ["0"]}, "different numbers"),
        ({"size": "3"}, "different numbers"),
        ({"kept": 2}, "a list of what is kept"),
        ({"role": "outputs"}, "role of 'a' must be one of"),
        ({"more": 1}, "only known keys, got more"),
    ],
)
def test_plan_files_are_checked(change: dict[str, object], words: str) -> None:
    data = {"schema": 1, "network": "n", "policy": "p", "axes": [AXIS | change]}
    with pytest.raises(InputError, match=words):
        KeepPlan.from_dict(data)


@pytest.mark.parametrize(
    "change", [{"schema": 2}, {"axes": None}, {"policy": 3}, {"extra": "x"}, {"axes": [AXIS, AXIS]}, {"constants": "x"}]
)
def test_broken_plans(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        KeepPlan.from_dict({"schema": 1, "network": "n", "policy": "p", "axes": [AXIS]} | change)
    with pytest.raises(InputError):
        KeepPlan.from_dict({"schema": 1, "axes": [AXIS]})


def test_round_trip_and_digest() -> None:
    plan = keep_by_norm(TIES, WEIGHTS)
    assert KeepPlan.from_dict(plan.to_dict()) == plan
    assert KeepPlan.from_dict(plan.to_dict()).digest() == plan.digest() != replace(plan, constants="zero").digest()


def test_units_that_are_not_there() -> None:
    for kept in ({"a": (9,)}, {"a": ()}, {"x": (0,)}):
        with pytest.raises(InputError, match="kept"):
            plan_of_units(TIES, kept, policy="mine")
    with pytest.raises(InputError, match="twice"):
        KeepPlan(network="n", policy="p", axes=(AxisKeep(name="a", role="norm", size=2, kept=(0,)),) * 2)
