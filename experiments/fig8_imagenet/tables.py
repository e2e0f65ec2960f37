"""Results of figures 8, 10 and 11: read from runs, compared at equal accuracy, drawn."""

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from curves import cost_at
from trainings import write_rows

import slimbit

METRICS = {
    "esn_analog": "ESN_a per image",
    "esn_digital": "ESN_d, bits per image",
    "esn_filterwise": "ESN'_d, bits per image",
}
MAX_ABS, GPTQ = "max_abs, absolute statistics", "GPTQ, step per filter"
AT = {"resnet50-v1": (63.0, 74.0), "efficientnet-lite0": (63.0, 72.0)}
"""Accuracies at which costs are compared: the paper's, and about a point below float."""
RESAMPLED = 2000
Row = dict[str, Any]


def read_rows(out: Path) -> list[Row]:
    """One row per network, method and point of all runs there are."""
    rows: list[Row] = []
    for folder in sorted(out.iterdir()):
        network, _, part = folder.name.rpartition("-")
        if (folder / "run.json").exists():
            run = slimbit.open_run(folder)
            for point in (point for point in run.points if point.state == "done"):
                method = MAX_ABS if point.baseline else f"sweep of {part}"
                rows.append(_row(network, method, point.setting, {**point.to_dict(), "hits": point.hits}))
            if part == "esn_digital":
                float_row = {"accuracy": run.float_accuracy, "hits": run.info.float_hits}
                rows.append(_row(network, "float", "", float_row))
        elif part == "gptq":
            for file in sorted(folder.glob("*.csv")):
                with file.open(newline="") as stream:
                    rows += [_row(network, GPTQ, row["setting"], row) for row in csv.DictReader(stream)]
    return rows


def _row(network: str, method: str, setting: str | None, point: Mapping[str, Any]) -> Row:
    numbers = {name: float(point[name]) if point.get(name) not in (None, "") else None for name in METRICS}
    if method in ("sweep of esn_analog", "sweep of esn_digital"):
        numbers["esn_filterwise"] = None  # their grid has a zero level, which ESN'_d is not meant for
    return {
        "network": network,
        "method": method,
        "setting": setting or "",
        "accuracy": float(point["accuracy"]),
        **numbers,
        "hits": point.get("hits", ""),
    }


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """All points, with the images that each was right on."""
    write_rows(path, rows)


def factor_table(rows: Sequence[Row]) -> str:
    """How many times cheaper the sweep of each metric is than each other method at equal accuracy."""
    lines = ["| network | metric | against | at accuracy | factor | 95 % interval |", "|---|---|---|---:|---:|---|"]
    for network, accuracies in AT.items():
        for metric in METRICS:
            ours = _curve(rows, network, f"sweep of {metric}", metric)
            for other in (MAX_ABS, GPTQ):
                theirs = _curve(rows, network, other, metric)
                if not ours or not theirs:
                    continue
                for accuracy in accuracies:
                    factor, low, high = factor_at(ours, theirs, accuracy)
                    said = [f"{value:.2g}x" if np.isfinite(value) else "not reached" for value in (factor, low, high)]
                    lines.append(
                        f"| {network} | {metric} | {other} | {accuracy:g} % | {said[0]} | {said[1]} to {said[2]} |"
                    )
    return "\n".join(lines)


Curve = list[tuple[float, np.ndarray]]
"""Cost and, of each image, whether it was right."""


def _curve(rows: Sequence[Row], network: str, method: str, metric: str) -> Curve:
    return [
        (row[metric], _right(row["hits"]))
        for row in rows
        if row["network"] == network and row["method"] == method and row[metric] and row["hits"]
    ]


def _right(hits: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(hits), np.uint8))


def factor_at(ours: Curve, theirs: Curve, accuracy: float) -> tuple[float, float, float]:
    """How many times cheaper ``ours`` is at an accuracy, with a 95 % interval.

    Both curves are scored on the same images, so images are drawn again with replacement, the same ones for every point
    of both curves, and the factor is read off each time; NaN where one of them does not reach the accuracy.
    """
    images = min(len(right) for _, right in (*ours, *theirs))
    generator = np.random.default_rng(0)
    found = []
    for number in range(RESAMPLED + 1):
        some = np.arange(images) if number == 0 else generator.integers(images, size=images)
        costs = [
            cost_at([(cost, 100 * right[some].mean()) for cost, right in curve], accuracy) for curve in (theirs, ours)
        ]
        found.append(costs[0] / costs[1])
    drawn = np.array(found[1:])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, (0.025, 0.975)) if len(drawn) > RESAMPLED / 2 else (np.nan, np.nan)
    return found[0], float(low), float(high)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against each metric, a row of panels per network."""
    import matplotlib.pyplot as plt

    networks = sorted({row["network"] for row in rows}, reverse=True)
    figure, panels = plt.subplots(len(networks), 3, figsize=(13, 4 * len(networks)), squeeze=False, sharey="row")
    for line, network in zip(panels, networks, strict=True):
        for panel, (metric, label) in zip(line, METRICS.items(), strict=True):
            for method, style in {
                **{f"sweep of {name}": "o-" for name in METRICS},
                MAX_ABS: "s--",
                GPTQ: "^--",
            }.items():
                mine = [row for row in rows if row["network"] == network and row["method"] == method and row[metric]]
                curve = sorted((row[metric], row["accuracy"]) for row in mine)
                if curve:
                    panel.plot(*zip(*curve, strict=True), style, ms=4, lw=1, label=method)
            for row in rows:
                if row["network"] == network and row["method"] == "float":
                    panel.axhline(row["accuracy"], color="0.5", lw=0.8, ls=":")
            panel.set(xscale="log", xlabel=label)
            panel.grid(alpha=0.3)
        line[0].set_ylabel(f"{network}, top-1, %")
        line[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
