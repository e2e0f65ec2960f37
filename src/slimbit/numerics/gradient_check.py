"""Whether torch on this CPU computes convolutions and their gradients right: a check in a child process.

A fault in the libraries under torch may overwrite memory, so it cannot be looked for in the process that trains. The
check runs once for each CPU, torch, instruction set and number of threads; its result is kept in the user's cache.
"""

import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.records.codec import digest, json_file
from slimbit.records.files import StoreError, parse_json, write_whole

SECONDS = 120
"""Import of torch takes some seconds, the convolutions 0.2 s: what takes that long hangs."""
TOLERANCE = 1e-4
"""Of a result's largest value. float32 sums of some thousand terms are within 1e-5."""
READY = "ready"


@cache
def warn_of_wrong_gradients() -> None:
    """Warn (`RuntimeWarning`) where convolutions on this CPU crash, hang or give wrong results or gradients.

    What is checked are convolutions as Slimbit calls them, in a child process. Where none can be started nothing is
    said.
    """
    about = _about()
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimbit"
    except RuntimeError:  # nobody's home
        folder = None
    file = folder and folder / f"gradients-{digest(about)[:16]}.json"
    faults = _read(file) if file else None
    if faults is None:
        faults = faults_of_this_cpu()
        if file and faults is not None:
            with suppress(StoreError):  # without a cache the next process checks again
                write_whole(file, json_file({**about, "faults": faults}))
    if faults:
        warnings.warn(
            f"convolutions on this CPU ({about['cpu']}, torch {about['torch']}) must be right, got "
            f"{'; '.join(faults[:3])}{'; ...' * (len(faults) > 3)}: what is trained here may be wrong, "
            "see docs/known-issues.md",
            RuntimeWarning,
            stacklevel=3,
        )


def faults_of_this_cpu(seconds: float = SECONDS) -> list[str] | None:
    """Run the check in a child process.

    Args:
        seconds: How long it may take, with the import of torch.

    Returns:
        A line for each convolution that is wrong, the last of which may be how the process ended; None where the check
        did not begin.
    """
    paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, timeout=seconds, check=False)  # noqa: S603 - our own module
        output, end = child.stdout, f"a crash ({child.returncode})" if child.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"no end within {seconds:g} s"
    except OSError:
        return None
    ready, *lines = output.decode(errors="replace").splitlines() or [""]
    if ready != READY:
        return None
    faults = [line for line in lines if not line.startswith("#")]
    return [*faults, f"{end} at {lines[-1].removeprefix('# ')}"] if end and lines else faults


def check_here(layers: "Iterator[tuple[nn.Module, Tensor]] | None" = None) -> Iterator[str]:
    """Compare outputs and gradients of some layers with float64, in this process.

    Args:
        layers: Modules and inputs; by default convolutions of many shapes.

    Yields:
        A comment (``# ...``) before each layer, and a line for each that is wrong.
    """
    from slimbit.numerics.strided import SafeConvolutions, protect_gradients

    for layer, x in _layers() if layers is None else layers:
        name = f"{layer} on {tuple(x.shape)}{'' if x.is_contiguous() else ', channels last'}"
        yield f"# {name}"
        with SafeConvolutions():
            found = _passes(protect_gradients(layer), x)
        # oneDNN has no float64: torch's own loops are the reference
        wanted = _passes(layer.double(), x.double())
        errors = [
            float((f - w).abs().max() / w.abs().max().clamp_min(1e-30)) for f, w in zip(found, wanted, strict=True)
        ]
        if not max(errors) <= TOLERANCE:
            yield f"{name}: relative error {max(errors):.1g}"


def _passes(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    x = x.detach().requires_grad_()
    output = layer(x)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    slope = slope.to(output).contiguous(memory_format=torch.channels_last)
    return [output.detach(), *torch.autograd.grad(output, [x, *layer.parameters()], slope)]


def _layers() -> Iterator[tuple[nn.Module, Tensor]]:
    """Convolutions as they are in residual, depthwise-separable and encoder-decoder networks."""
    torch.manual_seed(0)
    for inputs, side, batch in ((1, 8, 4), (3, 8, 4), (4, 7, 4), (7, 16, 3), (12, 16, 3), (16, 8, 4), (4, 56, 1)):
        layers: list[nn.Module] = [nn.Conv2d(inputs, 8, k, stride=s, padding=k // 2) for k in (1, 3) for s in (1, 2)]
        layers.append(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs))
        layers.append(nn.ConvTranspose2d(inputs, 5, 2, stride=2))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, inputs, side, side).contiguous(memory_format=memory_format)
            for layer in layers:
                yield layer.float().to(memory_format=memory_format), x  # type: ignore[call-overload] # torch's stub lacks it


def _about() -> dict[str, Any]:
    """What a result holds for."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    return {
        "cpu": f"{model or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "limits": {name: os.environ[name] for name in names if name in os.environ},
    }


def _read(file: Path) -> list[str] | None:
    try:
        faults = parse_json(file.read_bytes(), str(file))["faults"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(fault) for fault in faults] if isinstance(faults, list) else None


if __name__ == "__main__":
    print(READY, flush=True)  # noqa: T201 - to the process that started this one
    for line in check_here():
        print(line, flush=True)  # noqa: T201
