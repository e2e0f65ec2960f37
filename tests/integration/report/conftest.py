"""A run as records, without a store and without training: ResNet-20 with invented levels, sixteen points."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from slimbit.frontier.store import RunStore, begin_store, check_folder
from slimbit.frontier.table import FolderTable
from slimbit.records.codec import canonical
from slimbit.records.config import PAPER, QuantConfig
from slimbit.records.cost import METRICS, CostReport, LayerCost, TotalCost
from slimbit.records.latency import Latency
from slimbit.records.origin import NetworkOrigin
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo
from slimbit.records.setting import Bits, Price
from slimbit.records.verification import ExportedFile, NodeExecution, PaddedCost, SaturationCheck, Verification
from slimbit.report.frames import ReportFacts

# (name, shape, positions) of a CIFAR ResNet-20
STAGES = [(16, 3, 1024, 1), (16, 16, 1024, 6), (32, 32, 256, 6), (64, 64, 64, 6)]
SHAPES = [
    (f"layer{stage}.{i // 2}.conv{i % 2 + 1}" if stage else "conv1", (out, inputs, 3, 3), positions)
    for stage, (out, inputs, positions, count) in enumerate(STAGES)
    for i in range(count)
] + [("linear", (10, 64), 1)]
SUMMED = ("parameters", "macs", "nonzero_macs", "esn_analog", "esn_digital", "esn_filterwise", "esn_analog_class_a",
          "bit_operations", "weight_bytes")  # fmt: skip
BASELINES = {8: 91.6, 6: 91.2, 5: 90.1, 4: 86.35, 3: 82.75, 2: 21.3}
OURS = [92.0, 91.9, 91.95, 91.6, 91.2, 90.8, 90.0, 89.1, 87.6, 84.5, 78.9, 61.0]


def layer_cost(name: str, shape: tuple[int, ...], positions: int, *, bits: float, grid: str) -> LayerCost:
    """One layer of Gaussian-like weights, ``bits`` wide on average; every eighth filter pruned below 2 bits."""
    weights = math.prod(shape)
    pruned = [bits < 2 and i % 8 == 7 for i in range(shape[0])]
    filter_bits = tuple(0 if off else max(1, math.ceil(bits - i % 3 * 0.7)) for i, off in enumerate(pruned))
    left = weights * (shape[0] - sum(pruned)) // shape[0]
    ratio = 3 * 4 ** (bits - 1)
    return LayerCost(
        name=name,
        kind="linear" if name == "linear" else "conv2d",
        shape=shape,
        filters=shape[0],
        positions=positions,
        weights=weights,
        grid=grid,
        weight_bits=max(filter_bits),
        activation_bits=8,
        steps=(0.1,),
        filter_bits=filter_bits,
        parameters=weights,
        macs=positions * left,
        nonzero_macs=int(positions * left * (1 if grid == "midrise" else 0.9 - 0.15 * max(0, 3 - bits))),
        esn_analog=positions * left * ratio / 12,
        esn_digital=int(positions * left * bits * 0.8),
        esn_filterwise=positions * left * max(filter_bits),
        esn_analog_class_a=positions * left * 4.0**bits,
        bit_operations=positions * left * max(filter_bits) * 8,
        weight_bytes=left * max(filter_bits) / 8,
        mean_bits=bits * 0.8,
        signal_to_noise=ratio,
    )


def cost_report(name: str, bits: float, *, spread: float = 0.0, grid: str = "midrise_zero") -> CostReport:
    """A network whose first layers are wider by ``spread`` bits than its last."""
    count = len(SHAPES)
    layers = tuple(
        layer_cost(layer, shape, positions, bits=max(0.6, bits + spread * (0.5 - i / count)), grid=grid)
        for i, (layer, shape, positions) in enumerate(SHAPES)
    )
    sums: dict[str, Any] = {metric: sum(layer[metric] or 0 for layer in layers) for metric in SUMMED}
    mean = sum(layer.mean_bits * layer.weights for layer in layers) / sum(layer.weights for layer in layers)
    total = TotalCost(layers=count, convolution_filters=688, mean_bits=mean, **sums)
    return CostReport(name, "mac", f"{bits:g} bits", total, layers, notes=("Layer names come from the module.",))


def point(number: int, accuracy: float | None, report: CostReport, **rest: Any) -> FrontierPoint:
    """A finished point with the interval of 10,000 images."""
    wide = 1.96 * math.sqrt(accuracy * (100 - accuracy) / 10_000) if accuracy else 0.0
    return FrontierPoint(
        number=number,
        state="done",
        accuracy=accuracy,
        accuracy_low=None if accuracy is None else accuracy - wide,
        accuracy_high=None if accuracy is None else accuracy + wide,
        costs={name: report.total[name] for name in METRICS},
        plan=f"{number:064x}",
        seconds={"compress": 4.2, "evaluate": 9.1},
        **rest,
    )


class InventedRun:
    """What a store gives: facts, points, cost reports."""

    def __init__(self, network: str = "resnet20") -> None:
        self.about = ReportFacts(
            run="runs/resnet20",
            network=network,
            metric="esn_digital",
            float_accuracy=91.73,
            unit="%",
            scoring={"data": "cifar10:cifar-10", "evaluation images": "10,000", "interval": "95 %, Wilson"},
            provenance={"slimbit": "0.1.0", "torch": "2.13.0", "seed": "0", "calibration images": "500"},
        )
        self.points: list[FrontierPoint] = []
        self.reports: dict[int, CostReport] = {}
        for bits, accuracy in BASELINES.items():
            report = cost_report(network, bits, grid="midrise")
            self._add(report, accuracy, policy="max_abs", setting=Bits(float(bits)), baseline=True)
        for i, accuracy in enumerate(OURS):
            report = cost_report(network, 5.6 - 0.4 * i, spread=1.5)
            self._add(report, accuracy, policy="optimal", setting=Price(10.0 ** (i / 3 - 10), "esn_digital"))
        self.points.append(
            FrontierPoint(
                number=18, state="failed", policy="optimal", setting=Price(1e-5, "esn_digital"), error="accuracy is NaN"
            )
        )

    def _add(self, report: CostReport, accuracy: float, **rest: Any) -> None:
        number = len(self.points)
        self.reports[number] = report
        self.points.append(point(number, accuracy, report, **rest))

    def read_cost(self, asked: FrontierPoint) -> dict[str, Any]:
        """As a store does."""
        return self.reports[asked.number].to_dict()


def add_point(store: RunStore, run: InventedRun, chosen: FrontierPoint) -> None:
    """Keep an invented point in a real store."""
    plan = CompressionPlan(
        network="resnet20",
        policy=chosen.policy,
        setting=chosen.setting,
        layers=(LayerPlan(name="conv1", steps=(0.1,)),),
        config=PAPER if chosen.baseline else QuantConfig(),
    )
    objects = {"plan": store.write(canonical(plan), "json")}
    if chosen.state == "done":
        objects["cost"] = store.write(canonical(run.read_cost(chosen)), "json")
    provenance = {"versions": {"slimbit": "0.1.0"}, "hardware": {"machine": "x86_64", "cores": 2}}
    kept = {
        "key": f"{chosen.policy}-{chosen.number}",
        "plan": plan.digest(),
        "objects": objects,
        "provenance": provenance,
    }
    store.add(FrontierPoint(**{**vars(chosen), **kept}), "esn_digital")


@pytest.fixture
def begun_run(tmp_path: Path) -> RunStore:
    """A store of a run without points."""
    folder = tmp_path / "a run"
    check_folder(folder)
    store = begin_store(FolderTable(folder), storage=None, metric="esn_digital", check=lambda _: None)
    store.write_info(
        RunInfo(
            network="resnet20",
            network_digest="a" * 64,
            origin=NetworkOrigin(data="cifar10:cifar-10"),
            metric="esn_digital",
            points=2,
            baselines=True,
            calibration_images=500,
            calibration_digest="b" * 64,
            evaluate_images=10_000,
            classes=10,
            seed=0,
            quant=QuantConfig(grid="midrise_zero"),
            float_accuracy=91.73,
            float_low=91.17,
            float_high=92.25,
            evaluate_seconds=9.1,
            study="frontier",
        )
    )
    return store


@pytest.fixture
def grow(begun_run: RunStore, invented_run: InventedRun) -> Callable[[int], None]:
    """Adds the invented point of that number to the run."""
    return lambda number: add_point(begun_run, invented_run, invented_run.points[number])


@pytest.fixture
def stored_run(begun_run: RunStore, grow: Callable[[int], None]) -> Path:
    """The invented run's 4-bit baseline, two of its points and its failure, in a real store."""
    for number in (3, 12, 15, 18):
        grow(number)
    return begun_run.folder


def exported_file(number: int, *, exact: bool = True, name: str = "small.onnx") -> ExportedFile:
    """A file of a point: exact, or one whose sums saturate and whose softmax runs in floats."""
    nodes = [
        NodeExecution(name="layer1.0.relu/result", operator="Conv", executed="QLinearConv", fusion="integer"),
        NodeExecution(name="softmax", operator="Softmax", executed="Softmax", fusion="integer" if exact else "float"),
        NodeExecution(name="layer1.0.bn1", operator="Mul", executed="", fusion="gone"),
    ]
    saturation = [
        SaturationCheck(layer=layer, largest_weight=weight, largest_pair=510 * weight, is_safe=weight < 65)
        for layer, weight in {"conv1": 63, "layer1.0.conv1": 63 if exact else 127}.items()
    ]
    proof = Verification(
        file=name,
        digest="ab" * 32,
        runtime="onnxruntime 1.31.1",
        processor="x86_64, no VNNI",
        images=200,
        equal_to_reference=200 if exact else 198,
        equal_to_network=200,
        largest_output_difference=0.0 if exact else 0.25,
        layer_differences={"relu": 0, "layer1.0.relu": 0 if exact else 3},
        near_ties=0,
        accuracy=90.5,
        reference_accuracy=90.5 if exact else 91.0,
        answers_that_differ=0 if exact else 1,
        nodes=tuple(nodes),
        saturation=tuple(saturation),
        answers_that_saturate=None if exact else 2,
        saturating_images=0 if exact else 40,
    )
    times = [
        Latency(
            file=file, runtime="onnxruntime 1.31.1", batch=1, threads=1, passes=11, median_seconds=seconds,
            low_seconds=seconds, high_seconds=seconds,
        )
        for file, seconds in {name: 1e-3, "float.onnx": 2e-3}.items()
    ]  # fmt: skip
    return ExportedFile(
        point=number,
        bytes=308_654,
        verification=proof,
        padded=(PaddedCost(runtime="ONNX Runtime, CPU", padding=3.8),),
        latencies=tuple(times) if exact else (),
    )


@pytest.fixture(scope="session")
def file_of() -> Callable[..., ExportedFile]:
    """Files of points, see `exported_file`."""
    return exported_file


@pytest.fixture
def invented_run() -> InventedRun:
    return InventedRun()


@pytest.fixture(scope="session")
def run_of() -> type[InventedRun]:
    """The class, for runs with other names."""
    return InventedRun


def chromium() -> str | None:
    """A Chromium: the one named in SLIMBIT_CHROMIUM, or one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("SLIMBIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless: one that is found, or the one that playwright installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as started:
        path = chromium() or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("needs Chromium: put it on the path, or name it in SLIMBIT_CHROMIUM")
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()
