"""How much memory there is, and how much of it a forward pass holds at once."""

import os
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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


@dataclass(frozen=True)
class LiveBytes:
    """Bytes of activations that are held at once, at most.

    Attributes:
        whole: As they are.
        halved: With all but the tensor at hand in half precision, as `keep_in_half` keeps them.
    """

    whole: int
    halved: int


def live_bytes(network: nn.Module, batch: Any, forward: Forward, stops: Collection[nn.Module]) -> LiveBytes:
    """Bytes of activations that are held at once, at most, whenever one of some modules is reached or left.

    What is held is known by the inputs and outputs of all modules: a tensor that no module reads or makes is missed.
    The batch itself does not count.

    Args:
        network: In evaluation mode; its hooks are as before afterwards.
        batch: What it is called on.
        forward: How.
        stops: Modules at which is measured.
    """
    live, given = LiveTensors(), {tensor.untyped_storage().data_ptr() for tensor in tensors_of(batch)}
    most = [0, 0]

    def look(module: nn.Module, values: Any) -> None:
        live.add(values)
        if module not in stops:
            return
        held = {s.data_ptr(): (s.nbytes(), t.dtype) for t in live.alive() if (s := t.untyped_storage())}
        here = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(values)}
        sizes = [
            (size, size // 2 if dtype == torch.float32 and key not in here else size)
            for key, (size, dtype) in held.items()
            if key not in given
        ]
        most[:] = max(most[0], sum(whole for whole, _ in sizes)), max(most[1], sum(half for _, half in sizes))

    handles = watch_tensors(network, look)
    try:
        with torch.no_grad():
            forward(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    return LiveBytes(*most)


def hookable(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that take hooks, by path: all but scripted ones, whose operations are those of the module that calls."""
    for path, module in network.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            yield path, module


def watch_tensors(network: nn.Module, look: Callable[[nn.Module, Any], None]) -> list[RemovableHandle]:
    """Call a function with each module and what it reads, then with what it makes."""
    handles = []
    for _, module in hookable(network):
        handles.append(
            module.register_forward_pre_hook(lambda m, args, kwargs: look(m, (args, kwargs)), with_kwargs=True)
        )
        handles.append(module.register_forward_hook(lambda m, _, output: look(m, output)))
    return handles


class LiveTensors:
    """The tensors that were seen and are still alive; they are not kept alive."""

    def __init__(self) -> None:
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def add(self, values: Any) -> None:
        """See tensors, in any nesting of containers."""
        self._seen.update((id(tensor), weakref.ref(tensor)) for tensor in tensors_of(values))

    def alive(self) -> list[Tensor]:
        """Those that are still there."""
        found = {key: tensor for key, reference in self._seen.items() if (tensor := reference()) is not None}
        self._seen = {key: self._seen[key] for key in found}
        return [*found.values()]


def keep_in_half(tensors: Iterable[Tensor]) -> Callable[[], None]:
    """Keep the contents of tensors in half precision: their memory is given back until the returned function is called.

    Each memory block is scaled by its largest value, so none is too large; what was kept so once does not change any
    more. Only float32 is kept so; what is not finite, or cannot be resized, stays as it is.

    >>> x = torch.tensor([1e6, 1 / 3])
    >>> whole_again = keep_in_half([x])
    >>> x.untyped_storage().nbytes(), whole_again(), x[0].item(), abs(x[1].item() * 3 - 1) < 2**-3
    (0, None, 1000000.0, True)
    """
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if tensor.dtype != torch.float32 or not storage.nbytes():
            continue
        whole = tensor.new_empty(0).set_(storage, 0, (storage.nbytes() // 4,), (1,))
        scale = torch.linalg.vector_norm(whole, torch.inf)
        if not bool(scale.isfinite()):
            continue
        scale = torch.where(scale > 0, scale, 1.0)
        half = (whole / scale).half()
        try:
            storage.resize_(0)
        except RuntimeError:  # memory that torch does not own
            continue
        kept.append((whole, scale, half))

    def whole_again() -> None:
        for whole, scale, half in kept:
            whole.untyped_storage().resize_(4 * half.numel())
            whole.copy_(half).mul_(scale)  # not `half * scale`, which is a product in half precision

    return whole_again


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in any nesting of containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_of(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
