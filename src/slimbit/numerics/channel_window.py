"""A convolution that slides over channels, of which some are gone: it still sees the places where they were.

A kernel that runs along the channels (ECA's, a DiCE block's) reads neighbours. If channels were simply taken out, each
would get other neighbours and the layer another meaning. So the layer gets hooks: before it runs, the channels that are
left are put where they were among zeros, and afterwards only their results are taken.
"""

from typing import Any, Tuple  # noqa: UP035 - TorchScript reads the annotations of hooks

import torch
from torch import Tensor, nn


def keep_places(module: nn.Module, behind: int, size: int, places: Tensor) -> None:
    """Let a convolution whose output is as long as its input see channels at their places; it is changed.

    Args:
        module: The convolution.
        behind: How many dimensions of its input lie behind that of channels.
        size: How many channels there were.
        places: Where those lie that are left, in the order in which the input has them.

    >>> module = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    >>> _ = nn.init.ones_(module.weight)
    >>> keep_places(module, 0, 5, torch.tensor([0, 1, 4]))
    >>> module(torch.tensor([[[1.0, 2.0, 4.0]]])).tolist()  # of 1 2 0 0 4
    [[[3.0, 3.0, 4.0]]]
    """
    device = next((parameter.device for parameter in module.parameters()), places.device)
    module.register_buffer("window_places", places.to(device), persistent=False)
    state: Any = module
    state.window_dim, state.window_size = -1 - behind, size
    module.register_forward_pre_hook(spread_channels)
    module.register_forward_hook(gather_channels)


def spread_channels(self: Any, input: Tuple[Tensor]) -> Tuple[Tensor]:  # noqa: A002, UP006 - names and types of TorchScript
    """Forward pre-hook: channels at their places among zeros."""
    x = input[0]
    places: Tensor = self.window_places
    shape = list(x.shape)
    shape[self.window_dim] = self.window_size
    return (torch.zeros(shape, dtype=x.dtype, device=x.device).index_copy(self.window_dim, places, x),)


def gather_channels(self: Any, input: Tuple[Tensor], output: Tensor) -> Tensor:  # noqa: A002, ARG001, UP006 - as above
    """Forward hook: the results of the channels that are left."""
    places: Tensor = self.window_places
    return output.index_select(self.window_dim, places)
