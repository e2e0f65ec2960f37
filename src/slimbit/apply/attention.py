"""Torch's attention with its four projections as modules of their own, which hooks can reach.

`torch.nn.MultiheadAttention` multiplies with its weights inside of one function, so that nobody sees what the
projections read and make. While a network is calibrated or compressed, a copy of it computes the same with modules in
between; weights, biases and their names stay those of the attention.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Projection(nn.Module):
    """One of the projections before the attention: a linear layer whose weight and bias its owner keeps."""

    def __init__(self, owner: nn.MultiheadAttention, place: int) -> None:
        super().__init__()
        # outside of the table of modules: the owner is no part of its part
        object.__setattr__(self, "owner", owner)
        self.place = place

    @property
    def weight(self) -> Tensor:
        """Shape ``(embedding, inputs)``: a part of the stacked weight, where there is one."""
        owner: Any = self.owner
        if owner._qkv_same_embed_dim:
            stacked: Tensor = owner.in_proj_weight
            return stacked[self._rows]
        whole: Tensor = getattr(owner, f"{PROJECTIONS[self.place]}_weight")
        return whole

    @property
    def bias(self) -> Tensor | None:
        """Its part of the stacked bias."""
        owner: Any = self.owner
        stacked: Tensor | None = owner.in_proj_bias
        return None if stacked is None else stacked[self._rows]

    @property
    def _rows(self) -> slice:
        owner: Any = self.owner
        width: int = owner.embed_dim
        return slice(self.place * width, (self.place + 1) * width)

    def forward(self, x: Tensor) -> Tensor:
        """Any number of dimensions, features last."""
        return F.linear(x, self.weight, self.bias)


class OpenAttention(nn.MultiheadAttention):
    """What a `torch.nn.MultiheadAttention` becomes for as long as it is open; never made by itself."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
        is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    ) -> tuple[Tensor, Tensor | None]:
        """As of torch's own: products with weights in modules, all between them in torch's function."""
        parts = zip(PROJECTIONS, (query, key, value), strict=True)
        q, k, v = (self.get_submodule(name)(values) for name, values in parts)
        swapped = self.batch_first and q.dim() == 3
        if swapped:
            q, k, v = (values.transpose(0, 1) for values in (q, k, v))
        same = torch.eye(self.embed_dim, dtype=q.dtype, device=q.device)
        mixed, weights = F.multi_head_attention_forward(
            q, k, v, self.embed_dim, self.num_heads, None, None, self.bias_k, self.bias_v, self.add_zero_attn,
            self.dropout, same, None, training=self.training, key_padding_mask=key_padding_mask,
            need_weights=need_weights, attn_mask=attn_mask, average_attn_weights=average_attn_weights,
            is_causal=is_causal, use_separate_proj_weight=True, q_proj_weight=same, k_proj_weight=same,
            v_proj_weight=same,
        )  # fmt: skip
        return self.out_proj(mixed.transpose(0, 1) if swapped else mixed), weights


def open_attention(network: nn.Module) -> nn.Module:
    """Let hooks reach the projections of every attention of a network, which is changed; computes the same.

    >>> attention, x = nn.MultiheadAttention(4, 2).eval(), torch.randn(3, 1, 4)
    >>> before = attention(x, x, x)[0]
    >>> torch.allclose(open_attention(attention)(x, x, x)[0], before, atol=1e-6)
    True
    """
    for module in network.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = OpenAttention
            for place, name in enumerate(PROJECTIONS):
                module.add_module(name, Projection(module, place))
            module._modules["out_proj"] = module._modules.pop("out_proj")  # last, as it is called
    return network


@contextmanager
def opened_attention(network: nn.Module) -> Iterator[nn.Module]:
    """The same for a while: afterwards the network is made of torch's own attention again."""
    open_attention(network)
    try:
        yield network
    finally:
        for module in network.modules():
            if isinstance(module, OpenAttention):
                module.__class__ = nn.MultiheadAttention  # type: ignore[assignment]
                for name in PROJECTIONS:
                    del module._modules[name]
