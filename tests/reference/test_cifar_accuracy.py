"""The shared ResNet-20 on the real CIFAR-10 has the accuracy that its publisher states."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from slimbit import zoo
from slimbit.zoo.data import DataSet

SHARED = os.environ.get("SLIMBIT_DATA")
pytestmark = pytest.mark.skipif(SHARED is None, reason="SLIMBIT_DATA is not set")


@pytest.fixture(scope="module")
def data() -> DataSet:
    folder = Path(tempfile.gettempdir()) / "slimbit-cifar10"
    if not (folder / "cifar-10-batches-bin").exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            subprocess.run([sys.executable, f"{SHARED}/unpack.py", f"{fresh}/out"], check=True)
            if not folder.exists():  # another run may have been faster
                Path(fresh, "out").rename(folder)
    return zoo.open_data(f"cifar10:{folder},normalize=imagenet")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return zoo.load_weights(zoo.network("resnet20-A"), f"{SHARED}/weights/cifar10_resnet20.safetensors")


def test_images_are_cifar10(data: DataSet) -> None:
    assert (len(data.train.images), len(data.test.images)) == (50_000, 10_000)
    assert np.bincount(data.train.labels).tolist() == [5000] * 10
    # the data set's known mean: .49140 .48216 .44653
    means = np.asarray(data.train.images).mean(axis=(0, 2, 3)) / 255
    assert means == pytest.approx([0.49140, 0.48216, 0.44653], abs=1e-5)


def test_500_images(data: DataSet, model: nn.Module) -> None:
    evaluate = data.evaluator(500)
    # standard error of 91.73 % on 500 images: 1.23 points; three of them
    assert evaluate(model) == pytest.approx(91.73, abs=3.7)
    assert evaluate.images == 500


@pytest.mark.slow
def test_all_images(data: DataSet, model: nn.Module) -> None:
    assert data.evaluator()(model) == 91.73
