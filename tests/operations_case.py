"""Layers and operations, each in a network as small as can be, and the table in the docs that is made from them.

``python tests/operations_case.py`` writes docs/reference/operations.md; a test compares it with what the code does.
"""

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import slimbit
from slimbit.apply.calibration import calibrate
from slimbit.apply.compress import compress
from slimbit.numerics.copies import plain_network
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_range
from slimbit.records.errors import InputError
from slimbit.survey.channel_rules import RULES
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import read_weight, survey_network
from slimbit.survey.onnx_macs import ELEMENTWISE, OTHERS, PRODUCTS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "operations.md"


class Uses(nn.Module):
    """A function of an input and of a layer or parameter."""

    def __init__(self, function: Callable[..., Any], part: Any) -> None:
        super().__init__()
        self.function, self.part = function, part

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.part)


class Blocks(nn.Conv2d):
    """Some filters read some channels, the others read the others."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.reads, self.makes_out = 3, 5

    def forward(self, x: Tensor) -> Tensor:
        i, o, w, b = self.reads, self.makes_out, self.weight, self.bias
        return torch.cat((F.conv2d(x[:, :i], w[:o, :i], b[:o]), F.conv2d(x[:, i:], w[o:, i:], b[o:])), 1)


class Between(nn.Module):
    """A convolution, an operation, and a convolution that reads it."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 8, part: Any = None) -> None:
        super().__init__()
        self.before, self.after, self.function, self.part = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(channels, 4, 1),
            function,
            part,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.after(self.part(y) if isinstance(self.part, nn.Module) else self.function(y))


class Idle(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def masked() -> nn.Module:
    return prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)


def packed() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)))


IMAGE, SIGNAL, VOLUME, TOKENS = (3, 8, 8), (4, 16), (2, 6, 6, 6), (5, 8)
WORDS = torch.arange(12).reshape(2, 6) % 9
LAYERS: dict[str, tuple[Callable[[], nn.Module], Any] | tuple[Callable[[], nn.Module], Any, str]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), SIGNAL),
    "Conv2d": (lambda: nn.Conv2d(3, 6, 3), IMAGE),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3), VOLUME),
    "Conv2d, groups": (lambda: nn.Conv2d(3, 6, 3, groups=3), IMAGE),
    "Conv2d, dilation and padding": (lambda: nn.Conv2d(3, 6, 3, dilation=2, padding="same"), IMAGE),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), SIGNAL),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 6, 3, stride=2), IMAGE),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 2), VOLUME),
    "Linear": (lambda: nn.Linear(8, 4), TOKENS),
    "Bilinear": (lambda: Uses(lambda x, part: part(x, x), nn.Bilinear(8, 8, 3)), TOKENS),
    "Embedding": (lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), WORDS, "0"),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2)), WORDS, "0"),
    "MultiheadAttention": (
        lambda: Uses(lambda x, part: part(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
    "LSTM": (lambda: Uses(lambda x, part: part(x)[0], nn.LSTM(8, 4, batch_first=True)), TOKENS),
    "GRU": (lambda: Uses(lambda x, part: part(x)[0], nn.GRU(8, 4, batch_first=True)), TOKENS),
    "weight_norm, spectral_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), IMAGE),
    "torch.nn.utils.prune": (masked, IMAGE),
    "a subclass that computes with its weight": (lambda: Standardized(3, 6, 3), IMAGE),
    "a subclass that does not": (lambda: nn.Sequential(Idle(3, 6, 3), nn.Conv2d(3, 2, 1)), IMAGE, "0"),
    "F.conv2d with a parameter": (lambda: Uses(F.conv2d, nn.Parameter(torch.randn(6, 3, 3, 3))), IMAGE),
    "F.linear with a parameter": (lambda: Uses(F.linear, nn.Parameter(torch.randn(4, 8))), TOKENS),
    "einsum with a parameter": (
        lambda: Uses(lambda x, w: torch.einsum("nti,oi->nto", x, w), nn.Parameter(torch.randn(4, 8))), TOKENS),
    "product of activations": (lambda: nn.Sequential(nn.Linear(8, 8), Uses(lambda x, _: x @ x.mT, None)), TOKENS, "1"),
    "scaled_dot_product_attention": (
        lambda: nn.Sequential(nn.Linear(8, 8), Uses(lambda x, _: F.scaled_dot_product_attention(x, x, x), None)),
        TOKENS, "1"),
    "a scripted part": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.Conv2d(4, 4, 1))), IMAGE, "1"),
    "torch.ao.quantization.convert": (packed, TOKENS),
    "LazyConv2d": (lambda: nn.LazyConv2d(4, 3), IMAGE),
    "complex weights": (lambda: nn.Linear(8, 4, dtype=torch.complex64), torch.zeros(2, 8, dtype=torch.complex64)),
}  # fmt: skip
OPERATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU, SiLU, GELU, ...": lambda: Between(F.silu),
    "PReLU": lambda: Between(F.relu, part=nn.PReLU(8)),
    "Dropout": lambda: Between(F.relu, part=nn.Dropout()),
    "BatchNorm": lambda: Between(F.relu, part=nn.BatchNorm2d(8)),
    "GroupNorm": lambda: Between(F.relu, part=nn.GroupNorm(4, 8)),
    "InstanceNorm": lambda: Between(F.relu, part=nn.InstanceNorm2d(8, affine=True)),
    "LayerNorm over channels": lambda: Between(F.relu, part=nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (6, 6)))),
    "max and average pooling": lambda: Between(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2)),
    "adaptive pooling": lambda: Between(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "upsampling": lambda: Between(lambda x: F.interpolate(x, scale_factor=2)),
    "padding": lambda: Between(lambda x: F.pad(x, (1, 1, 1, 1))),
    "sum with itself (residual)": lambda: Between(lambda x: x + F.relu(x)),
    "scale by its own mean (SE)": lambda: Between(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "concatenation": lambda: Between(lambda x: torch.cat([x, F.relu(x)], 1), 16),
    "split and concatenation": lambda: Between(lambda x: torch.cat([half.relu() for half in x.chunk(2, 1)], 1)),
    "channel shuffle (view and transpose)": lambda: Between(
        lambda x: x.view(len(x), 2, x.shape[1] // 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
    ),
    "channel shuffle, all sizes in the code": lambda: Between(
        lambda x: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
    ),
    "channel shuffle in a module of its own": lambda: Between(
        F.relu, part=Uses(lambda x, _: x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), None)
    ),
    "PixelShuffle": lambda: Between(lambda x: F.pixel_shuffle(x, 2), 2),
    "GLU": lambda: Between(lambda x: F.glu(x, 1), 4),
    "depthwise convolution": lambda: Between(F.relu, part=nn.Conv2d(8, 8, 3, groups=8)),
    "grouped convolution": lambda: Between(F.relu, part=nn.Conv2d(8, 8, 3, groups=2)),
    "blocks of one weight (octave convolution)": lambda: Between(F.relu, part=Blocks(8, 8, 1)),
    "transposed convolution": lambda: Between(F.relu, part=nn.ConvTranspose2d(8, 8, 2)),
    "convolution over channels (ECA)": lambda: Between(
        F.relu,
        part=Uses(
            lambda x, e: x * e(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None].sigmoid(),
            nn.Conv1d(1, 1, 3, padding=1),
        ),
    ),
    "softmax over positions": lambda: Between(lambda x: x.flatten(2).softmax(-1).unflatten(2, (6, 6))),
    "softmax over channels": lambda: Between(lambda x: x.softmax(1)),
    "mean over channels": lambda: Between(lambda x: x.mean(1, keepdim=True), 1),
    "indexing of channels": lambda: Between(lambda x: x[:, [0, 2, 4]], 3),
    "fixed sizes (view(-1, 8, 36))": lambda: Between(lambda x: x.view(-1, 8, 36).unflatten(2, (6, 6))),
}
OPERATIONS["LayerNorm over channels"] = lambda: Between(
    F.relu, part=nn.Sequential(Uses(lambda x, _: x.movedim(1, -1), None), nn.LayerNorm(8), Uses(_last_second, None))
)


def _last_second(x: Tensor, _: Any) -> Tensor:
    return x.movedim(-1, 1)


@dataclass(frozen=True)
class Row:
    """What happens to a layer or operation."""

    name: str
    counted: str = ""
    pruned: str = ""
    quantized: str = ""
    refused: str = ""


def example_of(given: Any) -> Tensor:
    torch.manual_seed(0)
    return given if isinstance(given, Tensor) else torch.randn(2, *given)


def layer_row(name: str) -> Row:
    """A layer: whether its multiplications are counted, its filters cut where they can be, and its weight rounded."""
    build, given, *rest = LAYERS[name]
    target = rest[0] if rest else ""
    torch.manual_seed(0)
    model, example = build().eval(), example_of(given)
    try:
        report = slimbit.cost(model, example)
    except InputError as error:
        return Row(name, "no", "no", "no", str(error))
    other = sum(work.macs for work in report.other_work)
    # torch's counter has no formula for a bilinear layer: 5 tokens x 3 filters x 8 x 8
    assert report.total.macs + other == (5 * 192 if name == "Bilinear" else independent_macs(model, example)), name
    layers = [layer.name for layer in report.layers if not target or f"{layer.name}.".startswith(f"{target}.")]
    counted = (
        ("yes" if layers else "does no work") if not other else "weights, and the rest listed" if layers else "listed"
    )
    return Row(name, counted, _share(_prunable(model, example), layers), _quantized(model, example, layers))


def _share(found: Container[str], layers: Sequence[str]) -> str:
    """Whether all, some or none of the layers are among those found."""
    count = sum(layer in found for layer in layers)
    return "no" if not count else "yes" if count == len(layers) else "in part"


def operation_row(name: str) -> Row:
    """An operation between two layers: whether the filters before it can still be cut, or why not."""
    torch.manual_seed(0)
    model, example = OPERATIONS[name]().eval(), example_of(IMAGE)
    report = slimbit.cost(model, example)
    assert report.total.macs + sum(work.macs for work in report.other_work) == independent_macs(model, example)
    filter_groups = find_filter_groups(model, example)
    if any(member.name == "before" for group in filter_groups.groups for member in group.members):
        return Row(name, "yes", "yes", "yes")
    return Row(name, "yes", "no", "yes", filter_groups.fixed["before"])


def independent_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one image by torch's own counter."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # shapes alone: attention comes in its separate products there
        device = "cpu" if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()) else "meta"
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            plain_network(model).to(device)(example.to(device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2 // len(example)


def _prunable(model: nn.Module, example: Tensor) -> set[str]:
    """Layers of which filters can be cut where a layer follows that reads them."""
    output = model(example)
    convolutions = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
    layers = survey_network(model, example).spec.layers
    kind = layers[-1].kind.replace("_transpose", "") if layers else ""
    reader = convolutions[kind](output.shape[1], 3, 1) if kind in convolutions else nn.Linear(output.shape[-1], 3)
    try:
        groups = find_filter_groups(nn.Sequential(model, reader), example).groups
    except InputError:
        return set()
    members = {member.name for group in groups for member in group.members if member.role == "filters"}
    names = {layer.name: layer.weight_key.rpartition(".")[0] for layer in layers}
    return {name for name, path in names.items() if f"0.{path}".rstrip(".") in members}


def _quantized(model: nn.Module, example: Tensor, layers: Sequence[str]) -> str:
    """Whether compression rounds the weights, and whether it makes up for the errors on calibration images."""
    if not layers:
        return "no"
    network = plain_network(model)
    spec = survey_network(network, example).spec
    weights = {layer.name: read_weight(network, layer) for layer in spec.layers}
    plan = step_by_range(PlanInputs(spec=spec, weights=weights), 4)
    found = compress(network, plan, spec, example).layers
    before = survey_network(model, example).spec.layers
    names = [now.name for now, was in zip(spec.layers, before, strict=True) if was.name in layers]
    compensated = _share(calibrate(network, spec, example).rows, names)
    rounded = _share(found, names)
    return (
        {"yes": "yes", "no": "rounded", "in part": "rounded, in part compensated"}[compensated]
        if rounded == "yes"
        else rounded
    )


def rows(table: dict[str, Any], row: Callable[[str], Row]) -> Iterator[Row]:
    """The rows of a table, without what torch warns about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in table:
            yield row(name)


def page() -> str:
    """The page of the docs."""
    layers = [f"| {r.name} | {r.counted} | {r.pruned} | {r.quantized} | {r.refused} |" for r in rows(LAYERS, layer_row)]
    operations = [f"| {r.name} | {r.pruned} | {r.refused} |" for r in rows(OPERATIONS, operation_row)]
    return _PAGE.format(
        layers="\n".join(layers),
        operations="\n".join(operations),
        rules=_listed(RULES),
        products=_listed(PRODUCTS),
        others=_listed(OTHERS),
        elementwise=_listed(ELEMENTWISE),
    )


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


_PAGE = """\
# What is counted, pruned and quantized

`python tests/operations_case.py` makes this page from networks that hold one layer or operation each, and a test fails
where it differs from what the code does. Counts were compared with `torch.utils.flop_counter` as it was made.

## Layers

* *Counted*: multiplications of the weight are in `macs`; `listed`: in `other_work`, beside the total, with their MACs.
* *Pruned*: filters can be cut where a layer follows that reads them.
* *Quantized*: the weight is rounded to levels and errors are compensated on calibration images; `rounded`: not so.
* *Refused*: with this error.

| layer | counted | pruned | quantized | refused |
|---|---|---|---|---|
{layers}

## Operations between layers

Operations without weights are neither counted nor quantized. What matters is whether the filters of the layer *before*
can be cut although the operation stands between it and the layer that reads it; where not, they stay, for this reason.

| operation | pruned | kept because |
|---|---|---|
{operations}

Operations with a pruning rule (torch's names; pointwise ones need none): {rules}.

## ONNX operators

A factor that stored tensors alone make is a layer: {products}.

Counted, and listed as other work: {others}. Products of two activations are listed, too.

Without products: all other operators of the standard, and {elementwise}.

Branches, loops and operators of further domains are named in a note with how many there are.
"""

if __name__ == "__main__":
    PAGE.write_text(page())
