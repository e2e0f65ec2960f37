"""A run: its folder, its table and its objects, read by anyone, written by one process or many, killed at any moment.

What is promised to several workers stands in `slimbit.frontier.table`, what is promised of content in
`slimbit.frontier.objects`. A point's objects come first, then one transaction finishes its trial; whoever gets the
claim of a point looks first whether it is finished. Every point listed was measured completely, of each there is one,
and every object has the hash it was asked for.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from slimbit.frontier import study as studies
from slimbit.frontier.objects import Kind, Objects, open_objects
from slimbit.frontier.patience import silent
from slimbit.frontier.server import open_table, run_names
from slimbit.frontier.table import Claim, FolderTable, Holder, RunTable
from slimbit.records.codec import canonical, from_json, sha256
from slimbit.records.errors import InputError
from slimbit.records.files import parse_json, read_regular, write_whole
from slimbit.records.point import FrontierPoint, PlannedPoint
from slimbit.records.run import RUN_FILE, SCHEMA, RunInfo
from slimbit.records.verification import ExportedFile

Record = TypeVar("Record")
FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between looks at what others do; they grow while nothing happens, so that waiting costs next to nothing."""
STAGES = "stages"
"""Folder of pruned and tuned networks."""
OURS = {RUN_FILE, studies.NAME, "objects", "locks", "report.html", STAGES}
LARGEST_INFO = 1 << 24
EXPORTED = "exported"
"""Under this name a run notes the proofs of exported files."""
INFO = "run"
"""Under this name a run on a database server notes what it is about."""


class RunStore:
    """A run, opened; make it with `open_store` or `begin_store`.

    Attributes:
        folder: The run's folder.
        table: What its workers share.
        info: What the run is about; None until its float network was scored.
        artifacts: Where its objects are, as ``run.json`` says it; "" = in the folder.
    """

    def __init__(
        self, folder: Path, url: str, table: RunTable, objects: Objects, info: RunInfo | None, *, artifacts: str = ""
    ) -> None:
        self.folder, self.table, self.info, self.artifacts = folder, table, info, artifacts
        self._url, self._objects = url, objects
        self._seen: dict[int, FrontierPoint] = {}
        self._points: tuple[FrontierPoint, ...] = ()
        self._planned: dict[str, tuple[PlannedPoint, ...]] = {}
        self._notes: dict[str, Any] | None = None
        self._records: dict[tuple[str, str], Any] = {}

    # --- points ---

    def points(self) -> tuple[FrontierPoint, ...]:
        """Every point finished so far, in order of numbers; of several attempts at one point the last.

        A trial is read and checked once, however often this is called.

        Raises:
            InputError: The study is damaged, or a trial is none of ours; the trial is named.
        """
        fresh = [row for row in self.table.finished() if row.id not in self._seen]
        if not fresh:
            return self._points
        for row in fresh:
            self._seen[row.id] = studies.point_of(row, self._url)
        points: dict[str, FrontierPoint] = {}
        for point in self._seen.values():
            earlier = points.get(point.key)
            if earlier is None or earlier.state == "failed":
                points[point.key] = point
        self._points = tuple(sorted(points.values(), key=lambda p: p.number))
        return self._points

    def add(self, point: FrontierPoint, metric: str, claim: Claim | None = None) -> FrontierPoint:
        """Keep a finished point; returns it with its number.

        Raises:
            ClaimLost: Another worker has taken it over.
        """
        return self.table.add(point, claim, metric)

    # --- decisions and notes ---

    def refresh(self) -> None:
        """See what was decided by others since this was called last, or a claim was got."""
        self._notes = self.table.notes()

    def planned(self, name: str) -> tuple[PlannedPoint, ...] | None:
        """A list of planned points that was noted, or None."""
        if name not in self._planned:  # decided once: what was read once stays so
            digest = self._digest(name)
            if digest is None:
                return None
            content = self.read(digest, "json")
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
        digest = self._digest(name)
        if digest is None:
            return None
        if (name, digest) not in self._records:  # what a digest stands for never changes
            content = self.read(digest, "json")
            self._records[name, digest] = from_json(kind, content, where=f"{name!r} of run {self.folder}")
        return self._records[name, digest]  # type: ignore[no-any-return]

    def is_noted(self, name: str) -> bool:
        """Whether there is a note under a name, as of the last look; nothing is read."""
        if self._notes is None:
            self.refresh()
        return name in (self._notes or {})

    def note(self, name: str, value: Any, *, grows: bool = False) -> None:
        """Keep a value as an object and note its digest; what another worker noted before stays, see `RunTable`."""
        self.table.note(name, self.write(canonical(value), "json"), grows=grows)
        self.refresh()

    def _digest(self, name: str) -> str | None:
        if self._notes is None:
            self.refresh()
        assert self._notes is not None
        return self._notes.get(name)

    # --- exported files ---

    def exported(self) -> tuple[ExportedFile, ...]:
        """The files that were written of points, the last of each, in order of the points' numbers.

        Raises:
            InputError: An object is missing or damaged.
        """
        self.refresh()
        return self.noted(EXPORTED, tuple[ExportedFile, ...]) or ()

    def add_exported(self, file: ExportedFile) -> None:
        """Keep what was proved of a point's file, in place of what an earlier file of it had."""
        others = [one for one in self.exported() if one.point != file.point]
        self.note(EXPORTED, sorted([*others, file], key=lambda one: one.point), grows=True)

    # --- objects ---

    def read(self, digest: str, kind: Kind) -> bytes:
        """Content of an object, verified by its hash.

        Raises:
            InputError: It is missing or damaged; file or address are named.
        """
        return self._objects.read(digest, kind)

    def write(self, content: bytes, kind: Kind) -> str:
        """Keep an object; returns its digest."""
        return self._objects.write(content, kind)

    # --- who works on what ---

    @contextmanager
    def claim(self, name: str, what: str = "") -> Iterator[Claim | None]:
        """Claim a task for the time of a block; None where another worker has it."""
        with self.table.claim(name, what) as claim:
            if claim is not None:
                self.refresh()
            yield claim

    def claim_point(self, planned: PlannedPoint) -> AbstractContextManager[Claim | None]:
        """Claim a point for the time of a block; None where another worker has it."""
        return self.table.claim_point(planned)

    def holders(self) -> tuple[Holder, ...]:
        """Who works on what."""
        return self.table.holders()

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``; on a database server the run notes it as well, and what others noted first counts."""
        if not isinstance(self.table, FolderTable):
            self.note(INFO, info)
            info = self.noted(INFO, RunInfo) or info
        self.info = info
        self.write_own_info()

    def write_own_info(self) -> None:
        """Write ``run.json`` in this worker's folder, with where this worker finds the objects."""
        assert self.info is not None
        content = replace(self.info, artifacts=self.artifacts).to_bytes()
        path = self.folder / RUN_FILE
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)


def open_store(path: str | Path, *, storage: str | None = None, artifacts: str | None = None) -> RunStore:
    """Open a run that began.

    Args:
        path: Its folder.
        storage: Address of its study, where that is not ``study.db`` in the folder.
        artifacts: Where its objects are, where that is not what its ``run.json`` says.

    Raises:
        InputError: The folder, ``run.json`` or the study is missing or damaged; the sentence names the file.
    """
    folder = Path(path)
    info = read_info(folder)
    artifacts = artifacts or info.artifacts
    objects = open_objects(folder, artifacts)
    if storage is not None and studies.is_server(storage):
        shared = open_table(storage, info.study, metric=None, takeover_seconds=None)
        return RunStore(folder, storage, shared, objects, info, artifacts=artifacts)
    url = studies.url_of(folder, storage)
    file = studies.sqlite_file(url)
    if file is not None and not file.exists():
        hint = "" if storage else ": give --storage where it is kept elsewhere"
        raise InputError(f"study {file} must exist, got no such file{hint}")
    table = FolderTable(folder, studies.load_study(url, info.study))
    return RunStore(folder, url, table, objects, info, artifacts=artifacts)


def begin_store(
    table: FolderTable,
    *,
    storage: str | None,
    metric: str,
    check: Callable[[RunInfo], None],
    artifacts: str | None = None,
    tell: Callable[[str], None] = silent,
) -> RunStore:
    """Open a run in a folder for work, made new where it has not begun; its "prepare" task is claimed.

    Args:
        table: Of a new folder, an empty one, or a run.
        storage: File for the study.
        metric: Cost metric of the sweep, where the study is made new.
        check: Called with what the run is about, where it has begun.
        artifacts: Where its objects are, where that is not the folder.
        tell: Called with a sentence when an artifact store is away.

    Raises:
        InputError: The run has begun, but its study is gone or damaged.
    """
    folder, url = table.folder, studies.url_of(table.folder, storage)
    if (folder / RUN_FILE).exists():
        info = read_info(folder)
        check(info)
        file = studies.sqlite_file(url)
        if file is not None and not file.exists():
            raise InputError(f"study {file} must exist for the run that began, got no such file")
        table.study = studies.load_study(url, info.study)
        artifacts = artifacts or info.artifacts
        return RunStore(folder, url, table, open_objects(folder, artifacts, tell), info, artifacts=artifacts)
    table.study = studies.create_study(url, study_name(folder, storage), metric)
    store = RunStore(folder, url, table, open_objects(folder, artifacts, tell), None, artifacts=artifacts or "")
    if store.points() or store.planned("sweep") is not None:
        raise InputError(f"{folder / RUN_FILE} must exist for the run that began, got no such file")
    return store


def join_store(
    folder: Path,
    *,
    storage: str,
    name: str,
    metric: str,
    artifacts: str | None,
    takeover_seconds: int,
    tell: Callable[[str], None],
) -> RunStore:
    """Open a run on a database server for work, made new where it has not begun.

    Args:
        folder: Of this worker; it need not be that of others.
        storage: Address of the database.
        name: Name of the run's study.
        metric: Cost metric of the sweep, where the study is made new.
        artifacts: Where objects are, for every worker; None: the folder, which all workers must see then.
        takeover_seconds: After so long without a sign a worker counts as gone, where the run is new.
        tell: Called with sentences about servers that are away and workers that are gone.

    Raises:
        InputError: The folder is of another run, or what others have decided cannot be read from here.
    """
    if (folder / RUN_FILE).exists():
        own = read_info(folder)
        if own.study != name:
            raise InputError(
                f"run {folder} must be {name}, which these settings make, got {own.study}: give another --out"
            )
        artifacts = artifacts or own.artifacts
    table = open_table(storage, name, metric=metric, takeover_seconds=takeover_seconds, tell=tell)
    objects = open_objects(folder, artifacts, tell)
    store = RunStore(folder, storage, table, objects, None, artifacts=artifacts or "")
    refresh_info(store)
    if store.info is None:
        others = run_names(table)
        beside = f"; others there: {', '.join(others[:5])}" if others else ""
        tell(f"run {name} is new in {studies.where(storage)}{beside}")
    else:
        tell(f"run {name} of {studies.where(storage)} goes on; a worker that is gone loses its point {table.takeover}")
    return store


def refresh_info(store: RunStore) -> None:
    """See whether another worker has written down what a run on a database server is about.

    Raises:
        InputError: It has, but where this worker cannot read it.
    """
    store.refresh()
    try:
        store.info = store.noted(INFO, RunInfo)
    except InputError as error:
        raise InputError(
            f"objects of the run must be readable by all its workers, got {error}; give --artifacts with a folder that "
            "all of them see, or s3://bucket/prefix"
        ) from error


def study_name(folder: Path, storage: str | None) -> str:
    """``frontier`` in the run's own file; in a file shared with other runs the folder is part of the name."""
    if storage is None:
        return studies.STUDY
    return f"{studies.STUDY}-{sha256(str(folder.resolve()).encode())[:12]}"


def shared_name(fixed: Mapping[str, Any], run_name: str | None) -> str:
    """Name of the study of a run on a database server: the one given, or one that equal settings make.

    Digests of weights, calibration images and evaluation data take no part: a worker whose data differ is refused
    when it joins, and does not begin a run of its own unnoticed.

    Args:
        fixed: What a run must repeat, see `slimbit.records.run.FIXED`.
        run_name: A name, where there is one.
    """
    if run_name:
        return f"{studies.STUDY}-{run_name}"
    settings = {name: value for name, value in fixed.items() if name in SETTINGS}
    short = sha256(canonical(settings))[:12]
    return f"{studies.STUDY}-{fixed['network']}-{short}"


SETTINGS = (
    "network", "metric", "baselines", "signal_epochs", "calibration_images", "evaluate_images", "seed", "likelihood",
    "quant", "keep_ratios", "prune",
)  # fmt: skip
"""What makes a run another one; the rest must be equal on all machines."""


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
def waiting_claim(table: RunTable, name: str, what: str, waiting: Callable[[], None]) -> Iterator[Claim]:
    """Wait for a task of a run; ``waiting`` is called while another worker does it."""
    pause = FIRST_WAIT
    while True:
        with table.claim(name, what) as claim:
            if claim is not None:
                yield claim
                return
        waiting()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)


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
