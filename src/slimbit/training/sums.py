"""Sums of squares per filter of many weights at once, in a handful of large operations."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET = 1 << 22
"""Weights that are summed together: enough to fill a GPU, few enough that their temporary copies are small."""


class WeightSums:
    """Sums of ``||W||^2`` and ``||W - W_start||^2`` per segment of each weight over the iterations of an epoch.

    A segment is a row ``W[i]``, or with depth 2 a block ``W[i, j]``. Holds the start in the weights' own type and the
    sums in float64 (float32 on devices without); squares are taken in float32 at least. Nothing waits for the device.

    Args:
        weights: Plain tensors; what they hold now is the start.
        depths: 1 or 2 for each of them.
    """

    def __init__(self, weights: Sequence[Tensor], depths: Sequence[int]) -> None:
        self._forms = [_Form.of(weight, depth) for weight, depth in zip(weights, depths, strict=True)]
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, form in enumerate(self._forms):
            groups.setdefault((form.device, form.dtype), []).append(index)
        self._groups = [_Group(indices, self._forms) for indices in groups.values()]
        self._home = {index: group for group in self._groups for index in group.members}
        self.begin(weights)

    def fit(self, weights: Sequence[Tensor]) -> bool:
        """Whether the weights still have the devices, types, shapes and memory formats that they had."""
        return all(form.fits(weight) for form, weight in zip(self._forms, weights, strict=True))

    def begin(self, weights: Sequence[Tensor]) -> None:
        """Take these weights as the start, and every sum as zero."""
        for index, weight in enumerate(weights):
            self.start(index).copy_(weight)
        for group in self._groups:
            group.sums.zero_()

    def add(self, weights: Sequence[Tensor]) -> None:
        """Add the squares of these weights and of their way from the start."""
        flat = self._flat(weights)
        for group in self._groups:
            group.add(flat)

    def start(self, index: int) -> Tensor:
        """The start of one weight in its own shape; a view."""
        group, form = self._home[index], self._forms[index]
        return group.start.as_strided(form.shape, form.order, group.members[index].weights)

    def sums(self, index: int) -> Tensor:
        """Shape ``(2, *segments)``: signal and noise of one weight, summed over the iterations; a view."""
        return self._of_segments(index, self._home[index].sums)

    def nonzero(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Number of non-zero weights per segment, for each weight in the shape of its segments."""
        flat = self._flat(weights)
        counts = {id(group): group.nonzero(flat) for group in self._groups}
        return [self._of_segments(index, counts[id(self._home[index])])[0] for index in range(len(weights))]

    def _of_segments(self, index: int, values: Tensor) -> Tensor:
        first, shape = self._home[index].members[index].segments, self._forms[index].segments
        return values[:, first : first + math.prod(shape)].view(len(values), *shape)

    def _flat(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [form.flat(weight) for form, weight in zip(self._forms, weights, strict=True)]


@dataclass(frozen=True)
class _Form:
    """How a weight lies in memory, and in which order its elements are kept."""

    device: torch.device
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    order: tuple[int, ...]
    segments: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor, depth: int) -> "_Form":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        # the first dimension is outermost in these, so that rows stay whole and nothing has to be reordered
        dense = depth == 1 and weight.ndim in formats and weight.is_contiguous(memory_format=formats[weight.ndim])
        order = weight.stride() if dense else torch.empty(weight.shape, device="meta").stride()
        return cls(weight.device, weight.dtype, weight.shape, weight.stride(), order, tuple(weight.shape[:depth]))

    def fits(self, weight: Tensor) -> bool:
        return (weight.device, weight.dtype, weight.shape, weight.stride()) == (
            self.device, self.dtype, self.shape, self.stride,
        )  # fmt: skip

    def flat(self, weight: Tensor) -> Tensor:
        """The elements in ``order``; a view where they already lie so."""
        if self.stride == self.order:
            return weight.as_strided((weight.numel(),), (1,))
        return weight.reshape(-1)

    def pieces(self, index: int) -> "Iterator[_Piece]":
        """Runs of whole segments, none much longer than a bucket."""
        rows = math.prod(self.segments)
        columns = self.shape.numel() // max(1, rows)
        step = max(1, BUCKET // max(1, columns))
        for row in range(0, rows if columns else 0, step):
            yield _Piece(index, row * columns, min(step, rows - row), columns)


@dataclass(frozen=True)
class _Piece:
    """Segments of one weight that lie behind each other."""

    index: int
    begin: int
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    def of(self, flat: Sequence[Tensor]) -> Tensor:
        whole = flat[self.index]
        return whole if len(whole) == self.elements else whole[self.begin : self.begin + self.elements]


@dataclass(frozen=True)
class _Place:
    """Where a weight begins among a group's weights and segments."""

    weights: int
    segments: int


class _Group:
    """All weights of one device and type, behind each other."""

    def __init__(self, indices: Iterable[int], forms: Sequence[_Form]) -> None:
        self.members: dict[int, _Place] = {}
        weights = segments = 0
        for index in indices:
            device, dtype = forms[index].device, forms[index].dtype
            self.members[index] = _Place(weights, segments)
            weights += forms[index].shape.numel()
            segments += math.prod(forms[index].segments)
        self.start = torch.empty(weights, dtype=dtype, device=device)
        self.sums = torch.zeros(2, segments, dtype=sum_type(device), device=device)
        self._buckets = list(_buckets([p for index in self.members for p in forms[index].pieces(index)], device))

    def add(self, flat: Sequence[Tensor]) -> None:
        for bucket in self._buckets:
            now = _at_least_float32(bucket.gather(flat))
            signal, noise = self.sums[:, bucket.segments]
            signal.add_(bucket.squares(now, self.sums.dtype))
            noise.add_(bucket.squares(now.sub_(self.start[bucket.weights]), self.sums.dtype))

    def nonzero(self, flat: Sequence[Tensor]) -> Tensor:
        counts = torch.zeros_like(self.sums[:1])
        for bucket in self._buckets:
            present = (bucket.gather(flat) != 0).to(torch.float32)
            counts[0, bucket.segments] = bucket.squares(present, counts.dtype).round_()
        return counts


@dataclass(frozen=True)
class _Bucket:
    """Pieces that are summed together, and what they are of their group's weights and segments."""

    pieces: tuple[_Piece, ...]
    weights: slice
    segments: slice
    offsets: Tensor

    def gather(self, flat: Sequence[Tensor]) -> Tensor:
        """A copy of the pieces behind each other."""
        return torch.cat([piece.of(flat) for piece in self.pieces])

    def squares(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of squares of each segment."""
        if _at_once(values):
            return torch.segment_reduce(values.to(dtype).square_(), "sum", offsets=self.offsets, unsafe=True)
        parts = torch.split(values, [piece.elements for piece in self.pieces])
        rows = [part.view(piece.rows, piece.columns) for part, piece in zip(parts, self.pieces, strict=True)]
        return torch.cat([torch.linalg.vector_norm(row, dim=1, dtype=dtype) for row in rows]).square_()


def _buckets(pieces: Sequence[_Piece], device: torch.device) -> Iterator[_Bucket]:
    """Consecutive pieces, as many as a bucket takes."""
    filled: list[list[_Piece]] = []
    room = 0
    for piece in pieces:
        if piece.elements > room:
            filled.append([])
            room = BUCKET
        filled[-1].append(piece)
        room -= piece.elements
    weights = segments = 0
    for held in filled:
        lengths = torch.cat([torch.full((piece.rows,), piece.columns) for piece in held])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        elements, rows = int(offsets[-1]), len(lengths)
        yield _Bucket(
            tuple(held), slice(weights, weights + elements), slice(segments, segments + rows), offsets.to(device)
        )
        weights, segments = weights + elements, segments + rows


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def sum_type(device: torch.device) -> torch.dtype:
    """The widest type in which the device computes."""
    return torch.float32 if device.type == "mps" else torch.float64


def _at_once(values: Tensor) -> bool:
    """Whether one kernel for all segments is faster than one for each weight; not every device has it."""
    return values.is_cuda
