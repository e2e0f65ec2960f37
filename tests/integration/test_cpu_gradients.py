"""Narrow networks on any CPU: what differentiates them writes nowhere else, and gives the same bits again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_strided import Faulty

import slimbit
from slimbit.records.training import TrainConfig
from slimbit.training.run import train_network
from training_case import task_of

pytest.importorskip("sklearn")
PROGRAM = Path(__file__).parents[1] / "narrow_training.py"


@pytest.mark.parametrize("threads", [1, 2])
def test_two_trainings_end_in_the_same_bits_on_a_cpu_with_avx2(tmp_path: Path, threads: int) -> None:
    """Red without protection: an abort with one thread, other bits or no end with two."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(PROGRAM), str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert child.returncode == 0, child.stderr[-500:]
    lines = child.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["trained", "ranked", "own"] * 2
    assert lines[:3] == lines[3:]


class Own(nn.Module):
    """A shortcut as code, not as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(4, 10)
        self.weight = nn.Parameter(torch.randn(4, 6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(self.norm(self.stem(x)).relu(), self.weight, stride=2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["digits_resnet@0.25", "own"])
def test_training_calls_no_convolution_that_may_fault(tmp_path: Path, name: str) -> None:
    network = Own() if name == "own" else slimbit.network(name)
    for module in network.modules():
        module._forward_pre_hooks.clear()  # as a network of someone else
    config = TrainConfig(epochs=1, batch_size=64, validation_images=0, augment={"crop": 1, "flip": False})
    with Faulty() as watch:
        train_network(network, task_of(slimbit.open_data("digits")), config, tmp_path)
    assert watch.found == []
    assert watch.convolutions == 4 * (2 if name == "own" else 10)
    assert not any(module._forward_pre_hooks for module in network.modules())
