"""What the runtimes of the table make of a compressed network."""

from slimbit.compress.model import CompressedModel
from slimbit.records.runtimes import ExecutedLayer, RuntimeFit, runtime_fits


def fits_of(small: CompressedModel) -> tuple[RuntimeFit, ...]:
    """Which runtimes execute a network's widths, and at what padded cost; none where its activations are float.

    Widths are those of the integers in the file: one more than that of mid-rise levels.

    >>> import slimbit, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(16, 1, 8, 8)
    >>> small = slimbit.quantize(net, images[:1], images, bits=3, config=slimbit.QuantConfig(activation_bits=8))
    >>> {fit.runtime.name: round(fit.padding, 1) for fit in fits_of(small)}["finn"]
    1.0
    """
    if small.program is None:
        return ()
    counted = {layer.weight_key: layer for layer in small.spec.layers}
    rows = []
    for stage in small.program.stages:
        head, source = stage.stage.head, stage.inputs[0] if stage.inputs else None
        if head.kind != "layer" or stage.layer is None or source is None:
            continue
        spec = counted[head["weight"]]
        low, high = int(stage.layer.weights.min()), int(stage.layer.weights.max())
        rows.append(
            ExecutedLayer(
                name=spec.name,
                macs=spec.macs // spec.calls,
                filters=spec.filters,
                inputs=spec.shape[1] if len(spec.shape) > 1 else 1,
                weight_bits=1 + max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0),
                activation_bits=source.bits,
            )
        )
    return runtime_fits(rows)
