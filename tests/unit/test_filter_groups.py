"""Which filters are tied: small networks where it can be seen by eye."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.records.groups import FilterGroups
from slimbit.survey.filter_groups import find_filter_groups


class Between(nn.Module):
    """Transposed convolutions of 8 filters and 6 or as many inputs, something, and a layer that reads the result."""

    def __init__(self, between, reader=None) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 8, 3, padding=1)
        self.conv, self.between = nn.ConvTranspose2d(8, 8, 3, padding=1), between
        self.reader = reader or nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.between(self.conv(self.other(self.stem(x)))))


def groups_of(between, reader=None, x: Tensor | None = None) -> FilterGroups:
    return find_filter_groups(Between(between, reader), torch.zeros(1, 3, 8, 8) if x is None else x)


def read_by(filter_groups: FilterGroups) -> list[tuple[int, ...]]:
    """Inputs of the reader, unit by unit of the first convolution."""
    (member,) = (m for m in filter_groups.group("conv").members if (m.name, m.role) == ("reader", "inputs"))
    return list(member.channels)


SINGLE = [(k,) for k in range(8)]
PER_CHANNEL = {
    "relu6": nn.ReLU6(),
    "hardswish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "mish": nn.Mish(),
    "dropout": nn.Dropout(),
    "max pool": nn.MaxPool2d(2),
    "average pool": nn.AvgPool2d(2, padding=1),
    "upsample": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "reflect": nn.ReflectionPad2d(1),
    "zeros": nn.ZeroPad2d(2),
    "power pool": nn.LPPool2d(2, 2),
    "adaptive": nn.AdaptiveMaxPool2d(3),
    "stride": lambda x: x[:, :, ::2, 1:],
    "in place": lambda x: F.relu_(x).add_(1).mul_(2),
    "normalized by sum": lambda x: x / (1 + x.sum((2, 3), keepdim=True)),
    "softmax of places": lambda x: x.flatten(2).softmax(2).view_as(x),
    "half and back": lambda x: x.half().float(),
    "there and back": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2).contiguous(),
    "attended": lambda x: (x.flatten(2) @ torch.ones(x.shape[0], 64, 64, device=x.device)).view_as(x),
    "detached gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)).detach(),
    "split by place": lambda x: torch.cat([p + 1 for p in x.split(4, dim=3)], 3),
    "stacked": lambda x: torch.stack((x, x + 1), 1).amax(1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "no gradient": torch.no_grad()(lambda x: x.relu()),
    "flipped": lambda x: x.flip(3),
    "copied": lambda x: torch.zeros_like(x).copy_(x),
    "instance norm": nn.InstanceNorm2d(8, affine=True),
    "filled": lambda x: torch.zeros(x.shape, device=x.device) + x,
}


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_operations_that_keep_channels_apart(name: str) -> None:
    filter_groups = groups_of(PER_CHANNEL[name])
    assert read_by(filter_groups) == SINGLE
    assert set(filter_groups.fixed) == {"reader"}


class Across(nn.Module):
    """Efficient channel attention: a convolution that runs over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3))[:, None]
        return F.conv1d(y, torch.ones(1, 1, 3, device=x.device), padding=1).sigmoid()[:, 0, :, None, None]


def one_set(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 1
    return y


MIXING = {
    "norm of one group": nn.GroupNorm(1, 8),
    "layer norm": nn.LayerNorm([8, 8, 8]),
    "softmax": nn.Softmax(1),
    "channel mean": lambda x: x - x.mean(1, keepdim=True),
    "sum of what is not zero": lambda x: x * x.sigmoid().sum(1, keepdim=True),
    "convolution over channels": lambda x: x * Across()(x),
    "shuffle by hand": lambda x: x.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8),
    "sorted": lambda x: x.sort(1).values,
    "whole mean": lambda x: x * x.mean(),
    "chosen": lambda x: x[:, [1, 0, 2, 3, 4, 5, 6, 7]],
    "rolled": lambda x: x.roll(1, 1),
    "gram": lambda x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x),
    "constant": lambda x: x + torch.arange(8.0, device=x.device).view(1, 8, 1, 1),
    "einsum": lambda x: torch.einsum("nchw,dc->ndhw", x, x[0, :, :, 0]),
    "written over": lambda x: x.index_fill(1, torch.tensor([0], device=x.device), 0),
    "one set": one_set,
}


@pytest.mark.parametrize("name", MIXING)
def test_operations_that_mix_channels_fix_them_and_say_so(name: str) -> None:
    filter_groups = groups_of(MIXING[name])
    assert [group.layers for group in filter_groups.groups] == [("stem",), ("other",)]
    assert set(filter_groups.fixed) == {"conv", "reader"}
    assert filter_groups.fixed["reader"] == "it is an output of the network"
    assert filter_groups.fixed["conv"] != filter_groups.fixed["reader"]


NUMBERS = {
    "view": (lambda x: x.view(-1, 512).view(-1, 8, 8, 8), "view holds the size 512 in its code"),
    "reshape": (lambda x: x.reshape(-1, 2, 4, 64).reshape(x.shape), "view holds the size 2 in its code"),
    "split": (lambda x: torch.cat(x.split(4, 1), 1), "split holds the size 4 in its code"),
    "slice": (lambda x: torch.cat((x[:, :3], x[:, 3:]), 1), "slice holds the size 3 in its code"),
    "select": (lambda x: x * x[:, :1], "mul combines it with each of many others"),
    "power": (lambda x: x * x.shape[1] ** -0.5, "mul computes with the number of channels"),
    "tensor": (lambda x: x * torch.tensor(x.shape[1]), "mul computes with the number of channels"),
    "branch": (lambda x: x if x.shape[1] == 8 else x + 1, "the code goes another way at other numbers of channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_in_code_are_told(name: str) -> None:
    function, reason = NUMBERS[name]
    assert groups_of(function).fixed["conv"] == reason


def test_reason_names_operation_and_module() -> None:
    assert groups_of(nn.Softmax(1)).fixed["conv"] == "_softmax in 'between' does not keep channels apart"
    assert groups_of(nn.GroupNorm(1, 8)).fixed["conv"] == "native_group_norm in 'between' takes means over all channels"


class Checked(nn.Module):
    """Code that knows how many channels there are."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8:
            raise ValueError(x.shape)
        return x.relu()


def test_checks_in_code_are_told() -> None:
    reason = "the code of module 'between' raises ValueError at other numbers of channels"
    assert groups_of(Checked()).fixed["conv"] == reason


def test_a_layer_behind_a_check_keeps_what_it_reads_and_loses_filters() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Checked(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    found = find_filter_groups(net, torch.zeros(1, 3, 4, 4))
    assert found.fixed == {
        "0": "the code of module '1' raises ValueError at other numbers of channels",
        "4": "it is an output of the network",
    }
    assert [(m.name, m.role) for m in found.group("2").members] == [("2", "filters"), ("4", "inputs")]


def test_units_of_norms_and_shuffles() -> None:
    def units(between) -> list[tuple[int, ...]]:
        return list(groups_of(between).group("conv").members[0].channels)

    assert units(nn.GroupNorm(2, 8)) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert units(nn.ChannelShuffle(2)) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert units(nn.Sequential(nn.ChannelShuffle(2), nn.GroupNorm(4, 8))) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert units(lambda x: torch.cat(x.chunk(2, 1), 1)) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert units(lambda x: F.glu(torch.cat((x, x), 1), 1)) == SINGLE


def test_flattened_positions_belong_to_their_filter() -> None:
    filter_groups = groups_of(nn.Flatten(), nn.Linear(8 * 64, 3))
    assert read_by(filter_groups) == [tuple(range(64 * k, 64 * k + 64)) for k in range(8)]


def test_flattened_behind_positions() -> None:
    """Tokens first: each filter's inputs lie eight apart."""
    filter_groups = groups_of(lambda x: x.flatten(2).transpose(1, 2).contiguous().flatten(1), nn.Linear(8 * 64, 3))
    assert read_by(filter_groups) == [tuple(range(k, 512, 8)) for k in range(8)]


def test_pixel_shuffle_weaves_runs() -> None:
    filter_groups = groups_of(nn.PixelShuffle(2), nn.Conv2d(2, 2, 1))
    group = filter_groups.group("conv")
    assert group.units == 2
    assert [m.channels for m in group.members] == [((0, 1, 2, 3), (4, 5, 6, 7)), ((0,), (1,))]


def test_grouped_convolution_dies_by_groups() -> None:
    filter_groups = groups_of(nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    group = filter_groups.group("conv")
    assert (group.units, group.layers) == (4, ("conv", "between"))
    assert [m.channels[1] for m in group.members] == [(2, 3), (2, 3), (3, 4, 5), (3, 4, 5)]


def test_padding_module_makes_channels_of_its_own() -> None:
    net = Between(nn.ZeroPad3d((0, 0, 0, 0, 1, 3)), nn.Conv2d(12, 2, 1))
    filter_groups = find_filter_groups(net, torch.zeros(1, 3, 8, 8))
    assert read_by(filter_groups) == [(k + 1,) for k in range(8)]
    assert groups_of(lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)), nn.Conv2d(12, 2, 1)).group("conv").units == 8


def test_residual_concatenation_and_reuse() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
            self.out = nn.Conv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = self.b(self.b(x))  # its inputs are its outputs, too
            return self.out(self.c(torch.cat((x, x + 1), 1)))

    filter_groups = find_filter_groups(Net(), torch.zeros(1, 3, 4, 4))
    assert [(g.layers, g.units) for g in filter_groups.groups] == [(("a", "b"), 4), (("c",), 4)]
    places = {(m.name, m.role): m.channels[2] for m in filter_groups.groups[0].members}
    assert places == {("a", "filters"): (2,), ("b", "inputs"): (2,), ("b", "filters"): (2,), ("c", "inputs"): (2, 6)}


def test_image_channels_join_nothing_and_pin_what_they_meet() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat((x, self.b(self.a(x) + x)), 1))

    filter_groups = find_filter_groups(Net(), torch.zeros(1, 3, 4, 4))
    assert [(g.layers, g.units) for g in filter_groups.groups] == [(("b",), 5)]
    assert filter_groups.fixed["a"] == "add combines them with values that are no filters"
    assert filter_groups.groups[0].members[-1].channels == ((3,), (4,), (5,), (6,), (7,))


def test_scales_of_the_users_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.reader = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
            self.gamma = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.reader(self.norm(self.conv(x)) * self.gamma)

    filter_groups = find_filter_groups(Net(), torch.zeros(1, 3, 4, 4))
    assert [(m.name, m.role, m.size) for m in filter_groups.group("conv").members] == [
        ("conv", "filters", 8), ("norm", "norm", 8), ("gamma", "parameter", 8), ("reader", "inputs", 8)
    ]  # fmt: skip


@pytest.mark.parametrize("tensor", ["weight", "copy"])
def test_weights_used_in_other_ways_are_fixed(tensor: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.reader = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight
            if tensor == "copy":  # weight standardization
                return self.reader(F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True)))
            return self.reader(self.conv(x)) * weight.square().sum()

    filter_groups = find_filter_groups(Net(), torch.zeros(1, 3, 4, 4))
    assert filter_groups.groups == ()
    assert "conv.weight" in filter_groups.fixed["conv"] or "its weight is used by" in filter_groups.fixed["conv"]


def test_layers_that_never_run_and_shared_weights() -> None:
    net = Between(nn.ReLU())
    net.idle = nn.Linear(3, 3)
    net.twin = nn.ConvTranspose2d(8, 8, 3, padding=1)
    net.twin.weight = net.conv.weight
    filter_groups = find_filter_groups(net, torch.zeros(1, 3, 8, 8))
    assert filter_groups.fixed["idle"] == "it is never called"
    assert [group.layers for group in filter_groups.groups] == [("stem",)]
    assert "conv" in filter_groups.fixed
