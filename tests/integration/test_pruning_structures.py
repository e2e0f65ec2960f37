"""What real networks do to channels: masks and surgery agree, and layers really lose filters."""

import copy
import random
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
from slimbit.apply.mask import mask
from slimbit.apply.surgery import prune, rebuild
from slimbit.plan.keep import keep_by_score
from slimbit.records.codec import canonical, from_json
from slimbit.records.config import PruneConfig
from slimbit.records.groups import FilterGroups
from slimbit.records.keep import KeepPlan, kept_macs
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network
from structures import STRUCTURES, Shell


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight norm
        torch.manual_seed(0)
        model = case.lively(Shell(STRUCTURES[name]()))
        model(case.images())  # lazily computed weights
        return model


def scored(filter_groups: FilterGroups, ratio: float, seed: int, constants: str) -> KeepPlan:
    """Which units stay is drawn."""
    numbers = random.Random(seed)
    scores = {group.name: [numbers.random() for _ in range(group.units)] for group in filter_groups.groups}
    return keep_by_score(filter_groups, scores, PruneConfig(keep=ratio, constants=constants), policy="drawn")


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_layer_loses_filters(name: str) -> None:
    filter_groups = find_filter_groups(network(name), case.images(1))
    assert filter_groups.fixed == {"head": "it is an output of the network"}


@pytest.mark.parametrize("constants", ["fold", "zero"])
@pytest.mark.parametrize("name", STRUCTURES)
def test_masks_and_surgery_agree(name: str, constants: str) -> None:
    model, x = network(name), case.images(2, seed=3)
    state = copy.deepcopy(model.state_dict())
    filter_groups = find_filter_groups(model, x[:1])
    for seed, ratio in enumerate((0.5, 0.7, 0.01)):
        plan = scored(filter_groups, ratio, seed, constants)
        small, masked = prune(model, plan, x[:1]), mask(model, plan, x[:1])
        assert_equal(small, masked, x)
        with torch.no_grad():
            assert not torch.allclose(model(x), masked(x), atol=1e-3)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            small(x[:1])
        planned = sum(kept_macs(survey_network(model, x[:1]).spec, plan).values())
        explained = survey_network(small, x[:1]).spec
        others = sum(work.macs for work in explained.other_work)
        assert sum(layer.macs for layer in explained.layers) == planned
        # fused products are not among those that count
        assert counter.get_total_flops() // 2 in (planned, planned + others)
        again = from_json(KeepPlan, canonical(plan), where="plan")
        assert again == plan
        assert_equal(rebuild(model, again, small.state_dict()), small, x)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def assert_equal(found: nn.Module, wanted: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        a, b = found(x), wanted(x)
    assert torch.allclose(a, b, rtol=0.0, atol=1e-5 * max(1.0, float(b.abs().max())))
