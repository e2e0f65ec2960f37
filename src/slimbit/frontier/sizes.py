"""Files of each size of a run's network, for what depends on shapes alone, as latency does."""

from pathlib import Path

from slimbit.frontier.frontier import Frontier
from slimbit.records.errors import InputError


def export_each_size(frontier: Frontier, folder: Path, *, allow_code: bool = False) -> list[Path]:
    """An 8-bit and a float ONNX file of every keep ratio of a run, not verified.

    Args:
        frontier: A run with quantized activations.
        folder: Where to.
        allow_code: As for `Frontier.load`.

    Raises:
        InputError: Float activations, or no finished point.
    """
    points = {p.keep_ratio: p for p in reversed(frontier.points) if p.state == "done" and p.price is not None}
    if not points:
        raise InputError(f"{frontier.network} must have a finished point to be exported, got none")
    files = []
    for ratio, point in sorted(points.items(), reverse=True):
        small = frontier.load(point, allow_code=allow_code)
        files.append(small.export(folder / f"width-{ratio:g}-int8.onnx"))
        files.append(small.export(folder / f"width-{ratio:g}-float.onnx", as_float=True))
    return files
