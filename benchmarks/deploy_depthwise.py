"""A network with depthwise layers as an 8-bit file: trained briefly, exported, and compared on all test images.

    python benchmarks/deploy_depthwise.py CIFAR10_DIR OUT_DIR [--epochs 4] [--train-images 15000]

MobileNetV2 at a quarter of its width, with stride 1 in its first convolution, learns a part of CIFAR-10, enough to have
decisions to lose. ONNX Runtime, the integer reference and the network must agree on every bit of every output of all
10,000 test images. Training continues where it stopped.
Results: benchmarks/deploy_depthwise.json, docs/how-to/deploy.md.
"""

import argparse
import json
from pathlib import Path

import torch

import slimbit

RECIPES = {
    "W8A8": {"bits": 8, "grid": "midtread"},
    "W6A8 per filter": {"bits": 6, "granularity": "filter"},
    "W4A8 per filter": {"bits": 4, "granularity": "filter"},
}
RESULTS = Path(__file__).with_suffix(".json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train-images", type=int, default=15_000)
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=cifar10")
    model = slimbit.network("mobilenet_v2@0.25", classes=10)
    model.features[0][0].stride = (1, 1)
    config = slimbit.TrainConfig(
        epochs=arguments.epochs,
        train_images=arguments.train_images,
        optimizer={"learning_rate": 0.05},
        schedule={"name": "one_cycle"},
    )
    slimbit.train(model, data, out=arguments.out / "training", config=config, progress=print)
    model.eval()
    test = data.evaluator()
    rows = [{"recipe": "float", "images": test.images, "accuracy": round(float(test(model)), 2)}]
    prepared = slimbit.prepare(model, torch.zeros(1, 3, 32, 32), data.calibration(500), name="mobilenet_v2@0.25")
    whole = 0
    for name in arguments.only:
        recipe = dict(RECIPES[name])
        bits = recipe.pop("bits")
        small = slimbit.quantize(prepared, bits=bits, config=slimbit.QuantConfig(activation_bits=8, **recipe))
        file = small.export(arguments.out / "file.onnx")
        whole = whole or small.export(arguments.out / "float.onnx", as_float=True).stat().st_size
        proof = slimbit.verify(file, small, test.batches(), labels=test.labels)
        assert proof.is_exact, name
        assert proof.equal_to_reference == proof.equal_to_network == proof.images == test.images, name
        row = {"recipe": name, "images": proof.images, "equal_to_reference": proof.equal_to_reference}
        row |= {"equal_to_network": proof.equal_to_network, "accuracy": round(proof.accuracy, 2)}
        row |= {"needs_precision": len(proof.needs_precision), "near_ties": proof.near_ties}
        row |= {"share_of_float": round(file.stat().st_size / whole, 4), "runtime": proof.runtime}
        rows.append(row)
        print(row, flush=True)
        RESULTS.write_text(json.dumps({"network": "mobilenet_v2@0.25", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
