"""Shuffle upon shuffle, and channels of the image among those that are shuffled: a pruned network keeps their order."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
import slimbit
from slimbit.apply.mask import mask
from slimbit.apply.surgery import rebuild
from slimbit.records.codec import canonical, from_json
from slimbit.records.keep import KeepPlan
from slimbit.survey.filter_groups import find_filter_groups

WIDTH, UNITS, IMAGE = 16, 5, 3


class Shuffle(nn.Module):
    """Two halves are woven together."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class Unit(nn.Module):
    """Each half has a layer of its own, and the sum with what was there is shuffled."""

    def __init__(self, shuffle: nn.Module) -> None:
        super().__init__()
        half = WIDTH // 2
        self.left, self.right = (nn.Conv2d(half, half, 3, padding=1) for _ in range(2))
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(x, chunks=2, dim=1)
        return self.shuffle(F.relu(torch.cat((self.left(a), self.right(b)), 1) + x))


class Shuffled(nn.Module):
    """As LEDNet begins: the image itself lies beside the first layer's filters, and all of them are shuffled."""

    def __init__(self, shuffle=Shuffle, units: int = UNITS) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, WIDTH - IMAGE, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH)
        self.units = nn.Sequential(*(Unit(shuffle()) for _ in range(units)))
        self.head = nn.Conv2d(WIDTH, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat((self.first(x), F.max_pool2d(x, 2)), 1))
        return self.head(self.units(x))


SHUFFLES = {"by views": Shuffle, "of torch": lambda: nn.ChannelShuffle(2)}


def network(shuffle=Shuffle) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return case.lively(Shuffled(shuffle)), case.images(2, side=8)


def assert_equal(found: nn.Module, wanted: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        a, b = found(x), wanted(x)
    assert torch.allclose(a, b, rtol=0.0, atol=1e-5 * float(b.abs().max()))


def test_the_image_keeps_its_own_places_and_their_mirror_images() -> None:
    model, x = network()
    group = find_filter_groups(model, x).group("first")
    # places 13, 14 and 15 of 16 are the image's, so 2, 1 and 0 stay with them; 3 and 12, ... 7 and 8 are pairs
    (first,) = (m for m in group.members if (m.name, m.role) == ("first", "filters"))
    assert [set(unit) for unit in first.channels] == [{k, 15 - k} for k in range(3, 8)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", ["by views", "of torch"])
def test_masks_and_surgery_agree(name: str) -> None:
    model, x = network(SHUFFLES[name])
    for keep in (0.01, 0.5):
        pruned = slimbit.prune(model, x, keep=keep)
        small, plan = pruned.model, pruned.keep
        width = 6 + 2 * max(1, int(keep * 5 + 0.5))
        assert (small.first.out_channels, small.head.in_channels) == (width - IMAGE, width)
        assert {unit.left.out_channels for unit in small.units} == {width // 2}
        assert_equal(small, mask(model, plan, x), x)
        again = from_json(KeepPlan, canonical(plan), where="plan")
        assert_equal(rebuild(Shuffled(SHUFFLES[name]), again, small.state_dict()), small, x)
    for same in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.jit.script(small)):
        assert_equal(same, small, x)
    assert_equal(torch.export.export(small, (x,)).module(), small, x)


def test_a_pruned_network_is_pruned_again() -> None:
    model, x = network()
    first = slimbit.prune(model, x, config=slimbit.PruneConfig(keep=0.8, constants="zero"))
    second = slimbit.prune(first, x, config=slimbit.PruneConfig(keep=0.5, constants="zero"))
    assert [net.head.in_channels for net in (first.model, second.model)] == [14, 10]  # 4 pairs of 5, then 2
    assert_equal(second.model, mask(model, second.keep, x), x)
    assert_equal(rebuild(Shuffled(), second.keep, second.model.state_dict()), second.model, x)


def test_stored_and_loaded(tmp_path: Path) -> None:
    model, _ = network()
    x = torch.zeros(1, 3, 32, 32)
    small = slimbit.prune(slimbit.prepare(model, x, [x], origin="elsewhere:Shuffled"), keep=0.5)
    small.save(tmp_path / "pruned")
    loaded = slimbit.load(tmp_path / "pruned", model=Shuffled())
    assert_equal(loaded.model, small.model, case.images(2, side=32))


class Sorted(Shuffle):
    """Another order for another image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, x[0].mean((1, 2)).argsort()]


class Louder(Shuffle):
    """More than an order."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class ByPlace(Shuffle):
    """An order that is not the same everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((super().forward(x[..., :1]), x[..., 1:]), 3)


@pytest.mark.parametrize("other", [Sorted, Louder, ByPlace])
def test_modules_that_do_more_keep_all_channels(other: type[nn.Module]) -> None:
    model, x = network(other)
    assert "first" not in {layer for group in find_filter_groups(model, x).groups for layer in group.layers}


def test_the_plan_of_another_network_is_refused() -> None:
    model, x = network()
    plan = slimbit.prune(model, x, keep=0.5).keep
    torch.manual_seed(0)
    with pytest.raises(slimbit.InputError, match=r"order of 'units\.0\.shuffle' must be none, got 16"):
        mask(case.lively(Shuffled(Louder)), plan, x)
