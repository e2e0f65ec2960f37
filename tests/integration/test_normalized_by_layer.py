"""A ViT-like and a ConvNeXt-like network, trained on the embedded digits, at four bits per weight."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slimbit

pytest.importorskip("sklearn")


class Vit(nn.Module):
    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(1, width, 2, 2), nn.Parameter(torch.zeros(1, 16, width))
        layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(width, 4, 2 * width, **layer) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens).mean(1)))
        return logits


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 24, 2, 2), Block(24), Block(24), nn.Conv2d(24, 48, 2, 2), Block(48),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 10),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("build", [Vit, convnext])
def test_four_bits_per_weight_are_within_three_tenths_of_a_point(build):
    torch.manual_seed(0)
    data, net, epochs = slimbit.open_data("digits"), build(), 20
    x = torch.cat(list(data.calibration(1297)))
    y = torch.from_numpy(data.train.labels)[np.random.default_rng(0).permutation(1297)]
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * 13)
    for _ in range(epochs):
        for some in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(x[some]), y[some]).backward()
            optimizer.step()
            schedule.step()
    evaluate = data.evaluator()
    top = evaluate(net.eval())
    assert top > 92
    small = slimbit.quantize(net, x[:1], x[:300], bits=4)
    assert evaluate(small.model) >= top - 0.3
    plain = slimbit.QuantConfig(compensation=False, target="weights", statistics="stored")
    rough = slimbit.quantize(net, x[:1], x[:300], bits=2.5, config=plain)
    good = slimbit.quantize(net, x[:1], x[:300], bits=2.5)
    assert evaluate(good.model) > evaluate(rough.model)
