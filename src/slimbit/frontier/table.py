"""The table that the workers of a run share: what is finished, what is decided, who works on what.

Promises of every `RunTable`, and what keeps them:

* A point is worked on by one worker at a time, and of each point one result is kept: a worker adds it under a claim,
  and a worker that has lost its claim cannot.
* A finished point is there completely or not at all.
* What is decided (the plans of a sweep) is decided once: the first that is noted under a name stays.
* A claim ends with its worker, however that ends, at once or after a time that `RunTable.takeover` says.
"""

import contextlib
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from slimbit import __version__
from slimbit.frontier import study as studies
from slimbit.records.codec import pretty
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.files import not_written, read_json
from slimbit.records.point import FrontierPoint, PlannedPoint

LARGEST_HOLDER = 1 << 12


class ClaimLost(SlimbitError):  # noqa: N818 - what happened, not what is wrong
    """Another worker has taken over what this one was at: its result is not kept."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A worker and what it has claimed.

    Attributes:
        worker: Its machine and process.
        what: A point, or a task that only one worker does.
        since: When it began by the clock of its machine, UTC.
        slimbit: Its version.
    """

    worker: str
    what: str
    since: str
    slimbit: str

    def __str__(self) -> str:
        return f"{self.what}: {self.worker} since {self.since}"


class Claim:
    """What this worker may work on.

    Attributes:
        name: Of the point or the task.
        trial: What stands for it in a study; None where a lock does.
        is_finished: Whether its result was kept.
    """

    def __init__(self, name: str, trial: studies.TrialRow | None = None) -> None:
        self.name, self.trial, self.is_finished = name, trial, False


class RunTable(ABC):
    """What the workers of a run share besides its objects."""

    takeover: str
    """When somebody else may have what a worker that is gone had claimed, as the end of a sentence."""

    @abstractmethod
    def finished(self) -> Sequence[studies.TrialRow]:
        """The trials of finished points, in order of numbers, as they are now.

        Raises:
            InputError: The study is damaged.
        """

    @abstractmethod
    def notes(self) -> dict[str, Any]:
        """Digest of every decision by its name, as they are now."""

    @abstractmethod
    def note(self, name: str, digest: str, *, grows: bool = False) -> None:
        """Note a decision; where there is one of that name already, it stays.

        Args:
            name: Of the decision.
            digest: Of the object that holds it.
            grows: Whether it is a list that gets longer: then the last that was noted counts.
        """

    @abstractmethod
    def claim(self, name: str, what: str = "") -> AbstractContextManager[Claim | None]:
        """Claim a task for the time of a block; None where another worker has it.

        Args:
            name: Of the task.
            what: The same for people.
        """

    @abstractmethod
    def claim_point(self, planned: PlannedPoint) -> AbstractContextManager[Claim | None]:
        """Claim a point for the time of a block; None where another worker has it."""

    @abstractmethod
    def add(self, point: FrontierPoint, claim: Claim | None, metric: str) -> FrontierPoint:
        """Keep a finished point; returns it with its number.

        Args:
            point: The point.
            claim: This worker's claim; None where nobody else is at work.
            metric: Cost metric of the run.

        Raises:
            ClaimLost: Another worker has taken it over.
            StoreError: It could not be written.
        """

    @abstractmethod
    def holders(self) -> tuple[Holder, ...]:
        """Who works on what."""

    def next_points(self, left: Sequence[PlannedPoint]) -> Sequence[PlannedPoint]:
        """In which order to try points that are left."""
        return left


class FolderTable(RunTable):
    """A study in a file and locks beside it, for processes that see one folder.

    Who works on what is decided by locks that the system releases when a process ends, however it ends: no clock and
    no lease takes part. Optuna's queue is not used here: on SQLite it reads that a trial is waiting and marks it as
    running in two steps, so that two processes may get the same one.

    Attributes:
        folder: The run's folder.
        study: The study; None before `slimbit.frontier.store` has opened it.
    """

    takeover = "at once when its process ends"

    def __init__(self, folder: Path, study: studies.RunStudy | None = None) -> None:
        self.folder, self.study = folder, study

    def finished(self) -> list[studies.TrialRow]:
        """The trials of finished points; here there are no others."""
        return self._opened.rows()

    def notes(self) -> dict[str, Any]:
        """Digest of every decision by its name."""
        return self._opened.notes()

    def note(self, name: str, digest: str, *, grows: bool = False) -> None:  # noqa: ARG002 - under a lock all may change
        """Note a decision, under the lock that this process holds: nobody else is at it."""
        self._opened.set_note(name, digest)

    @contextmanager
    def claim(self, name: str, what: str = "") -> Iterator[Claim | None]:
        """Claim a task by the lock of its name."""
        path = self.folder / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(path, timeout=0).acquire()
        except Timeout:
            yield None
            return
        except OSError as error:
            raise not_written(path, error) from error
        holder = path.with_suffix(".holder")
        with held:
            with contextlib.suppress(OSError):  # it is for people only
                holder.write_text(pretty(this_worker(what or name), indent=None))
            try:
                yield Claim(name)
            finally:
                with contextlib.suppress(OSError):
                    holder.unlink()

    def claim_point(self, planned: PlannedPoint) -> AbstractContextManager[Claim | None]:
        """Claim a point by the lock of its name."""
        return self.claim(planned.key, f"point {planned.key} ({planned.label})")

    def add(self, point: FrontierPoint, claim: Claim | None, metric: str) -> FrontierPoint:  # noqa: ARG002 - the lock is
        """Keep a finished point as a trial, in one transaction."""
        return studies.add_point(self._opened, point, metric=metric)

    def holders(self) -> tuple[Holder, ...]:
        """Who holds a lock, as the files beside the locks say; those of processes that were killed do not count."""
        found = []
        for path in sorted((self.folder / "locks").glob("*.holder")):
            try:
                with FileLock(path.with_suffix(".lock"), timeout=0):
                    continue
            except Timeout:
                with contextlib.suppress(InputError, ValueError):
                    found.append(holder_of(read_json(path, "holder", limit=LARGEST_HOLDER)))
            except OSError:
                continue
        return tuple(found)

    @property
    def _opened(self) -> studies.RunStudy:
        assert self.study is not None, "a study is opened under the lock that makes it"
        return self.study


@cache
def worker_name() -> str:
    """This machine and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def this_worker(what: str) -> dict[str, str]:
    """What a claim says about its worker."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"worker": worker_name(), "what": what, "since": now, "slimbit": __version__}


def holder_of(said: Any) -> Holder:
    """The holder that a claim names."""
    known = said if isinstance(said, dict) else {}
    fields = ("worker", "what", "since", "slimbit")
    return Holder(**{name: str(known.get(name, "unknown"))[:200] for name in fields})
