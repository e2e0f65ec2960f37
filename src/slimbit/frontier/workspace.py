"""Write a run: one process or many, killed at any moment.

Promises, and what keeps them:

* A point is worked on by one process at a time: it holds the lock ``locks/<key>.lock``, which the system releases
  when the process ends, however it ends. No clock and no lease takes part.
* A finished point is there completely or not at all: its objects come first, then one transaction adds the trial.
  Whoever gets the lock of a point looks first whether it is finished.
* What is decided (plans of the sweep and of the refinement) is decided once, under a lock, and kept as an object
  that the study refers to. Every process works off the same list of plans, whenever it came.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout

from slimbit.frontier import study as studies
from slimbit.frontier.info import NAME, RunInfo, read_info, write_info
from slimbit.frontier.objects import Kind, read_object, write_object
from slimbit.records.errors import InputError
from slimbit.records.files import not_written
from slimbit.records.point import FrontierPoint

POLL_SECONDS = 0.2
STAGES = "stages"
"""Folder of pruned and tuned networks."""
OURS = {NAME, studies.NAME, "objects", "locks", "report.html", STAGES}


@dataclass(frozen=True, kw_only=True)
class PlannedPoint:
    """A point that was decided on.

    Attributes:
        key: Its name within the run.
        plan: Digest of its `CompressionPlan`, an object of the run.
        policy: As in the plan.
        setting: As in the plan, for people.
        baseline: As in `FrontierPoint`.
        metric: As in the plan.
        price: As in the plan.
        width: As in `FrontierPoint`.
    """

    key: str
    plan: str
    policy: str
    setting: str
    baseline: bool = False
    metric: str | None = None
    price: float | None = None
    width: float = 1.0


class Workspace:
    """A run's folder and study, opened for work.

    Attributes:
        folder: The run's folder.
    """

    def __init__(self, folder: Path, *, storage: str | None) -> None:
        self.folder = folder
        self._storage = storage
        self._url = studies.url_of(folder, storage)
        self._study: optuna.Study | None = None
        self._planned: dict[str, tuple[PlannedPoint, ...]] = {}
        _check_folder(folder)

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Whether this process got the lock of that name; released at the end of the block or of the process."""
        path = self.folder / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(path, timeout=0).acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            raise not_written(path, error) from error
        with held:
            yield True

    @contextmanager
    def waiting_lock(self, name: str, tell: Callable[[], None]) -> Iterator[None]:
        """Wait for a lock; ``tell`` is called while another process holds it."""
        while True:
            with self.lock(name) as mine:
                if mine:
                    yield
                    return
            tell()
            time.sleep(POLL_SECONDS)

    def info(self) -> RunInfo | None:
        """The run's settings, or None before they were written."""
        return read_info(self.folder) if (self.folder / NAME).exists() else None

    def begin(self, name: str, metric: str) -> None:
        """Open the study, made new where the run has not begun.

        Raises:
            InputError: The run has begun, but its study is gone or damaged.
        """
        if self.info() is not None:
            file = studies.sqlite_file(self._url)
            if file is not None and not file.exists():
                raise InputError(f"study {file} must exist for the run that began, got no such file")
            self._study = studies.load_study(self._url, name)
            return
        self._study = studies.create_study(self._url, name, metric)
        if self.points() or self.noted("sweep") is not None:
            raise InputError(f"{self.folder / NAME} must exist for the run that began, got no such file")

    @property
    def study_name(self) -> str:
        """``frontier`` in the run's own file; in a storage shared with other runs the folder is part of the name."""
        if self._storage is None:
            return studies.STUDY
        return f"{studies.STUDY}-{hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:12]}"

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``."""
        write_info(self.folder, info)

    def points(self) -> tuple[FrontierPoint, ...]:
        """Every finished point."""
        return studies.stored_points(self._opened, self._url)

    def add(self, point: FrontierPoint, metric: str) -> FrontierPoint:
        """Keep a finished point; returns it with its number."""
        return studies.add_point(self._opened, point, metric=metric, url=self._url)

    def noted(self, name: str) -> Any:
        """JSON noted under a name and kept as an object, or None."""
        digest = studies.note(self._opened, name, self._url)
        return None if digest is None else json.loads(self.read(digest, "json"))

    def note(self, name: str, value: Any) -> None:
        """Keep JSON as an object and note its digest in the study."""
        studies.set_note(self._opened, name, self.write(canonical(value), "json"), self._url)

    def planned(self, name: str) -> tuple[PlannedPoint, ...] | None:
        """A list of planned points that was noted, or None."""
        if name not in self._planned:  # decided once: what was read once stays so
            rows = self.noted(name)
            if rows is None:
                return None
            self._planned[name] = tuple(PlannedPoint(**row) for row in rows["points"])
        return self._planned[name]

    def plan_points(self, name: str, points: Sequence[PlannedPoint], **about: Any) -> None:
        """Note a list of planned points."""
        self.note(name, {"points": [asdict(point) for point in points], **about})

    def read(self, digest: str, kind: Kind) -> bytes:
        """An object, verified."""
        return read_object(self.folder, digest, kind)

    def write(self, content: bytes, kind: Kind) -> str:
        """Keep an object; returns its digest."""
        return write_object(self.folder, content, kind)

    @property
    def _opened(self) -> optuna.Study:
        assert self._study is not None, "begin comes first"
        return self._study


def canonical(value: Any) -> bytes:
    """JSON whose bytes depend on nothing but the value; the form that `CompressionPlan.digest` hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"run must be a folder, got {folder}, which is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run must be a folder that can be made, got {folder}: {error.strerror}") from error
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"run must be a folder that can be read, got {folder}: {error.strerror}") from error
    strange = [name for name in names if name not in OURS and not name.startswith((".", studies.NAME))]
    if strange and not (folder / NAME).exists():
        raise InputError(f"run must be a new folder, an empty one or a run, got {folder} with {strange[0]!r} in it")
