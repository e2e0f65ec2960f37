"""A network with depthwise layers as an 8-bit file: trained here, exported, and compared on all test images.

    python benchmarks/deploy_depthwise.py [--data digits] [--epochs 40] [--out FILE]

Five inverted residual blocks, as in MobileNetV2. ONNX Runtime, the integer reference and the network must agree on
every bit of every output of every test image. Results: benchmarks/deploy_depthwise.json, docs/how-to/deploy.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import slimbit

RECIPES = {
    "W8A8": {"bits": 8, "grid": "midtread"},
    "W6A8 per filter": {"bits": 6, "granularity": "filter"},
    "W4A8 per filter": {"bits": 4, "granularity": "filter"},
    "optimal, 1.5 bits per weight": {"budget": {"mean_bits": 1.5}},
}
BLOCKS = ((16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
"""Inputs, outputs and stride of each block."""


class Block(nn.Module):
    """Expansion to twice the channels, a depthwise convolution, projection; a sum where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = 2 * inputs
        self.expand, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.project, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu, self.adds = nn.ReLU6(), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        y = self.relu(self.bn2(self.depthwise(self.relu(self.bn1(self.expand(x))))))
        y = self.bn3(self.project(y))
        return x + y if self.adds else y


class SmallMobileNet(nn.Module):
    """A convolution, the blocks, mean and classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(*block) for block in BLOCKS))
        self.relu, self.pool, self.classifier = nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.relu(self.blocks(self.relu(self.bn(self.stem(x)))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = slimbit.open_data(arguments.data)
    test = data.evaluator()
    model = SmallMobileNet(data.input_shape[0], test.classes)
    config = slimbit.TrainConfig(epochs=arguments.epochs, batch_size=64, augment={"flip": False})
    with tempfile.TemporaryDirectory() as place:
        slimbit.train(model, data, out=f"{place}/training", config=config)
        rows: list[dict[str, Any]] = [{"recipe": "float", "images": test.images, "accuracy": float(test(model))}]
        print(rows[0], flush=True)
        example = torch.zeros(1, *data.input_shape)
        prepared = slimbit.prepare(model.eval(), example, data.calibration(500), name="SmallMobileNet")
        for name, recipe in RECIPES.items():
            rows.append({"recipe": name, **_measured(prepared, dict(recipe), test, Path(place))})
            print(rows[-1], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps({"data": arguments.data, "rows": rows}, indent=1) + "\n")


def _measured(prepared: Any, recipe: dict[str, Any], test: Any, place: Path) -> dict[str, Any]:
    way = {key: recipe.pop(key) for key in ("bits", "budget") if key in recipe}
    small = slimbit.quantize(prepared, **way, config=slimbit.QuantConfig(activation_bits=8, **recipe))
    file, whole = small.export(place / "file.onnx"), small.export(place / "float.onnx", as_float=True)
    proof = slimbit.verify(file, small, test.batches(), labels=test.labels)
    assert proof.is_exact
    assert proof.equal_to_reference == proof.equal_to_network == proof.images == test.images
    return {
        "images": proof.images,
        "equal_to_reference": proof.equal_to_reference,
        "equal_to_network": proof.equal_to_network,
        "accuracy": round(proof.accuracy, 2),
        "float_nodes": len(proof.float_nodes),
        "needs_precision": len(proof.needs_precision),
        "near_ties": proof.near_ties,
        "share_of_float": round(file.stat().st_size / whole.stat().st_size, 4),
        "runtime": proof.runtime,
    }


if __name__ == "__main__":
    main()
