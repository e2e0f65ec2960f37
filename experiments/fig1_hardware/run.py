"""Figure 1 of "Prune or quantize?" (2019): the same compression through every hardware cost model.

Claim      Which compression pays depends on the machine: some count bits, some count zeros, few count both.
Command    python experiments/fig1_hardware/run.py
Network    ResNet-20, 41,075,328 MACs, random He weights, seed 0; no data, no training, no accuracy.
Evidence   README.md beside this file: table, picture, machine, versions. Deterministic, one run.

Three sweeps, each relative to the dense network with 8-bit weights and 8-bit activations (1 = no saving):
  bits           1 to 16, weights and activations alike, step = max|W| / 2^(bits-1);
  scattered      the smallest weights of every layer masked, 100 % to 5 % of them left, 8 bits;
  whole filters  the first 16/16 to 4/16 filters of every layer kept, 8 bits.
"""

import copy
import csv
import platform
import textwrap
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn
from torch.nn.utils import prune

import slimbit

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
EXAMPLE = torch.zeros(1, 3, 32, 32)
BITS = range(1, 17)
SCATTERED = [percent / 100 for percent in range(100, 0, -5)]
SIXTEENTHS = range(16, 3, -1)

Sweep = Mapping[float, slimbit.CostReport]  # by bits, or by the share of MACs with a non-zero weight
PANELS = {
    "bits": "bits of weights and activations",
    "scattered": "MACs left, scattered zeros (8 bits)",
    "filters": "MACs left, whole filters gone (8 bits)",
}


def main() -> None:
    torch.manual_seed(0)
    model = slimbit.network("resnet20")
    dense = cost(model)
    sweeps: dict[str, Sweep] = {
        "bits": {bits: cost(model, weight_bits=bits, activation_bits=bits) for bits in BITS},
        "scattered": by_macs([cost(scattered(model, density)) for density in SCATTERED], dense),
        "filters": by_macs([cost(narrowed(model, kept)) for kept in SIXTEENTHS], dense),
    }
    columns = {
        "16 -> 8 bits": (sweeps["bits"][16], dense),
        "8 -> 4 bits": (dense, sweeps["bits"][4]),
        "weights 8 -> 4": (dense, cost(model, weight_bits=4)),
        "activations 8 -> 4": (dense, cost(model, activation_bits=4)),
        "half the weights zero": (dense, cost(scattered(model, 0.5))),
        "half the filters gone": (dense, cost(narrowed(model, 8))),
    }
    lines = table(columns)
    print("\n".join(lines))
    write_readme(
        [f"Python {platform.python_version()}, torch {version('torch')}, slimbit {slimbit.__version__}:", "", *lines]
    )
    write_csv(sweeps, dense)
    draw(sweeps, dense)


def cost(model: nn.Module, *, weight_bits: int = 8, activation_bits: int = 8) -> slimbit.CostReport:
    return slimbit.cost(
        model, EXAMPLE, bits=weight_bits, activation_bits=activation_bits, hardware=slimbit.hardware_names()
    )


def scattered(model: nn.Module, density: float) -> nn.Module:
    """A copy in which every layer keeps its largest weights, by explicit masks."""
    masked = copy.deepcopy(model)
    for module in masked.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount=1 - density)
    return masked


def narrowed(model: nn.Module, sixteenths: int) -> nn.Module:
    """The network with the first filters of every layer, and the inputs that these leave to the next layer."""
    smaller = slimbit.network(f"resnet20@{sixteenths / 16}")
    full = model.state_dict()
    smaller.load_state_dict(
        {key: full[key][tuple(slice(size) for size in value.shape)] for key, value in smaller.state_dict().items()}
    )
    return smaller


def by_macs(reports: Sequence[slimbit.CostReport], dense: slimbit.CostReport) -> Sweep:
    return {report.total.nonzero_macs / dense.total.macs: report for report in reports}


def share(report: slimbit.CostReport, before: slimbit.CostReport, name: str) -> float:
    return report.hardware[name].total / before.hardware[name].total


def table(columns: Mapping[str, tuple[slimbit.CostReport, slimbit.CostReport]]) -> list[str]:
    """Markdown: how many times cheaper each step makes the network; "-" where the machine does not react."""
    lines = [
        "| hardware model | " + " | ".join(columns) + " | reacts to |",
        "|---|" + "---:|" * len(columns) + "---|",
    ]
    for name in slimbit.hardware_names():
        factors = {step: 1 / share(after, before, name) for step, (before, after) in columns.items()}
        reacts = {step for step, factor in factors.items() if abs(factor - 1) > 1e-9}
        cells = [times(factor) if step in reacts else "-" for step, factor in factors.items()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {kinds(reacts)} |")
    return lines


def times(factor: float) -> str:
    return f"{factor:,.0f}x" if factor >= 100 else f"{factor:.2f}x"


def kinds(reacts: set[str]) -> str:
    """What a machine reacts to, in three words."""
    words = {
        "bits": {"16 -> 8 bits", "8 -> 4 bits", "weights 8 -> 4", "activations 8 -> 4"},
        "scattered zeros": {"half the weights zero"},
        "whole filters": {"half the filters gone"},
    }
    return ", ".join(word for word, steps in words.items() if steps & reacts)


def write_readme(lines: Sequence[str]) -> None:
    path = HERE / "README.md"
    before, rest = path.read_text(encoding="utf-8").split("<!-- results -->\n")
    after = rest.split("<!-- end -->")[1]
    results = "\n".join(lines)
    path.write_text(f"{before}<!-- results -->\n{results}\n<!-- end -->{after}", encoding="utf-8")


def write_csv(sweeps: Mapping[str, Sweep], dense: slimbit.CostReport) -> None:
    with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sweep", "x", "hardware", "unit", "cost", "relative", "picojoules"])
        for sweep, reports in sweeps.items():
            for x, report in reports.items():
                for name, each in report.hardware.items():
                    relative = f"{share(report, dense, name):.6g}"
                    energy = "" if each.picojoules is None else f"{each.picojoules:.6g}"
                    writer.writerow([sweep, f"{x:.6g}", name, each.unit, f"{each.total:.9g}", relative, energy])


def draw(sweeps: Mapping[str, Sweep], dense: slimbit.CostReport) -> None:
    """Three panels; machines with the same curve share a line."""
    colours = dict(zip(slimbit.hardware_names(), [*mpl.colormaps["tab10"].colors, "black"], strict=True))
    figure, axes = plt.subplots(1, 3, figsize=(17, 6.4), layout="constrained")
    for axis, (sweep, label) in zip(axes, PANELS.items(), strict=True):
        reports = sweeps[sweep]
        groups: dict[tuple[float, ...], list[str]] = {}
        for name in slimbit.hardware_names():
            curve = tuple(round(share(report, dense, name), 9) for report in reports.values())
            groups.setdefault(curve, []).append(name)
        for place, (curve, names) in enumerate(groups.items()):
            # Later lines are thinner, so that a curve below another stays visible.
            width = 6 - 4.5 * place / max(1, len(groups) - 1)
            text = textwrap.fill(", ".join(names), 34)
            axis.plot(list(reports), curve, label=text, color=colours[names[0]], linewidth=width)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0].set_yscale("log", base=2)
    axes[0].set_ylabel("cost relative to the dense network at 8x8 bits")
    for axis in axes[1:]:
        axis.plot([0, 1], [0, 1], color="0.7", linestyle=":", zorder=0)
        axis.set_xlim(1.02, 0)
        axis.set_ylim(0, 1.05)
    figure.suptitle("One compression, eleven machines: cost of ResNet-20 (lower is cheaper)")
    figure.savefig(HERE / "fig1.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
