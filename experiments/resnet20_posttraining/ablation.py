"""What each part contributes: the same frontier with one thing changed. README.md beside this file has the table.

    python experiments/resnet20_posttraining/ablation.py CIFAR10_DIR WEIGHTS OUT_DIR [--points 5]

Accuracy on all 10,000 test images, read off each frontier at the same costs (linear between points in log cost).
One choice of 500 calibration images (seed 0).
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import slimbit
from slimbit import QuantConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import read_off

HERE = Path(__file__).parent
BUDGETS = (31e6, 24.5e6, 20e6, 14.2e6)
VARIANTS = {
    "all of it (the default)": QuantConfig(),
    "no zero level": QuantConfig(grid="midrise"),
    "no compensation": QuantConfig(compensation=False, target="weights"),
    "compensation towards the weights (GPTQ), not the outputs": QuantConfig(target="weights"),
    "statistics as stored": QuantConfig(statistics="stored"),
    "statistics absolute (the paper)": QuantConfig(statistics="absolute"),
    "with steps refitted": QuantConfig(refit=True),
    "with rate-aware rounding": QuantConfig(rounding="rate_aware"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, default=5)
    arguments = parser.parse_args()
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=imagenet")
    model = slimbit.network("resnet20-A", weights=arguments.weights)
    table = {}
    for number, (name, quant) in enumerate(VARIANTS.items()):
        frontier = slimbit.trace_frontier(
            model,
            torch.zeros(1, *data.input_shape),
            data.calibration(500),
            data.evaluator(),
            out=arguments.out / f"variant-{number:02d}",
            metric="esn_digital",
            points=arguments.points,
            config=slimbit.RunConfig(baselines=False, quant=quant),
        )
        curve = sorted((p.costs["esn_digital"], p.accuracy) for p in frontier.points if p.state == "done")
        table[name] = {"at": {f"{b / 1e6:g}M": read_off(curve, b) for b in BUDGETS}, "points": curve}
        print(f"| {name} | " + " | ".join(_cell(read_off(curve, b)) for b in BUDGETS) + " |", flush=True)
    (HERE / "ablation.json").write_text(json.dumps(table, indent=1) + "\n")


def _cell(accuracy: float | None) -> str:
    return "outside" if accuracy is None else f"{accuracy:.1f}"


if __name__ == "__main__":
    main()
