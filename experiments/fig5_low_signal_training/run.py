"""Figure 5 of "Prune or quantize?" (2019): loss, signal and dying filters at a large constant learning rate.

    python experiments/fig5_low_signal_training/run.py CIFAR10_DIR OUT [--scale quick] [--seeds 0 1]

Starts from the networks of fig3_training_vs_quantization: run that first and give, for example,
--weights FIG3_OUT/seed-{seed}/model.safetensors. Writes results.csv and fig5.png beside this file. Evidence: README.md.
"""

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainings import results_folder, train, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RATES = (0.32, 0.57, 1.02, 1.81)
DEAD = 0.05
"""A filter is dead below this share of the 90th percentile of its layer's filter norms."""


def main() -> None:
    arguments = _arguments()
    rows = []
    for seed in arguments.seeds:
        for rate in RATES:
            run = train(
                arguments.out / f"lr-{rate:g}-seed-{seed}",
                *("--recipe", f"fig5-{arguments.scale}", "--data", f"cifar10:{arguments.data},normalize=cifar10"),
                *("--lr", f"{rate:g}", "--seed", str(seed), "--weights", arguments.weights.format(seed=seed)),
            )
            rows += _rows(run, rate, seed)
    results = results_folder(HERE, arguments.out, arguments.scale)
    write_rows(results / "results.csv", rows)
    _print_table(rows)
    _draw(rows, arguments.seeds[0], results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True, help="trained weights, with {seed} where the seed stands")
    parser.add_argument("--scale", default="quick", choices=("smoke", "quick", "paper"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser.parse_args()


def _rows(run: Path, rate: float, seed: int) -> list[dict]:
    """One row per epoch. A filter without gradient shrinks by ``exp(-shrink)`` a step, see docs/explanation."""
    recorded = slimbit.read_training_run(run)
    options, steps = recorded.config["optimizer"], recorded.signal[0].iterations
    shrink = rate * options["weight_decay"] / (1 - options["momentum"])
    return [
        {
            "learning_rate": rate,
            "seed": seed,
            "epoch": epoch.epoch,
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
            "signal_to_noise": signal.signal_to_noise,
            "esn_analog": signal.esn_analog_estimate,
            **{f"dead_{share:g}": count for share, count in signal.dead_filters.items()},
            "filters": signal.filters,
            "decay_so_far": math.exp(-shrink * steps * epoch.epoch),
            "predicted_epochs_until_dead": -math.log(DEAD) / (shrink * steps),
        }
        for epoch, signal in zip(recorded.epochs.values(), recorded.signal, strict=True)
    ]


def _print_table(rows: list[dict]) -> None:
    last = max(row["epoch"] for row in rows)
    print("| learning rate | seed | loss | held out | S/N | dead filters, epoch by epoch | predicted to die after |")
    for rate, seed in sorted({(row["learning_rate"], row["seed"]) for row in rows}):
        mine = [row for row in rows if (row["learning_rate"], row["seed"]) == (rate, seed)]
        end = next(row for row in mine if row["epoch"] == last)
        dying = ", ".join(str(row["dead_0.05"]) for row in mine)
        print(
            f"| {rate:g} | {seed} | {end['loss']:.3f} | {end['accuracy']:.1f} | {end['signal_to_noise']:.2f} | "
            f"{dying} of {end['filters']} | {end['predicted_epochs_until_dead']:.1f} epochs |"
        )


def _draw(rows: list[dict], seed: int, results: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    for number, rate in enumerate(RATES):
        mine = [row for row in rows if (row["learning_rate"], row["seed"]) == (rate, seed)]
        for axis, key in zip(axes, ("loss", "esn_analog", "dead_0.05"), strict=True):
            axis.plot(
                [r["epoch"] for r in mine], [r[key] for r in mine], "o-", color=f"C{number}", label=f"lr {rate:g}"
            )
    axes[0].set(ylabel="training loss", xlabel="epoch")
    axes[1].set(ylabel="ESN_a, Eq. (4) + (5)", xlabel="epoch", yscale="log")
    axes[2].set(ylabel="filters below 5 % of the layer's 90th percentile", xlabel="epoch")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(results / "fig5.png", dpi=110)
    print(f"wrote {results / 'fig5.png'}")


if __name__ == "__main__":
    main()
