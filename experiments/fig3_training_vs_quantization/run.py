"""Figure 3 of "Prune or quantize?" (2019): does the S/N of training predict how far the network can be quantized?

    python experiments/fig3_training_vs_quantization/run.py CIFAR10_DIR OUT [--scale quick] [--seeds 0 1]

Points: every epoch of a training, its accuracy against ESN_a by Eq. (4) + (5). Curves: the trained network quantized
with the steps that each epoch's S/N gives (policy ``signal``), with equal bits everywhere (``max_abs``), and with
everything Slimbit has (``optimal``). Writes results.csv and fig3.png beside this file. Evidence: README.md.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainings import results_folder, train, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SERIES = {"training": "o", "signal": "s-", "max_abs": "^-", "optimal": "d-"}
BELOW = (1.0, 3.0, 5.0)
"""Points below float at which curves are compared."""


def main() -> None:
    arguments = _arguments()
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=cifar10")
    rows = []
    for seed in arguments.seeds:
        run = train(
            arguments.out / f"seed-{seed}",
            *("--recipe", f"fig3-{arguments.scale}", "--data", f"cifar10:{arguments.data},normalize=cifar10"),
            *("--seed", str(seed)),
        )
        rows += [
            {"seed": seed, **row}
            for row in [*_training(run, data, arguments.images), *_quantized(run, data, arguments)]
        ]
    results = results_folder(HERE, arguments.out, arguments.scale)
    write_rows(results / "results.csv", rows)
    for seed in arguments.seeds:
        _print_costs(seed, [row for row in rows if row["seed"] == seed])
    _draw([row for row in rows if row["seed"] == arguments.seeds[0]], results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", default="quick", choices=("smoke", "quick", "paper"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--points", type=int, default=8, help="of the sweep with everything Slimbit has")
    parser.add_argument("--images", type=int, default=None, help="test images; default: all")
    return parser.parse_args()


def _training(run: Path, data, images: int | None) -> list[dict]:
    """Accuracy of every epoch's weights on the test images, beside the ESN_a that the epoch's S/N stands for."""
    recorded, evaluate = slimbit.read_training_run(run), data.evaluator(images)
    return [
        {
            "series": "training",
            "setting": f"epoch {signal.epoch}",
            "esn_analog": signal.esn_analog_estimate,
            "accuracy": float(evaluate(slimbit.network(recorded.network, weights=_weights_of(run, signal.epoch)))),
        }
        for signal in recorded.signal
    ]


def _weights_of(run: Path, epoch: int) -> Path:
    return run / "weights" / f"epoch-{epoch:03d}.safetensors"


def _quantized(run: Path, data, arguments) -> list[dict]:
    """Every point of the frontier.

    Calibration images are cropped and flipped: the paper averages BatchNorm statistics anew, and on clean images that
    alone costs such a network 1.8 points, since the stored statistics were collected under augmentation.
    """
    recorded = slimbit.read_training_run(run)
    epochs = tuple(signal.epoch for signal in recorded.signal)
    frontier = slimbit.trace_frontier(
        slimbit.network(recorded.network, weights=run / "model.safetensors"),
        torch.zeros(1, *data.input_shape),
        data.calibration(1000, augment=True),
        data.evaluator(arguments.images),
        out=run / "frontier",
        metric="esn_analog",
        points=arguments.points,
        config=slimbit.RunConfig(signal=str(run), signal_epochs=epochs),
    )
    start = {"series": "float", "setting": "", "esn_analog": math.inf, "accuracy": frontier.float_accuracy}
    return [
        start,
        *(
            {"series": p.policy, "setting": str(p.setting), "esn_analog": p.costs["esn_analog"], "accuracy": p.accuracy}
            for p in frontier.points
            if p.state == "done"
        ),
    ]


def _curve(rows: list[dict], series: str) -> tuple[np.ndarray, np.ndarray]:
    """Log cost, and the best accuracy at that cost or below, in rising order."""
    mine = sorted((row["esn_analog"], row["accuracy"]) for row in rows if row["series"] == series)
    costs, accuracies = (np.array(values) for values in zip(*mine, strict=True))
    return np.log10(costs), np.maximum.accumulate(accuracies)


def cost_at(rows: list[dict], series: str, accuracy: float) -> float:
    """Cost at which a curve reaches an accuracy, between its points in log cost; NaN where it never does."""
    costs, accuracies = _curve(rows, series)
    reached = np.flatnonzero(accuracies >= accuracy)
    if not len(reached) or reached[0] == 0:
        return math.nan
    high = reached[0]
    share = (accuracy - accuracies[high - 1]) / (accuracies[high] - accuracies[high - 1])
    return float(10 ** (costs[high - 1] + share * (costs[high] - costs[high - 1])))


def _print_costs(seed: int, rows: list[dict]) -> None:
    top = next(row["accuracy"] for row in rows if row["series"] == "float")
    print(f"seed {seed}: float {top:.2f} %; ESN_a in millions at so many points below float, and factors over signal")
    for below in BELOW:
        costs = {series: cost_at(rows, series, top - below) for series in SERIES}
        parts = [f"{series} {cost / 1e6:.1f}M ({cost / costs['signal']:.2f}x)" for series, cost in costs.items()]
        print(f"  -{below:g}: " + ", ".join(parts))


def _draw(rows: list[dict], results: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 5))
    for series, style in SERIES.items():
        mine = sorted((row["esn_analog"], row["accuracy"]) for row in rows if row["series"] == series)
        axis.plot(*zip(*mine, strict=True), style, label=series, markersize=5)
    axis.set(xscale="log", xlabel="ESN_a per image", ylabel="accuracy (%)", title="Training against quantization")
    axis.legend()
    figure.tight_layout()
    figure.savefig(results / "fig3.png", dpi=110)
    print(f"wrote {results / 'fig3.png'}")


if __name__ == "__main__":
    main()
