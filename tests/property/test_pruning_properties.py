"""Random little networks: whatever is tied how, masks equal surgery, and brute force finds the same filter_groups."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
from slimbit.apply.mask import mask
from slimbit.apply.surgery import prune
from slimbit.records.groups import FilterGroups
from slimbit.records.keep import plan_of_units
from slimbit.survey.filter_groups import find_filter_groups

STEPS = ("conv", "sum", "cat", "depthwise", "grouped", "gate", "shared", "norm", "up", "same", "shuffle", "halves",
         "glu", "groups", "scale", "blur")  # fmt: skip


class Scale(nn.Module):
    """A parameter for each channel and row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Blur(nn.Module):
    """A fixed depthwise convolution, whose number of channels is an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("kernel", torch.rand(width, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=self.width)


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
                "same": (nn.ConvTranspose2d(a, a, 3, padding=1, groups=2 if a % 2 == 0 else 1), a),
                "shuffle": (nn.ChannelShuffle(2) if a % 2 == 0 else nn.Identity(), a),
                "halves": (nn.Conv2d(a // 2 or a, b, 1), b + (a - a // 2 if a > 1 else 0)),
                "glu": (nn.GLU(1) if a % 2 == 0 else nn.Identity(), a // 2 if a % 2 == 0 else a),
                "groups": (nn.GroupNorm(2 if a % 2 == 0 else 1, a), a),
                "scale": (Scale(a), a),
                "blur": (Blur(a), a),
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
            elif kind == "halves" and a.shape[1] > 1:
                half = a.shape[1] // 2
                y = torch.cat((a[:, half:], part(a[:, :half])), 1)
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


def programs(*without: str) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    steps = st.sampled_from([step for step in STEPS if step not in without])
    return st.lists(st.tuples(steps, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(programs(), st.integers(0, 99), st.data())
def test_masks_equal_surgery(steps: list[tuple[str, int, int]], seed: int, data: st.DataObject) -> None:
    model, x = network(steps, seed), case.images(2, side=4)
    filter_groups = find_filter_groups(model, x[:1])
    steps = [data.draw(st.integers(1, family.steps)) for family in filter_groups.families]
    counts = filter_groups.fit_near(steps).counts if steps else {}
    kept = {
        group.name: data.draw(
            st.sets(
                st.integers(0, group.units - 1), min_size=counts.get(group.name, 1), max_size=counts.get(group.name)
            ),
            label=group.name,
        )
        for group in filter_groups.groups
    }
    plan = plan_of_units(filter_groups, kept, policy="random", constants=data.draw(st.sampled_from(("fold", "zero"))))
    with torch.no_grad():
        found, wanted = prune(model, plan, x[:1])(x), mask(model, plan, x[:1])(x)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@settings(max_examples=25, deadline=None)
@given(programs("groups"), st.integers(0, 99))
def test_groups_by_brute_force(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Change one filter of one layer: exactly the inputs of its unit change, in layers that read it directly.

    Behind a group normalization half of the values are negative, and ``relu`` hides their change.
    """
    model, x = network(steps, seed), case.images(1, side=4)
    filter_groups = find_filter_groups(model, x)
    readers = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    for group in filter_groups.groups:
        for unit in range(group.units):
            wanted = {(m.name, c) for m in group.of("inputs") for c in m.channels[unit]}
            assert changed_inputs(model, readers, x, group_filters(filter_groups, group.name, unit)) == wanted


def group_filters(filter_groups: FilterGroups, name: str, unit: int) -> dict[str, tuple[int, ...]]:
    return {m.name: m.channels[unit] for m in filter_groups.group(name).of("filters")}


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
