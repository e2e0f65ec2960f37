"""QONNX files of ResNet-20 and VGG7 in the `qonnx` package: outputs, MACs and bits against the artifact's own.

    pip install qonnx==1.0.0 onnx==1.19.1      # qonnx 1.0.0 does not execute with later versions of onnx
    python benchmarks/qonnx_files.py [--images 2] [--weights RESNET20_A.safetensors] [--out FILE]

Fails unless outputs differ by at most 1e-5, and `inference_cost` counts integers only, the MACs of the report, and
MACs x widths, a layer at the width of its widest filter. Networks have random weights unless ``--weights`` gives those
of ResNet-20: what is proved does not depend on them. Results: docs/how-to/deploy.md.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model
from qonnx.util.inference_cost import inference_cost

import slimbit

LARGEST_DIFFERENCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--weights")
    parser.add_argument("--networks", nargs="*", default=["resnet20-A", "vgg7"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.networks:
        torch.manual_seed(0)
        model = slimbit.network(name, weights=arguments.weights if name == "resnet20-A" else None).eval()
        rows.append(_checked(name, model, arguments.images))
        print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


def _checked(name: str, model: torch.nn.Module, images: int) -> dict[str, Any]:
    calibration = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    config = slimbit.QuantConfig(activation_bits=4, grid="midtread", compensation=False, statistics="stored")
    small = slimbit.quantize(model, calibration[:1], calibration, bits=4, config=config)
    with tempfile.TemporaryDirectory() as place:
        wrapper = ModelWrapper(str(small.export(Path(place) / "net.onnx", format="qonnx")))
    for value in (*wrapper.graph.input, *wrapper.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1  # qonnx counts and executes one image
    wrapper = cleanup_model(wrapper)
    start, largest = time.perf_counter(), 0.0
    for image in torch.randn(images, 1, 3, 32, 32, generator=torch.Generator().manual_seed(2)):
        found = next(iter(execute_onnx(wrapper, {wrapper.graph.input[0].name: image.numpy()}).values()))
        with torch.no_grad():
            largest = max(largest, float(np.abs(found - small.model(image).numpy()).max()))
    counted = inference_cost(wrapper, discount_sparsity=False)["total_cost"]
    widths = {stage.stage.head.name: stage.layer for stage in small.program.stages if stage.layer is not None}
    bits = sum(
        layer.macs * max(2, int(widths[layer.name].weights.abs().max()).bit_length() + 1) * layer.activation_bits
        for layer in small.cost.layers
    )
    assert largest <= LARGEST_DIFFERENCE, (name, largest)
    assert counted["total_macs"] == small.cost.total.macs, (name, counted["total_macs"], small.cost.total.macs)
    assert counted["total_bops"] == bits, (name, counted["total_bops"], bits)
    assert not any("FLOAT" in key for key in counted), counted
    return {
        "network": name,
        "images": images,
        "largest_difference": largest,
        "macs": int(counted["total_macs"]),
        "bit_operations": int(counted["total_bops"]),
        "types": sorted(key for key in counted if key.startswith("op_mac")),
        "seconds_per_image": round((time.perf_counter() - start) / images, 1),
    }


if __name__ == "__main__":
    main()
