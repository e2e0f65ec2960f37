"""What does not fit, or is empty, or has no end, is one sentence."""

import pytest
import torch
from torch import nn

import slimbit
from slimbit.exchange import latency
from slimbit.records.errors import InputError
from slimbit.zoo import registry


def test_a_network_that_does_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> nn.Module:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("slimbit.zoo.vgg.vgg7", full)
    with pytest.raises(InputError, match="the network must fit into memory, got 8 times the filters and 10 outputs"):
        registry.network("vgg7@8")


def test_weights_without_numbers() -> None:
    layer = nn.Conv2d(3, 4, 3)
    layer.weight = nn.Parameter(torch.empty(4, 0, 3, 3))
    with pytest.raises(InputError):
        slimbit.cost(nn.Sequential(layer), torch.zeros(1, 3, 8, 8))


def test_inputs_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="inputs must fit into memory, got 1x1000000000x1000000000"):
        latency.images_for({"x": (10**9, 10**9)}, 1, 0)


def test_a_value_without_end_is_clipped() -> None:
    with pytest.raises(InputError, match="per must be one of mac, parameter, got 'aaa") as raised:
        slimbit.cost("digits_resnet", per="a" * 100_000)
    assert len(str(raised.value)) < 400
