"""Figure 7 of "Prune or quantize?" (2019): is the loss along SGD's random walk that under quantization of equal S/N?

    python experiments/fig7_noise_landscape/run.py CIFAR10_DIR OUT --weights 'FIG3_OUT/seed-{seed}/model.safetensors'

One epoch of SGD at a constant rate from a trained network; at some of its steps the distance walked gives a
signal-to-noise ratio per layer, and the trained network is quantized to the same ratio in every layer. Both networks
get BatchNorm statistics averaged anew on the same images; the loss is that of 2,000 training images as they are.
Writes results.csv and fig7.png beside this file. Evidence: README.md.
"""

import argparse
import copy
import math
import shutil
import sys
from pathlib import Path

import matplotlib as mpl
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import nn

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainings import results_folder, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RATES = (0.01, 0.1)
STEPS = (1, 2, 4, 8, 12, 20, 32, 50, 80, 119)
LOSS_IMAGES, STATISTICS_IMAGES = 2000, 1000
SCALES = {
    "smoke": {"network": "resnet8@0.25", "batch_size": 50, "train_images": 500},
    "quick": {"network": "resnet8@0.5", "batch_size": 125, "train_images": 15_000, "compile": True},
    "paper": {"network": "resnet20", "batch_size": 125, "compile": True},
}
"""Network and training images of each scale; the walk is the same in all."""


def main() -> None:
    arguments = _arguments()
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=cifar10")
    rows = [
        {"seed": seed, "learning_rate": rate, **row}
        for seed in arguments.seeds
        for rate in RATES
        for row in _landscape(data, arguments, seed, rate)
    ]
    results = results_folder(HERE, arguments.out, arguments.scale)
    write_rows(results / "results.csv", rows)
    for seed in arguments.seeds:
        for rate in RATES:
            mine = [row for row in rows if (row["seed"], row["learning_rate"]) == (seed, rate)]
            walk, quantized = ([row[name] for row in mine] for name in ("walk_loss", "quantized_loss"))
            print(
                f"seed {seed}, learning rate {rate:g}: rank correlation {spearmanr(walk, quantized).statistic:.2f}, "
                f"linear {pearsonr(walk, quantized).statistic:.2f}; rise of the loss at the end: "
                f"walk {walk[-1] - mine[0]['float_loss']:.3f}, quantized {quantized[-1] - mine[0]['float_loss']:.3f}; "
                f"noise grows with power {_power(mine[:5]):.2f} of the steps first, {_power(mine[-3:]):.2f} at the end"
            )
    _draw(rows, arguments.seeds[0], results)


def _power(rows: list[dict]) -> float:
    """Exponent of noise over steps between the first and the last row: 2 = one direction, 1 = a random walk."""
    first, last = rows[0], rows[-1]
    return math.log(first["signal_to_noise"] / last["signal_to_noise"]) / math.log(last["step"] / first["step"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True, help="trained weights, with {seed} where the seed stands")
    parser.add_argument("--scale", default="quick", choices=tuple(SCALES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return parser.parse_args()


def _landscape(data, arguments, seed: int, rate: float) -> list[dict]:
    config = slimbit.TrainConfig(
        **SCALES[arguments.scale],
        epochs=1,
        seed=seed,
        validation_images=0,
        select="last",
        precision="bfloat16",
        optimizer={"learning_rate": rate, "momentum": 0.9, "weight_decay": 5e-4},
        schedule={"name": "constant"},
    )
    trained = slimbit.network(config.network, weights=arguments.weights.format(seed=seed))
    walked = _walk(copy.deepcopy(trained), data, config, arguments.out / f"lr-{rate:g}-seed-{seed}")
    example, statistics = torch.zeros(1, *data.input_shape), list(data.calibration(STATISTICS_IMAGES))
    prepared = slimbit.prepare(trained, example, statistics)
    loss = LossOf(data, statistics)
    float_loss, rows = loss(trained), []
    for step, state in walked.items():
        network = copy.deepcopy(trained)
        # one update after the whole way: S/N of the way walked so far, not averaged over steps, to set beside one loss
        tracker = slimbit.SignalTracker(network, example)
        network.load_state_dict(state)
        tracker.update()
        signal = tracker.end_epoch()
        quantized = slimbit.quantize(prepared, signal=signal)
        rows.append(
            {
                "step": step,
                "signal_to_noise": signal.signal_to_noise,
                "walk_loss": loss(network),
                "quantized_loss": loss(quantized.model),
                "float_loss": float_loss,
                "clamped_layers": len(quantized.plan.clamped),
            }
        )
    return rows


def _walk(model: nn.Module, data, config: slimbit.TrainConfig, folder: Path) -> dict[int, dict]:
    """The weights after some of the steps of one epoch; the folder is made anew each time."""
    shutil.rmtree(folder, ignore_errors=True)
    seen: dict[int, dict] = {}
    count = iter(range(1, 1_000_000))

    def watch(network: nn.Module) -> None:
        step = next(count)
        if step in STEPS:
            seen[step] = copy.deepcopy(network.state_dict())

    slimbit.train(model, data, out=folder, config=config, after_step=watch)
    return seen


class LossOf:
    """Cross entropy on fixed training images, with BatchNorm statistics averaged anew."""

    def __init__(self, data, statistics: list[torch.Tensor]) -> None:
        self.statistics = statistics
        order = torch.randperm(len(data.train.images), generator=torch.Generator().manual_seed(1))[:LOSS_IMAGES]
        pixels = torch.from_numpy(data.train.images[order.numpy()]).float() / data.full_scale
        mean, std = (torch.tensor(v)[:, None, None] for v in (data.normalization.mean, data.normalization.std))
        self.images, self.labels = (pixels - mean) / std, torch.from_numpy(data.train.labels)[order]

    def __call__(self, model: nn.Module) -> float:
        """Of a copy of the network; its statistics are the copy's alone."""
        network = copy.deepcopy(model)
        torch.optim.swa_utils.update_bn(self.statistics, network)
        network.eval()
        with torch.inference_mode():
            outputs = torch.cat([network(part) for part in self.images.split(250)])
        return float(F.cross_entropy(outputs, self.labels))


def _draw(rows: list[dict], seed: int, results: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 5))
    for number, rate in enumerate(RATES):
        mine = [row for row in rows if (row["seed"], row["learning_rate"]) == (seed, rate)]
        x = [row["signal_to_noise"] for row in mine]
        for name, style in (("walk_loss", "o-"), ("quantized_loss", "s--")):
            label = f"{name.removesuffix('_loss')}, learning rate {rate:g}"
            axis.plot(x, [row[name] for row in mine], style, color=f"C{number}", label=label)
    axis.axhline(rows[0]["float_loss"], color="grey", linewidth=0.8, label="trained network")
    axis.set(xscale="log", xlabel="S/N of all weights", ylabel="training loss")
    axis.invert_xaxis()
    axis.legend()
    figure.tight_layout()
    figure.savefig(results / "fig7.png", dpi=110)
    print(f"wrote {results / 'fig7.png'}")


if __name__ == "__main__":
    main()
