"""How much memory there is, and how much of it a forward pass holds at once."""

import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.numerics.batches import Forward

GIB = 1 << 30


def free_bytes(device: torch.device) -> int:
    """Memory that is free for new tensors: on a GPU as the driver says, else as the system does.

    A limit on the process's control group (a container's) counts, too.

    >>> free_bytes(torch.device("cpu")) > 0
    True
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_available()]
    for most, used in CONTROL_GROUPS:
        try:
            found.append(int(Path(most).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(found))


CONTROL_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 * GIB


def live_bytes(network: nn.Module, batch: Any, forward: Forward, stops: Collection[nn.Module]) -> int:
    """Bytes of activations that are held at once, at most, whenever one of some modules is reached or left.

    What is held is known by the inputs and outputs of all modules: a tensor that no module reads or makes is missed.
    The batch itself does not count.

    Args:
        network: In evaluation mode; its hooks are as before afterwards.
        batch: What it is called on.
        forward: How.
        stops: Modules at which is measured.
    """
    held = _Held(frozenset(stops), {tensor.untyped_storage().data_ptr() for tensor in _tensors(batch)})
    handles = []
    for module in network.modules():
        handles.append(module.register_forward_pre_hook(held.before, with_kwargs=True))
        handles.append(module.register_forward_hook(held.after, with_kwargs=True))
    try:
        with torch.no_grad():
            forward(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return held.most


class _Held:
    """The tensors that were seen and are still alive; `most` is the most bytes that they had at a stop."""

    def __init__(self, stops: frozenset[nn.Module], given: set[int]) -> None:
        self.most = 0
        self._stops, self._given = stops, given
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._look(module, (args, kwargs))

    def after(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        del args, kwargs
        self._look(module, outputs)

    def _look(self, module: nn.Module, values: Any) -> None:
        self._seen.update((id(tensor), weakref.ref(tensor)) for tensor in _tensors(values))
        if module not in self._stops:
            return
        alive = {key: tensor for key, reference in self._seen.items() if (tensor := reference()) is not None}
        self._seen = {key: self._seen[key] for key in alive}
        storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in alive.values())}
        self.most = max(self.most, sum(size for key, size in storages.items() if key not in self._given))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
