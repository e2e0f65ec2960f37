"""Strided 1x1 convolutions on a CPU: how they are kept from a fault of oneDNN, with which torch computes them.

For the gradient of the weight, oneDNN (v3.12 in torch 2.13, and other versions) copies the pixels that such a
convolution reads into a scratch memory. In channels-last memory with fewer inputs than a vector register holds
(8 with AVX2, 16 with AVX-512) it writes beyond the end of it: wrong gradients, aborts and hangs. Pruned shortcuts of
residual networks are such convolutions. See docs/known-issues.md; https://github.com/uxlfoundation/oneDNN/issues/6035
has the line of code.

It does so only where height and width are whole multiples of the stride. The convolution does not read the last
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
from torch.utils.hooks import RemovableHandle

from slimbit.numerics.gradient_check import warn_of_wrong_gradients

MOST_INPUTS = 15
"""With more inputs, the scratch memory is large enough: no vector register holds more than 16 float32."""

UNPADDED = ((0, 0), "valid")
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # not in torch 2.6


def without_unread(x: Tensor, stride: Tuple[int, int]) -> Tensor:  # noqa: UP006 - TorchScript
    """The part of an input that a strided 1x1 convolution reads: no rows and columns after the last one.

    Args:
        x: Input of the convolution, shape ``(..., height, width)``.
        stride: Of the convolution, down and across.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> without_unread(x, (2, 2)).shape, without_unread(x, (3, 1)).shape
    (torch.Size([1, 1, 3, 3]), torch.Size([1, 1, 4, 4]))
    """
    height, width = x.shape[-2], x.shape[-1]
    return x[..., : (height - 1) // stride[0] * stride[0] + 1, : (width - 1) // stride[1] * stride[1] + 1]


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
    for layer in _unprotected(network):
        layer.register_forward_pre_hook(drop_unread, with_kwargs=True)
    return network


def safe_gradients(network: nn.Module) -> AbstractContextManager[object]:
    """A context for forward and backward passes of any network on a CPU, to be entered as often as there are passes.

    Within it every strided 1x1 convolution is safe: layers have the hook of `protect_gradients`, and where a network
    has code of its own, what that calls as `torch.nn.functional.conv2d` or ``conv_transpose2d`` is covered, too
    (inside `torch.utils.checkpoint` such a call is an error of torch). Other networks cost no time.

    The first time on a machine other convolutions are checked, see `warn_of_wrong_gradients`.

    Args:
        network: What will run, already on its device; not changed but for hooks within the context.

    >>> layer, x = nn.Conv2d(4, 8, 1, stride=2), torch.ones(1, 4, 8, 8)
    >>> with safe_gradients(layer):
    ...     layer(x).sum().backward()
    >>> layer.weight.grad.unique()
    tensor([16.])
    """
    if all(parameter.device.type != "cpu" for parameter in network.parameters()):
        return nullcontext()
    warn_of_wrong_gradients()
    modules, layers = list(network.modules()), _unprotected(network)
    foreign = any(not type(module).__module__.startswith(("torch.nn.", "slimbit.")) for module in modules)
    upwards = any(isinstance(module, nn.ConvTranspose2d) and _is_concerned(module) for module in modules)
    functions = SafeConvolutions() if foreign or upwards else nullcontext()
    return _Safe(layers, functions) if layers or foreign or upwards else nullcontext()


class _Safe:
    """Hooks on layers, and a mode for functions."""

    def __init__(self, layers: list[nn.Conv2d], functions: AbstractContextManager[object]) -> None:
        self._layers, self._functions = layers, functions
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        self._handles = [x.register_forward_pre_hook(drop_unread, with_kwargs=True) for x in self._layers]
        self._functions.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._functions.__exit__(*error)
        for handle in self._handles:
            handle.remove()


def _unprotected(network: nn.Module) -> list[nn.Conv2d]:
    """Layers that need the hook and do not have it."""
    layers = [x for x in network.modules() if isinstance(x, nn.Conv2d) and _is_plain(x) and _is_concerned(x)]
    return [layer for layer in layers if drop_unread not in layer._forward_pre_hooks.values()]


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
    """A hook for calls with ``input=``, too; TorchScript compiles ``plain``, which `functools.wraps` lets it find."""

    @functools.wraps(plain)
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if module.padding not in UNPADDED or _is_exporting() or torch.onnx.is_in_onnx_export():
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
    if x.device.type == "cpu" and (torch.is_grad_enabled() or torch.jit.is_tracing()):  # type: ignore[attr-defined, no-untyped-call]
        return (without_unread(x, self.stride),)
    return (x,)


class SafeConvolutions(TorchFunctionMode):
    """Replaces calls of the two functions that may reach the fault, wherever they come from."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        return _SAFE.get(func, func)(*args, **(kwargs or {}))  # type: ignore[no-untyped-call] # torch's functions


def _conv2d(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    padded = padding != "valid" and (isinstance(padding, str) or max(_pair(padding)) > 0)
    if not padded and groups == 1 and _may_fault(weight, weight.shape[1], stride):
        return torch.conv2d(without_unread(input, _pair(stride)), weight, bias, stride)
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
    if not (whole and groups == 1 and _may_fault(weight, weight.shape[1], stride)):
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    # the padded rows and columns meet no weight: they are the bias
    output = torch.conv_transpose2d(input, weight, None, stride)
    output = nn.functional.pad(output, (0, more[1], 0, more[0]))
    return output if bias is None else output + bias[:, None, None].to(output.dtype)


_SAFE: dict[Any, Callable[..., Tensor]] = {torch.conv2d: _conv2d, torch.conv_transpose2d: _conv_transpose2d}


def _may_fault(weight: Tensor, channels: int, stride: Any) -> bool:
    strided = tuple(weight.shape[2:]) == (1, 1) and max(_pair(stride)) > 1
    return strided and channels <= MOST_INPUTS and weight.device.type == "cpu" and torch.is_grad_enabled()


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value if len(value) == 2 else (value[0], value[0])
    return int(first), int(second)
