"""Which module types are counted, and how often each of their weights is used in one call.

To add a layer kind, write a rule (module, inputs, output) -> uses and decorate it with the module type.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from slimbit.records.network import LayerKind


@dataclass(frozen=True)
class Use:
    """One weight of a module in one call.

    Attributes:
        kind: What the weight does.
        parameter: Its attribute on the module ("weight", "in_proj_weight", "out_proj.weight").
        positions: Output positions of the call, over the whole batch; 0 for a look-up.
        part: Suffix of the layer's name where a module has several weights.
        rows: Rows of the stored tensor, where it holds several layers.
        bias: Attribute of the bias ("" = none).
    """

    kind: LayerKind
    parameter: str
    positions: int
    part: str = ""
    rows: tuple[int, int] | None = None
    bias: str = "bias"


Rule = Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Iterator[Use]]
_RULES: dict[type[nn.Module], Rule] = {}


def counts(*module_types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for module types (and their subclasses)."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(module_types, rule))
        return rule

    return register


def counted_type(module: nn.Module) -> type[nn.Module] | None:
    """The closest ancestor of the module's type that has a rule, or None."""
    return next((base for base in type(module).__mro__ if base in _RULES), None)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of the closest registered ancestor of the module's type, or None."""
    kind = counted_type(module)
    return None if kind is None else _RULES[kind]


def is_stock(module: nn.Module) -> bool:
    """Whether a convolution or linear module computes what torch's own does, and not something of a subclass."""
    kind = type(module)
    return not {"forward", "_conv_forward"} & module.__dict__.keys() and any(
        kind.forward is stock.forward and getattr(kind, "_conv_forward", None) is getattr(stock, "_conv_forward", None)
        for stock in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    )


def images_seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """How many images a call of a module works on, for modules whose input says so; None for others.

    Convolutions, and torch's attention and recurrent layers, know which dimension of their input is the batch, and
    take an input without one for a single image.

    >>> import torch
    >>> images_seen(nn.Conv1d(4, 8, 3), (torch.zeros(4, 9),), {})
    1
    >>> images_seen(nn.GRU(3, 3), (torch.zeros(7, 2, 3),), {})
    2
    """
    if isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
        images, dims, axis = _argument(args, kwargs, 0, "input"), len(module.kernel_size) + 2, 0
    elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        name = "query" if isinstance(module, nn.MultiheadAttention) else "input"
        images, dims, axis = _argument(args, kwargs, 0, name), 3, 0 if module.batch_first else 1
    else:
        return None
    return images.shape[axis] if images.ndim == dims else 1


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@counts(*_CONVOLUTIONS)
def _convolution(module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Iterator[Use]:
    kind: LayerKind = ("conv1d", "conv2d", "conv3d")[len(module.kernel_size) - 1]
    yield Use(kind, "weight", output.numel() // module.out_channels)


@counts(*_TRANSPOSED)
def _transposed(module: Any, args: Any, kwargs: Any, _output: Tensor) -> Iterator[Use]:
    # every *input* position meets every weight once
    kind: LayerKind = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")[len(module.kernel_size) - 1]
    yield Use(kind, "weight", _argument(args, kwargs, 0, "input").numel() // module.in_channels)


@counts(nn.Linear)
def _linear(module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Iterator[Use]:
    yield Use("linear", "weight", output.numel() // module.out_features)


@counts(nn.Bilinear)
def _bilinear(module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Iterator[Use]:
    yield Use("bilinear", "weight", output.numel() // module.out_features)


@counts(nn.Embedding, nn.EmbeddingBag)
def _embedding(_module: Any, _args: Any, _kwargs: Any, _output: Any) -> Iterator[Use]:
    yield Use("embedding", "weight", 0, bias="")


@counts(nn.MultiheadAttention)
def _attention(module: nn.MultiheadAttention, args: Any, kwargs: Any, _output: Any) -> Iterator[Use]:
    width = module.embed_dim
    inputs = [_argument(args, kwargs, i, name) for i, name in enumerate(("query", "key", "value"))]
    tokens = [value.numel() // value.shape[-1] for value in inputs]
    for i, name in enumerate("qkv"):
        # one stacked tensor, unless keys and values have widths of their own
        stacked = module._qkv_same_embed_dim
        parameter = "in_proj_weight" if stacked else f"{name}_proj_weight"
        rows = (i * width, (i + 1) * width) if stacked else None
        yield Use("attention", parameter, tokens[i], f"{name}_proj", rows, "in_proj_bias")
    yield Use("attention", "out_proj.weight", tokens[0], "out_proj", None, "out_proj.bias")


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str) -> Tensor:
    value: Tensor = args[place] if place < len(args) else kwargs[name]
    return value
