"""Accuracy, exactness and size of exported 8-bit files of a CIFAR-10 ResNet-20, on all test images.

    python benchmarks/deploy_resnet20.py CIFAR10_DIR WEIGHTS [--begin 0] [--images 10000] [--out FILE]

Every recipe is quantized on 500 unlabelled training images, exported, and executed in ONNX Runtime, in the integer
reference (80 images a second) and as the network in PyTorch, on test images from ``--begin`` on. Fails unless they
agree on every bit of every output. Sizes are shares of the float file. Parts of the images (--begin 2500 --images 2500,
...) can be run one after the other: counts of right answers add up.
Results: benchmarks/deploy_resnet20.json, docs/how-to/deploy.md.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import slimbit

MEAN_STD = "normalize=imagenet"
BATCH = 500
FEWER = {"grid": "midtread"}
RECIPES: dict[str, dict[str, Any]] = {
    "W8A8": {"bits": 8, "activation_bits": 8, **FEWER},
    "W6A8": {"bits": 6, "activation_bits": 8},
    "W4A8": {"bits": 4, "activation_bits": 8, **FEWER, "int4": True},
    "W4A4": {"bits": 4, "activation_bits": 4},
    "W3A3": {"bits": 3, "activation_bits": 3},
    "optimal 41M": {"budget": {"esn_digital": 41e6}, "activation_bits": 8},
    "optimal 27M": {"budget": {"esn_digital": 27e6}, "activation_bits": 8},
    "ACIQ W4A8": {"bits": 4, "activation_bits": 8, "aciq": True},
    "ACIQ W4A4": {"bits": 4, "activation_bits": 4, "aciq": True},
}
"""Recipes by name: mid-tread levels of 4 bits fit four-bit integers, mid-rise ones are a bit wider."""
ACIQ = {
    "grid": "midrise", "granularity": "filter", "compensation": False, "target": "weights", "bit_allocation": True,
    "bias_correction": True, "statistics": "stored", "activation_range": "aciq_laplace",
}  # fmt: skip
"""Settings of the baseline ``aciq``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = slimbit.network("resnet20-A", weights=arguments.weights)
    data = slimbit.open_data(f"cifar10:{arguments.data},{MEAN_STD}")
    test, part = data.evaluator(), slice(arguments.begin, arguments.begin + arguments.images)
    images, labels = torch.cat(list(test.batches()))[part], np.asarray(test.labels)[part]
    prepared = slimbit.prepare(model, torch.zeros(1, 3, 32, 32), data.calibration(500))
    right = _right(model, images, labels)
    rows = [{"recipe": "float", "begin": arguments.begin, "images": len(images), "right": right}]
    print(rows[0], flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.only:
            row = _measured(name, dict(RECIPES[name]), prepared, images, labels, Path(place))
            rows.append({"recipe": name, "begin": arguments.begin, **row})
            print(rows[-1], flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"network": "resnet20-A", "rows": rows}, indent=1) + "\n")


def _right(network: torch.nn.Module, images: torch.Tensor, labels: Any) -> int:
    with torch.no_grad():
        answers = torch.cat([network(part).argmax(1) for part in images.split(BATCH)])
    return int((answers.numpy() == labels).sum())


def _measured(
    name: str, recipe: dict[str, Any], prepared: Any, images: torch.Tensor, labels: Any, place: Path
) -> dict[str, Any]:
    int4, is_aciq = recipe.pop("int4", False), recipe.pop("aciq", False)
    way = {key: recipe.pop(key) for key in ("bits", "budget") if key in recipe}
    small = slimbit.quantize(prepared, **way, config=slimbit.QuantConfig(**(ACIQ if is_aciq else {}), **recipe))
    file = small.export(place / "file.onnx")
    begun = time.perf_counter()
    proof = slimbit.verify(file, small, images.split(BATCH), labels=labels)
    seconds = time.perf_counter() - begun
    assert proof.is_exact, name
    assert proof.equal_to_reference == proof.equal_to_network == proof.images == len(images), name
    whole = small.export(place / "float.onnx", as_float=True).stat().st_size
    packed = small.export(place / "int4.onnx", int4=True).stat().st_size if int4 else None
    return {
        "images": proof.images,
        "equal_to_reference": proof.equal_to_reference,
        "equal_to_network": proof.equal_to_network,
        "near_ties": proof.near_ties,
        "right": round(proof.accuracy * proof.images / 100),
        "largest_integer": max(layer.layer.largest for layer in small.program.stages if layer.layer is not None),
        "needs_precision": len(proof.needs_precision),
        "esn_digital": small.cost.total.esn_digital,
        "bit_operations": small.cost.total.bit_operations,
        "bytes": file.stat().st_size,
        "share_of_float": round(file.stat().st_size / whole, 4),
        "share_of_float_int4": None if packed is None else round(packed / whole, 4),
        "runtime": proof.runtime,
        "verified_in_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
