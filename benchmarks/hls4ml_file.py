"""A QONNX file in hls4ml: brought to channels last, converted, compiled as C++, and run beside the network.

    pip install hls4ml==1.3.0 qonnx==1.0.0 onnx==1.19.1     # and a C++ compiler
    python benchmarks/hls4ml_file.py

A small network with random weights (two convolutions with BatchNorm, maximum pooling, a linear layer), 4-bit weights
and activations. Fails unless all outputs differ by at most 1e-4: sums and codes are integers in both, what is left is
the fixed-point form of the last factor. Results: docs/how-to/deploy.md.
"""

import tempfile
from pathlib import Path

import hls4ml
import numpy as np
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.util.cleanup import cleanup_model
from torch import nn

import slimbit

LARGEST_DIFFERENCE = 1e-4
PRECISION = "fixed<48,24>"


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    config = slimbit.QuantConfig(activation_bits=4, grid="midtread", compensation=False, statistics="stored")
    small = slimbit.quantize(_network(), images[:1], images, bits=4, config=config)
    with tempfile.TemporaryDirectory() as place:
        file = small.export(Path(place) / "net.onnx", format="qonnx", target="hls4ml")
        wrapper = ModelWrapper(str(file))
        for value in (*wrapper.graph.input, *wrapper.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        wrapper = cleanup_model(wrapper).transform(ConvertToChannelsLastAndClean()).transform(GemmToMatMul())
        wrapper = cleanup_model(wrapper)
        settings = hls4ml.utils.config.config_from_onnx_model(
            wrapper, granularity="name", backend="Vitis", default_precision=PRECISION
        )
        converted = hls4ml.converters.convert_from_onnx_model(
            wrapper, output_dir=str(Path(place) / "hls"), io_type="io_parallel", backend="Vitis", hls_config=settings
        )
        converted.compile()
        found = converted.predict(np.ascontiguousarray(images.numpy()))
    with torch.no_grad():
        wanted = small.model(images).numpy()
    largest = float(np.abs(found - wanted).max())
    assert largest <= LARGEST_DIFFERENCE, largest
    about = f"{len(images)} images, largest difference {largest:.1e} of {np.abs(wanted).max():.2f}"
    print(f"hls4ml {hls4ml.__version__}: {about}")


def _network() -> nn.Sequential:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(outputs)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        return [nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=False), norm, nn.ReLU()]

    return nn.Sequential(*block(3, 8, 1), *block(8, 8, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4)).eval()


if __name__ == "__main__":
    main()
