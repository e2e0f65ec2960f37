"""Kernels that run over channels, as in ECA: a pruned network still gives each channel the neighbours that it had."""

import copy
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import pruning_case as case
import slimbit
from slimbit.apply.mask import mask
from slimbit.apply.surgery import rebuild
from slimbit.records.codec import canonical, from_json
from slimbit.records.keep import KeepPlan
from slimbit.survey.filter_groups import find_filter_groups

RUNS_OVER = "convolution in 'along' runs over channels with them"


class Eca(nn.Module):
    """A gate for each channel, made of its mean and those beside it."""

    def __init__(self, kernel: int = 3, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.along = nn.Conv1d(1, 1, kernel, padding=padding, dilation=dilation)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gates = self.along(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()
        return self.head(x * gates)


class Dice(nn.Module):
    """Rows take the place of channels: one kernel for each row runs over channels and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.along = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.along(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(torch.cat((x, y), 1)).relu())


NETWORKS = {"ECA": Eca, "ECA, dilated": lambda: Eca(5, 2), "DiCE": Dice}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return case.lively(NETWORKS[name]()), case.images(2, side=6)


def equal(left: nn.Module, right: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(left(x), right(x), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_masks_and_surgery_agree(name: str) -> None:
    model, x = network(name)
    assert find_filter_groups(model, x).fixed == {"along": RUNS_OVER, "head": "it is an output of the network"}
    for keep in (0.5, 0.8, 0.01):
        pruned = slimbit.prune(model, x, keep=keep)
        small, plan = pruned.model, pruned.keep
        assert small.head.in_channels == (2 if name == "DiCE" else 1) * max(1, round(keep * 8))
        assert equal(small, mask(model, plan, x), x)
        copies = (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.jit.script(small))
        for same in copies:
            assert equal(same, small, x)
        again = from_json(KeepPlan, canonical(plan), where="plan")
        assert equal(rebuild(NETWORKS[name](), again, small.state_dict()), small, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_costs_what_it_computes(name: str) -> None:
    model, x = network(name)
    small = slimbit.prune(model, x, keep=0.5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small.model(x[:1])
    assert slimbit.cost(small.model, x).total.macs == counter.get_total_flops() // 2 == small.cost.total.macs
    assert not small.cost.other_work


def test_the_smaller_network_is_exported() -> None:
    model, x = network("ECA")
    small = slimbit.prune(model, x, keep=0.5).model
    assert equal(torch.export.export(small, (x,)).module(), small, x)


def test_a_pruned_network_is_pruned_again_elsewhere() -> None:
    model, x = network("DiCE")
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1), model)
    first = slimbit.prune(model, x, keep={"3.stem": 0.5})
    second = slimbit.prune(first, x, keep=0.5)
    assert (second.model[0].out_channels, second.model[3].stem.out_channels) == (3, 4)
    assert equal(second.model, mask(model, second.keep, x), x)


def test_stored_and_loaded(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 32, 32)
    torch.manual_seed(0)
    model = case.lively(Eca())
    small = slimbit.prune(slimbit.prepare(model, x, [x], origin="elsewhere:Eca"), keep=0.5)
    small.save(tmp_path / "pruned")
    loaded = slimbit.load(tmp_path / "pruned", model=Eca())
    assert equal(loaded.model, small.model, case.images(2, side=32))


UNLIKE = {
    "shorter": lambda net: setattr(net.along, "padding", (0,)),
    "with strides": lambda net: setattr(net.along, "stride", (2,)),
    "around the ends": lambda net: setattr(net.along, "padding_mode", "circular"),
    "of a subclass": lambda net: setattr(net.along, "forward", lambda x: nn.Conv1d.forward(net.along, x) + x),
}


@pytest.mark.parametrize("way", UNLIKE)
def test_other_kernels_keep_all_channels(way: str) -> None:
    model, x = network("ECA")
    UNLIKE[way](model)
    if way in ("shorter", "with strides"):
        sizes = {"shorter": 6, "with strides": 4}
        model.head = nn.Conv2d(sizes[way], 4, 1)
        model.forward = lambda x: model.head(
            model.along(model.stem(x).mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid()
        )
    assert "stem.0" in find_filter_groups(model, x).fixed


def test_kernels_of_one_leave_channels_apart() -> None:
    model, x = network("ECA")
    model.along = nn.Conv1d(1, 1, 1)
    small = slimbit.prune(model, x, keep=0.5)
    assert small.keep.axis("along", "window") is None
    assert equal(small.model, mask(model, small.keep, x), x)


def test_values_that_masks_leave_keep_all_channels() -> None:
    model, x = network("ECA")
    model.stem[2] = nn.Sigmoid()  # a removed channel would be a half, and its neighbours see it
    with pytest.raises(slimbit.InputError, match="does not keep channels apart"):
        slimbit.prune(model, x, keep=0.5)


def test_a_layer_that_also_runs_over_the_image_keeps_all_channels() -> None:
    class Both(Eca):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.along(x.mean((2, 3))[:, None]).sum()

    torch.manual_seed(0)
    fixed = find_filter_groups(Both(), case.images(2, side=6)).fixed
    assert fixed["stem.0"] == "convolution in 'along' also runs over what is no filter"
