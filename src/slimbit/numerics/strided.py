"""Strided 1x1 convolutions on a CPU: how they are kept from a fault of oneDNN, with which torch computes them.

For the gradient of the weight, oneDNN (v3.12 in torch 2.13, and other versions) copies the pixels that such a
convolution reads into a scratch memory. In channels-last memory with fewer inputs than a vector register holds
(8 with AVX2, 16 with AVX-512) it writes beyond the end of it: wrong gradients, aborts and hangs. Pruned shortcuts of
residual networks are such convolutions. See docs/known-issues.md; https://github.com/uxlfoundation/oneDNN/issues/6035
has the line of code.

It does so only where height and width are whole multiples of the stride. The convolution never reads the last
``stride - 1`` rows and columns then, and without them outputs and gradients are the same: that is what is done here.
Making the input contiguous is not enough, because weights in channels-last memory select the same code.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Tuple  # noqa: UP035 - TorchScript knows no other name for the types of a hook

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slimbit.numerics.gradient_check import warn_of_wrong_gradients

MOST_INPUTS = 15
"""With more inputs, the scratch memory is large enough: no vector register holds more than 16 float32."""

UNPADDED = ((0, 0), "valid")


def without_unread(x: Tensor, stride: Tuple[int, int]) -> Tensor:  # noqa: UP006 - TorchScript
    """The part of an input that a strided 1x1 convolution reads, where oneDNN would compute a wrong gradient.

    Args:
        x: Input of the convolution, shape ``(..., channels, height, width)``.
        stride: Of the convolution, down and across.

    Returns:
        ``x`` without its last ``stride - 1`` rows and columns; ``x`` itself where one of the two sizes is no multiple
        of its stride, where there are more than 15 channels, and away from the CPU.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> without_unread(x, (2, 2)).shape, without_unread(x, (3, 1)) is x
    (torch.Size([1, 1, 3, 3]), True)
    """
    channels, height, width = x.shape[-3], x.shape[-2], x.shape[-1]
    if channels > 15 or x.device.type != "cpu" or height % stride[0] != 0 or width % stride[1] != 0:
        return x
    return x[..., : height - stride[0] + 1, : width - stride[1] + 1]


def protect_gradients(network: nn.Module) -> nn.Module:
    """Keep a network of ours safe in anyone's training loop, by a hook on each layer concerned; returns the network.

    State dict, module types and results without gradients stay as they are; copies, pickles, ``torch.compile`` and
    TorchScript keep the hook, and what is exported is the convolution alone. Only `torch.nn.Conv2d` itself gets
    it: what a subclass with a forward of its own does with its input is not known. `safe_gradients` covers that.

    Args:
        network: Changed: hooks are added, once.

    >>> layer = protect_gradients(nn.Conv2d(4, 8, 1, stride=2))
    >>> layer is protect_gradients(layer), len(layer._forward_pre_hooks)
    (True, 1)
    """
    for module in network.modules():
        concerned = isinstance(module, nn.Conv2d) and _is_plain(module) and _is_concerned(module)
        if concerned and drop_unread not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(drop_unread, with_kwargs=True)
    return network


def safe_gradients(network: nn.Module) -> AbstractContextManager[object]:
    """A context for forward and backward passes of any network, which is not changed; it can be entered many times.

    Within it every strided 1x1 convolution is safe, also one that the network's own code calls as
    `torch.nn.functional.conv2d`, and a transposed one with an output padding. Nothing is done, and nothing costs time,
    where the network is not on a CPU, or has no such layer and no module but those of torch and Slimbit.

    The first time on a machine, other convolutions are checked, too, see `warn_of_wrong_gradients`.

    Args:
        network: What will run, already on its device.

    >>> layer, x = nn.Conv2d(4, 8, 1, stride=2), torch.ones(1, 4, 8, 8)
    >>> with safe_gradients(layer):
    ...     layer(x).sum().backward()
    >>> layer.weight.grad.unique()
    tensor([16.])
    """
    if all(parameter.device.type != "cpu" for parameter in network.parameters()):
        return nullcontext()
    warn_of_wrong_gradients()
    known = ("torch.nn.", "slimbit.")
    if any(_is_concerned(module) or not type(module).__module__.startswith(known) for module in network.modules()):
        return SafeConvolutions()
    return nullcontext()


def _is_plain(module: nn.Conv2d) -> bool:
    """Whether it convolves its input as it is; a parametrized one does."""
    kind = type(module)
    return kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward


def _is_concerned(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.in_channels <= MOST_INPUTS and _is_strided_1x1(module)
    # the gradient of its weight is that of a convolution in the other direction
    return isinstance(module, nn.ConvTranspose2d) and module.out_channels <= MOST_INPUTS and _is_strided_1x1(module)


def _is_strided_1x1(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    one = module.groups == 1 and tuple(module.kernel_size) == (1, 1)
    return one and max(module.stride) > 1 and module.padding in UNPADDED


Hook = Callable[..., Any]


def _with_keywords(plain: Hook) -> Hook:
    """A hook for calls with ``input=``, too. TorchScript compiles ``plain``, which `functools.wraps` lets it find."""

    @functools.wraps(plain)
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if module.padding not in UNPADDED or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            return None
        if args:
            return (*plain(module, args[:1]), *args[1:]), kwargs
        (kept,) = plain(module, (kwargs["input"],))
        return args, {**kwargs, "input": kept}

    return hook


@_with_keywords
def drop_unread(self: Any, input: Tuple[Tensor]) -> Tuple[Tensor]:  # noqa: A002, UP006 - names and types of TorchScript
    """Forward pre-hook of a strided 1x1 convolution, see `without_unread`; a traced pass has no gradients yet."""
    x = input[0]
    if torch.is_grad_enabled() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call] # torch's stub lacks it
        return (without_unread(x, self.stride),)
    return (x,)


class SafeConvolutions(TorchFunctionMode):
    """Replaces calls of the two functions that may reach the fault, wherever they come from."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        safe: Callable[..., Any] = _SAFE.get(func, func)
        return safe(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    steps = _pair(stride)
    padded = padding != "valid" and (isinstance(padding, str) or max(_pair(padding)) > 0)
    if _takes_1x1(weight, steps) and groups == 1 and not padded:
        input = without_unread(input, steps)  # noqa: A001 - as torch.conv2d
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _conv_transpose2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    steps, more = _pair(stride), _pair(output_padding)
    whole = more == (steps[0] - 1, steps[1] - 1) and max(_pair(padding)) == 0
    narrow = weight.shape[1] <= MOST_INPUTS and weight.device.type == "cpu"
    if not (_takes_1x1(weight, steps) and groups == 1 and whole and narrow):
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    # the padded rows and columns meet no weight: they are the bias
    output = torch.conv_transpose2d(input, weight, None, stride)
    output = nn.functional.pad(output, (0, more[1], 0, more[0]))
    return output if bias is None else output + bias[:, None, None]


_SAFE: dict[Any, Callable[..., Tensor]] = {torch.conv2d: _conv2d, torch.conv_transpose2d: _conv_transpose2d}


def _takes_1x1(weight: Tensor, stride: tuple[int, int]) -> bool:
    return torch.is_grad_enabled() and tuple(weight.shape[2:]) == (1, 1) and max(stride) > 1


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)
