"""One plan, two ways: masks and surgery give equal outputs, on every network of the zoo and on foreign ones."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
import slimbit
from slimbit import zoo
from slimbit.apply.compress import compress
from slimbit.apply.layers import bind, weights_of
from slimbit.apply.mask import held_masks, mask
from slimbit.apply.quantize import plain_levels
from slimbit.apply.reestimate import reestimate
from slimbit.apply.surgery import prune, rebuild
from slimbit.measure.cost import cost
from slimbit.numerics.batches import output_heads
from slimbit.numerics.grid import GRIDS
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_range
from slimbit.records.codec import canonical, from_json
from slimbit.records.config import QuantConfig
from slimbit.records.keep import AxisKeep, KeepPlan, kept_macs, plan_of_units
from slimbit.survey.module import survey_network
from slimbit.zoo.densenet import densenet_bc

SMALL = ("resnet8", "resnet8-A", "resnet8-B", "digits_resnet", "vgg7@0.1", "mobilenet_v2@0.25", "resnet18@0.1")
SIDES = {"mobilenet_v2": 64, "resnet18": 64, "resnet50": 64}


def zoo_network(name: str) -> tuple[nn.Module, Tensor]:
    channels, side, _ = zoo.default_input(name)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = case.lively(zoo.network(name, classes=10))
    return model, case.images(side=SIDES.get(name.partition("@")[0], side), channels=channels)


def heads(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return output_heads(model(x))


def assert_equal_forms(model: nn.Module, x: Tensor, plan: KeepPlan) -> nn.Module:
    """Masks and surgery agree to 1e-5 of the outputs' size, on other images; the original is as before."""
    state, hooks = copy.deepcopy(model.state_dict()), [dict(m._forward_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    small, masked = prune(model, plan, x[:1]), mask(model, plan, x[:1])
    for found, wanted in zip(heads(small, x), heads(masked, x), strict=True):
        assert torch.allclose(found, wanted, rtol=0.0, atol=1e-5 * max(1.0, float(wanted.abs().max())))
    assert any(not torch.equal(a, b) for a, b in zip(heads(model, x), heads(masked, x), strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [dict(m._forward_hooks) for m in model.modules()] == hooks
    return small


def check_zoo(name: str, **keeping: object) -> None:
    model, x = zoo_network(name)
    _, plan = case.halved(model, x[:1], **keeping)
    small = assert_equal_forms(model, x, plan)
    spec = survey_network(model, x[:1]).spec
    planned, measured = kept_macs(spec, plan), cost(small, x[:1])
    assert {layer.name: layer.macs for layer in measured.layers} == planned
    assert measured.total.macs < cost(model, x[:1]).total.macs
    again = from_json(KeepPlan, canonical(plan), where="plan")
    rebuilt = rebuild(zoo.network(name, classes=10), again, small.state_dict())
    assert again.digest() == plan.digest()
    assert all(map(torch.equal, heads(rebuilt, x), heads(small, x)))


@pytest.mark.parametrize("name", SMALL)
def test_zoo_networks(name: str) -> None:
    check_zoo(name)


def test_densenet() -> None:
    model, x = case.lively(densenet_bc(depth=16, growth=4, classes=10)), case.images(side=16)
    ties, plan = case.halved(model, x[:1])
    assert len(ties.groups) == 1 + 12 + 2  # the stem, two of each dense layer, the transitions
    assert_equal_forms(model, x, plan)


def test_zeros_of_a_padding_module_go_too() -> None:
    model, x = zoo_network("resnet8-A")
    ties, plan = case.halved(model, x[:1])
    assert set(ties.fixed) == {"linear"}
    small = assert_equal_forms(model, x, plan)
    assert small.layer3[0].conv2.out_channels == 32
    assert sum(small.layer3[0].shortcut.pad.padding) == 16
    assert all(map(torch.equal, heads(rebuild(model, plan, small.state_dict()), x), heads(small, x)))


WAYS = [{"constants": "zero"}, {"scope": "global"}, {"keep": 0.01}, {"keep": {"layer2.*": 0.25}}]


@pytest.mark.parametrize("keeping", WAYS, ids=str)
def test_ways_to_keep(keeping: dict[str, object]) -> None:
    check_zoo("resnet8", **keeping)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.names() if n not in SMALL])
def test_all_zoo_networks(name: str) -> None:
    check_zoo(name, keep=0.6)


SIZES = ("macs", "nonzero_macs", "esn_filterwise", "bit_operations", "weight_bytes")


def assert_equal_costs(model: nn.Module, example: Tensor, **keeping: object) -> None:
    """Masks cost what surgery costs, layer by layer, float or rounded with any policy on any grid."""
    _, plan = case.halved(model, example, **keeping)
    masked, small = mask(model, plan, example), prune(model, plan, example)
    settings = [{}, {"bits": 1}, {"bits": 4}]
    settings += [{"bits": 4, "policy": "sigma", "grid": grid} for grid in GRIDS]
    for setting in settings:
        masks, surgery = (cost(network, example, **setting) for network in (masked, small))
        for one, other in zip((masks.total, *masks.layers), (surgery.total, *surgery.layers), strict=True):
            assert [one[name] for name in SIZES] == [other[name] for name in SIZES], setting
            assert one.esn_digital == other.esn_digital, setting
            assert one.esn_analog == other.esn_analog, setting
            assert one.esn_analog_class_a == other.esn_analog_class_a, setting
        for one, other in zip(masks.layers, surgery.layers, strict=True):
            assert [*filter(None, one.filter_bits)] == [*filter(None, other.filter_bits)]  # 0 is a pruned filter
            assert (one.signal_to_noise or 0.0) == pytest.approx(other.signal_to_noise or 0.0, rel=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_masks_cost_what_surgery_costs(name: str) -> None:
    model, x = zoo_network(name)
    assert_equal_costs(model, x[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.names() if n not in SMALL])
def test_masks_cost_what_surgery_costs_in_the_whole_zoo(name: str) -> None:
    model, x = zoo_network(name)
    assert_equal_costs(model, x[:1], keep=0.6)


@pytest.mark.parametrize("name", case.FOREIGN)
def test_masks_of_foreign_networks_cost_what_surgery_costs(name: str) -> None:
    assert_equal_costs(case.foreign(name), case.images()[:1])


def test_cost_of_a_masked_layer_by_hand() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([[4.0, 4.0, 4.0], [1.0, -0.4, 0.0]])
    net[1].weight.data = torch.tensor([[8.0, 1.0]])
    axes = (
        AxisKeep(name="0", role="filters", size=2, kept=(1,)),
        AxisKeep(name="1", role="inputs", size=2, kept=(1,)),
    )
    masked = mask(net, KeepPlan(network="net", policy="mine", axes=axes, constants="zero"))
    report = cost(masked, torch.zeros(1, 3), bits=2)
    # layer 0: step 1 / 2, levels 2.5 clipped to 1.5, -0.5, and 0.5 for the zero that nobody pruned: 2 + 1 + 1 bits
    # layer 1: step 1 / 2, level 1.5: 2 bits; with the pruned 8 among them the step would be 4
    assert [layer.esn_digital for layer in report.layers] == [4, 2]
    assert report.total.esn_analog == 1.5**2 + 2 * 0.5**2 + 1.5**2
    assert report.total.macs == 3 + 1
    assert masked.state_dict().keys() == net.state_dict().keys()
    assert cost(copy.deepcopy(masked), torch.zeros(1, 3), bits=2) == report


def test_a_masked_network_is_quantized_like_the_pruned_one() -> None:
    """Levels of what a mask took are 0, on the grid without a zero as well; so are those a cost is predicted by."""
    model, x = case.foreign("transposed"), case.images()
    _, plan = case.halved(model, x[:1], constants="zero")
    masked, small = mask(model, plan), prune(model, plan, x[:1])
    results = {}
    for name, network in (("masked", masked), ("small", small)):
        survey = survey_network(network, x[:1])
        weights = weights_of(network, survey.spec)
        config = QuantConfig(grid="midrise", compensation=False, statistics="stored")
        chosen = step_by_range(PlanInputs(spec=survey.spec, weights=weights), 4, config)
        done = compress(network, chosen, survey.spec)
        results[name] = {name: int((layer.levels != 0).sum()) for name, layer in done.layers.items()}
        masks = {layer: bound.mask() for layer, bound in bind(network, survey.spec).items()}
        predicted = {x.name: plain_levels(weights[x.name], x, mask=masks[x.name]) for x in chosen.layers}
        assert all(torch.equal(predicted[name].levels, layer.levels) for name, layer in done.layers.items())
    assert results["masked"] == results["small"]


@pytest.mark.parametrize("constants", ["fold", "zero"])
@pytest.mark.parametrize("name", case.FOREIGN)
def test_foreign_networks(name: str, constants: str) -> None:
    model, x = case.foreign(name), case.images()
    _, plan = case.halved(model, x[:1], constants=constants)
    small = assert_equal_forms(model, x, plan)
    planned = kept_macs(survey_network(model, x[:1]).spec, plan)
    assert {layer.name: layer.macs for layer in cost(small, x[:1]).layers} == planned
    assert all(map(torch.equal, heads(rebuild(model, plan, small.state_dict()), x), heads(small, x)))


@pytest.mark.parametrize("name", ["unet", "inverted residual", "two heads"])
def test_held_masks_hold(name: str) -> None:
    """A step of any optimizer with held gradients and weights leaves a masked network that equals its surgery."""
    model, x = case.foreign(name), case.images()
    _, plan = case.halved(model, x[:1], constants="zero")
    masked = mask(model, plan)
    held = held_masks(plan, masked)
    assert all(bool((dict(masked.named_parameters())[key][~keep] == 0).all()) for key, keep in held.items())
    loss = sum(head.square().sum() for head in output_heads(masked(x)))
    loss.backward()
    with torch.no_grad():
        for key, parameter in masked.named_parameters():
            parameter.sub_(0.01 * parameter.grad)
            if key in held:
                parameter.mul_(held[key])
    small = prune(masked, plan, x[:1])
    for found, wanted in zip(heads(small, x), heads(masked, x), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_folding_keeps_what_a_dead_filter_said() -> None:
    """Filters without weights say a constant; folded, nothing is lost where no padding cuts it off."""
    torch.manual_seed(0)
    net = case.lively(nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1, bias=False), nn.SiLU(), nn.Flatten(), nn.Linear(16, 5),
    ))  # fmt: skip
    x = case.images()
    with torch.no_grad():
        net[0].weight[::2] = 0
        net[1].running_mean[::2] = 0  # as training would have left it
        net[3].weight[1] = 0
        net[3].bias[1] = 0.7
    ties, _ = case.halved(net, x[:1])
    plan = plan_of_units(ties, {"0": (1, 3, 5), "3": (0, 2, 3)}, policy="mine")
    small = assert_equal_forms_without_change(net, x, plan)
    assert sorted(set(small.state_dict()) - set(net.state_dict())) == ["6.bias"]
    dropped = prune(net, replace(plan, constants="zero"), x[:1])
    assert not torch.allclose(heads(dropped, x)[0], heads(net, x)[0], atol=1e-2)


def assert_equal_forms_without_change(net: nn.Module, x: Tensor, plan: KeepPlan) -> nn.Module:
    small = prune(net, plan, x[:1])
    for other in (small, mask(net, plan, x[:1])):
        assert torch.allclose(heads(other, x)[0], heads(net, x)[0], atol=1e-5)
    return small


def test_constants_go_into_the_batchnorm_behind() -> None:
    model, x = zoo_network("resnet8")
    _, plan = case.halved(model, x[:1])
    small = prune(model, plan, x[:1])
    assert set(small.state_dict()) == set(model.state_dict())


def test_reestimation() -> None:
    """Absolute statistics are those of the images; paired ones are the stored ones where pruning changed nothing."""
    model, x = zoo_network("resnet8")
    images = case.images(16, side=32, seed=3)
    _, plan = case.halved(model, x[:1])
    small = prune(model, plan, x[:1])
    seen: list[Tensor] = []
    new = reestimate(small, images)
    new.bn1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    heads(new, images)
    assert torch.allclose(new.bn1.running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(new.bn1.running_var, seen[0].var((0, 2, 3), correction=0), atol=1e-4)
    paired = reestimate(small, images, original=model, plan=plan)
    kept = plan.axis("bn1", "norm").kept
    assert torch.allclose(paired.bn1.running_mean, model.bn1.running_mean[list(kept)], atol=1e-5)  # nothing before it
    whole = reestimate(model, images, original=model)
    assert torch.allclose(whole.layer3[0].bn2.running_var, model.layer3[0].bn2.running_var, rtol=1e-4)
    masked = reestimate(mask(model, plan, x[:1]), images, original=model, plan=plan)
    for name in ("layer1.0.bn2", "layer3.0.bn1"):
        rows = list(plan.axis(name, "norm").kept)
        found, wanted = paired.get_submodule(name), masked.get_submodule(name)
        assert torch.allclose(found.running_mean, wanted.running_mean[rows], atol=1e-4)


def test_paired_statistics_start_from_the_stored_ones() -> None:
    """Folding moves running means; what it took is measured again, so it must not count twice."""
    model, _ = zoo_network("resnet8")
    moved = copy.deepcopy(model)
    moved.bn1.running_mean += 3
    moved.bn1.running_var *= 2
    again = reestimate(moved, case.images(16, side=32, seed=3), original=model)
    assert torch.allclose(again.bn1.running_mean, model.bn1.running_mean, atol=1e-5)
    assert torch.allclose(again.bn1.running_var, model.bn1.running_var, rtol=1e-5)


class Gated(nn.Module):
    """Channels that are scaled by something which depends on the image: a removed one is no constant."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu() * self.gate(x).sigmoid())


def test_what_is_no_constant_is_not_folded() -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(2, 1, 5, 5)
    nn.init.constant_(model.first.bias, 1.0)
    plain = nn.Sequential(model.first, nn.ReLU(), model.second)
    for network, is_constant in ((model, False), (plain, True)):
        settings = (slimbit.PruneConfig(constants=way, statistics="stored") for way in ("fold", "zero"))
        folded, dropped = (slimbit.prune(network, x[:1], config=config).model for config in settings)
        assert torch.equal(folded(x), dropped(x)) != is_constant
