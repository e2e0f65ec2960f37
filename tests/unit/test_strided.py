"""Strided 1x1 convolutions: no way to the fault of oneDNN, and nothing else changes."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import slimbit
from gradient_matrix import Functional
from pruning_case import halved
from slimbit.apply.surgery import prune
from slimbit.measure.group_sensitivity import measure_group_sensitivity
from slimbit.measure.sensitivity import measure_sensitivity
from slimbit.numerics import gradient_check
from slimbit.numerics.strided import protect_gradients, safe_gradients, without_unread
from slimbit.survey.filter_groups import find_filter_groups
from slimbit.survey.module import survey_network

MATRIX = Path(__file__).parents[1] / "gradient_matrix.py"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("instructions", ["", "AVX2"])
@pytest.mark.parametrize("way", ["hook", "context"])
def test_every_convolution_has_the_gradient_of_its_sums(way: str, instructions: str, threads: int) -> None:
    """Red without hook and context (``bare``) on every x86 CPU: aborts, hangs, and errors of 0.1 to 3."""
    limit = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions else {}
    environment = {**os.environ, **limit, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "error", str(MATRIX), way]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    lines = child.stdout.splitlines()
    assert child.returncode == 0, (lines[-1:], child.stderr[-300:])
    assert [line for line in lines if not line.startswith("#")] == ["done"]
    assert len(lines) > 1000


class Faulty(TorchDispatchMode):
    """Collects the backward passes that may reach the fault, on any CPU: by their shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []
        self.convolutions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, args)
        return func(*args, **(kwargs or {}))

    def note(self, func: Any, args: Any) -> None:
        if func is not torch.ops.aten.convolution_backward.default:
            return
        slope, x, weight, _, stride, padding, _, transposed, _, groups, _ = args
        large, small = (slope, x) if transposed else (x, slope)
        multiple = all(a == b * s for a, b, s in zip(large.shape[2:], small.shape[2:], stride, strict=True))
        narrow = large.shape[1] < 16 and groups == 1
        self.convolutions += 1
        if weight.shape[2:] == (1, 1) and max(stride) > 1 and not any(padding) and multiple and narrow:
            self.found.append(tuple(x.shape))

    def compiler(self) -> Any:
        """For ``torch.compile``, which runs nothing under a mode: looks at the passes that it would compile."""

        def look(graph: torch.fx.GraphModule, _: Any) -> Any:
            for node in graph.graph.nodes:
                values = [part.meta["val"] if isinstance(part, torch.fx.Node) else part for part in node.args]
                self.note(node.target, values)
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=look, bw_compiler=look)


class Shortcuts(nn.Module):
    """A foreign network: its own code convolves, one layer is a subclass, one goes upwards."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = Standardized(8, 6, 1, stride=2)
        self.weight = nn.Parameter(torch.randn(6, 8, 1, 1))
        self.up, self.head = nn.ConvTranspose2d(6, 4, 1, stride=2, output_padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.down(x) + F.conv2d(input=x, weight=self.weight, stride=(2, 2))
        return self.head(self.up(x).mean((2, 3)))


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / 2
        return F.conv2d(x, weight, self.bias, self.stride)


def pruned(name: str = "resnet20") -> nn.Module:
    example = torch.zeros(1, *{"resnet20": (3, 32, 32), "digits_resnet": (1, 8, 8)}[name])
    network = slimbit.network(name)
    return prune(network, halved(network.eval(), example)[1], example)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shortcut(network: nn.Module) -> nn.Conv2d:
    return network.layer3[0].shortcut[0]


def learn(network: nn.Module, context: AbstractContextManager[object]) -> Faulty:
    with Faulty() as watch, context:
        network.train()(images()).square().sum().backward()
    assert watch.convolutions > 2
    return watch


def test_this_file_finds_what_it_looks_for() -> None:
    bare = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(4, 2, 1))
    assert learn(bare, nullcontext()).found == [(2, 8, 32, 32)]
    assert learn(Shortcuts(), nullcontext()).found == [(2, 6, 16, 16), (2, 8, 32, 32), (2, 8, 32, 32)]


@pytest.mark.parametrize("make", [pruned, lambda: slimbit.network("resnet20@0.25"), lambda: prune(*again(pruned()))])
def test_anyones_loop_is_safe_with_a_network_of_ours(make: Callable[[], nn.Module]) -> None:
    assert learn(make(), nullcontext()).found == []


def again(network: nn.Module) -> tuple[nn.Module, Any, Tensor]:
    example = torch.zeros(1, 3, 32, 32)
    return network, halved(network, example)[1], example


@pytest.mark.parametrize("make", [Shortcuts, lambda: slimbit.network("resnet18@0.2")])
def test_the_context_covers_what_a_foreign_network_does_itself(make: Callable[[], nn.Module]) -> None:
    network = make()
    before = [dict(module._forward_pre_hooks) for module in network.modules()]
    safe = safe_gradients(network)
    for _ in range(2):
        assert learn(network, safe).found == []
        assert [dict(module._forward_pre_hooks) for module in network.modules()] == before


def test_checkpointed_passes_are_repeated_in_the_context() -> None:
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1, stride=2)
    network = nn.Sequential(*layers)
    with Faulty() as watch, safe_gradients(network):
        torch.utils.checkpoint.checkpoint(network, images(), use_reentrant=False).sum().backward()
    assert (watch.found, watch.convolutions) == ([], 2)


def test_sensitivities_are_safe() -> None:
    network, example = Shortcuts().eval(), torch.zeros(1, 3, 32, 32)
    spec, generator = survey_network(network, example).spec, torch.Generator().manual_seed(0)
    with Faulty() as watch:
        measure_sensitivity(network, spec, [images(8)], generator=generator)
        measure_group_sensitivity(network, find_filter_groups(network, example), [images(8)], generator=generator)
    assert watch.convolutions >= 8
    assert watch.found == []


def test_nothing_is_done_for_other_networks() -> None:
    network = slimbit.network("resnet20")  # 16 inputs and more
    assert isinstance(safe_gradients(network), nullcontext)
    assert not any(module._forward_pre_hooks for module in network.modules())
    narrow = nn.Conv2d(4, 8, 1, stride=2)
    assert isinstance(safe_gradients(narrow.to("meta")), nullcontext)
    others = [
        nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 1, stride=2, groups=2),
        nn.Conv2d(4, 8, 1, stride=2, padding=1), nn.Conv3d(4, 8, 1, stride=2), Standardized(4, 8, 1, stride=2),
    ]  # fmt: skip
    assert not any(protect_gradients(layer)._forward_pre_hooks for layer in others)
    assert protect_gradients(nn.Conv2d(4, 8, 1, stride=2, padding="valid"))._forward_pre_hooks


@pytest.mark.parametrize("stride", [(2, 2), (3, 3), (1, 2), (2, 1), (2, 3), (9, 9)])
@pytest.mark.parametrize("side", [1, 6, 7, 12])
def test_what_is_left_out_is_not_read(stride: tuple[int, int], side: int) -> None:
    x, weight = torch.randn(2, 5, side, side + 6, dtype=torch.float64), torch.randn(3, 5, 1, 1, dtype=torch.float64)
    kept = without_unread(x, stride)
    wanted = torch.einsum("nihw,oi->nohw", x[..., :: stride[0], :: stride[1]], weight[:, :, 0, 0])
    torch.testing.assert_close(F.conv2d(kept, weight, stride=stride), wanted)
    assert all((size - 1) % step == 0 for size, step in zip(kept.shape[2:], stride, strict=True))


def test_a_protected_network_is_otherwise_as_before() -> None:
    network = pruned()
    layer, x = shortcut(network), torch.randn(2, 16, 16, 16)
    assert (type(layer), layer.in_channels, len(layer._forward_pre_hooks)) == (nn.Conv2d, 16, 0)
    layer = network.layer2[0].shortcut[0]
    assert (type(layer), layer.in_channels, len(layer._forward_pre_hooks)) == (nn.Conv2d, 8, 1)
    bare = nn.Conv2d(8, layer.out_channels, 1, stride=2, bias=False)
    bare.load_state_dict(layer.state_dict())
    x = x[:, :8]
    with torch.no_grad():
        assert torch.equal(layer(x), bare(x))
    torch.testing.assert_close(layer(x), bare(x))
    torch.testing.assert_close(layer(input=x), bare(x))
    torch.testing.assert_close(layer(x[0]), bare(x[0]))
    learned = layer(x.requires_grad_()).square().sum()
    exact = torch.einsum("nihw,oi->nohw", x[..., ::2, ::2], bare.weight[:, :, 0, 0]).square().sum()
    for found, wanted in zip(
        torch.autograd.grad(learned, [x, layer.weight]), torch.autograd.grad(exact, [x, bare.weight]), strict=True
    ):
        torch.testing.assert_close(found, wanted)


COPIES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "deepcopy": lambda network, _: copy.deepcopy(network),
    "pickle": lambda network, _: pickle.loads(pickle.dumps(network)),
    "script": lambda network, _: torch.jit.script(network),
    "trace": torch.jit.trace,
    "fx": lambda network, _: torch.fx.symbolic_trace(network),
}


@pytest.mark.parametrize("kind", sorted(COPIES))
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_copies_are_safe_as_well(kind: str) -> None:
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1, stride=2), nn.Flatten()
    network = protect_gradients(nn.Sequential(*layers)).eval()
    x = images(1)
    other = COPIES[kind](network, x)
    torch.testing.assert_close(other(x), network(x))
    with Faulty() as watch:
        other(x).sum().backward()
    assert (watch.found, watch.convolutions) == ([], 2)


def test_what_is_exported_is_the_convolution_alone() -> None:
    network = nn.Sequential(nn.Conv2d(6, 4, 1, stride=2), nn.ReLU())
    programs = [torch.export.export(net, (torch.zeros(1, 6, 8, 8),)) for net in (network, protect_gradients(network))]
    first, second = ([(node.op, str(node.target)) for node in program.graph.nodes] for program in programs)
    assert first == second


@pytest.mark.parametrize("make", [Shortcuts, lambda: pruned().train(), lambda: nn.Conv2d(3, 8, 1, stride=2)])
def test_compiled_passes_are_safe_as_well(make: Callable[[], nn.Module]) -> None:
    network, watch = make(), Faulty()
    compiled = torch.compile(network, backend=watch.compiler(), fullgraph=True)
    safe = safe_gradients(network)
    for _ in range(2):  # hooks that come again are no reason to compile again
        with safe:
            compiled(images()).sum().backward()
    assert watch.found == []
    layers = sum(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in network.modules())
    assert watch.convolutions == layers + (type(network) is Shortcuts)


# --- the check of this CPU ---


class Wrong(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.001 if x.dtype == torch.float32 else 1.0)


def test_the_check_names_what_is_wrong() -> None:
    layers = [(nn.Conv2d(2, 3, 1), torch.ones(1, 2, 4, 4)), (Wrong(2, 3, 1), torch.ones(1, 2, 4, 4))]
    lines = list(gradient_check.check_here(iter(layers)))
    assert [line[0] for line in lines] == ["#", "#", "W"]
    assert lines[2] == "Wrong(2, 3, kernel_size=(1, 1), stride=(1, 1)) on (1, 2, 4, 4): relative error 0.001"


def test_this_cpu_is_right() -> None:
    assert gradient_check.faults_of_this_cpu() == []


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("echo ready; echo '# a'; echo 'a: wrong'; echo '# b'; kill -ABRT $$", ["a: wrong", "a crash (-6) at b"]),
        ("echo ready; echo '# a'; exec sleep 60", ["no end within 2 s at a"]),
        ("echo ready; echo '# a'", []),
        ("exit 1", None),
        ("echo ready", []),
    ],
)
def test_how_the_check_ends(
    script: str, wanted: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert gradient_check.faults_of_this_cpu(seconds=2) == wanted


def test_a_fault_is_warned_of_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gradient_check, "faults_of_this_cpu", lambda: calls.append(1) or ["a", "b", "c", "d"])
    for _ in range(2):
        gradient_check.warn_of_wrong_gradients.cache_clear()
        with pytest.warns(
            RuntimeWarning, match=r"convolutions on this CPU .* must be right, got a; b; c; \.\.\.: what"
        ):
            gradient_check.warn_of_wrong_gradients()
    assert calls == [1]
    (file,) = (tmp_path / "slimbit").iterdir()
    file.write_text("{")
    monkeypatch.setattr(gradient_check, "faults_of_this_cpu", lambda: None)
    gradient_check.warn_of_wrong_gradients.cache_clear()
    gradient_check.warn_of_wrong_gradients()
    assert file.read_text() == "{"
    gradient_check.warn_of_wrong_gradients.cache_clear()


def test_functional_layers_of_the_matrix_convolve_as_their_modules() -> None:
    layer, x = nn.Conv2d(3, 4, 1, stride=2, bias=False), images()
    assert torch.equal(Functional(layer)(x), layer(x))
