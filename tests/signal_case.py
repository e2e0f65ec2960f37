"""Training signals as a tracker would have written them, for any surveyed network, without any training."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from slimbit.records.network import NetworkSpec
from slimbit.records.signal import EpochSignal, LayerSignal


def layer_signal(
    name: str, ratio: float, *, weights: int, positions: int | None, filters: int, epoch: int = 1, dead: int = 0
) -> LayerSignal:
    """Filters of signal 1, the first ``dead`` of them at a hundredth of the others' norm; S/N as given."""
    signal = tuple(1e-4 if i < dead else 1.0 for i in range(filters))
    noise = tuple(0.0 if math.isinf(ratio) else s / ratio if ratio else 1.0 for s in signal)
    if not ratio:
        signal = (0.0,) * filters
    return LayerSignal(
        name=name, epoch=epoch, nonzero_weights=weights, positions=positions, filter_signal=signal, filter_noise=noise
    )


def epoch_signal(
    spec: NetworkSpec, ratio: float, *, epoch: int = 1, but: Mapping[str, float] | None = None
) -> EpochSignal:
    """All layers at one S/N, except those named."""
    layers = [
        layer_signal(
            x.name, (but or {}).get(x.name, ratio), weights=x.weights, positions=x.positions, filters=x.filters,
            epoch=epoch,
        )
        for x in spec.layers
    ]  # fmt: skip
    return EpochSignal(epoch=epoch, iterations=100, layers=tuple(layers))


def write_signal(folder: Path, epochs: list[EpochSignal]) -> Path:
    """``signal.jsonl`` of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "signal.jsonl"
    file.write_text("".join(json.dumps(epoch.to_dict()) + "\n" for epoch in epochs))
    return file
