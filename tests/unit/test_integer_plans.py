"""Plans of networks with quantized activations keep their integers where no processor saturates."""

import pytest
import torch
from torch import nn

import slimbit


@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital", "esn_filterwise"])
@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_the_finest_plan_still_has_integers_of_seven_bits(metric: str, granularity: str) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    images = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    config = slimbit.QuantConfig(activation_bits=8, granularity=granularity)  # type: ignore[arg-type]
    small = slimbit.quantize(net, images[:1], images, price=1e-20, metric=metric, config=config)
    grids = {layer.grid for layer in small.layers.values()}
    largest = {"midtread": 63.0}.get(grids.pop(), 31.5)
    found = [float(layer.levels.abs().max()) for layer in small.layers.values()]
    assert max(found) == largest
    free = slimbit.quantize(net, images[:1], images, price=1e-20, metric=metric)
    assert max(float(layer.levels.abs().max()) for layer in free.layers.values()) > largest
