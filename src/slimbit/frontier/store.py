"""A run's folder and study: read by anyone, written by one process or many, killed at any moment.

Promises, and what keeps them:

* A point is worked on by one process at a time: it holds the lock ``locks/<key>.lock``, which the system releases
  when the process ends, however it ends. No clock and no lease takes part.
* A finished point is there completely or not at all: its objects come first, then one transaction adds the trial.
  Whoever gets the lock of a point looks first whether it is finished.
* What is decided (plans of the sweep and of the refinement) is decided once, under a lock, and kept as an object
  that the study refers to. Every process works off the same list of plans, whenever it came.
* Every point it lists was measured completely; of each point there is one; every object has the hash it was asked for.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import optuna
from filelock import FileLock, Timeout

from slimbit.frontier import study as studies
from slimbit.frontier.objects import Kind, read_object, write_object
from slimbit.records.codec import canonical, from_json, sha256
from slimbit.records.errors import InputError
from slimbit.records.files import not_written, parse_json, read_regular, write_whole
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.run import RUN_FILE, SCHEMA, RunInfo
from slimbit.records.verification import ExportedFile

Record = TypeVar("Record")
POLL_SECONDS = 0.2
STAGES = "stages"
"""Folder of pruned and tuned networks."""
OURS = {RUN_FILE, studies.NAME, "objects", "locks", "report.html", STAGES}
LARGEST_INFO = 1 << 24
EXPORTED = "exported"
"""Under this name a run notes the proofs of exported files."""


class RunStore:
    """A run's folder and study, opened; make it with `open_store` or `begin_store`.

    Attributes:
        folder: The run's folder.
        info: What the run is about; None until its float network was scored.
    """

    def __init__(self, folder: Path, url: str, study: optuna.Study, info: RunInfo | None) -> None:
        self.folder, self.info = folder, info
        self._url, self._study = url, study
        self._seen: dict[int, FrontierPoint] = {}
        self._planned: dict[str, tuple[PlannedPoint, ...]] = {}

    # --- points ---

    def points(self) -> tuple[FrontierPoint, ...]:
        """Every point finished so far, in order of numbers; of several attempts at one point the last.

        A trial is read and checked once, however often this is called.

        Raises:
            InputError: The study is damaged, or a trial is none of ours; the trial is named.
        """
        for trial in studies.read_trials(self._study, self._url):
            if trial.number not in self._seen:
                self._seen[trial.number] = studies.point_of(trial, self._url)
        points: dict[str, FrontierPoint] = {}
        for number in sorted(self._seen):
            point = self._seen[number]
            earlier = points.get(point.key)
            if earlier is None or earlier.state == "failed":
                points[point.key] = point
        return tuple(sorted(points.values(), key=lambda p: p.number))

    def add(self, point: FrontierPoint, metric: str) -> FrontierPoint:
        """Keep a finished point; returns it with its number."""
        return studies.add_point(self._study, point, metric=metric, url=self._url)

    # --- decisions and notes ---

    def planned(self, name: str) -> tuple[PlannedPoint, ...] | None:
        """A list of planned points that was noted, or None."""
        if name not in self._planned:  # decided once: what was read once stays so
            content = self._note(name)
            if content is None:
                return None
            found = parse_json(content, where=f"object of {name!r} of run {self.folder}")
            points = found.get("points") if isinstance(found, dict) else None
            self._planned[name] = from_json(
                tuple[PlannedPoint, ...],
                canonical(points),
                where=f"planned points {name!r} of run {self.folder}",
            )
        return self._planned[name]

    def plan_points(self, name: str, points: Sequence[PlannedPoint], **about: Any) -> None:
        """Note a list of planned points."""
        self.note(name, {"points": list(points), **about})

    def noted(self, name: str, kind: type[Record]) -> Record | None:
        """A record noted under a name, checked; None where there is none.

        Raises:
            InputError: The object is missing or damaged.
        """
        content = self._note(name)
        return None if content is None else from_json(kind, content, where=f"{name!r} of run {self.folder}")

    def note(self, name: str, value: Any) -> None:
        """Keep a value as an object and note its digest in the study."""
        studies.set_note(self._study, name, self.write(canonical(value), "json"), self._url)

    def _note(self, name: str) -> bytes | None:
        digest = studies.note(self._study, name, self._url)
        return None if digest is None else self.read(digest, "json")

    # --- exported files ---

    def exported(self) -> tuple[ExportedFile, ...]:
        """The files that were written of points, the last of each, in order of the points' numbers.

        Raises:
            InputError: An object is missing or damaged.
        """
        return self.noted(EXPORTED, tuple[ExportedFile, ...]) or ()

    def add_exported(self, file: ExportedFile) -> None:
        """Keep what was proved of a point's file, in place of what an earlier file of it had."""
        others = [one for one in self.exported() if one.point != file.point]
        self.note(EXPORTED, sorted([*others, file], key=lambda one: one.point))

    # --- objects ---

    def read(self, digest: str, kind: Kind) -> bytes:
        """Content of an object, verified by its hash.

        Raises:
            InputError: The file is missing or damaged; it is named.
        """
        return read_object(self.folder, digest, kind)

    def write(self, content: bytes, kind: Kind) -> str:
        """Keep an object; returns its digest."""
        return write_object(self.folder, content, kind)

    # --- who works on what ---

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Whether this process got the lock of that name; released at the end of the block or of the process."""
        with _lock(self.folder, name) as mine:
            yield mine

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``."""
        write_whole(self.folder / RUN_FILE, info.to_bytes())
        self.info = info


def open_store(path: str | Path, *, storage: str | None = None) -> RunStore:
    """Open a run that began.

    Args:
        path: Its folder.
        storage: Address of its study, where that is not ``study.db`` in the folder.

    Raises:
        InputError: The folder, ``run.json`` or the study is missing or damaged; the sentence names the file.
    """
    folder = Path(path)
    info = read_info(folder)
    url = studies.url_of(folder, storage)
    file = studies.sqlite_file(url)
    if file is not None and not file.exists():
        hint = "" if storage else ": give --storage where it is kept elsewhere"
        raise InputError(f"study {file} must exist, got no such file{hint}")
    return RunStore(folder, url, studies.load_study(url, info.study), info)


def begin_store(folder: Path, *, storage: str | None, metric: str, check: Callable[[RunInfo], None]) -> RunStore:
    """Open a run for work, made new where it has not begun; its "prepare" lock is held.

    Args:
        folder: New, empty, or a run.
        storage: Database for the study.
        metric: Cost metric of the sweep, where the study is made new.
        check: Called with what the run is about, where it has begun.

    Raises:
        InputError: The run has begun, but its study is gone or damaged.
    """
    url = studies.url_of(folder, storage)
    if (folder / RUN_FILE).exists():
        info = read_info(folder)
        check(info)
        file = studies.sqlite_file(url)
        if file is not None and not file.exists():
            raise InputError(f"study {file} must exist for the run that began, got no such file")
        return RunStore(folder, url, studies.load_study(url, info.study), info)
    store = RunStore(folder, url, studies.create_study(url, study_name(folder, storage), metric), None)
    if store.points() or store.planned("sweep") is not None:
        raise InputError(f"{folder / RUN_FILE} must exist for the run that began, got no such file")
    return store


def study_name(folder: Path, storage: str | None) -> str:
    """``frontier`` in the run's own file; in a storage shared with other runs the folder is part of the name."""
    if storage is None:
        return studies.STUDY
    return f"{studies.STUDY}-{sha256(str(folder.resolve()).encode())[:12]}"


def read_info(folder: Path) -> RunInfo:
    """Read ``run.json``.

    Raises:
        InputError: It is missing, damaged, or of another schema; file and field are named.
    """
    path = folder / RUN_FILE
    if not path.exists():
        raise InputError(f"run must be a folder with a {RUN_FILE}, got {folder}")
    return from_json(RunInfo, read_regular(path, "run", limit=LARGEST_INFO), where=str(path), schema=SCHEMA)


@contextmanager
def waiting_lock(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Wait for a lock of a run; ``waiting`` is called while another process holds it."""
    while True:
        with _lock(folder, name) as mine:
            if mine:
                yield
                return
        waiting()
        time.sleep(POLL_SECONDS)


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[bool]:
    path = folder / "locks" / f"{name}.lock"
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


def check_folder(folder: Path) -> None:
    """Make the folder of a run.

    Raises:
        InputError: It is a file, cannot be made or read, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"run must be a folder, got {folder}, which is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"run must be a folder that can be made and read, got {folder}: {error.strerror}") from error
    strange = [name for name in names if name not in OURS and not name.startswith((".", studies.NAME))]
    if strange and not (folder / RUN_FILE).exists():
        raise InputError(f"run must be a new folder, an empty one or a run, got {folder} with {strange[0]!r} in it")
