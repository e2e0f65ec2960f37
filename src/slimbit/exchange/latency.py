"""Time of a file in the runtimes that are installed, beside others in the same run."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slimbit.exchange.verify import load_model, session_options
from slimbit.records.errors import InputError, MissingExtraError, check_choice
from slimbit.records.latency import Latency
from slimbit.records.text import clipped

Runtime = Literal["onnxruntime", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
FEWEST_PASSES, WARM_UP = 11, 3


@dataclass
class _Candidate:
    """A file loaded into a runtime under one setting."""

    file: str
    run: Callable[[], Any]
    seconds: list[float]


def measure_latency(
    files: Sequence[str | Path],
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] | None = None,
    runtime: Runtime = "onnxruntime",
    seconds: float = 2.0,
    seed: int = 0,
) -> tuple[Latency, ...]:
    """Median time of one pass of each file, the files taking turns, so that a busy machine slows all alike.

    Args:
        files: ONNX files with the same inputs.
        input_shapes: Shape of each input for one image, where the files leave more than the batch open.
        batches: Numbers of images per pass.
        threads: Numbers of threads; default: 1, and as many as the machine has.
        runtime: "onnxruntime" or "openvino".
        seconds: Time to spend on each setting, at least eleven passes.
        seed: Of the random images.

    Returns:
        One entry per file, batch and number of threads.

    Raises:
        MissingExtraError: The runtime is not installed.
        InputError: A file that it cannot load, an unknown dimension, or a setting that is not positive.
    """
    check_choice("runtime", runtime, RUNTIMES)
    if find_spec(runtime) is None:
        raise MissingExtraError(runtime, "onnx" if runtime == "onnxruntime" else runtime, "measuring latency")
    for what, values in (("batches", batches), ("threads", threads or (1,))):
        if not values or min(values) < 1:
            raise InputError(f"{what} must be positive whole numbers, got {list(values)}")
    if not seconds > 0:
        raise InputError(f"seconds must be positive, got {seconds}")
    paths = [Path(file) for file in files]
    if not paths:
        raise InputError("files must hold at least one ONNX file, got none")
    cores = os.cpu_count() or 1
    counts = tuple(dict.fromkeys(threads or (1, cores)))
    shapes = [input_shapes_of(path, input_shapes or {}) for path in paths]
    open_ = _open_onnxruntime if runtime == "onnxruntime" else _open_openvino
    found: list[Latency] = []
    for batch in batches:
        for count in counts:
            candidates = []
            for path, shape in zip(paths, shapes, strict=True):
                images = images_for(shape, batch, seed)
                run, version = open_(path, images, count)
                candidates.append(_Candidate(path.name, run, []))
            _take_turns(candidates, seconds)
            found.extend(_entry(candidate, version, batch, count) for candidate in candidates)
    return tuple(found)


def _take_turns(candidates: list[_Candidate], seconds: float) -> None:
    for candidate in candidates:
        try:
            for _ in range(WARM_UP):
                candidate.run()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{candidate.file} must be a file that the runtime can execute, got {reason}") from error
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds * len(candidates) or len(candidates[0].seconds) < FEWEST_PASSES:
        for candidate in candidates:
            start = time.perf_counter()
            candidate.run()
            candidate.seconds.append(time.perf_counter() - start)


def _entry(candidate: _Candidate, version: str, batch: int, threads: int) -> Latency:
    low, median, high = statistics.quantiles(candidate.seconds, n=4)
    return Latency(
        file=candidate.file,
        runtime=version,
        batch=batch,
        threads=threads,
        passes=len(candidate.seconds),
        median_seconds=median,
        low_seconds=low,
        high_seconds=high,
    )


def input_shapes_of(path: Path, given: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shape of each input of a file for one image.

    Raises:
        InputError: It leaves more than the batch open, and no shape is given.
    """
    graph = load_model(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    found: dict[str, tuple[int, ...]] = {}
    for value in graph.input:
        if value.name in stored:
            continue
        dims = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:])
        shape = tuple(given.get(value.name, dims))
        if not all(shape):
            raise InputError(
                f"input {value.name!r} of {path.name} must have known dimensions but the batch, got {dims}"
            )
        found[value.name] = shape
    return found


def images_for(shapes: Mapping[str, tuple[int, ...]], batch: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random images for each input.

    Raises:
        InputError: They do not fit into memory.
    """
    rng = np.random.default_rng(seed)
    try:
        return {name: rng.standard_normal((batch, *shape), dtype=np.float32) for name, shape in shapes.items()}
    except (MemoryError, ValueError) as error:
        sizes = ", ".join("x".join(map(str, (batch, *shape))) for shape in shapes.values())
        raise InputError(f"inputs must fit into memory, got {clipped(sizes)}") from error


def _open_onnxruntime(
    path: Path, images: dict[str, NDArray[np.float32]], threads: int
) -> tuple[Callable[[], Any], str]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            str(path), session_options(threads=threads), providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} must be a file that ONNX Runtime can load, got {reason}") from error
    return lambda: session.run(None, images), f"onnxruntime {onnxruntime.__version__}"


def _open_openvino(path: Path, images: dict[str, NDArray[np.float32]], threads: int) -> tuple[Callable[[], Any], str]:
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(str(path))
        model.reshape({name: list(values.shape) for name, values in images.items()})
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} must be a file that OpenVINO can load, got {reason}") from error
    request = compiled.create_infer_request()
    return lambda: request.infer(images), f"openvino {openvino.__version__.split('-')[0]}"
