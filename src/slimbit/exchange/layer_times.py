"""Times of layers in ONNX Runtime, from its profiler: the table that makes latency a cost."""

import platform
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from onnx import ModelProto, NodeProto

from slimbit.exchange.latency import FEWEST_PASSES, WARM_UP, images_for, input_shapes_of
from slimbit.exchange.verify import load_model, session_options
from slimbit.measure.latency_table import Arithmetic, LatencyTable, LayerTime, ProfiledFile
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.files import parse_json
from slimbit.records.text import clipped, printable
from slimbit.survey.onnx_file import survey_onnx

PRODUCTS = ("Conv", "Gemm", "MatMul", "ConvTranspose", "ConvInteger")
_RENAMED = re.compile(r"(_token_\d+|_nchwc)+$")
"""What ONNX Runtime appends to the names of nodes that it rewrites."""


def measure_layer_times(
    files: Sequence[str | Path],
    *,
    name: str = "latency",
    batch: int = 1,
    threads: int = 1,
    seconds: float = 2.0,
    seed: int = 0,
) -> LatencyTable:
    """What every layer of these files takes in ONNX Runtime on this machine.

    Each file runs with and without the profiler in turn. A node's time is the mean of the middle half of its passes; it
    belongs to the layer whose product it is or follows, until the next product. Since the profiler takes time itself,
    the times of a file are scaled to sum to its median pass without it.

    Args:
        files: ONNX files that `slimbit export` wrote of one network, at one or several sizes, in integers or floats.
        name: Of the table, for reports.
        batch: Images per pass.
        threads: Of the runtime.
        seconds: Time to spend on each file, at least eleven passes.
        seed: Of the random images.

    Returns:
        The table; layers that several files share have the mean of their times.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: No file, one that the runtime cannot execute, or a setting that is not positive.
    """
    if find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx", "measuring latency")
    for what, value in (("batch", batch), ("threads", threads), ("seconds", seconds)):
        if not value > 0:
            raise InputError(f"{what} must be positive, got {value}")
    if not files:
        raise InputError("files must hold at least one ONNX file, got none")
    import onnxruntime

    profiled: list[ProfiledFile] = []
    times: dict[tuple[str, tuple[int, ...], int], dict[Arithmetic, list[float]]] = {}
    for file in map(Path, files):
        model = load_model(file)
        arithmetic: Arithmetic = (
            "int8" if any(node.op_type == "QuantizeLinear" for node in model.graph.node) else "float"
        )
        whole, nodes = _profile(file, model, batch=batch, threads=threads, seconds=seconds, seed=seed)
        per_layer = _by_layer(model, nodes)
        total = sum(per_layer.values())
        profiled.append(
            ProfiledFile(
                name=printable(clipped(file.name)),
                arithmetic=arithmetic,
                whole_ms=1e3 * whole,
                profiled_ms=1e-3 * total,
            )
        )
        layers = survey_onnx(file).spec.layers
        if not layers:
            raise InputError(f"{file} must have layers that slimbit cost finds, got none")
        sharing = Counter(_module(layer.weight_key) for layer in layers)
        for layer in layers:
            owner = _module(layer.weight_key)
            if owner not in per_layer:
                raise InputError(f"layer {layer.name!r} of {file} must be a node that ONNX Runtime executes, got none")
            share = per_layer[owner] / sharing[owner] / total
            entry = times.setdefault((layer.name, layer.shape, layer.positions), {})
            entry.setdefault(arithmetic, []).append(1e3 * whole * share / batch)
    return LatencyTable(
        name=name,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        processor=_processor(),
        threads=threads,
        batch=batch,
        file=tuple(profiled),
        layer=tuple(
            LayerTime(
                name=layer, shape=shape, positions=positions,
                int8_ms=statistics.fmean(found["int8"]) if "int8" in found else None,
                float_ms=statistics.fmean(found["float"]) if "float" in found else None,
            )
            for (layer, shape, positions), found in times.items()
        ),
    )  # fmt: skip


def _profile(
    file: Path, model: ModelProto, *, batch: int, threads: int, seconds: float, seed: int
) -> tuple[float, list[tuple[str, float]]]:
    """Median seconds of a pass, and microseconds of every node in the order of execution."""
    import onnxruntime

    images = images_for(input_shapes_of(file, {}), batch, seed)
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads=threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        passes: list[float] = []
        try:
            plain, watched = (
                onnxruntime.InferenceSession(model.SerializeToString(), given, providers=["CPUExecutionProvider"])
                for given in (session_options(threads=threads), options)
            )
            for _ in range(WARM_UP):
                plain.run(None, images)
                watched.run(None, images)
            begin = time.perf_counter()
            while time.perf_counter() - begin < seconds or len(passes) < FEWEST_PASSES:
                start = time.perf_counter()
                plain.run(None, images)
                passes.append(time.perf_counter() - start)
                watched.run(None, images)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{file} must be a file that ONNX Runtime can execute, got {reason}") from error
        events = parse_json(Path(watched.end_profiling()).read_text(encoding="utf-8"), f"profile of {file}")
    durations: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    return statistics.median(passes), [(node, _middle_mean(found[WARM_UP:])) for node, found in durations.items()]


def _middle_mean(values: list[float]) -> float:
    """Mean of the middle half: the profiler counts whole microseconds, and some passes are disturbed."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def _by_layer(model: ModelProto, nodes: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Microseconds of each layer with what follows it; what comes before any layer belongs to the first."""
    owners = _owners(model)
    found: dict[str, float] = {}
    before, layer = 0.0, ""
    for node, microseconds in nodes:
        layer = owners.get(_RENAMED.sub("", node), "") or layer
        if layer:
            found[layer] = found.get(layer, 0.0) + microseconds
        else:
            before += microseconds
    if found:
        found[next(iter(found))] += before
    return found


def _owners(model: ModelProto) -> dict[str, str]:
    """By name of a node: the layer that it is the product of, or that it follows along its first input."""
    makers = {output: node for node in model.graph.node for output in node.output}
    stored = {tensor.name for tensor in model.graph.initializer}
    owners: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in PRODUCTS and (weight := _stored_behind(node.input[1], makers, stored)):
            owners[node.name] = _module(weight)
        else:
            first = next((makers[value] for value in _read(node) if value in makers), None)
            owners[node.name] = owners.get(first.name, "") if first is not None else ""
    return owners


def _module(weight: str) -> str:
    return weight.removesuffix("/int4").removesuffix(".weight")


def _read(node: NodeProto) -> Iterator[str]:
    return (value for value in node.input if value)


def _stored_behind(value: str, makers: dict[str, NodeProto], stored: set[str]) -> str:
    """The stored tensor that a weight is made of; "" where it is none."""
    while value not in stored and (node := makers.get(value)) is not None:
        value = node.input[0]
    return value if value in stored else ""


def _processor() -> str:
    """The processor's own name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return printable(clipped(f"{named or platform.processor() or 'unknown processor'} ({platform.machine()})"))
