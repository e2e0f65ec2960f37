"""Moments of what a layer reads: patches, their second moments, and BatchNorm statistics.

A convolution is a linear layer over *patches*: ``output[p, f] = sum_d weight[f, d] * patch[p, d]``. Compensation
and curvature need ``H = mean_p patch patch^T``; a few thousand sampled positions give it as well as all of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from slimbit.records.errors import InputError


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution of any dimension; a linear layer has an empty ``kernel``.

    Attributes:
        kernel: Kernel size per dimension.
        stride: Stride per dimension.
        padding: Low and high padding per dimension.
        dilation: Dilation per dimension.
        groups: Convolution groups.
        padding_mode: As `torch.nn.functional.pad` calls it.
        transposed: Whether this is a transposed convolution.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "constant"
    transposed: bool = False


def patches(inputs: Tensor, window: Window, *, samples: int = 0, generator: torch.Generator | None = None) -> Tensor:
    """What each output position reads, as rows.

    Args:
        inputs: ``(images, channels, *size)`` for a convolution, ``(..., features)`` for a linear layer.
        window: Geometry.
        samples: At most so many positions, spread evenly over all of them with jitter; 0 = every position.
        generator: Jitter, on the CPU; None = none, so the positions are evenly spaced.

    Returns:
        Shape ``(positions, groups, inputs per group * kernel)``, ordered as ``weight.flatten(1)`` is.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> patches(x, Window((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)))[0].tolist()
    [[0.0, 1.0, 3.0, 4.0]]
    """
    if not window.kernel:
        rows = inputs.reshape(-1, inputs.shape[-1])
        index = _positions(len(rows), samples, generator, inputs.device)
        return (rows if index is None else rows[index]).unsqueeze(1)
    view = _windows(inputs, window)
    dims = len(window.kernel)
    sizes = (view.shape[0], *view.shape[2 : 2 + dims])
    total = int(torch.tensor(sizes).prod())
    view = view.movedim(1, 1 + dims)  # images, *positions, channels, *kernel
    index = _positions(total, samples, generator, inputs.device)
    rows = view[torch.unravel_index(index, sizes)] if index is not None else view.flatten(0, dims)
    return rows.reshape(len(rows), window.groups, -1)


def sampled_rows(outputs: Tensor, *, channel_axis: int, samples: int, generator: torch.Generator | None) -> Tensor:
    """Outputs of a layer at the positions that `patches` samples with the same arguments, ``(positions, filters)``."""
    rows = outputs.movedim(channel_axis, -1)
    rows = rows.reshape(-1, rows.shape[-1]) if rows.is_contiguous() else rows
    flat_sizes = rows.shape[:-1]
    total = int(torch.tensor(flat_sizes).prod())
    index = _positions(total, samples, generator, outputs.device)
    if index is None:
        return rows.reshape(total, -1)
    return rows[torch.unravel_index(index, flat_sizes)]


def second_moment(rows: Tensor) -> Tensor:
    """``H = mean_p x_p x_p^T``, ``(groups, features, features)``, from ``(positions, groups, features)``.

    >>> second_moment(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]))[0].tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """
    return cross_moment(rows, rows)


def cross_moment(left: Tensor, right: Tensor) -> Tensor:
    """``mean_p left_p right_p^T`` for each group, ``(groups, left features, right features)``."""
    return torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1)) / len(left)


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and biased variance of each channel, float64, shape ``(channels,)``, over ``count`` values."""

    mean: Tensor
    variance: Tensor
    count: int


def channel_moments(values: Tensor, *, axis: int = 1) -> ChannelMoments:
    """Mean and variance of each channel over images and positions.

    >>> channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).variance.tolist()
    [1.0, 0.0]
    """
    dims = [d for d in range(values.ndim) if d != axis % values.ndim]
    wide = values if values.dtype == torch.float64 else values.float()
    variance, mean = torch.var_mean(wide, dim=dims, correction=0)
    return ChannelMoments(mean.double(), variance.double(), values.numel() // values.shape[axis])


def merge_moments(left: ChannelMoments, right: ChannelMoments) -> ChannelMoments:
    """Moments of two disjoint parts together (Chan, Golub and LeVeque 1979).

    >>> a = channel_moments(torch.tensor([[1.0], [3.0]]))
    >>> b = channel_moments(torch.tensor([[5.0]]))
    >>> merge_moments(a, b).mean.item(), round(merge_moments(a, b).variance.item(), 4)
    (3.0, 2.6667)
    """
    count = left.count + right.count
    share = right.count / count
    delta = right.mean - left.mean
    mean = left.mean + delta * share
    variance = left.variance * (1 - share) + right.variance * share + delta.square() * share * (1 - share)
    return ChannelMoments(mean, variance, count)


def absolute_statistics(quantized: ChannelMoments) -> tuple[Tensor, Tensor]:
    """``running_mean`` and ``running_var`` as one batch in training mode gives them (unbiased variance)."""
    return quantized.mean, quantized.variance * (quantized.count / max(1, quantized.count - 1))


def paired_statistics(
    stored_mean: Tensor, stored_variance: Tensor, *, original: ChannelMoments, quantized: ChannelMoments
) -> tuple[Tensor, Tensor]:
    """Stored statistics moved by what compression changed on the same images (derived, SPEC section 4).

    ``mean' = mean_stored + (mean_q - mean_f) * sqrt(var_stored / var_f)``, ``var' = var_stored * var_q / var_f``.
    A channel that is constant, before or after, has no ratio: its variance stays, and its mean moves by
    ``mean_q - mean_f``, so that BatchNorm's output keeps its mean.

    >>> f = ChannelMoments(torch.tensor([1.0]), torch.tensor([4.0]), 10)
    >>> q = ChannelMoments(torch.tensor([2.0]), torch.tensor([1.0]), 10)
    >>> [v.item() for v in paired_statistics(torch.tensor([3.0]), torch.tensor([16.0]), original=f, quantized=q)]
    [5.0, 4.0]
    """
    dead = (original.variance <= FLAT * stored_variance) | (quantized.variance <= FLAT * original.variance)
    variance = torch.where(dead, stored_variance, original.variance)
    stretch = (stored_variance / variance).sqrt()
    ratio = torch.where(dead, 1.0, quantized.variance / variance)
    stretch = torch.where(dead, 1.0, stretch)
    return stored_mean + (quantized.mean - original.mean) * stretch, stored_variance * ratio


FLAT = 1e-6
"""Below this share of the variance it should have, a channel counts as constant: a ratio would amplify noise."""


def check_finite(values: Tensor, what: str) -> None:
    """Raise `InputError` unless every value is finite; ``what`` names the tensor."""
    # one sum reads the values once and keeps nothing; only where it is not finite a closer look pays
    if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
        raise InputError(f"{what} must be finite, got NaN or infinity")


def _positions(total: int, samples: int, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
    if samples == 0 or samples >= total:
        return None
    jitter = 0.5 if generator is None else torch.rand(samples, generator=generator, dtype=torch.float64)
    index = ((torch.arange(samples, dtype=torch.float64) + jitter) * (total / samples)).long()
    return index.clamp_(max=total - 1).to(device)


def _windows(inputs: Tensor, window: Window) -> Tensor:
    """View of shape (images, channels, *positions, *kernel)."""
    dims = len(window.kernel)
    stride = window.stride
    if window.transposed:
        inputs = _spread(inputs, stride)
        stride = (1,) * dims
    pads = [side for pair in reversed(window.padding) for side in pair]
    view = F.pad(inputs, pads, mode=window.padding_mode) if any(pads) else inputs
    for d in range(dims):
        reach = window.dilation[d] * (window.kernel[d] - 1) + 1
        view = view.unfold(2 + d, reach, stride[d])
    for d in range(dims):
        view = view[(slice(None),) * (2 + dims + d) + (slice(None, None, window.dilation[d]),)]
    return view.flip(list(range(2 + dims, 2 + 2 * dims))) if window.transposed else view


def _spread(inputs: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Inputs with ``stride - 1`` zeros between neighbours, as a transposed convolution sees them."""
    size = [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], stride, strict=True)]
    wide = inputs.new_zeros(*inputs.shape[:2], *size)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = inputs
    return wide


@dataclass(frozen=True)
class PatchMoments:
    """What a layer reads, and what the float network made of it, at the sampled positions.

    Attributes:
        inputs: ``H = mean_p x_p x_p^T``, shape ``(groups, features, features)``; centred (a covariance) where a
            later shift absorbs the mean.
        outputs: ``mean_p y_p x_p^T`` of float outputs and compressed inputs, ``(groups, filters per group, features)``.
    """

    inputs: Tensor
    outputs: Tensor | None = None


class PatchSums:
    """Running sums over batches that become `PatchMoments`; state is the point.

    Patches are shifted by the mean of the first batch, so that single precision also serves a covariance that is
    small beside its mean.

    >>> sums = PatchSums()
    >>> sums.add(torch.tensor([[[1.0]], [[3.0]]]))
    >>> sums.moments(centred=False).inputs.item(), sums.moments(centred=True).inputs.item()
    (5.0, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sums: list[Tensor] = []

    def add(self, rows: Tensor, outputs: Tensor | None = None) -> None:
        """Add patches ``(positions, groups, features)`` and, where wanted, float outputs ``(positions, filters)``."""
        if self._shift is None:
            self._shift = rows.mean(dim=0)
        rows = rows - self._shift
        parts = [second_moment(rows), rows.mean(dim=0)]
        if outputs is not None:
            grouped = outputs.to(rows.dtype).reshape(len(rows), rows.shape[1], -1)
            parts += [cross_moment(grouped, rows), grouped.mean(dim=0)]
        weighted = [part.double() * len(rows) for part in parts]
        # outputs are kept while every batch has them
        self._sums = [a + b for a, b in zip(self._sums, weighted, strict=False)] if self._sums else weighted
        self.count += len(rows)

    def moments(self, *, centred: bool) -> PatchMoments:
        """The means, float64; ``centred`` takes the product of the means away."""
        assert self._shift is not None
        inputs, mean, *rest = [part / self.count for part in self._sums]
        # around the true mean if centred, else around zero: E (x - a)(x - a)^T = E (x - m)(x - m)^T + (m - a)(m - a)^T
        whole = torch.zeros_like(mean) if centred else mean + self._shift
        around_mean = inputs - _outer(mean, mean)
        silent = _mean_diagonal(around_mean) <= FLAT**2 * _mean_diagonal(_outer(self._shift, self._shift))
        silent &= _mean_diagonal(around_mean).isfinite()  # what overflowed is not silent, but beyond all numbers
        inputs = around_mean.masked_fill(silent, 0.0) + _outer(whole, whole)
        if not rest:
            return PatchMoments(inputs)
        outputs, output_mean = rest
        outputs = (outputs - _outer(output_mean, mean)).masked_fill(silent, 0.0)
        return PatchMoments(inputs, outputs + _outer(output_mean, whole))


def _mean_diagonal(moment: Tensor) -> Tensor:
    return moment.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(2) * right.unsqueeze(1)
