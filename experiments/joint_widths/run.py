"""Do widths chosen together beat equal widths at the same bit operations? README.md beside this file has the evidence.

    python experiments/joint_widths/run.py digits
    python experiments/joint_widths/run.py resnet20 --data CIFAR10_DIR --weights WEIGHTS [--images 2000] [--seeds 0 1 2]

Equal widths: all layers at W bits and all values at A bits, each filter with the step that suits its weights. Joint: a
budget of as many bit operations. Both with the library's compensation and statistics, both scored as integers. What is
in results.csv already is not measured again.
"""

import argparse
import csv
import statistics
import tempfile
from pathlib import Path

import torch

import slimbit

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
WIDTHS = ((5, 5), (4, 4), (3, 3))
COLUMNS = ("network", "seed", "images", "weight_bits", "activation_bits", "widths", "bits2_per_mac", "accuracy")


def main() -> None:
    arguments = _arguments()
    if arguments.network == "digits":
        data, model = slimbit.open_data("digits"), slimbit.network("digits_resnet", weights="shipped")
    else:
        data = slimbit.open_data(f"cifar10:{arguments.data},normalize=imagenet")
        model = slimbit.network("resnet20-A", weights=arguments.weights)
    evaluate = data.evaluator(arguments.images)
    for seed in arguments.seeds:
        left = [w for w in WIDTHS if not {"equal", "joint"} <= _done(arguments.network, seed, evaluate.images, w)]
        if not left:
            continue
        images = data.calibration(arguments.calibration, seed=seed)
        prepared = slimbit.prepare(model, torch.zeros(1, *data.input_shape), images, seed=seed)
        macs = slimbit.cost(prepared, bits=8).total.macs
        for widths in left:
            equal = _equal(prepared, *widths)
            budget = {"bit_operations": equal.cost.total.bit_operations}
            joint = slimbit.quantize(prepared, budget=budget, config=slimbit.QuantConfig(activation_bits=8))
            rows = []
            for name, small in (("equal", equal), ("joint", joint)):
                spent, accuracy = small.cost.total.bit_operations / macs, float(evaluate(small.model))
                row = (arguments.network, seed, evaluate.images, *widths, name, f"{spent:.2f}", f"{accuracy:.2f}")
                rows.append(row)
            _keep(rows)
    _table()


def _equal(prepared: slimbit.PreparedNetwork, weight_bits: int, activation_bits: int) -> slimbit.CompressedModel:
    """A machine with one mode has one choice."""
    with tempfile.TemporaryDirectory() as folder:
        mode = Path(folder) / "mode.toml"
        mode.write_text(f"[[mode]]\nweight_bits = {weight_bits}\nactivation_bits = 8\ncost_per_mac = 1\n")
        config = slimbit.QuantConfig(activation_bits=activation_bits)
        return slimbit.quantize(prepared, price=1e-20, metric=mode, config=config)


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []


def _done(network: str, seed: int, images: int, widths: tuple[int, int]) -> set[str]:
    wanted = (network, str(seed), str(images), *map(str, widths))
    return {row["widths"] for row in _rows() if tuple(row[name] for name in COLUMNS[:5]) == wanted}


def _keep(rows: list[tuple[object, ...]]) -> None:
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows(([COLUMNS] if is_new else []) + rows)


def _table() -> None:
    rows = _rows()
    print("network, W, A: bit^2 per MAC, accuracy of equal and joint widths (mean over seeds), per seed")
    for network, bits, activations in dict.fromkeys(
        (r["network"], r["weight_bits"], r["activation_bits"]) for r in rows
    ):
        same = [
            r for r in rows if (r["network"], r["weight_bits"], r["activation_bits"]) == (network, bits, activations)
        ]
        found = {name: [float(r["accuracy"]) for r in same if r["widths"] == name] for name in ("equal", "joint")}
        pairs = ", ".join(f"{a:.2f} {b:.2f}" for a, b in zip(found["equal"], found["joint"], strict=True))
        means = " ".join(f"{statistics.fmean(values):.2f}" for values in found.values())
        print(f"{network}, W{bits}A{activations}: {same[0]['bits2_per_mac']}, {means} ({pairs})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("digits", "resnet20"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int)
    parser.add_argument("--calibration", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.network == "resnet20" and (arguments.data is None or arguments.weights is None):
        parser.error("--data and --weights must be given")
    return arguments


if __name__ == "__main__":
    main()
