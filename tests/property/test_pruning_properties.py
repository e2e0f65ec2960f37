"""Random little networks: whatever is tied how, masks equal surgery, and brute force finds the same ties."""

import sys
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
from slimbit.apply.mask import mask
from slimbit.apply.surgery import prune
from slimbit.records.groups import Ties
from slimbit.records.keep import plan_of_units
from slimbit.survey.ties import tied_filters

STEPS = ("conv", "sum", "cat", "depthwise", "grouped", "gate", "shared", "norm", "up")


class Random(nn.Module):
    """Steps over a list of maps; each reads what a number points at."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps, self.parts = steps, nn.ModuleList()
        self.stem, widths = nn.Conv2d(3, 4, 1), [4]
        for kind, left, right in steps:
            a, b = widths[left % len(widths)], widths[right % len(widths)]
            made = {
                "conv": (nn.Conv2d(a, 4, 3, padding=1, bias=bool(left % 2)), 4),
                "sum": (nn.Conv2d(b, a, 1), a),
                "cat": (nn.Identity(), a + b),
                "depthwise": (nn.Conv2d(a, 2 * a, 3, padding=1, groups=a), 2 * a),
                "grouped": (nn.Conv2d(a, 6, 1, groups=2), 6) if a % 2 == 0 else (nn.Conv2d(a, 3, 1), 3),
                "gate": (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(b, a, 1), nn.Sigmoid()), a),
                "shared": (nn.Conv2d(a, a, 1), a),
                "norm": (nn.BatchNorm2d(a), a),
                "up": (nn.ConvTranspose2d(a, 3, 3, padding=1), 3),
            }[kind]
            self.parts.append(made[0])
            widths.append(made[1])
        self.head = nn.Linear(16 * widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for (kind, left, right), part in zip(self.steps, self.parts, strict=True):
            a, b = maps[left % len(maps)], maps[right % len(maps)]
            if kind == "cat":
                y = torch.cat((b, a), 1)
            elif kind in ("sum", "gate"):
                y = a + part(b) if kind == "sum" else a * part(b)
            else:
                y = part(part(a)) if kind == "shared" else part(a)
            maps.append(torch.relu(y))
        return self.head(torch.flatten(maps[-1], 1))


def network(steps: list[tuple[str, int, int]], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return case.lively(Random(steps), seed)


PROGRAMS = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(PROGRAMS, st.integers(0, 99), st.data())
def test_masks_equal_surgery(steps: list[tuple[str, int, int]], seed: int, data: st.DataObject) -> None:
    model, x = network(steps, seed), case.images(2, side=4)
    ties = tied_filters(model, x[:1])
    kept = {
        group.name: data.draw(st.sets(st.integers(0, group.units - 1), min_size=1), label=group.name)
        for group in ties.groups
    }
    plan = plan_of_units(ties, kept, policy="random", constants=data.draw(st.sampled_from(("fold", "zero"))))
    with torch.no_grad():
        found, wanted = prune(model, plan, x[:1])(x), mask(model, plan, x[:1])(x)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@settings(max_examples=25, deadline=None)
@given(PROGRAMS, st.integers(0, 99))
def test_ties_by_brute_force(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Change one filter of one layer: exactly the inputs of its unit change, in layers that read it directly."""
    model, x = network(steps, seed), case.images(1, side=4)
    ties = tied_filters(model, x)
    readers = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    for group in ties.groups:
        for unit in range(group.units):
            wanted = {(m.name, c) for m in group.of("inputs") for c in m.channels[unit]}
            assert changed_inputs(model, readers, x, group_filters(ties, group.name, unit)) == wanted


def group_filters(ties: Ties, name: str, unit: int) -> dict[str, tuple[int, ...]]:
    return {m.name: m.channels[unit] for m in ties.group(name).of("filters")}


def changed_inputs(
    model: nn.Module, readers: dict[str, nn.Module], x: Tensor, filters: dict[str, tuple[int, ...]]
) -> set[tuple[str, int]]:
    """Inputs that differ between two passes in which every layer says the same, but for these filters."""
    seen: list[list[tuple[str, Tensor]]] = []
    for change in (0.0, 5.0):
        inputs: list[tuple[str, Tensor]] = []
        handles = [
            module.register_forward_hook(saying(name, filters, change, inputs)) for name, module in readers.items()
        ]
        with torch.no_grad():
            model(x)
        for handle in handles:
            handle.remove()
        seen.append(inputs)
    differ = [(name, (a != b).flatten(2) if a.ndim > 2 else a != b) for (name, a), (_, b) in zip(*seen, strict=True)]
    return {(name, int(c)) for name, d in differ for c in d.reshape(*d.shape[:2], -1).any(2).any(0).nonzero().flatten()}


def saying(name: str, filters: dict[str, tuple[int, ...]], change: float, inputs: list[tuple[str, Tensor]]):
    """A hook that notes a layer's input and makes it say always the same."""

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        inputs.append((name, args[0].clone()))
        said = torch.linspace(0.1, 0.9, output.numel()).view_as(output).clone()
        said[:, list(filters.get(name, ()))] += change
        return said

    return hook
