"""Figure 6 of HkxAS6VFDB: prune only, quantize only, or prune and then quantize, on one ResNet-20.

    python experiments/fig6_prune_then_quantize/run.py CIFAR10_DIR OUT [--scale quick]
    python experiments/fig6_prune_then_quantize/run.py --tables OUT

Commands of slimbit: the paper's way (pruned by norm, tuned on labels, ``max_abs``, statistics averaged anew), the joint
frontier by ESN_d with everything Slimbit has (tuned on the original's outputs), and ADMM beside pruning by norm with as
many epochs in all. Writes results.csv, fig6.png and histogram.png beside this file and prints the
tables of README.md. Interrupt at will: the same command continues, and a second one beside it shares the work.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import torch

import slimbit
from slimbit.apply.reestimate import reestimate
from slimbit.frontier.narrow import narrow_network
from slimbit.zoo.data import Part
from slimbit.zoo.data.splits import balanced_order

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import cost_at, hull, read_off
from trainings import results_folder, slimbit_command, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "networks" / "resnet20.safetensors"
METRICS = {"esn_analog": "ESN_a per image", "esn_digital": "ESN_d, bits per image"}
BELOW = (1.0, 3.0, 5.0)
BUDGETS = (6e6, 8e6, 10e6, 12e6, 14.2e6, 20e6, 31e6)
AT_BITS = 39e6
"""ESN_d at which the paper shows its histogram."""
SCALES = {
    "smoke": {"paper": "1,0.5", "ours": "1,0.5", "epochs": 1, "points": 2, "admm": 1, "retrain": 1, "images": 500},
    "quick": {"paper": "1,0.75,0.5,0.25", "ours": "1,0.75,0.5", "epochs": 6, "points": 8, "admm": 2, "retrain": 5,
              "images": None},
    "paper": {"paper": "1,0.875,0.75,0.625,0.5,0.375,0.25", "ours": "1,0.875,0.75,0.625,0.5,0.375,0.25", "epochs": 160,
              "points": 12, "admm": 3, "retrain": 160, "images": None},
}  # fmt: skip
RUNS = {"paper": ["--baselines"], "joint": ["--no-baselines", "--distill"]}
"""Options of each joint frontier, by the name of its folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--scale", default="quick", choices=tuple(SCALES))
    parser.add_argument("--parts", nargs="+", default=["frontiers", "admm"], help="what to run, to share the work")
    parser.add_argument("--tables", type=Path, metavar="OUT", help="tables and figures from finished runs")
    arguments = parser.parse_args()
    out = arguments.tables or arguments.out
    if not arguments.tables:
        if "frontiers" in arguments.parts:
            _frontiers(arguments)
        if "admm" in arguments.parts:
            _admm(arguments)
        if len(arguments.parts) < 2:
            return
    rows = [row for name in RUNS for row in _rows(out / name, name)]
    results = results_folder(HERE, out, arguments.scale)
    write_rows(results / "results.csv", rows)
    top = slimbit.open_run(out / "paper").info.float_accuracy
    print(f"float {top:.2f} %")
    _tell_paper(rows, top)
    _tell_ours(rows)
    _tell_admm(out)
    _draw(rows, top, results)
    _histogram(out, results)


def _common(arguments: argparse.Namespace) -> list[str]:
    return ["--weights", str(WEIGHTS), "--data", f"cifar10:{arguments.data},normalize=cifar10"]


def _tuned(epochs: int, scale: str) -> list[str]:
    return ["--tune-epochs", str(epochs), "--tune-config", str(HERE / f"tune-{scale}.toml")]


def _frontiers(arguments: argparse.Namespace) -> None:
    """Every width pruned by norm and tuned once, then swept."""
    scale = SCALES[arguments.scale]
    images = [] if scale["images"] is None else ["--evaluate-images", str(scale["images"])]
    for name, options in RUNS.items():
        paper = name == "paper"
        slimbit_command(
            "frontier",
            *(*_common(arguments), "--widths", scale["paper" if paper else "ours"], "--by", "norm"),
            *(*_tuned(scale["epochs"], arguments.scale), *options, *images),
            *("--augment", "--calibration-images", "1000", "--points", str(1 if paper else scale["points"])),
            *("--stages", str(arguments.out / "stages")),
            out=arguments.out / name,
        )


def _admm(arguments: argparse.Namespace) -> None:
    """Half of the filters by ADMM and by norm, with as many epochs of training in all."""
    scale = SCALES[arguments.scale]
    stages = 4 * scale["admm"]
    images = [] if scale["images"] is None else ["--evaluate-images", str(scale["images"])]
    for by, epochs in (("admm", scale["retrain"]), ("norm", stages + scale["retrain"])):
        options = ["--admm-epochs", str(scale["admm"])] if by == "admm" else []
        if not (arguments.out / by / "prune.json").exists():
            slimbit_command(
                "prune",
                *("resnet20", *_common(arguments), "--keep", "0.5", "--by", by, *options),
                *(*_tuned(epochs, arguments.scale), *images),
                out=arguments.out / by,
            )
    found = _cut(arguments.out / "admm", slimbit.open_data(f"cifar10:{arguments.data},normalize=cifar10"))
    (arguments.out / "admm" / "cut.json").write_text(json.dumps(found))


def _cut(folder: Path, data) -> dict[str, float]:
    """Percent of the 2,500 held-out images before and after the cut, before any retraining."""
    held = balanced_order(data.train.labels)[:2500]
    part = Part(data.train.images[held], data.train.labels[held])
    score = replace(data, name="held out", test=part).evaluator()
    example = torch.zeros(1, *data.input_shape)
    pressed = slimbit.load_weights(slimbit.network("resnet20"), folder / "admm" / "model.safetensors").eval()
    plan = slimbit.KeepPlan.from_dict(json.loads((folder / "prune.json").read_text())["plan"])
    small, images = slimbit.prune(pressed, plan, example), list(data.calibration(500))
    return {
        "pressed": score(pressed),
        "cut, statistics as they are": score(small),
        "cut, paired statistics": score(reestimate(small, images, original=pressed, plan=plan)),
    }


def _rows(run: Path, name: str) -> list[dict]:
    """Every finished point of a run."""
    return [
        {
            "run": name,
            "width": point.width,
            "way": point.policy,
            "setting": point.setting,
            "accuracy": point.accuracy,
            **{name: point.costs[name] for name in (*METRICS, "esn_filterwise", "macs", "mean_bits", "weight_bytes")},
        }
        for point in slimbit.open_run(run).points()
        if point.state == "done"
    ]


def _curve(rows: list[dict], metric: str, way: str, widths) -> list[tuple[float, float]]:
    """Costs and accuracies."""
    return [(row[metric], row["accuracy"]) for row in rows if row["way"] == way and widths(row["width"])]


def _tell_paper(rows: list[dict], top: float) -> None:
    print("\nThe paper's way: max_abs, absolute statistics; cost in millions at so many points below float")
    for metric in METRICS:
        for below in BELOW:
            only = cost_at(_curve(rows, metric, "max_abs", lambda w: w == 1), top - below)
            both = cost_at(_curve(rows, metric, "max_abs", lambda w: w < 1), top - below)
            print(f"| {metric} | {below:g} | {only / 1e6:.1f} | {both / 1e6:.1f} | {only / both:.2f}x |")


def _tell_ours(rows: list[dict]) -> None:
    widths = sorted({row["width"] for row in rows}, reverse=True)
    print("\nEverything Slimbit has, sweep by ESN_d: accuracy at ESN_d, by width")
    mine = [row for row in rows if row["run"] == "joint"]
    print("| ESN_d | " + " | ".join(f"{width:g}" for width in widths) + " |")
    for budget in BUDGETS:
        cells = []
        for width in widths:
            curve = hull(_curve(mine, "esn_digital", "optimal", lambda w, width=width: w == width))
            beyond = curve[-1][1] if curve and budget > curve[-1][0] else None
            read = read_off(curve, budget) or beyond
            cells.append("-" if read is None else f"{read:.2f}")
        print(f"| {budget / 1e6:g}M | " + " | ".join(cells) + " |")
    for row in (row for row in rows if row["way"] == "prune_only"):
        told = "labels" if row["run"] == "paper" else "the original's outputs"
        costs = ", ".join(f"{name} {row[name] / 1e6:.2f}M" for name in ("macs", "esn_digital", "esn_analog"))
        print(f"prune only, width {row['width']:g}, tuned on {told}: {row['accuracy']:.2f} %, {costs}")


def _tell_admm(out: Path) -> None:
    for by in ("admm", "norm"):
        told = json.loads((out / by / "prune.json").read_text())
        held = [json.loads(line)["accuracy"] for line in (out / by / "tune" / "epochs.jsonl").read_text().splitlines()]
        residuals = [round(value, 4) for value in told.get("admm_residuals", [])]
        if by == "admm":
            print(f"before retraining, held out: {json.loads((out / by / 'cut.json').read_text())}")
        print(f"{by}: test {told['after']['accuracy']:.2f} %, held out by epoch {held}, residuals {residuals}")


def _draw(rows: list[dict], top: float, results: Path) -> None:
    widths = sorted({row["width"] for row in rows}, reverse=True)
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), sharey=True)
    for line, way, text in zip(axes, ("max_abs", "optimal"), ("the paper's way", "with everything"), strict=True):
        for axis, (metric, label) in zip(line, METRICS.items(), strict=True):
            run = "paper" if way == "max_abs" else "joint"
            mine = [row for row in rows if row["run"] == run]
            for width, marker in zip(widths, "osv^Dx+"[: len(widths)], strict=True):
                curve = sorted(_curve(mine, metric, way, lambda w, width=width: w == width))
                name = "quantize only" if width == 1 else f"slim to {width:g}, then quantize"
                axis.plot(*_places(curve), marker=marker, markersize=5, linewidth=1.2, label=name)
            alone = sorted(_curve(mine, metric, "prune_only", lambda _: True))
            axis.plot(*_places(alone), "k--x", linewidth=1, label="prune only, 8 bits")
            axis.axhline(top, color="grey", linewidth=0.8, linestyle=":")
            axis.set(xscale="log", xlabel=label, ylabel="accuracy (%)", title=text, ylim=(60, top + 1.5))
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(results / "fig6.png", dpi=100)


def _places(curve: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [cost for cost, _ in curve], [accuracy for _, accuracy in curve]


def _histogram(out: Path, results: Path) -> None:
    """Filters by the width of their widest level where ``max_abs`` costs 39M bits, removed filters at 0."""
    run = slimbit.open_run(out / "paper")
    model = slimbit.load_weights(slimbit.network("resnet20"), WEIGHTS)
    example = torch.zeros(1, 3, 32, 32)
    whole = slimbit.cost(model, example).total.convolution_filters
    found = {}
    for point in (p for p in run.points() if p.policy == "prune_only"):
        network = narrow_network(model, point.objects, run.read_object)
        bits = _bits_for(network, example, AT_BITS)
        if bits is None:
            print(f"width {point.width:g}: max_abs cannot reach {AT_BITS / 1e6:g}M bits")
            continue
        report = slimbit.cost(network, example, bits=bits)
        counts = Counter(b for layer in report.layers if layer.kind != "linear" for b in layer.filter_bits)
        counts[0] += whole - sum(counts.values())
        assert sum(counts.values()) == whole
        found[point.width] = counts
        curve = [
            (p.costs["esn_digital"], p.accuracy)
            for p in run.points()
            if (p.policy, p.width) == ("max_abs", point.width)
        ]
        read = read_off(hull(curve), AT_BITS)
        about = "-" if read is None else f"{read:.1f} %"
        cost = f"{bits:.2f} bits, {report.total.esn_digital / 1e6:.2f}M, accuracy about {about}"
        print(f"width {point.width:g}: {cost}, filters by bits {dict(sorted(counts.items()))}")
    figure, axis = plt.subplots(figsize=(7, 4))
    for i, (width, counts) in enumerate(found.items()):
        places = [bits + (i - (len(found) - 1) / 2) * 0.25 for bits in range(9)]
        axis.bar(places, [counts[bits] for bits in range(9)], width=0.25, label=f"width {width:g}")
    axis.set(
        xlabel="bits of the widest level (0 = removed)", ylabel=f"filters, {whole} in all", title="max_abs at 39M bits"
    )
    axis.legend()
    figure.tight_layout()
    figure.savefig(results / "histogram.png", dpi=100)


def _bits_for(network, example, target: float) -> float | None:
    """The real-valued bit width at which ``max_abs`` costs a number of bits, by bisection; None out of reach."""

    def cost(bits: float) -> float:
        return slimbit.cost(network, example, bits=bits).total.esn_digital

    low, high = 1.0, 8.0
    if not cost(low) < target < cost(high):
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    return low


if __name__ == "__main__":
    main()
