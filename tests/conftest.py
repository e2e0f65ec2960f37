"""Shared fixtures and settings."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
import cluster_case

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


@pytest.fixture(scope="session")
def postgres() -> Iterator[cluster_case.Postgres]:
    """A PostgreSQL server of the tests' own; tests that need it are skipped where there is none."""
    missing = cluster_case.why_no_postgres()
    if missing:
        pytest.skip(missing)
    with cluster_case.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[dict[str, str]]:
    """Environment of boto3 for an S3-compatible server with a bucket; tests that need it are skipped without one."""
    missing = cluster_case.why_no_s3()
    if missing:
        pytest.skip(missing)
    with cluster_case.s3() as environment:
        yield environment


collect_ignore = [f"fuzz/{name}.py" for name in ("isolated", "material", "mutations", "run")] + ["chaos/run.py"]
"""Programs of their own, see the Makefile; they hold no tests."""
