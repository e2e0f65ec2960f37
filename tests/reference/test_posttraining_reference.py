"""The whole post-training pass against a slow reference that shares no code with it: the same levels, all of them."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import slimbit
from slimbit import QuantConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from posttraining_reference import Reference, is_window


def network():
    """Convolution, grouped convolution with a bias, strided convolution and linear layer; statistics of real inputs."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(),
            nn.Conv2d(6, 5, 2, stride=2), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Flatten(), nn.Linear(20, 4),
        )  # fmt: skip
        net[1].momentum = net[6].momentum = None
        net.train()(torch.randn(64, 2, 6, 6))
        for norm in (net[1], net[6]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return net.eval()


IMAGES = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(4)) + 0.5


def assert_equal(small, wanted):
    assert {*small.layers} == {*wanted.layers}
    for name, layer in wanted.layers.items():
        np.testing.assert_array_equal(small.layers[name].levels.numpy(), layer.levels, err_msg=name)
        found = small.layers[name].steps.reshape(-1).numpy()
        matters = slice(None) if len(found) == 1 or layer.kept is None else sorted(layer.kept)
        np.testing.assert_allclose(found[matters], layer.steps[matters], rtol=1e-5, err_msg=name)
    for name, module in small.network.named_children():
        if isinstance(module, nn.BatchNorm2d):
            for found, value in zip((module.running_mean, module.running_var), wanted.statistics[name], strict=True):
                np.testing.assert_allclose(found.numpy(), value, rtol=1e-4, atol=1e-5, err_msg=name)
        if is_window(module) and module.bias is not None:
            np.testing.assert_allclose(module.bias.detach().numpy(), wanted.biases[name], atol=1e-5, err_msg=name)


CASES = {
    "ESN_d": (2e-8, "esn_digital", {}),
    "ESN_d, low cost": (1e-5, "esn_digital", {}),
    "ESN_a": (2e-8, "esn_analog", {}),
    "ESN_a on the mid-rise grid": (3e-5, "esn_analog", {"grid": "midrise"}),
    "ESN_d on the mid-tread grid": (2e-7, "esn_digital", {"grid": "midtread"}),
    "ESN'_d": (2e-7, "esn_filterwise", {}),
    "ESN'_d on the mid-tread grid": (5e-7, "esn_filterwise", {"grid": "midtread"}),
    "ESN'_d without compensation": (2e-7, "esn_filterwise", {"compensation": False, "target": "weights"}),
    "towards the weights": (1e-6, "esn_digital", {"target": "weights"}),
    "no compensation": (1e-6, "esn_digital", {"compensation": False, "target": "weights"}),
    "statistics stored": (1e-6, "esn_digital", {"statistics": "stored"}),
    "statistics paired at the end": (1e-6, "esn_digital", {"statistics": "paired"}),
    "statistics absolute": (1e-6, "esn_digital", {"statistics": "absolute"}),
    "a step per filter": (1e-6, "esn_digital", {"granularity": "filter"}),
    "refitted steps": (1e-6, "esn_digital", {"refit": True}),
    "rate-aware for ESN_a": (1e-6, "esn_analog", {"rounding": "rate_aware"}),
    "rate-aware for ESN_d": (1e-6, "esn_digital", {"rounding": "rate_aware"}),
}


@pytest.mark.parametrize("case", CASES)
def test_levels_steps_statistics_and_biases_are_those_of_the_reference(case):
    price, metric, settings = CASES[case]
    config = QuantConfig(**settings)
    small = slimbit.quantize(network(), IMAGES[:1], IMAGES, price=price, metric=metric, config=config)
    wanted = Reference(network(), IMAGES, price=price, metric=metric, config=config)
    assert_equal(small, wanted)
    # a zero beside mid-rise is a code of its own, which the plain formula of ESN'_d does not count
    for name in ("esn_analog", "esn_digital", *(() if wanted.grid == "midrise_zero" else ("esn_filterwise",))):
        assert small.cost.total[name] == pytest.approx(wanted.cost(name), rel=1e-12)
