"""Bodies between two transposed convolutions: what real networks do to channels besides convolving them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, weight_norm


class Shell(nn.Module):
    """A stem, a transposed layer with fewer inputs than filters, the body, one with as many of both, a head."""

    def __init__(self, body: nn.Module, width: int = 8, out: int = 8) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, width, 3, padding=1, bias=False)
        self.norm, self.body = nn.BatchNorm2d(width), body
        self.same, self.head = nn.ConvTranspose2d(out, out, 3, padding=1), nn.Conv2d(out, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.other(F.relu(self.stem(x)))))
        return self.head(F.relu(self.same(self.body(x))))


class Body(nn.Module):
    """A function of the module and its input, with the modules and attributes that it uses."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(i: int, o: int, k: int = 1, **settings) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **settings)


def shuffled(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class ShuffleUnit(nn.Module):
    """Of ShuffleNetV2: half of the channels pass by, the halves are woven together."""

    def __init__(self, half: int) -> None:
        super().__init__()
        self.reduce, self.depthwise, self.expand = (
            conv(half, half, bias=False), conv(half, half, 3, groups=half), conv(half, half)
        )  # fmt: skip
        self.norm = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        b = F.relu(self.expand(self.depthwise(F.relu(self.norm(self.reduce(b))))))
        return shuffled(torch.cat((a, b), 1), 2)


class GroupedUnit(nn.Module):
    """Of ShuffleNet: convolutions in few large groups, shuffled between, added to what came in."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups, self.reduce = groups, conv(width, width, groups=groups)
        self.depthwise, self.expand = conv(width, width, 3, groups=width), conv(width, width, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(self.depthwise(shuffled(F.relu(self.reduce(x)), self.groups))))


class C2f(nn.Module):
    """Of YOLOv8: two halves of a convolution, and what is made of the second."""

    def __init__(self, width: int, hidden: int, way: str) -> None:
        super().__init__()
        self.c, self.way = hidden, way
        self.cv1, self.cv2 = conv(width, 2 * hidden), conv(3 * hidden, width)
        self.m = nn.Sequential(conv(hidden, hidden, 3), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        parts = list(y.chunk(2, 1) if self.way == "chunk" else y.split((self.c, self.c), 1))
        return self.cv2(torch.cat((*parts, parts[-1] + self.m(parts[-1])), 1))


class SelectiveKernel(nn.Module):
    """Two branches weighed by a softmax over them, channel by channel; sizes are attributes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branches, self.width = 2, width
        self.convs = nn.ModuleList(conv(width, width, k) for k in (1, 3))
        self.fc1, self.fc2 = conv(width, 4), conv(4, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([F.relu(layer(x)) for layer in self.convs], 1)
        w = self.fc2(F.relu(self.fc1(y.sum(1).mean((2, 3), keepdim=True))))
        w = w.view(len(x), self.branches, self.width).softmax(1)
        return (y * w[..., None, None]).sum(1)


class SplitAttention(nn.Module):
    """Of ResNeSt: a convolution in groups whose parts are weighed against each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.radix, self.conv = 2, conv(width, 2 * width, 3, groups=2)
        self.fc1, self.fc2 = conv(width, 4), conv(4, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        b, c, h, w = y.shape
        y = y.view(b, self.radix, c // self.radix, h, w)
        a = self.fc2(F.relu(self.fc1(y.sum(1).mean((2, 3), keepdim=True))))
        a = a.view(b, self.radix, -1, 1, 1).softmax(1)
        return (y * a).sum(1)


class Attention(nn.Module):
    """Heads over the positions, without LayerNorm; keys are counted by an attribute or follow."""

    def __init__(self, width: int, heads: int, way: str) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale, self.way = heads, 4, 0.5, way
        inner = heads * self.head_dim
        if way in ("stacked", "unpacked"):
            self.qkv = nn.Linear(width, 3 * inner)
        else:
            self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.way in ("stacked", "unpacked"):
            y = self.qkv(tokens).reshape(b, h * w, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = y.unbind(0) if self.way == "stacked" else y  # an iterator that stops where it should not
        else:
            q, k, v = (
                layer(tokens).view(b, h * w, -1, self.head_dim).transpose(1, 2)
                for layer in (self.query, self.key, self.value)
            )
        if self.way in ("fused", "unpacked"):
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        inner = self.num_heads * self.head_dim if self.way == "unpacked" else -1
        y = self.proj(y.transpose(1, 2).reshape(b, h * w, inner))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class Octave(nn.Conv2d):
    """Of OctResNet: four blocks of one weight, from and to channels of the full and of half the resolution."""

    def __init__(self, reads: int, makes: int, reads_high: int, makes_high: int, *, bias: bool = True) -> None:
        super().__init__(reads, makes, 3, padding=1, bias=bias)
        self.high_in, self.high_out = reads_high, makes_high

    def forward(self, x: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        (high, low), i, o = x, self.high_in, self.high_out
        first, last = (None, None) if self.bias is None else (self.bias[:o], self.bias[o:])
        made, small = self.block(high, self.weight[:o, :i], first), None
        if o < self.out_channels:
            small = self.block(F.avg_pool2d(high, 2), self.weight[o:, :i], last)
        if low is not None:
            made = made + F.interpolate(self.block(low, self.weight[:o, i:], first), scale_factor=2)
            small = None if small is None else small + self.block(low, self.weight[o:, i:], last)
        return made, small

    def block(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, padding=1)


def octaves(self: Body, x: Tensor) -> Tensor:
    high, low = self.first((x, None))
    return self.last(self.middle((high.relu(), low.relu())))[0]


def positions(self: Body, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2) + self.embedding
    tokens = torch.cat((self.token.expand(len(x), -1, -1), tokens), 1)
    return self.mix(tokens)[:, 1:].transpose(1, 2).reshape(x.shape)


def shifted(_: Body, x: Tensor) -> Tensor:
    """Of TSM, over rows in place of frames."""
    fold, out = x.shape[1] // 4, torch.zeros_like(x)
    out[:, :fold, :-1] = x[:, :fold, 1:]
    out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    return out


def assembled(self: Body, x: Tensor) -> Tensor:
    a, b = self.a(x), self.b(x)
    out = x.new_zeros(len(x), a.shape[1] + b.shape[1], *x.shape[2:])
    out[:, : a.shape[1]] = a
    out[:, a.shape[1] :] = b
    return out


def flattened(self: Body, x: Tensor) -> Tensor:
    y = self.linear(x.permute(0, 2, 3, 1).reshape(len(x), -1))
    return x * torch.sigmoid(y)[..., None, None]


def normalized(self: Body, x: Tensor) -> Tensor:
    return F.group_norm(self.conv(x), self.groups)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(layer: nn.Module, way: str) -> nn.Module:
    if way == "custom":
        parametrize.register_parametrization(layer, "weight", Doubled())
        return layer
    if way == "old weight norm":
        return weight_norm(layer)
    return {"weight norm": parametrizations.weight_norm, "spectral norm": parametrizations.spectral_norm}[way](layer)


def tied(self: Body, x: Tensor) -> Tensor:
    """An autoencoder of each position whose decoder is the encoder's weight the other way round."""
    tokens = x.flatten(2).transpose(1, 2)
    hidden = F.relu(self.encoder(tokens))
    return F.linear(hidden, self.encoder.weight.t(), self.bias).transpose(1, 2).reshape(x.shape)


STRUCTURES = {
    "shuffle by view": lambda: Body(lambda s, x: s.conv(shuffled(x, 2)), conv=conv(8, 8)),
    "shuffle by module": lambda: nn.Sequential(nn.ChannelShuffle(2), conv(8, 8)),
    "shuffle by attribute": lambda: Body(
        lambda s, x: s.conv(x.view(len(x), 2, s.half, *x.shape[2:]).transpose(1, 2).flatten(1, 2)),
        conv=conv(8, 8),
        half=4,
    ),
    "shuffle units": lambda: nn.Sequential(conv(8, 12), *(ShuffleUnit(6) for _ in range(3)), conv(12, 8)),
    "grouped units": lambda: nn.Sequential(*(GroupedUnit(8, 2) for _ in range(2))),
    "few large groups": lambda: nn.Sequential(conv(8, 12, 3, groups=2), nn.ReLU(), conv(12, 8)),
    "many small groups": lambda: nn.Sequential(conv(8, 12, 3, groups=4), nn.ReLU(), conv(12, 8)),
    "transposed in few groups": lambda: nn.Sequential(nn.ConvTranspose2d(8, 12, 3, padding=1, groups=2), conv(12, 8)),
    "transposed in many groups": lambda: nn.Sequential(nn.ConvTranspose2d(8, 12, 3, padding=1, groups=4), conv(12, 8)),
    "transposed depthwise": lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8), conv(8, 8)),
    "C2f by chunk": lambda: C2f(8, 5, "chunk"),
    "C2f by split": lambda: C2f(8, 5, "split"),
    "slices by attribute": lambda: Body(
        lambda s, x: torch.cat((s.a(x[:, : s.width]), s.b(x[:, s.width :])), 1), a=conv(3, 4), b=conv(5, 4), width=3
    ),
    "slices by list": lambda: Body(
        lambda s, x: torch.cat([layer(part) for layer, part in zip(s.layers, x.split(s.widths, 1), strict=True)], 1),
        layers=nn.ModuleList([conv(3, 3, 3, groups=3), conv(5, 5, 3, groups=5)]), widths=[3, 5],
    ),
    "halves of the shape": lambda: Body(
        lambda s, x: s.conv(torch.cat((x[:, : x.shape[1] // 2] * 2, x[:, x.shape[1] // 2 :]), 1)), conv=conv(8, 8)
    ),
    "every second": lambda: Body(lambda s, x: s.conv(torch.cat((x[:, 1::2], x[:, ::2]), 1)), conv=conv(8, 8)),
    "octaves": lambda: Body(
        octaves, first=Octave(8, 10, 8, 6), middle=Octave(10, 8, 6, 3, bias=False), last=Octave(8, 8, 3, 8)
    ),
    "glu": lambda: nn.Sequential(conv(8, 10), nn.GLU(1), conv(5, 8)),
    "gate of a chunk": lambda: Body(
        lambda s, x: s.b(torch.mul(*s.a(x).chunk(2, 1))), a=conv(8, 10), b=conv(5, 8)
    ),
    "blur by shape": lambda: Body(
        lambda s, x: F.conv2d(x, s.kernel, padding=1, groups=x.shape[1]), kernel=torch.rand(8, 1, 3, 3)
    ),
    "blur by attribute": lambda: Body(
        lambda s, x: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), s.kernel, groups=s.channels),
        kernel=torch.rand(8, 1, 3, 3), channels=8,
    ),
    "blur expanded": lambda: Body(
        lambda s, x: F.conv2d(x, s.kernel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1]),
        kernel=torch.rand(1, 1, 3, 3),
    ),
    "blur transposed": lambda: Body(
        lambda s, x: F.conv_transpose2d(x, s.kernel, s.bias, padding=1, groups=x.shape[1]),
        kernel=torch.rand(8, 1, 3, 3), bias=nn.Parameter(torch.rand(8)),
    ),
    "shifted by slices": lambda: Body(shifted),
    "assembled by slices": lambda: Body(assembled, a=conv(8, 3), b=conv(8, 5)),
    "channels last": lambda: Body(flattened, linear=nn.Linear(8 * 64, 8)),
    "instance norm": lambda: nn.Sequential(conv(8, 8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    "bare instance norm": lambda: nn.Sequential(conv(8, 8), nn.InstanceNorm2d(8)),
    "group norm": lambda: nn.Sequential(conv(8, 8), nn.GroupNorm(4, 8)),
    "bare group norm": lambda: nn.Sequential(conv(8, 8), nn.GroupNorm(4, 8, affine=False)),
    "functional group norm": lambda: Body(normalized, conv=conv(8, 8), groups=4),
    "weight norm": lambda: nn.Sequential(
        parametrized(conv(8, 6), "weight norm"), parametrized(nn.ConvTranspose2d(6, 8, 1), "weight norm")
    ),
    "old weight norm": lambda: nn.Sequential(
        parametrized(conv(8, 6), "old weight norm"), parametrized(nn.ConvTranspose2d(6, 8, 1), "old weight norm")
    ),
    "spectral norm": lambda: nn.Sequential(
        parametrized(conv(8, 6), "spectral norm"), parametrized(nn.ConvTranspose2d(6, 8, 1), "spectral norm")
    ),
    "parametrization": lambda: nn.Sequential(
        parametrized(conv(8, 6), "custom"), parametrized(nn.ConvTranspose2d(6, 8, 1), "custom")
    ),
    "position embedding": lambda: Body(
        positions,
        mix=nn.Linear(8, 8),
        embedding=nn.Parameter(torch.rand(1, 64, 8)),
        token=nn.Parameter(torch.rand(1, 1, 8)),
    ),
    "embedding as wide as long": lambda: Body(
        lambda s, x: x + s.rows[None, :, :, None] + s.columns, rows=nn.Parameter(torch.rand(8, 8)),
        columns=nn.Parameter(torch.rand(8, 1, 8)),
    ),
    "attention heads by attribute": lambda: Attention(8, 3, "stacked"),
    "attention heads, unpacked": lambda: Attention(8, 3, "unpacked"),
    "attention heads that follow": lambda: Attention(8, 3, "apart"),
    "fused attention": lambda: Attention(8, 3, "fused"),
    "selective kernel": lambda: SelectiveKernel(8),
    "split attention": lambda: SplitAttention(8),
    "tied linear": lambda: Body(tied, encoder=nn.Linear(8, 5), bias=nn.Parameter(torch.rand(8))),
    "tied square linear": lambda: Body(tied, encoder=nn.Linear(8, 8), bias=nn.Parameter(torch.rand(8))),
    "tied convolution": lambda: Body(
        lambda s, x: F.conv_transpose2d(F.relu(s.conv(x)), s.conv.weight, padding=1), conv=conv(8, 5, 3)
    ),
    "picked by a buffer": lambda: Body(
        lambda s, x: s.conv(x.index_select(1, s.picks)), conv=conv(6, 8), picks=torch.tensor([3, 1, 1, 7, 0, 5])
    ),
    "length of channels": lambda: Body(lambda s, x: F.normalize(s.conv(x), dim=1), conv=conv(8, 8)),
    "free weights": lambda: Body(
        lambda s, x: (x.movedim(1, -1) @ s.weight).movedim(-1, 1), weight=nn.Parameter(torch.rand(8, 8))
    ),
    "unshuffled and shuffled": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(32, 32), nn.PixelShuffle(2)),
    "patches": lambda: Body(
        lambda s, x: s.conv(F.unfold(x, 3, padding=1).view(len(x), -1, *x.shape[2:])), conv=conv(72, 8)
    ),
    "slopes": lambda: nn.Sequential(nn.PReLU(8), conv(8, 8)),
}  # fmt: skip
"""Name and body; every layer of them loses filters."""
