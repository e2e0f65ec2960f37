"""Pruning against others: torch's FLOP counter, Torch-Pruning's dependency graph, slow loops over single images."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
from posttraining_reference import signed_directions
from slimbit import zoo
from slimbit.apply.mask import mask
from slimbit.apply.surgery import prune
from slimbit.measure import group_sensitivity
from slimbit.measure.group_sensitivity import measure_group_sensitivity
from slimbit.plan.keep import keep_by_fisher
from slimbit.records.config import PruneConfig
from slimbit.records.errors import InputError
from slimbit.records.keep import kept_macs, plan_of_units
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network

NETWORKS = ("resnet14", "resnet8-A", "vgg7@0.25", "mobilenet_v2@0.25", "resnet50@0.25")


def zoo_network(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return case.lively(zoo.network(name, classes=10)), case.images(1, side=zoo.default_input(name)[1] // 2 or 8)


def counted(model: nn.Module, x: Tensor) -> int:
    torch.backends.mha.set_fastpath_enabled(False)  # fused attention hides its projections
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [*NETWORKS, *case.FOREIGN])
def test_macs_of_the_smaller_network(name: str) -> None:
    """Plan and torch's counter agree (which on the CPU does not see attention scores; no layer makes them)."""
    if name in case.FOREIGN:
        model, x = case.foreign(name), case.images(1)
    else:
        model, x = zoo_network(name)
        x = case.images(1, side=32)
    _, plan = case.halved(model, x)
    spec = survey_network(model, x).spec
    assert sum(kept_macs(spec, plan).values()) == counted(prune(model, plan, x), x)


@pytest.mark.parametrize(
    "name", ["resnet14", "vgg7@0.25", "mobilenet_v2@0.25", "resnet50@0.25", "densenet_bc_100_12@0.3"]
)
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    """The same filters of the same layers, with the same inputs and norms, in every group that it finds."""
    tp = pytest.importorskip("torch_pruning")
    model, _ = zoo_network(name)
    x = case.images(1, side=32)
    paths = {module: path for path, module in model.named_modules()}
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, x, verbose=False)
        found = set()
        for group in graph.get_all_groups(ignored_layers=[last], root_module_types=(nn.Conv2d, nn.Linear)):
            unit = graph.get_pruning_group(group[0].dep.target.module, group[0].dep.handler, [1])
            found.add(frozenset(
                (paths[dep.target.module], graph.is_out_channel_pruning_fn(dep.handler), tuple(sorted(places)))
                for dep, places in unit if isinstance(dep.target.module, nn.Conv2d | nn.Linear)
            ))  # fmt: skip
    ours = set()
    for group in find_filter_groups(model, x).groups:
        members = [m for m in group.members if m.role in ("filters", "inputs")]
        unit = next(u for u in range(group.units) if 1 in members[0].channels[u])
        depthwise = {m.name for m in members if getattr(model.get_submodule(m.name), "groups", 1) > 1}
        ours.add(frozenset(
            (m.name, m.role == "filters", m.channels[unit]) for m in members
            if not (m.role == "inputs" and m.name in depthwise)
        ))  # fmt: skip
    assert ours == found


def slow_scores(model: nn.Module, filter_groups, x: Tensor, order: str) -> dict[str, list[float]]:
    """Image by image, signs drawn alike, from gradients of the weights that read each unit."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        directions = signed_directions(model(x), generator)
    totals = {group.name: [0.0] * group.units for group in filter_groups.groups}
    for image, direction in zip(x, directions, strict=True):
        model.zero_grad()
        (model(image[None])[0] * direction).sum().backward()
        for group in filter_groups.groups:
            for unit in range(group.units):
                total = 0.0
                for member in group.of("inputs"):
                    layer = model.get_submodule(member.name)
                    product = (layer.weight.grad * layer.weight).detach().double()
                    for channel in member.channels[unit]:
                        if getattr(layer, "groups", 1) == 1 and not getattr(layer, "transposed", False):
                            total += float(product[:, channel].sum())
                        else:
                            total += float(product[channel].sum())  # depthwise: filter c reads channel c; transposed
                totals[group.name][unit] += (total**2 / 2 if order == "second" else abs(total)) / len(x)
    return totals


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("name", ["dense", "inverted residual"])
def test_group_sensitivity_is_that_of_single_images(name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case.foreign(name), case.images(6)
    filter_groups = find_filter_groups(model, x[:1])
    wanted = slow_scores(model, filter_groups, x, order)
    model.zero_grad()
    for size in (4, 32):
        monkeypatch.setattr(group_sensitivity, "IMAGES_PER_PASS", size)
        generator = torch.Generator().manual_seed(5)
        found = measure_group_sensitivity(model, filter_groups, x, generator=generator, order=order, constants="zero")
        for key, values in wanted.items():
            assert found[key] == pytest.approx(values, rel=1e-3, abs=1e-9)
    assert all(p.grad is None for p in model.parameters())


def test_sensitivity_predicts_what_removal_does() -> None:
    """The second-order score of a unit is about the divergence that its removal causes: same order of units."""
    model, x = case.foreign("dense"), case.images(64)
    filter_groups = find_filter_groups(model, x[:1])
    scores = measure_group_sensitivity(
        model, filter_groups, x, generator=torch.Generator().manual_seed(0), constants="zero", order="second"
    )
    predicted, real = [], []
    with torch.no_grad():
        wanted = model(x).double().log_softmax(1)
        for group in filter_groups.groups:
            for unit in range(group.units):
                others = {group.name: [u for u in range(group.units) if u != unit]}
                lesser = mask(model, plan_of_units(filter_groups, others, policy="one", constants="zero"))
                found = lesser(x).double().log_softmax(1)
                predicted.append(scores[group.name][unit])
                real.append(float((wanted.exp() * (wanted - found)).sum(1).mean()))
    ranks = [torch.tensor(v).argsort().argsort().double() for v in (predicted, real)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.8
    plan = keep_by_fisher(filter_groups, scores, PruneConfig(keep=0.5))
    assert plan.policy == "fisher"


def test_means_that_are_kept_cost_nothing() -> None:
    """With folding, a unit whose channels say always the same is free; without, it has the price of its constant."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 2.0
    x = case.images(16)
    filter_groups = find_filter_groups(model, x[:1])
    found = {
        way: measure_group_sensitivity(
            model, filter_groups, x, generator=torch.Generator().manual_seed(0), constants=way
        )["0"]
        for way in ("fold", "zero")
    }
    assert found["fold"][2] == pytest.approx(0.0, abs=1e-12)
    assert found["zero"][2] > 1e-4
    assert all(score > 1e-6 for k, score in enumerate(found["fold"]) if k != 2)


def test_sensitivity_needs_gradients_at_every_reader() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.b(self.a(x).relu())
            return self.head(x.mean((2, 3)))

    model = Frozen()
    filter_groups = find_filter_groups(model, case.images(1))
    with pytest.raises(InputError, match="outputs must depend on the input of layer 'b' with a gradient, got none"):
        measure_group_sensitivity(model, filter_groups, case.images(4), generator=torch.Generator())
