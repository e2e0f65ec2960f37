"""The frontier of a public ResNet-20 without any training: README.md beside this file has the evidence.

    python experiments/resnet20_posttraining/run.py CIFAR10_DIR WEIGHTS OUT_DIR [--seeds 0 1 2] [--points 12]
    python experiments/resnet20_posttraining/run.py --tables OUT_DIR

Three cost metrics x three choices of 500 unlabelled training images, every point scored on all 10,000 test images.
Nothing here is chosen by looking at test images: the settings are the library's defaults. Interrupt at will.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path

import torch

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from curves import read_off

HERE = Path(__file__).parent
NETWORK, NORMALIZE = "resnet20-A", "imagenet"
METRICS = ("esn_digital", "esn_analog", "esn_filterwise")
BUDGETS = (
    {"esn_analog": 19e6, "esn_digital": 31e6},
    {"esn_analog": 11e6, "esn_digital": 24.5e6},
    {"esn_digital": 20e6},
    {"esn_analog": 4.2e6, "esn_digital": 14.2e6},
    {"esn_filterwise": 100e6},
)
READ_OFF = (
    ("esn_analog", "esn_digital", 20e6),
    ("esn_digital", "esn_digital", 20e6),
    ("esn_filterwise", "esn_filterwise", 100e6),
)
COLUMNS = ("sweep", "seed", "policy", "setting", "baseline", "accuracy", "esn_analog", "esn_digital", "esn_filterwise")


def main() -> None:
    arguments = _arguments()
    if arguments.tables:
        _tables(arguments.tables)
        return
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize={NORMALIZE}")
    model = slimbit.network(NETWORK, weights=arguments.weights)
    for seed in arguments.seeds:
        for metric in arguments.metrics:
            frontier = slimbit.trace_frontier(
                model,
                torch.zeros(1, *data.input_shape),
                data.calibration(500, seed=seed),
                data.evaluator(),
                out=arguments.out / f"{metric}-seed{seed}",
                metric=metric,
                points=arguments.points,
                config=slimbit.RunConfig(baselines=metric == "esn_digital" and seed == 0, seed=seed),
            )
            print(
                f"{metric}, seed {seed}: {len(frontier.points)} points, float {frontier.float_accuracy:.2f} %",
                flush=True,
            )
    if set(arguments.metrics) == set(METRICS):
        _tables(arguments.out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("weights", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--tables", type=Path, help="only write the tables and the figure of finished runs")
    arguments = parser.parse_args()
    if arguments.tables is None and arguments.out is None:
        parser.error("CIFAR10_DIR, WEIGHTS and OUT_DIR must be given")
    return arguments


def _tables(out: Path) -> None:
    runs = {path.name: slimbit.open_run(path) for path in sorted(out.glob("*-seed*"))}
    rows = [
        {"sweep": name.split("-seed")[0], "seed": int(name.split("-seed")[1])}
        | {key: point.to_dict().get(key) for key in COLUMNS[2:]}
        for name, run in runs.items()
        for point in run.points
        if point.state == "done"
    ]
    for row in rows:
        if row["sweep"] != "esn_filterwise" and not row["baseline"]:
            row["esn_filterwise"] = None  # its grid has a zero level, which ESN'_d is not meant for
    with (HERE / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(_budget_table(rows))
    print(_factor_table(runs))
    _figure(rows)


def _budget_table(rows: list[dict]) -> str:
    """Best point of any sweep within each budget, per seed: a maximum over a few points, see README.md."""
    lines = [_header(rows, "best measured point within")]
    for budget in BUDGETS:
        fits = [row for row in rows if not row["baseline"] and all((row[m] or 1e99) <= v for m, v in budget.items())]
        best = [max(row["accuracy"] for row in fits if row["seed"] == seed) for seed in _seeds(rows)]
        what = " and ".join(f"{metric} <= {value / 1e6:g}M" for metric, value in budget.items())
        lines.append(_row(what, best))
    lines += ["", _header(rows, "read off the sweep at")]
    for sweep, metric, budget in READ_OFF:
        curves = [
            [
                (row[metric], row["accuracy"])
                for row in rows
                if (row["sweep"], row["seed"], row["baseline"]) == (sweep, seed, False)
            ]
            for seed in _seeds(rows)
        ]
        curves = [[pair for pair in curve if pair[0] is not None] for curve in curves]
        lines.append(_row(f"{metric} {budget / 1e6:g}M, sweep of {sweep}", [read_off(c, budget) for c in curves]))
    return "\n".join(lines)


def _header(rows: list[dict], what: str) -> str:
    names = " | ".join(f"seed {seed}" for seed in _seeds(rows))
    return f"| {what} | {names} | mean | spread |\n|---|" + "---:|" * (len(_seeds(rows)) + 2)


def _row(what: str, values: list[float]) -> str:
    cells = " | ".join(f"{value:.2f}" for value in values)
    return f"| {what} | {cells} | {statistics.mean(values):.2f} | {max(values) - min(values):.2f} |"


def _factor_table(runs: dict) -> str:
    """How many times cheaper than max_abs at its accuracy, seed 0."""
    baseline = [point for point in runs["esn_digital-seed0"].points if point.baseline and point.state == "done"]
    lines = ["| max_abs | accuracy | " + " | ".join(METRICS) + " |", "|---|---:|" + "---:|" * len(METRICS)]
    for point in baseline:
        cells = []
        for metric in METRICS:
            proposals = [p for p in runs[f"{metric}-seed0"].points if p.state == "done" and not p.baseline]
            costs = [p.costs[metric] for p in proposals if p.accuracy >= point.accuracy]
            cells.append(f"{point.costs[metric] / min(costs):.1f}x" if costs else "not reached")
        lines.append(f"| {point.setting} | {point.accuracy:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seeds(rows: list[dict]) -> list[int]:
    return sorted({row["seed"] for row in rows})


def _figure(rows: list[dict]) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    for panel, metric in zip(panels, METRICS, strict=True):
        for seed in _seeds(rows):
            ours = sorted(
                (r[metric], r["accuracy"])
                for r in rows
                if r["sweep"] == metric and r["seed"] == seed and not r["baseline"]
            )
            panel.plot(*zip(*ours, strict=True), "o-", ms=3, lw=1, label=f"price sweep, seed {seed}")
        plain = sorted((r[metric], r["accuracy"]) for r in rows if r["baseline"])
        panel.plot(*zip(*plain, strict=True), "s--", ms=3, lw=1, color="0.6", label="max_abs, absolute statistics")
        panel.set(xscale="log", xlabel=f"{metric} per image", ylim=(80, 92.5))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("CIFAR-10 top-1, 10,000 test images, %")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(HERE / "frontier.png", dpi=110)


if __name__ == "__main__":
    main()
