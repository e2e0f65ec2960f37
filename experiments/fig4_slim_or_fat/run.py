"""Figure 4 of "Prune or quantize?" (2019): a slim network with more bits, or a fat one with fewer?

    python experiments/fig4_slim_or_fat/run.py CIFAR10_DIR OUT [--points 8]
    python experiments/fig4_slim_or_fat/run.py --tables

ResNet-8, -14 and -20 with width multipliers 1, 0.5 and 0.25, all trained alike, each quantized in the paper's way
(``max_abs``, statistics averaged anew) and with everything Slimbit has. Writes results.csv and fig4.png beside this
file and prints the tables of README.md.
"""

import argparse
import csv
import math
import sys
from pathlib import Path

import matplotlib as mpl

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import cost_at, hull
from trainings import slimbit_command, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
NETWORKS = HERE.parent / "networks"
NAMES = (
    *("resnet20-100", "resnet20-0.5", "resnet20-0.25"),
    *("resnet14", "resnet14-0.5", "resnet14-0.25"),
    *("resnet8", "resnet8-0.5", "resnet8-0.25"),
)
WAYS = {"max_abs": "max_abs, absolute statistics (the paper)", "optimal": "everything Slimbit has"}
METRICS = {"esn_analog": "ESN_a per image", "esn_digital": "ESN_d, bits per image"}
LEVELS = (70, 75, 80, 85, 88, 90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--points", type=int, default=8, help="of each sweep; baselines not counted")
    parser.add_argument("--images", type=int, default=None, help="test images; default: all")
    parser.add_argument("--tables", action="store_true", help="from results.csv alone")
    arguments = parser.parse_args()
    if not arguments.tables:
        write_rows(HERE / "results.csv", [row for name in NAMES for row in _measured(name, arguments)])
    with (HERE / "results.csv").open() as stream:
        rows = [
            {key: float(value) if key in (*METRICS, "accuracy", "float_accuracy", "mean_bits") else value
             for key, value in row.items()}
            for row in csv.DictReader(stream)
        ]  # fmt: skip
    for metric in METRICS:
        _print_table(rows, metric)
    _draw(rows)


def _measured(name: str, arguments: argparse.Namespace) -> list[dict]:
    """Every point of a network's frontier."""
    out = slimbit_command(
        "frontier",
        *("--weights", str(NETWORKS / f"{name}.safetensors"), "--data", f"cifar10:{arguments.data},normalize=cifar10"),
        *("--augment", "--calibration-images", "1000", "--points", str(arguments.points)),
        *(("--select-images", "0") if arguments.images is None else ("--evaluate-images", str(arguments.images))),
        out=arguments.out / name,
    )
    frontier = slimbit.open_run(out)
    return [
        {
            "network": name,
            "way": point.policy,
            "setting": str(point.setting),
            **{metric: point.costs[metric] for metric in METRICS},
            "mean_bits": point.costs["mean_bits"],
            "accuracy": point.accuracy,
            "float_accuracy": frontier.float_accuracy,
        }
        for point in frontier.points
        if point.state == "done"
    ]


def _curve(rows: list[dict], network: str, way: str, metric: str) -> list[tuple[float, float]]:
    return [(row[metric], row["accuracy"]) for row in rows if (row["network"], row["way"]) == (network, way)]


def _print_table(rows: list[dict], metric: str) -> None:
    """Which network is cheapest at an accuracy, and with how many bits."""
    print(f"\n{METRICS[metric]}, in millions")
    for way, text in WAYS.items():
        print(f"\n{text}\n| accuracy | " + " | ".join(NAMES) + " | cheapest |")
        print("|---:|" + "---:|" * len(NAMES) + "---|")
        for level in LEVELS:
            costs = {name: cost_at(_curve(rows, name, way, metric), level) for name in NAMES}
            reached = {name: cost for name, cost in costs.items() if not math.isnan(cost)}
            cells = [f"{costs[name] / 1e6:.2f}" if name in reached else "-" for name in NAMES]
            best = min(reached, key=reached.__getitem__) if reached else ""
            print(f"| {level} % | " + " | ".join(cells) + f" | {best} |")
        points = [(row[metric], row["accuracy"], row) for row in rows if row["way"] == way]
        front = list(hull((cost, accuracy) for cost, accuracy, _ in points))
        on_it = [row for cost, accuracy, row in sorted(points, key=lambda p: p[0]) if (cost, accuracy) in front]
        print("front: " + "; ".join(
            f"{row['accuracy']:.1f} % {row['network']} {row['setting'] if way == 'max_abs' else ''}" for row in on_it
        ))  # fmt: skip


def _draw(rows: list[dict]) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), sharey=True)
    for line, (way, text) in zip(axes, WAYS.items(), strict=True):
        for axis, (metric, label) in zip(line, METRICS.items(), strict=True):
            for name, marker in zip(NAMES, "osv^Dx+*P", strict=True):
                axis.plot(*zip(*sorted(_curve(rows, name, way, metric)), strict=True), marker=marker, markersize=4,
                          linewidth=1, label=name.removesuffix("-100"))  # fmt: skip
            everything = [pair for name in NAMES for pair in _curve(rows, name, way, metric)]
            axis.plot(*zip(*hull(everything), strict=True), color="black", linewidth=2.5, alpha=0.25, label="front")
            axis.set(xscale="log", xlabel=label, ylabel="accuracy (%)", title=text, ylim=(55, 93))
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "fig4.png", dpi=100)
    print(f"wrote {HERE / 'fig4.png'}")


if __name__ == "__main__":
    main()
