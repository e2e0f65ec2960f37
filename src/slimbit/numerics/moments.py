"""Moments of what a layer reads: patches, their second moments, and BatchNorm statistics.

A convolution is a linear layer over *patches*: ``output[p, f] = sum_d weight[f, d] * patch[p, d]``. Compensation
and curvature need ``H = mean_p patch patch^T``; a few thousand sampled positions give it as well as all of them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
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


def patches(inputs: Tensor, window: Window, *, at: Tensor | None = None) -> Tensor:
    """What output positions read, as rows.

    Args:
        inputs: ``(images, channels, *size)`` for a convolution, ``(..., features)`` for a linear layer.
        window: Geometry.
        at: Numbers of the positions, counted over images first; None = every position.

    Returns:
        Shape ``(positions, groups, inputs per group * kernel)``, ordered as ``weight.flatten(1)`` is.

    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> patches(x, Window((2, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)))[0].tolist()
    [[0.0, 1.0, 3.0, 4.0]]
    """
    if not window.kernel:
        rows = inputs.reshape(-1, inputs.shape[-1])
        return (rows if at is None else rows[at]).unsqueeze(1)
    sizes, padding = output_sizes(inputs, window), window.padding
    if window.padding_mode != "constant" and any(map(any, padding)):
        inputs = F.pad(inputs, [side for pair in reversed(padding) for side in pair], mode=window.padding_mode)
        padding = ((0, 0),) * len(padding)
    places = torch.unravel_index(torch.arange(math.prod(sizes), device=inputs.device) if at is None else at, sizes)
    # pixel that each tap of each position reads, and whether there is one: zeros of padding and of spreading are not
    pixels, inside = places[0][:, None], torch.ones_like(places[0], dtype=torch.bool)[:, None]
    for d, kernel in enumerate(window.kernel):
        stride, size = window.stride[d], inputs.shape[2 + d]
        taps = torch.arange(kernel, device=inputs.device) * window.dilation[d] - padding[d][0]
        if window.transposed:
            spread = places[1 + d][:, None] + taps.flip(0)
            read, there = spread.div(stride, rounding_mode="floor"), spread % stride == 0
        else:
            read = places[1 + d][:, None] * stride + taps
            there = torch.ones_like(read, dtype=torch.bool)
        there &= (read >= 0) & (read < size)
        pixels = (pixels[:, :, None] * size + read.clamp_(0, size - 1)[:, None]).flatten(1)
        inside = (inside[:, :, None] & there[:, None]).flatten(1)
    # whole pixels, one after the other in memory, are copied several times faster than elements of a strided view
    rows = inputs.movedim(1, -1).reshape(-1, inputs.shape[1]).index_select(0, pixels.flatten())
    rows.masked_fill_(~inside.reshape(-1, 1), 0.0)
    groups, taps_in_all = window.groups, pixels.shape[1]
    rows = rows.reshape(len(pixels), taps_in_all, groups, inputs.shape[1] // groups)
    return rows.permute(0, 2, 3, 1).reshape(len(pixels), groups, inputs.shape[1] // groups * taps_in_all)


def output_sizes(inputs: Tensor, window: Window) -> tuple[int, ...]:
    """Images and output positions per dimension that a layer makes of its inputs.

    >>> output_sizes(torch.zeros(2, 3, 8, 8), Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)))
    (2, 4, 4)
    """
    if not window.kernel:
        return tuple(inputs.shape[:-1])
    sizes = [len(inputs)]
    for d, (kernel, dilation) in enumerate(zip(window.kernel, window.dilation, strict=True)):
        size, stride = inputs.shape[2 + d], window.stride[d]
        if window.transposed:
            size, stride = (size - 1) * stride + 1, 1
        sizes.append((size + sum(window.padding[d]) - dilation * (kernel - 1) - 1) // stride + 1)
    return tuple(sizes)


def sampled_rows(outputs: Tensor, *, channel_axis: int, at: Tensor | None = None) -> Tensor:
    """Outputs of a layer at the positions that `patches` takes with the same numbers, ``(positions, filters)``."""
    rows = outputs.movedim(channel_axis, -1)
    if at is None:
        return rows.reshape(-1, rows.shape[-1])
    return rows[torch.unravel_index(at, rows.shape[:-1])]


def sampled_positions(total: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Rising numbers of at most ``samples`` of ``total`` positions, spread evenly with jitter; 0 = all.

    Args:
        total: Number of positions.
        samples: How many to take.
        generator: Jitter, on the CPU; None = none, so the positions are evenly spaced.

    >>> sampled_positions(10, 2).tolist()
    [2, 7]
    """
    if samples == 0 or samples >= total:
        return torch.arange(total)
    jitter = 0.5 if generator is None else torch.rand(samples, generator=generator, dtype=torch.float64)
    index = ((torch.arange(samples, dtype=torch.float64) + jitter) * (total / samples)).long()
    return index.clamp_(max=total - 1)


def by_batch(positions: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Rising positions, numbered over all batches, as those of each batch.

    >>> [x.tolist() for x in by_batch(torch.tensor([1, 4, 5]), [2, 3, 2])]
    [[1], [2], [0]]
    """
    ends = torch.tensor(counts).cumsum(0)
    cuts = torch.searchsorted(positions, ends)[:-1]
    return [part - (end - n) for part, end, n in zip(positions.tensor_split(cuts), ends, counts, strict=True)]


def in_chunks(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """The rows of all parts in chunks of one size, the last one shorter: sums over them do not depend on the parts.

    >>> [len(chunk) for chunk in in_chunks([torch.zeros(3, 2), torch.zeros(4, 2)], 5)]
    [5, 2]
    """
    left: list[Tensor] = []
    missing = rows
    for part in parts:
        start = 0
        while start < len(part):
            piece = part[start : start + missing]
            left.append(piece)
            start, missing = start + len(piece), missing - len(piece)
            if missing == 0:
                yield left[0] if len(left) == 1 else torch.cat(left)
                left, missing = [], rows
    if left:
        yield left[0] if len(left) == 1 else torch.cat(left)


@dataclass(frozen=True)
class ChannelMoments:
    """Mean and biased variance of each channel, float64, shape ``(channels,)``, over ``count`` values."""

    mean: Tensor
    variance: Tensor
    count: int


def channel_moments(values: Tensor | Sequence[Tensor], *, axis: int = 1, what: str = "") -> ChannelMoments:
    """Mean and variance of each channel over images and positions, of one tensor or of several.

    Each image has its own mean and variance in the type of the values; these are put together in float64. The result
    is the same to the last bit however the images are divided into tensors.

    Args:
        values: Images first; at least one image.
        axis: Axis of the channels.
        what: Name of the values, which must then be finite.

    Raises:
        InputError: They are not.

    >>> channel_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).variance.tolist()
    [1.0, 0.0]
    """
    parts = [values] if isinstance(values, Tensor) else [part for part in values if part.numel()]
    axis %= parts[0].ndim
    if axis == 0:
        parts, axis = [part.unsqueeze(0) for part in parts], 1
    each = [_moments_of_images(part, axis) for part in parts]
    total: ChannelMoments | None = None
    for chunk in in_chunks(each, max(1, CHUNK // each[0][0].numel())):
        means, variances, positions = chunk[:, 0], chunk[:, 1], chunk[:, 2, :1]
        count = positions.sum()
        mean = (means * positions).sum(0) / count
        spread = ((variances + (means - mean).square()) * positions).sum(0) / count
        here = ChannelMoments(mean, spread, int(count))
        total = here if total is None else merge_moments(total, here)
    assert total is not None
    if what and not bool(total.variance.isfinite().all()):
        for part in parts:
            check_finite(part, what)
    return total


CHUNK = 1 << 17
"""Elements that are worked on at once: they stay in the cache."""
CANCELLED = 1 / 32
"""Below this share of the squared mean, a variance is not taken from the mean square, but from differences."""


def _moments_of_images(values: Tensor, axis: int) -> Tensor:
    """Mean, variance and number of positions of each channel of each image, float64, ``(images, 3, channels)``."""
    wide = values if values.dtype == torch.float64 else values.float()
    wide = wide.movedim(axis, 1).flatten(2) if wide.ndim > 2 else wide.unsqueeze(2)
    positions = wide.shape[2]
    means = wide.mean(2)
    variances = torch.zeros_like(means, dtype=torch.float64)
    if positions > 1:
        variances = torch.linalg.vector_norm(wide, dim=2).double().square_() / positions - means.double().square()
        # one pass over the values does, unless a mean is so large that little is left of the difference
        images, channels = torch.where(variances < CANCELLED * means.double().square())
        for start in range(0, len(images), max(1, CHUNK // positions)):
            some = slice(start, start + max(1, CHUNK // positions))
            at = images[some], channels[some]
            variances[at] = (wide[at] - means[at].unsqueeze(1)).square_().mean(1).double()
    return torch.stack([means.double(), variances, torch.full_like(variances, positions)], 1)


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
    """Stored statistics moved by what compression changed on the same images (derived).

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
    """Running sums over patches that become `PatchMoments`; state is the point.

    Patches are shifted by the mean of the first ones, so that single precision also serves a covariance that is
    small beside its mean. Products are made in the type of the patches and added in place in float64, for more than
    `LARGE` features in float32.

    Args:
        shared: Sums over the same patches that another layer has made; only products with outputs are added then.

    >>> sums = PatchSums()
    >>> sums.add(torch.tensor([[[1.0]], [[3.0]]]))
    >>> sums.moments(centred=False).inputs.item(), sums.moments(centred=True).inputs.item()
    (5.0, 1.0)
    """

    def __init__(self, shared: "PatchSums | None" = None) -> None:
        self.count, self._shared = 0, shared
        self._shift: Tensor | None = None if shared is None else shared._shift
        self._inputs: Tensor | None = None if shared is None else shared._inputs
        self._mean: Tensor | None = None if shared is None else shared._mean
        self._outputs: Tensor | None = None
        self._output_mean: Tensor | None = None

    def add(self, rows: Tensor, outputs: Tensor | None = None) -> None:
        """Add patches ``(positions, groups, features)`` and, where wanted, float outputs ``(positions, filters)``."""
        features = rows.shape[2]
        wide = rows.dtype if features > LARGE else torch.float64
        if self._shift is None:
            self._shift = rows.mean(dim=0)
        if self._inputs is None or self._mean is None:
            self._inputs = rows.new_zeros(rows.shape[1], features, features, dtype=wide)
            self._mean = rows.new_zeros(rows.shape[1], features, dtype=torch.float64)
        rows = rows - self._shift
        by_group = rows.transpose(0, 1)
        if self._shared is None:
            _add_products(self._inputs, by_group)
            self._mean += rows.sum(dim=0)
        if outputs is not None:
            grouped = outputs.to(rows.dtype).reshape(len(rows), rows.shape[1], -1).transpose(0, 1)
            if self._outputs is None or self._output_mean is None:
                self._outputs = rows.new_zeros(rows.shape[1], grouped.shape[2], features, dtype=wide)
                self._output_mean = rows.new_zeros(rows.shape[1], grouped.shape[2], dtype=torch.float64)
            self._outputs += grouped.transpose(1, 2) @ by_group
            self._output_mean += grouped.sum(dim=1)
        self.count += len(rows)

    def mean(self) -> Tensor:
        """Mean of the patches, ``(groups, features)``, float64."""
        assert self._shift is not None
        assert self._mean is not None
        return self._mean / self.count + self._shift

    def moments(self, *, centred: bool) -> PatchMoments:
        """The means; ``centred`` takes the product of the means away. Sums over outputs must be of all patches."""
        assert self._shift is not None
        assert self._inputs is not None
        assert self._mean is not None
        wide, mean = self._inputs.dtype, self._mean / self.count
        # around the true mean if centred, else around zero: E (x - a)(x - a)^T = E (x - m)(x - m)^T + (m - a)(m - a)^T
        whole = (torch.zeros_like(mean) if centred else mean + self._shift).to(wide)
        mean = mean.to(wide)
        inputs = torch.baddbmm(self._inputs / self.count, mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1)
        inputs = _mirrored(inputs)
        silent = _mean_diagonal(inputs) <= FLAT**2 * self._shift.square().mean(dim=1)[:, None, None]
        silent &= _mean_diagonal(inputs).isfinite()  # what overflowed is not silent, but beyond all numbers
        inputs.masked_fill_(silent, 0.0)
        if not centred:
            inputs.baddbmm_(whole.unsqueeze(2), whole.unsqueeze(1))
        if self._outputs is None or self._output_mean is None:
            return PatchMoments(inputs)
        output_mean = (self._output_mean / self.count).to(wide).unsqueeze(2)
        outputs = torch.baddbmm(self._outputs / self.count, output_mean, mean.unsqueeze(1), alpha=-1)
        outputs.masked_fill_(silent, 0.0)
        return PatchMoments(inputs, outputs.baddbmm_(output_mean, whole.unsqueeze(1)))


LARGE = 2048
"""Matrices of more features are kept and worked on in float32: at 4,608 that is 85 instead of 170 MB each."""
TRIANGLE = 128
"""Rows of a second moment that are made at once; what is left of them is the mirror image of what is above."""


def _add_products(sums: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows``, the upper triangle in blocks of `TRIANGLE` rows; `_mirrored` makes the other half."""
    left = rows.transpose(1, 2)
    for start in range(0, sums.shape[1], TRIANGLE):
        sums[:, start : start + TRIANGLE, start:] += left[:, start : start + TRIANGLE] @ rows[:, :, start:]


def _mirrored(moment: Tensor) -> Tensor:
    """A second moment whose lower half is that of its upper one."""
    for start in range(TRIANGLE, moment.shape[1], TRIANGLE):
        moment[:, start:, start - TRIANGLE : start] = moment[:, start - TRIANGLE : start, start:].transpose(1, 2)
    return moment


def _mean_diagonal(moment: Tensor) -> Tensor:
    return moment.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
