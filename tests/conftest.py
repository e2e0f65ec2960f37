"""Shared fixtures and settings."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a busy machine is no failure of a property
settings.load_profile("patient")

# Before torch starts: tests use tiny tensors, where threads that wait for each other cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with CIFAR-10 and a third-party ResNet-20; tests that need it are skipped without it."""
    folder = os.environ.get("SLIMBIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SLIMBIT_DATA is not set to the shared test data")
    return Path(folder)
