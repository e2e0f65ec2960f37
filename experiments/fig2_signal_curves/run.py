"""Figure 2 of "Prune or quantize?" (2019): does the S/N of training look like the validation accuracy?

    python experiments/fig2_signal_curves/run.py CIFAR10_DIR OUT [--scale quick] [--seeds 0 1]

Trains with three weight decays, then writes results.csv and fig2.png beside this file. Evidence: README.md.
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
from scipy.stats import spearmanr

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainings import moving_average, results_folder, train, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DECAYS = (0.0005, 0.001, 0.002)


def main() -> None:
    arguments = _arguments()
    runs = {
        (decay, seed): train(
            arguments.out / f"wd-{decay:g}-seed-{seed}",
            *("--recipe", f"fig2-{arguments.scale}", "--data", f"cifar10:{arguments.data},normalize=cifar10"),
            *("--weight-decay", f"{decay:g}", "--seed", str(seed)),
        )
        for seed in arguments.seeds
        for decay in DECAYS
    }
    rows = [row for (decay, seed), run in runs.items() for row in _rows(run, decay, seed)]
    results = results_folder(HERE, arguments.out, arguments.scale)
    write_rows(results / "results.csv", rows)
    for key, run in runs.items():
        _print_summary(key, run, [row for row in rows if (row["weight_decay"], row["seed"]) == key])
    _draw(rows, arguments.seeds[0], results)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scale", default="quick", choices=("smoke", "quick", "paper"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser.parse_args()


def _rows(run: Path, decay: float, seed: int) -> list[dict]:
    """One row per epoch, with the closed form's prediction for scale-invariant weights in equilibrium."""
    recorded = slimbit.read_training_run(run)
    epochs, options = list(recorded.epochs.values()), recorded.config["optimizer"]
    predicted = slimbit.predicted_signal_to_noise(
        [epoch.learning_rate_first for epoch in epochs],
        epochs[0].iterations,
        weight_decay=options["weight_decay"],
        momentum=options["momentum"],
    )
    smooth = moving_average([epoch.accuracy for epoch in epochs])
    return [
        {
            "weight_decay": decay,
            "seed": seed,
            "epoch": epoch.epoch,
            "learning_rate": epoch.learning_rate_first,
            "loss": epoch.loss,
            "accuracy": epoch.accuracy,
            "accuracy_3_epochs": average,
            "signal_to_noise": signal.signal_to_noise,
            "predicted_signal_to_noise": prediction,
            "esn_analog": signal.esn_analog_estimate,
            "dead_filters": signal.dead_filters[0.05],
        }
        for epoch, signal, prediction, average in zip(epochs, recorded.signal, predicted, smooth, strict=True)
    ]


def _print_summary(key: tuple[float, int], run: Path, rows: list[dict]) -> None:
    """Correlations, the overshoot at the first drop of the learning rate, and the settled value after it."""
    costs, accuracies = ([row[name] for row in rows] for name in ("esn_analog", "accuracy_3_epochs"))
    whole = spearmanr(costs, accuracies).statistic
    drops = slimbit.read_training_run(run).config["schedule"]["milestones"]
    phases = [slice(a, b) for a, b in zip([1, *drops], [*drops, len(rows)], strict=True)]
    within = [spearmanr(costs[p], accuracies[p]).statistic for p in phases if p.stop - p.start > 2]
    before, first, last = (
        rows[i]["signal_to_noise"] for i in (drops[0] - 1, drops[0], drops[1] - 1 if drops[1:] else -1)
    )
    summary = {
        "rank correlation": f"{whole:.2f}",
        "within phases": ", ".join(f"{value:.2f}" for value in within),
        "overshoot": f"{first / before:.1f}x, settling at {last / before:.1f}x",
        "predicted": "{:.1f}x, {:.1f}x".format(*_predicted_ratios(rows, drops)),
        "S/N before the drop": f"{before:.2f}, predicted {rows[drops[0] - 1]['predicted_signal_to_noise']:.2f}",
        "held out": f"{rows[-1]['accuracy']:.2f} %",
    }
    print(f"weight decay {key[0]:g}, seed {key[1]}: " + "; ".join(f"{name} {value}" for name, value in summary.items()))


def _predicted_ratios(rows: list[dict], drops: list[int]) -> tuple[float, float]:
    predicted = [row["predicted_signal_to_noise"] for row in rows]
    before = predicted[drops[0] - 1]
    return predicted[drops[0]] / before, predicted[drops[1] - 1 if drops[1:] else -1] / before


def _draw(rows: list[dict], seed: int, results: Path) -> None:
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 7), sharex=True)
    for number, decay in enumerate(DECAYS):
        mine = [row for row in rows if (row["weight_decay"], row["seed"]) == (decay, seed)]
        x, colour = [row["epoch"] for row in mine], f"C{number}"
        top.plot(x, [row["esn_analog"] for row in mine], "o-", color=colour, label=f"weight decay {decay:g}")
        scale = [row["esn_analog"] / row["signal_to_noise"] * row["predicted_signal_to_noise"] for row in mine]
        top.plot(x, scale, "--", color=colour, linewidth=1)
        bottom.plot(x, [row["accuracy_3_epochs"] for row in mine], "o-", color=colour)
    top.set(yscale="log", ylabel="ESN_a, Eq. (4) + (5)", title="Signal of training (dashed: closed form)")
    top.legend()
    bottom.set(xlabel="epoch", ylabel="held-out accuracy, 3-epoch mean (%)")
    figure.tight_layout()
    figure.savefig(results / "fig2.png", dpi=110)
    print(f"wrote {results / 'fig2.png'}")


if __name__ == "__main__":
    main()
