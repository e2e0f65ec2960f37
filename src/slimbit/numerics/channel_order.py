"""A module that only puts channels in another order (a shuffle), when some of them are gone: the others keep theirs.

What code shuffles by ``view`` and ``transpose`` lands elsewhere once channels are missing. So the module gets hooks:
before it runs, every channel that is left is put where it was (in the places of the others lies any channel), and
afterwards those are taken that are left, in the order in which the module brings them.
"""

from typing import Any, Tuple  # noqa: UP035 - TorchScript reads the annotations of hooks

import torch
from torch import Tensor, nn

BUFFERS = ("order_spread", "order_gather")
"""What the hooks keep at the module."""


class Reordering(nn.Module):
    """Stands for a module that only reorders channels while a network is looked at; its channels are dimension 1.

    Attributes:
        order: For each channel of the output, which of the input it is.
    """

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, x: Tensor) -> Tensor:
        """Channels in the other order."""
        return x.index_select(1, self.order)  # type: ignore[arg-type] # a buffer


def channel_order(module: nn.Module, size: int, behind: int) -> Tensor | None:
    """For each channel that a module puts out, which of its input it is; None where it does not just reorder them.

    Args:
        module: Any module; it runs once on the numbers of the channels.
        size: Number of channels.
        behind: How many dimensions of its input lie behind that of channels, which is dimension 1.

    >>> channel_order(nn.ChannelShuffle(2), 4, 2).tolist()
    [0, 2, 1, 3]
    """
    device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))
    numbers = torch.arange(size, dtype=torch.float32, device=device).reshape(1, size, *(1,) * behind)
    try:
        with torch.no_grad():
            made = module(numbers)
    except Exception:  # noqa: BLE001 - whatever a module raises that wants something else
        return None
    if not isinstance(made, Tensor) or made.shape != numbers.shape:
        return None
    order = made.reshape(-1).long().cpu()
    return order if torch.equal(order.sort().values, torch.arange(size)) else None


def keep_order(module: nn.Module, behind: int, size: int, places: Tensor) -> None:
    """Let a module that reorders channels bring those that are left in their old order; it is changed.

    Args:
        module: The module, which `channel_order` understands.
        behind: As there.
        size: How many channels there were.
        places: Which of its input are left, in the order in which the input has them.

    >>> module = nn.ChannelShuffle(2)
    >>> keep_order(module, 1, 6, torch.tensor([0, 2, 4, 5]))
    >>> module(torch.tensor([[[0.0], [2.0], [4.0], [5.0]]])).flatten().tolist()  # of 0 3 1 4 2 5
    [0.0, 4.0, 2.0, 5.0]
    """
    if isinstance(module, Reordering):  # of a network that is only looked at: which of the entries is all the same
        module.order = torch.arange(len(places), device=module.order.device)  # type: ignore[arg-type] # a buffer
        return
    order, places = channel_order(module, size, behind), places.cpu()
    assert order is not None  # as whoever made the plan asked
    spread = torch.zeros(size, dtype=torch.long)
    spread[places] = torch.arange(len(places))
    gather = torch.isin(order, places).nonzero().flatten()
    state: Any = module
    if hasattr(module, BUFFERS[0]):  # it has lost channels before
        device = state.order_spread.device
        state.order_spread = spread.to(device)[state.order_spread]
        state.order_gather = state.order_gather[gather.to(device)]
        return
    # nothing here tells the device: it is that of the input, until the network is moved
    module.register_buffer("order_spread", spread, persistent=False)
    module.register_buffer("order_gather", gather, persistent=False)
    module.register_forward_pre_hook(spread_order)
    module.register_forward_hook(gather_order)


def spread_order(self: Any, input: Tuple[Tensor]) -> Tuple[Tensor]:  # noqa: A002, UP006 - names and types of TorchScript
    """Forward pre-hook: channels at their old places."""
    places: Tensor = self.order_spread
    x = input[0]
    return (x.index_select(1, places.to(x.device)),)


def gather_order(self: Any, input: Tuple[Tensor], output: Tensor) -> Tensor:  # noqa: A002, ARG001, UP006 - as above
    """Forward hook: the channels that are left."""
    places: Tensor = self.order_gather
    return output.index_select(1, places.to(output.device))
