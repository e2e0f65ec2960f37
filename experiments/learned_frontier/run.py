"""What is a frontier from one training worth? README.md beside this file has the evidence.

    python experiments/learned_frontier/run.py CIFAR10_DIR OUT [--seeds 0 1] [--epochs 20] [--metric esn_digital]
    python experiments/learned_frontier/run.py CIFAR10_DIR OUT --tables

The frontier of a trained ResNet-20 without training and from one training, of one run and from the same network.
Points are chosen on held-out training images; then every one is scored on all 10,000 test images.
"""

import argparse
import csv
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import hull, read_off
from trainings import slimbit_command, write_rows

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "networks" / "resnet20.safetensors"
COSTS = ("esn_analog", "esn_digital", "esn_filterwise")
BUDGETS = {
    "esn_digital": (5e6, 6e6, 8e6, 10e6, 12e6, 14.2e6, 20e6, 31e6),
    "esn_analog": (2e6, 3e6, 4.2e6, 6.5e6, 8e6, 11e6),
    "esn_filterwise": (50e6, 80e6, 100e6, 130e6),
}
SLIM_THEN_TUNE = HERE.parent / "fig6_prune_then_quantize" / "results.csv"


def main() -> None:
    given = _arguments()
    spec = f"cifar10:{given.data},normalize=cifar10"
    results = HERE / f"{given.metric}.csv"
    if not given.tables:
        rows = []
        for seed in given.seeds:
            out = given.out / f"{given.metric}-{seed}"
            slimbit_command(
                "frontier", "resnet20", "--weights", str(WEIGHTS), "--data", spec, "--metric", given.metric,
                "--points", str(given.points), "--no-baselines", "--seed", str(seed),
                "--learn-epochs", str(given.epochs), "--learn-lr", str(given.learning_rate), "--distill",
                "--learn-config", str(HERE / "learn.toml"), out=out,
            )  # fmt: skip
            rows += _scored(out, slimbit.open_data(spec), seed)
            write_rows(results, rows)
    _tables(results, given.metric)


def _scored(out: Path, data: Any, seed: int) -> list[dict[str, object]]:
    """Every point of a run on all test images."""
    run, evaluate = slimbit.open_run(out), data.evaluator()
    rows: list[dict[str, object]] = []
    for point in run.points:
        accuracy = float(evaluate(run.load(point).model))
        print(f"{point.label}: held out {point.accuracy:.2f} %, test {accuracy:.2f} %", flush=True)
        about = {"seed": seed, "policy": point.policy, "setting": str(point.setting)}
        costs = {name: point.costs[name] for name in COSTS}
        rows.append({**about, "held_out": f"{point.accuracy:.2f}", "accuracy": f"{accuracy:.2f}", **costs})
    return rows


def _tables(results: Path, metric: str) -> None:
    """Accuracy of each way at each budget, and the figure."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with results.open() as stream:
        for row in csv.DictReader(stream):
            if row[metric]:
                curves[row["policy"], row["seed"]].append((float(row[metric]), float(row["accuracy"])))
    with SLIM_THEN_TUNE.open() as stream:
        for row in csv.DictReader(stream):
            if row["run"] == "joint" and row["way"] == "optimal" and row["keep_ratio"] != "1":
                curves["slim first, then 16 epochs", row["seed"]].append((float(row[metric]), float(row["accuracy"])))
    ways = list(dict.fromkeys(way for way, _ in curves))
    print(f"{metric} | {' | '.join(ways)}")
    for budget in BUDGETS[metric]:
        cells = []
        for way in ways:
            found = [read_off(hull(curve), budget) for (name, _), curve in sorted(curves.items()) if name == way]
            known = [value for value in found if value is not None]
            each = ", ".join(f"{value:.2f}" for value in known)
            cells.append(f"{math.fsum(known) / len(known):.2f} ({each})" if known else "-")
        print(f"{budget / 1e6:g}M | {' | '.join(cells)}")
    _draw(curves, metric)


def _draw(curves: dict[tuple[str, str], list[tuple[float, float]]], metric: str) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    names = {"optimal": "without training", "learned": "one training"}
    ways = list(dict.fromkeys(way for way, _ in curves))
    for (way, seed), curve in sorted(curves.items()):
        front = hull(curve)
        label = names.get(way, way) if seed == "0" else None
        axes.plot(*zip(*front, strict=True), marker=".", color=f"C{ways.index(way)}", label=label, alpha=0.8)
    axes.set(xscale="log", xlabel=metric, ylabel="test accuracy (%)", ylim=(78, 92.5))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(HERE / f"{metric}.png", dpi=140)
    plt.close(figure)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--metric", choices=[*BUDGETS], default="esn_digital")
    parser.add_argument("--learning-rate", type=float, default=0.04)
    parser.add_argument("--tables", action="store_true", help="only the tables and the figure, of what was measured")
    return parser.parse_args()


if __name__ == "__main__":
    main()
