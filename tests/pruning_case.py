"""Networks from outside that pruning must handle, alive: random weights and BatchNorms that do something."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.apply.layers import weights_of
from slimbit.plan.keep import keep_by_norm
from slimbit.records.config import PruneConfig
from slimbit.records.groups import FilterGroups
from slimbit.records.keep import KeepPlan
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorms as after training: no scale is 1, no shift and no mean is 0."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.uniform_(-0.3, 0.7, generator=generator)
    return model.eval()


def images(count: int = 2, *, side: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def halved(model: nn.Module, example: Tensor, **keeping: object) -> tuple[FilterGroups, KeepPlan]:
    filter_groups = find_filter_groups(model, example, name="net")
    weights = weights_of(model, survey_network(model, example).spec)
    return filter_groups, keep_by_norm(filter_groups, weights, PruneConfig(**keeping))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-and-excitation, linear bottleneck, sum with the input."""

    def __init__(self, width: int, expanded: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.ReLU6())
        self.depthwise = nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False)
        self.norm, self.squeeze, self.excite = (
            nn.BatchNorm2d(expanded),
            nn.Conv2d(expanded, 4, 1),
            nn.Conv2d(4, expanded, 1),
        )
        self.project = nn.Sequential(nn.Conv2d(expanded, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * gate)


def transposed(width: int, filters: int) -> nn.Sequential:
    """A transposed convolution with as many inputs as filters, and one with other numbers."""
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(width, filters, 3, padding=1)
    )


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), transposed(6, 8), nn.BatchNorm2d(8), nn.SiLU())
        self.blocks, self.head = nn.Sequential(InvertedResidual(8, 16), InvertedResidual(8, 24)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Dense(nn.Module):
    """Each layer reads everything before it; one is also added to a sum of parts of the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 + 6 * i, 6, 3, padding=1, bias=i % 2 == 0) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 6 * i) for i in range(3))
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), transposed(5, 4))
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(22 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat((conv(F.relu(norm(x))), x), 1)
        return self.head(torch.flatten(self.pool(x), 1))


class Attention(nn.Module):
    """Convolutions, one block of attention with a multi-layer perceptron over the positions, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 10, 3, padding=1), transposed(10, 12), nn.PReLU(12), nn.Conv2d(12, 8, 2, stride=2)
        )
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 10))
        self.widen, self.head = nn.Linear(8, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        y = self.norm1(tokens)
        tokens = tokens + self.attention(y, y, y, need_weights=False)[0]
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.head(F.relu(self.widen(tokens)).mean(1) * self.scale)


class UNet(nn.Module):
    """Down, up by transposed convolution and by interpolation, skips by concatenation; an image comes out."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.LeakyReLU(0.1))

        self.down1, self.down2, self.middle = block(3, 6), block(6, 8), block(8, 12)
        self.up, self.up2 = nn.Sequential(transposed(12, 12), nn.ConvTranspose2d(12, 8, 2, stride=2)), block(16, 6)
        self.up1, self.out = block(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.up(self.middle(F.max_pool2d(b, 2)))
        d = F.interpolate(self.up2(torch.cat((c, b), 1)), scale_factor=2, mode="bilinear")
        return self.out(self.up1(torch.cat((d, a), 1)))


class TwoHeads(nn.Module):
    """A grouped trunk, one head of logits straight from a convolution, one behind a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), transposed(6, 8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.boxes, self.hidden, self.kinds = nn.Conv2d(12, 4, 1), nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.trunk(x)
        return {"boxes": self.boxes(x), "kinds": (self.kinds(F.relu(self.hidden(x.amax((2, 3))))), None)}


class Transposed(nn.Module):
    """Transposed convolutions, which store inputs first: as many inputs as filters, other numbers, and in groups.

    In stored order, the rows of the first two are inputs of rising size and filters of falling size, so that whoever
    takes rows for filters keeps the wrong ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.same = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.other = nn.ConvTranspose2d(8, 6, 3, padding=1)
        self.grouped = nn.ConvTranspose2d(6, 12, 3, padding=1, groups=3)
        self.head = nn.Conv2d(12, 4, 1)
        with torch.no_grad():
            for module in (self.same, self.other):
                inputs, filters = module.weight.shape[:2]
                module.weight *= torch.linspace(0.2, 2.0, inputs)[:, None, None, None]
                module.weight *= torch.linspace(2.0, 0.2, filters)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.other(F.relu(self.same(F.relu(self.stem(x))))))
        return self.head(F.relu(self.grouped(x)))


FOREIGN = {
    "inverted residual": Mobile, "dense": Dense, "attention": Attention, "unet": UNet, "two heads": TwoHeads,
    "transposed": Transposed,
}  # fmt: skip


def foreign(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        return lively(FOREIGN[name]())
