"""Shared fixtures: networks of every layer kind, and the optional real data."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with CIFAR-10 and a third-party ResNet-20; tests that need it are skipped without it."""
    folder = os.environ.get("SLIMBIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SLIMBIT_DATA is not set to the shared test data")
    return Path(folder)
