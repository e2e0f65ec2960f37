"""Where training runs: the CPU, a GPU, or the processes that torchrun started. Lightning Fabric does the work.

Fabric and not Accelerate, since it keeps no state of its own in the process: two trainings in one process do not meet.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import MissingExtraError
from slimbit.records.training import Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def open_fabric(precision: Precision) -> "Fabric":
    """Devices for training: those that torchrun says, else one GPU if there is one, else the CPU.

    Args:
        precision: Of forward and backward pass; weights stay float32.

    Raises:
        MissingExtraError: Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingExtraError("lightning-fabric", "train", "training") from error

    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    many: dict[str, Any] = {"strategy": "ddp"} if world > 1 else {}
    kind: Any = "bf16-mixed" if precision == "bfloat16" else "32-true"
    with _quiet():
        fabric = Fabric(devices=local, num_nodes=max(1, world // local), precision=kind, **many)
        fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells, among those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _quiet() -> Iterator[None]:
    """Fabric tells its settings through a logger; the run's folder has them."""
    logger = logging.getLogger("lightning_fabric")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
