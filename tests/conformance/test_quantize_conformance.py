"""Every grid x every kind of layer x every metric: levels of the slow reference, its costs, and the same after saving.

A new kind of layer is a line in `KINDS`, a new grid or metric a value in `COMBINATIONS`.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slimbit
from slimbit import QuantConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from posttraining_reference import Reference, SelfAttention


def masked(layer: nn.Module) -> nn.Module:
    """The same with half of its weights pruned by a mask."""
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


KINDS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=1),
    "dilated": lambda: nn.Conv2d(4, 6, 2, dilation=2),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 2, stride=2),
    "transposed, as many inputs as filters": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
    "transposed, grouped": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
    "masked": lambda: masked(nn.Conv2d(4, 6, 3)),
    "linear": lambda: nn.Linear(4, 6),
    "attention": lambda: SelfAttention(4, 2),
}
COMBINATIONS = [
    (grid, metric)
    for grid in ("midrise", "midrise_zero", "midtread")
    for metric in ("esn_digital", "esn_analog", "esn_filterwise")
    if (grid, metric) != ("midrise_zero", "esn_filterwise")
]
PRICES = {"esn_digital": 2e-6, "esn_analog": 1e-6, "esn_filterwise": 2e-6}


def network(kind):
    """A layer of a kind between two others; statistics of real inputs."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        if kind in ("linear", "attention"):
            middle = KINDS[kind]()
            return nn.Sequential(
                nn.Linear(3, 4), middle, nn.ReLU(), nn.Flatten(), nn.Linear(5 * (6 if kind == "linear" else 4), 3)
            ).eval()
        front = nn.Sequential(nn.Conv2d(2, 4, 2, bias=False), nn.BatchNorm2d(4, momentum=None), nn.ReLU())
        front.train()(torch.randn(32, 2, 5, 5))
        middle = KINDS[kind]()
        features = middle(torch.zeros(1, 4, 4, 4)).numel()
        return nn.Sequential(*front, middle, nn.ReLU(), nn.Flatten(), nn.Linear(features, 3)).eval()


def images(kind):
    shape = (6, 5, 3) if kind in ("linear", "attention") else (6, 2, 5, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(6)) + 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "metric"), COMBINATIONS)
def test_levels_and_costs_are_those_of_the_reference(kind, grid, metric):
    config, x, price = QuantConfig(grid=grid), images(kind), PRICES[metric]
    small = slimbit.quantize(network(kind), x[:1], x, price=price, metric=metric, config=config)
    wanted = Reference(network(kind), x, price=price, metric=metric, config=config)
    assert {*small.layers} == {*wanted.layers}
    for name, layer in wanted.layers.items():
        np.testing.assert_array_equal(small.layers[name].levels.numpy(), layer.levels, err_msg=name)
    for name in ("esn_analog", "esn_digital", *(() if grid == "midrise_zero" else ("esn_filterwise",))):
        assert small.cost.total[name] == pytest.approx(wanted.cost(name), rel=1e-12)
    assert sum((layer.levels != 0).sum() for layer in wanted.layers.values()) > 0, "a check of nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", ["midrise", "midrise_zero", "midtread"])
def test_what_is_saved_computes_the_same_bits_and_costs_the_same(kind, grid, tmp_path):
    x = images(kind)
    small = slimbit.quantize(network(kind), x[:1], x, bits=3, config=QuantConfig(grid=grid))
    again = slimbit.load(small.save(tmp_path / "small"), model=network(kind))
    assert torch.equal(again.model(x), small.model(x))
    assert again.cost == small.cost
    assert max(float(layer.levels.abs().max()) for layer in small.layers.values()) <= (3 if grid == "midtread" else 3.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dearer_cost_gives_a_cheaper_network_and_a_mask_stays(kind):
    x = images(kind)
    prepared = slimbit.prepare(network(kind), x[:1], x)
    for metric, price in PRICES.items():
        costs = [slimbit.quantize(prepared, price=p, metric=metric).cost.total[metric] for p in (price, 8 * price)]
        assert costs[1] < costs[0]
    mask = getattr(network(kind)[3], "weight_mask", None)
    if mask is not None:
        small = slimbit.quantize(prepared, price=PRICES["esn_filterwise"], metric="esn_filterwise")
        assert not small.layers["3"].levels[mask == 0].any()
