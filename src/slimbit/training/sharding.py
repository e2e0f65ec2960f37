"""Weights on several processes: what this process holds of them, and what all of them hold together."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a `torch.distributed.tensor.DTensor`, as `fully_shard` makes of every parameter."""
    loaded = sys.modules.get("torch.distributed.tensor")  # who has such a tensor has imported it; it takes a while
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(part: Tensor, weight: Tensor, *, depth: int | None = None) -> Tensor:
    """Values of a weight, put together from what each process has of them. A collective call where it is sharded.

    Args:
        part: In the shape of this process's part of the weight; with ``depth`` of shape ``(n, *segments)`` with the
            leading ``depth`` dimensions of it, and added up where the sharding cuts segments into pieces.
        weight: The weight.
        depth: As in `slimbit.training.sums.WeightSums`.
    """
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    shape = weight.shape if depth is None else torch.Size((len(part), *weight.shape[:depth]))
    stride = torch.empty(shape, device="meta").stride()
    places = _placements(weight, depth)
    parts = DTensor.from_local(
        part.contiguous(), weight.device_mesh, places, run_check=False, shape=shape, stride=stride
    )  # fmt: skip
    full: Tensor = parts.full_tensor()
    return full


def part_of(values: Tensor, weight: Tensor, *, depth: int | None = None) -> Tensor:
    """What this process has of values that it knows whole: inverse of `whole`, without communication."""
    if not is_sharded(weight):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    mesh, places = weight.device_mesh, _placements(weight, depth)
    known = DTensor.from_local(values.to(weight.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    cut = [Replicate() if place.is_partial() else place for place in places]
    part: Tensor = known.redistribute(placements=cut).to_local()
    # of a sum over processes the first one takes all, the others nothing
    first = all(mesh.get_local_rank(dim) == 0 for dim, place in enumerate(places) if place.is_partial())
    return part if first else torch.zeros_like(part)


def broadcast(values: Sequence[Tensor], group: "ProcessGroup") -> None:
    """Overwrite the values with those of the group's first process. A collective call."""
    import torch.distributed as dist

    flat = torch.cat([value.reshape(-1).to(values[0].device) for value in values])
    dist.broadcast(flat, src=dist.get_global_rank(group, 0), group=group)
    for value, part in zip(values, torch.split(flat, [value.numel() for value in values]), strict=True):
        value.copy_(part.view(value.shape))


def _placements(weight: "DTensor", depth: int | None) -> list[Any]:
    """How the weight lies on the processes, or values per segment of it do."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    found: list[Any] = []
    for place in weight.placements:
        if type(place) not in (Shard, Replicate):
            raise InputError(f"a weight must be sharded along one dimension or replicated, got {place}")
        if depth is None or not isinstance(place, Shard):
            found.append(place)
        else:
            found.append(Shard(place.dim + 1) if place.dim < depth else Partial())
    return found


def process_group(model: nn.Module) -> "ProcessGroup | None":
    """The processes that hold the same weights, where DistributedDataParallel says so."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            group: ProcessGroup = inner.process_group
            return group
        inner = getattr(inner, "_orig_mod", None)
    return None


def refuse_flat_parameters(model: nn.Module) -> None:
    """Raise `InputError` for the older FullyShardedDataParallel: its parameters no longer know their layers."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    for name, module in model.named_modules():
        if loaded is not None and isinstance(module, loaded.FullyShardedDataParallel):
            raise InputError(
                f"a sharded network must be made with torch.distributed.fsdp.fully_shard, "
                f"got FullyShardedDataParallel at {name or 'the network itself'}"
            )
