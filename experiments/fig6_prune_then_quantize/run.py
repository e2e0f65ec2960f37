"""Figure 6 of "Prune or quantize?" (2019): prune only, quantize only, or prune and then quantize, on one ResNet-20.

    python experiments/fig6_prune_then_quantize/run.py CIFAR10_DIR OUT [--scale quick]
    python experiments/fig6_prune_then_quantize/run.py --tables OUT

Commands of slimbit: the paper's way (pruned by norm, tuned on labels, ``max_abs``, statistics averaged anew), the joint
frontier by ESN_d with everything Slimbit has (ranked over all layers, tuned longer on the original's outputs), both
with every seed; the whole network trained as long, to tell what is due to pruning; and ADMM beside pruning by norm with
as many epochs in all. Writes results.csv, fig6.png and histogram.png beside this file and prints the tables of
README.md. ``--scale long`` is the paper's way at one keep ratio, trained for 100 epochs, into long.csv. Interrupt at
will: the same command continues, and a second one beside it shares the work of a frontier.
"""

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path

import matplotlib as mpl
import torch

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import cost_at, hull, read_off
from trainings import results_folder, slimbit_command, write_rows

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
NETWORKS = HERE.parent / "networks"
EXAMPLE = torch.zeros(1, 3, 32, 32)
METRICS = {"esn_analog": "ESN_a per image", "esn_digital": "ESN_d, bits per image"}
BELOW = (1.0, 3.0, 5.0)
BUDGETS = (6e6, 8e6, 10e6, 12e6, 14.2e6, 20e6, 31e6)
AT_BITS = 39e6
"""ESN_d at which the paper shows its histogram."""
ALL = "1,0.875,0.75,0.625,0.5,0.375,0.25"
SCALES = {
    "smoke": {"paper": ["1,0.5"], "longer": ["0.5"], "joint": ["1,0.5"] * 2, "paper epochs": 1, "epochs": 1,
              "points": 2, "admm": 1, "retrain": 1, "images": 500},
    "quick": {"paper": ["1,0.75,0.5,0.25", "1,0.75,0.5"], "longer": ["0.875,0.75,0.5"] * 2,
              "joint": ["1,0.875,0.75,0.5"] * 2, "paper epochs": 6, "epochs": 16, "points": 8, "admm": 3,
              "retrain": 5, "images": None},
    "long": {"paper": ["1,0.5"], "paper epochs": 100},
    "paper": {"paper": [ALL] * 2, "longer": [ALL] * 2, "joint": [ALL] * 2, "paper epochs": 160, "epochs": 160,
              "points": 12, "admm": 3, "retrain": 160, "images": None},
}  # fmt: skip
"""Keep ratios of each frontier, one entry per seed; epochs of training after the cut; points of each keep ratio."""
TRAINED_LONG = ("long", "paper")
"""Scales that begin with the network of 100 epochs."""
LONGER = ["--distill", "--scope", "global"]
WAYS = {
    "paper": ["--baselines", "max_abs"],
    "longer": ["--baselines", "max_abs", *LONGER],
    "joint": ["--no-baselines", *LONGER],
}
"""Options of each joint frontier, by the name of its folder."""
PARTS = (*WAYS, "whole", "admm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--scale", default="quick", choices=tuple(SCALES))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to run, to share the work")
    parser.add_argument("--tables", type=Path, metavar="OUT", help="tables and figures from finished runs")
    arguments = parser.parse_args()
    out = arguments.tables or arguments.out
    if not arguments.tables:
        scale = SCALES[arguments.scale]
        for way in WAYS:
            for seed, keep_ratios in enumerate(scale.get(way, ()) if way in arguments.parts else ()):
                _frontier(arguments, way, keep_ratios, seed)
        if arguments.scale == "long":
            _without_dead(arguments)
            _cycle(arguments)
        if "whole" in arguments.parts and "joint" in scale:
            _whole(arguments)
        if "admm" in arguments.parts and "admm" in scale:
            _admm(arguments)
        if len(arguments.parts) < len(PARTS):
            return
    rows = [
        row
        for way in (*WAYS, "alive", "cycle", "whole")
        for run in sorted(out.glob(f"{way}-?"))
        for row in _rows(run, way)
    ]
    results = results_folder(HERE, out, arguments.scale)
    top = slimbit.open_run(out / "paper-0").float_accuracy
    print(f"float {top:.2f} %")
    _print_paper(rows, top)
    if arguments.scale == "long":
        _print_long(rows, top)
        write_rows(HERE / "long.csv", rows)
        return
    write_rows(results / "results.csv", rows)
    _print_joint(rows)
    _print_admm(out)
    _draw(rows, top, results)
    _histogram(out, results, arguments.scale)


def _common(arguments: argparse.Namespace) -> list[str]:
    return ["--weights", str(_weights(arguments.scale)), "--data", _data(arguments)]


def _weights(scale: str) -> Path:
    return NETWORKS / ("resnet20-100.safetensors" if scale in TRAINED_LONG else "resnet20.safetensors")


def _data(arguments: argparse.Namespace) -> str:
    return f"cifar10:{arguments.data},normalize=cifar10"


def _images(scale: dict) -> list[str]:
    """For ``slimbit prune``, which scores all test images unless told."""
    return [] if scale.get("images") is None else ["--evaluate-images", str(scale["images"])]


def _scored(scale: dict) -> list[str]:
    """For ``slimbit frontier``: every point is measured here, none is picked, so all test images score them."""
    return _images(scale) or ["--select-images", "0"]


def _tuned(epochs: int, scale: str) -> list[str]:
    file = HERE / f"tune-{'paper' if scale in TRAINED_LONG else scale}.toml"
    rate = ["--tune-lr", "0.001"] if scale == "smoke" else []  # a few steps at 0.1 would leave nothing to sweep
    return ["--tune-epochs", str(epochs), *rate, "--tune-config", str(file)]


def _frontier(arguments: argparse.Namespace, way: str, keep_ratios: str, seed: int) -> None:
    """The network pruned by norm to every keep ratio and tuned once, then swept."""
    scale = SCALES[arguments.scale]
    slimbit_command(
        "frontier",
        *(*_common(arguments), "--widths", keep_ratios, "--by", "norm", *_scored(scale)),
        *_tuned(scale["paper epochs" if way == "paper" else "epochs"], arguments.scale),
        *(*WAYS[way], "--stages", str(arguments.out / "stages")),
        *_swept(scale["points"] if way == "joint" else 1, seed),
        out=arguments.out / f"{way}-{seed}",
    )


def _whole(arguments: argparse.Namespace) -> None:
    """The network with all its filters, trained as long on its own outputs, then swept like the pruned ones."""
    scale = SCALES[arguments.scale]
    tuned = arguments.out / "whole"
    if not (tuned / "prune.json").exists():
        epochs = _tuned(scale["epochs"], arguments.scale)
        slimbit_command("prune", "resnet20", *_common(arguments), "--keep", "1", *epochs, "--distill", out=tuned)
    slimbit_command(
        "frontier",
        "resnet20",
        *("--weights", str(tuned / "model.safetensors"), "--data", _data(arguments), *_scored(scale)),
        *("--no-baselines", *_swept(scale["points"], 0)),
        out=arguments.out / "whole-0",
    )


def _swept(points: int, seed: int) -> list[str]:
    return ["--augment", "--calibration-images", "1000", "--points", str(points), "--seed", str(seed)]


def _without_dead(arguments: argparse.Namespace) -> None:
    """Filters whose norm collapsed during the long training are removed, then the rest swept in the paper's way."""
    folder = arguments.out / "alive"
    if not (folder / "prune.json").exists():
        half = slimbit.open_run(arguments.out / "paper-0").pruned(0.5)
        slimbit.prune(half, EXAMPLE, by="dead").save(folder)
    _sweep_folder(folder, arguments)


def _cycle(arguments: argparse.Namespace) -> None:
    """The same pruning after the 16 epochs of one cycle that the quick scale has, on labels, too."""
    folder = arguments.out / "cycle"
    if not (folder / "prune.json").exists():
        tuned = _tuned(SCALES["quick"]["epochs"], "quick")
        slimbit_command("prune", "resnet20", *_common(arguments), "--keep", "0.5", "--by", "norm", *tuned, out=folder)
    _sweep_folder(folder, arguments)


def _sweep_folder(folder: Path, arguments: argparse.Namespace) -> None:
    """A pruned network in the paper's way."""
    slimbit_command(
        "frontier",
        *(str(folder), "--data", _data(arguments), "--baselines", "max_abs", *_scored({}), *_swept(1, 0)),
        out=folder.with_name(f"{folder.name}-0"),
    )


def _admm(arguments: argparse.Namespace) -> None:
    """Half of the filters by ADMM and by norm, with as many epochs of training in all."""
    scale = SCALES[arguments.scale]
    stages = 4 * scale["admm"]
    for by, epochs in (("admm", scale["retrain"]), ("norm", stages + scale["retrain"])):
        options = ["--admm-epochs", str(scale["admm"])] if by == "admm" else []
        if not (arguments.out / by / "prune.json").exists():
            slimbit_command(
                "prune",
                *("resnet20", *_common(arguments), "--keep", "0.5", "--by", by, *options),
                *(*_tuned(epochs, arguments.scale), *_images(scale)),
                out=arguments.out / by,
            )
    found = _cut(arguments.out / "admm", slimbit.open_data(f"{_data(arguments)},held_out=2500"))
    (arguments.out / "admm" / "cut.json").write_text(json.dumps(found))


def _cut(folder: Path, data) -> dict[str, float]:
    """Percent of the 2,500 held-out images before and after the cut, before any retraining.

    ADMM keeps the filters of largest norm at its end, so pruning its network by norm is the cut that it made.
    """
    score, _ = data.selection()
    trained = slimbit.network("resnet20", weights=folder / "admm" / "model.safetensors")
    stored, paired = (
        slimbit.prune(trained, EXAMPLE, images, keep=0.5, by="norm") for images in (None, data.calibration(500))
    )
    made = json.loads((folder / "prune.json").read_text())["plan"]["axes"]
    assert [list(axis.kept) for axis in stored.keep.axes] == [axis["kept"] for axis in made]
    return {
        "before the cut": float(score(trained)),
        "after it, statistics as they are": float(score(stored.model)),
        "after it, paired statistics": float(score(paired.model)),
    }


def _rows(run: Path, way: str) -> list[dict]:
    """Every finished point of a run."""
    return [
        {
            "run": way,
            "seed": int(run.name.rsplit("-", 1)[1]),
            "keep_ratio": point.keep_ratio,
            "way": point.policy,
            "setting": str(point.setting),
            "accuracy": point.accuracy,
            **{name: point.costs[name] for name in (*METRICS, "esn_filterwise", "macs", "mean_bits", "weight_bytes")},
        }
        for point in slimbit.open_run(run).points
        if point.state == "done"
    ]


def _curve(rows: list[dict], metric: str, **wanted: object) -> list[tuple[float, float]]:
    """Costs and accuracies of the rows with these values, cheapest first."""
    chosen = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return sorted((row[metric], row["accuracy"]) for row in chosen)


def _seeds(rows: list[dict], run: str) -> list[int]:
    return sorted({row["seed"] for row in rows if row["run"] == run})


def _print_paper(rows: list[dict], top: float) -> None:
    print("\nThe paper's way: max_abs, absolute statistics; cost in millions at so many points below float, by seed")
    only = [row for row in rows if (row["run"], row["way"]) == ("paper", "max_abs") and row["keep_ratio"] == 1]
    for run in (run for run in ("paper", "longer") if _seeds(rows, run)):
        both = [row for row in rows if (row["run"], row["way"]) == (run, "max_abs") and row["keep_ratio"] < 1]
        for metric in METRICS:
            for below in BELOW:
                found = [
                    tuple(cost_at(_curve(part, metric, seed=seed), top - below) for part in (only, both))
                    for seed in _seeds(rows, run)
                ]
                cells = [" / ".join(_millions(cost) for cost in costs) for costs in zip(*found, strict=True)]
                factors = " / ".join(
                    f"{alone / pruned:.2f}x" if not math.isnan(pruned) else "-" for alone, pruned in found
                )
                print(f"| {run} | {metric} | {below:g} | {' | '.join(cells)} | {factors} |")


def _print_long(rows: list[dict], top: float) -> None:
    for run, ratio in (("paper", 0.5), ("alive", 1), ("cycle", 1)):
        widest = next(r for r in rows if (r["run"], r["keep_ratio"], r["setting"]) == (run, ratio, "8 bits"))
        costs = {
            f"{metric} {below:g} below": _millions(
                cost_at(_curve(rows, metric, run=run, way="max_abs", keep_ratio=ratio), top - below)
            )
            for metric in METRICS
            for below in BELOW
        }
        print(f"{run}: 8 bits {widest['accuracy']:.2f} %, {widest['macs'] / 1e6:.2f}M MACs, {costs}")


def _millions(cost: float) -> str:
    return "not reached" if math.isnan(cost) else f"{cost / 1e6:.1f}"


def _print_joint(rows: list[dict]) -> None:
    print("\nEverything Slimbit has, sweep by ESN_d: accuracy at ESN_d, by keep ratio, mean of the seeds and each")
    ratios = sorted({row["keep_ratio"] for row in rows if row["run"] == "joint"}, reverse=True)
    columns: dict[str, dict] = {f"{ratio:g}": {"run": "joint", "keep_ratio": ratio} for ratio in ratios}
    columns["all filters, trained as long"] = {"run": "whole", "keep_ratio": 1}
    print("| ESN_d | " + " | ".join(columns) + " |")
    for budget in BUDGETS:
        cells = []
        for wanted in columns.values():
            curves = (
                hull(_curve(rows, "esn_digital", way="optimal", seed=seed, **wanted))
                for seed in _seeds(rows, wanted["run"])
            )
            reads = [read for curve in curves if (read := _reached(curve, budget)) is not None]
            each = f" ({', '.join(f'{read:.2f}' for read in reads)})" * (len(reads) > 1)
            cells.append(f"{sum(reads) / len(reads):.2f}{each}" if reads else "-")
        print(f"| {budget / 1e6:g}M | " + " | ".join(cells) + " |")
    for row in (row for row in rows if row["way"] == "prune_only"):
        costs = ", ".join(f"{name} {row[name] / 1e6:.2f}M" for name in ("macs", "esn_digital", "esn_analog"))
        what = f"{row['run']}, seed {row['seed']}, keep ratio {row['keep_ratio']:g}"
        print(f"prune only, {what}: {row['accuracy']:.2f} %, {costs}")


def _reached(curve: list[tuple[float, float]], budget: float) -> float | None:
    """Accuracy at a cost; beyond the dearest point that one's."""
    return curve[-1][1] if curve and budget > curve[-1][0] else read_off(curve, budget)


def _print_admm(out: Path) -> None:
    for by in ("admm", "norm"):
        pruned = json.loads((out / by / "prune.json").read_text())
        held = [json.loads(line)["accuracy"] for line in (out / by / "tune" / "epochs.jsonl").read_text().splitlines()]
        residuals = [round(value, 4) for value in pruned.get("admm_residuals", [])]
        if by == "admm":
            print(f"before retraining, held out: {json.loads((out / by / 'cut.json').read_text())}")
        print(f"{by}: test {pruned['after']['accuracy']:.2f} %, held out by epoch {held}, residuals {residuals}")


def _draw(rows: list[dict], top: float, results: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), sharey=True)
    ratios = sorted({row["keep_ratio"] for row in rows}, reverse=True)
    styles = dict(zip(ratios, zip("osv^Dx+", mpl.color_sequences["tab10"], strict=False), strict=False))
    lines = {("paper", "max_abs"): axes[0], ("longer", "max_abs"): axes[0], ("joint", "optimal"): axes[1]}
    for (run, way), line in lines.items():
        dashes = "--" if run == "longer" else "-"
        for axis, metric in zip(line, METRICS, strict=True):
            for seed in _seeds(rows, run):
                faint = {"alpha": 1.0 if seed == 0 else 0.4, "markersize": 5, "linewidth": 1.2, "linestyle": dashes}
                for ratio, (marker, color) in styles.items():
                    curve = _curve(rows, metric, run=run, way=way, seed=seed, keep_ratio=ratio)
                    name = "quantize only" if ratio == 1 else f"prune to {ratio:g}, then quantize"
                    label = {"label": f"{name}{', trained longer' * (run == 'longer')}"} if seed == 0 and curve else {}
                    axis.plot(*_places(curve), marker=marker, color=color, **label, **faint)
                alone = _curve(rows, metric, run=run, way="prune_only", seed=seed)
                label = {"label": "prune only, 8 bits"} if seed == 0 and run != "longer" else {}
                axis.plot(*_places(alone), marker="x", color="black", **label, **faint)
    for axis, metric in zip(axes[1], METRICS, strict=True):
        curve = _curve(rows, metric, run="whole", way="optimal", seed=0)
        axis.plot(*_places(curve), "k:", marker="o", markersize=3, label="all filters, trained as long")
    for line, text in zip(axes, ("the paper's way", "with everything"), strict=True):
        for axis, label in zip(line, METRICS.values(), strict=True):
            axis.axhline(top, color="grey", linewidth=0.8, linestyle=":")
            axis.set(xscale="log", xlabel=label, ylabel="accuracy (%)", title=text, ylim=(60, top + 1.5))
            axis.grid(alpha=0.3)
        line[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(results / "fig6.png", dpi=100)


def _places(curve: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [cost for cost, _ in curve], [accuracy for _, accuracy in curve]


def _histogram(out: Path, results: Path, scale: str) -> None:
    """Filters by the bit width of their widest level where ``max_abs`` costs 39M bits, removed filters at 0."""
    frontier = slimbit.open_run(out / "paper-0")
    whole = slimbit.prepare(slimbit.network("resnet20", weights=_weights(scale)), EXAMPLE, None)
    filters = slimbit.cost(whole).total.convolution_filters
    found = {}
    for ratio in sorted({point.keep_ratio for point in frontier.points}, reverse=True):
        network = whole if ratio == 1 else frontier.pruned(ratio)
        bits = _bits_for(network, AT_BITS)
        if bits is None:
            print(f"keep ratio {ratio:g}: max_abs cannot reach {AT_BITS / 1e6:g}M bits")
            continue
        report = slimbit.cost(network, bits=bits)
        counts = Counter(b for layer in report.layers if layer.kind != "linear" for b in layer.filter_bits)
        counts[0] += filters - sum(counts.values())
        assert sum(counts.values()) == filters
        found[ratio] = counts
        curve = [
            (p.costs["esn_digital"], p.accuracy)
            for p in frontier.points
            if (p.policy, p.keep_ratio, p.state) == ("max_abs", ratio, "done")
        ]
        read = read_off(hull(curve), AT_BITS)
        about = "-" if read is None else f"{read:.1f} %"
        cost = f"{bits:.2f} bits, {report.total.esn_digital / 1e6:.2f}M, accuracy about {about}"
        print(f"keep ratio {ratio:g}: {cost}, filters by bits {dict(sorted(counts.items()))}")
    _draw_histogram(found, filters, results)


def _draw_histogram(found: dict[float, Counter], filters: int, results: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4))
    for i, (ratio, counts) in enumerate(found.items()):
        places = [bits + (i - (len(found) - 1) / 2) * 0.25 for bits in range(9)]
        axis.bar(places, [counts[bits] for bits in range(9)], width=0.25, label=f"keep ratio {ratio:g}")
    axis.set(
        xlabel="bits of the widest level (0 = removed)",
        ylabel=f"filters, {filters} in all",
        title="max_abs at 39M bits",
    )
    axis.legend()
    figure.tight_layout()
    figure.savefig(results / "histogram.png", dpi=100)


def _bits_for(network: slimbit.PreparedNetwork | slimbit.CompressedModel, target: float) -> float | None:
    """The real-valued bit width at which ``max_abs`` costs a number of bits, by bisection; None out of reach."""

    def cost(bits: float) -> float:
        return slimbit.cost(network, bits=bits).total.esn_digital

    low, high = 1.0, 8.0
    if not cost(low) < target < cost(high):
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    return low


if __name__ == "__main__":
    main()
