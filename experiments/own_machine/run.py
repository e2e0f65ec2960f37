"""Is it worth sweeping for one's own machine? README.md beside this file has the evidence.

    python experiments/own_machine/run.py CIFAR10_DIR WEIGHTS --out OUT_DIR [--points 10] [--images 2000]
    python experiments/own_machine/run.py --tables OUT_DIR

A public ResNet-20 and a machine of two modes, 8x8 and 4x8 bits (edge-npu.toml): one sweep for the machine, one for
ESN_d, and plain quantization at 8 to 2 bits, all judged by what that machine pays. The sweep for ESN_d is costed on
the machine afterwards: it did not know it.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import hull

HERE = Path(__file__).parent
MACHINE = HERE / "edge-npu.toml"
COST = "hardware:edge-npu"
SWEEPS = {"edge-npu": str(MACHINE), "esn_digital": "esn_digital"}


def main() -> None:
    arguments = _arguments()
    if arguments.tables is None:
        data = slimbit.open_data(f"cifar10:{arguments.data},normalize=imagenet")
        model = slimbit.network("resnet20-A", weights=arguments.weights)
        for name, metric in SWEEPS.items():
            frontier = slimbit.trace_frontier(
                model,
                torch.zeros(1, *data.input_shape),
                data.calibration(500),
                data.evaluator(arguments.images),
                out=arguments.out / name,
                metric=metric,
                points=arguments.points,
                config=slimbit.RunConfig(baselines=name == "esn_digital"),
            )
            print(f"{name}: {len(frontier.points)} points, float {frontier.float_accuracy:.2f} %", flush=True)
    _tables(arguments.tables or arguments.out)


def _tables(out: Path) -> None:
    rows = []
    for name in SWEEPS:
        frontier = slimbit.open_run(out / name).with_hardware(MACHINE)
        for point in frontier.points:
            sweep = "plain" if point.baseline else name
            if point.costs[COST] is not None:
                row = {"sweep": sweep, "setting": str(point.setting), "accuracy": f"{point.accuracy:.2f}"}
                rows.append(row | {cost: f"{point.costs[cost]:.0f}" for cost in (COST, "esn_digital")})
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    curves = {
        name: hull((float(row[COST]), float(row["accuracy"])) for row in rows if row["sweep"] == name)
        for name in dict.fromkeys(row["sweep"] for row in rows)
    }
    ours = curves["edge-npu"]
    print("accuracy at least | cheapest point of each sweep, cycles")
    for other in (name for name in curves if name != "edge-npu"):
        for cost, accuracy in curves[other]:
            mine = min((c for c, a in ours if a >= accuracy), default=None)
            text = "not reached" if mine is None else f"{mine:,.0f} ({cost / mine:.2f}x cheaper)"
            print(f"{accuracy:.2f} | {other} {cost:,.0f} | edge-npu {text}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--tables", type=Path, help="only write the tables of finished runs")
    arguments = parser.parse_args()
    if arguments.tables is None and (arguments.weights is None or arguments.out is None):
        parser.error("CIFAR10_DIR, WEIGHTS and --out must be given")
    return arguments


if __name__ == "__main__":
    main()
