"""Read a run: its settings, its points, and the objects behind them. Without torch; nothing is ever written."""

from dataclasses import dataclass, field
from pathlib import Path

import optuna

from slimbit.frontier import study as studies
from slimbit.frontier.info import RunInfo, read_info
from slimbit.frontier.objects import Kind, read_object
from slimbit.records.errors import InputError
from slimbit.records.point import Frontier, FrontierPoint


@dataclass(frozen=True)
class Run:
    """A run opened for reading; make it with `open_run`.

    What it promises: every point it lists was measured completely; of each point there is one; every object it
    returns has the hash it was asked for. Other processes may go on working on the run meanwhile.

    Attributes:
        path: Its folder.
        info: Its settings and the float network's accuracy.
    """

    path: Path
    info: RunInfo
    _study: optuna.Study = field(repr=False)
    _url: str = field(repr=False)

    def points(self) -> tuple[FrontierPoint, ...]:
        """Every point finished so far, failed ones included, in order of numbers.

        Raises:
            InputError: The study is damaged.
        """
        return studies.stored_points(self._study, self._url)

    def frontier(self) -> Frontier:
        """All points with what they have in common."""
        info = self.info
        return Frontier(str(self.path), info.network, info.metric, info.float_accuracy, self.points())

    def read_object(self, digest: str, kind: Kind) -> bytes:
        """Content of an object, verified by its hash.

        Args:
            digest: From `FrontierPoint.objects`.
            kind: "json" or "safetensors".

        Raises:
            InputError: The file is missing or damaged; it is named.
        """
        return read_object(self.path, digest, kind)


def open_run(path: str | Path, *, storage: str | None = None) -> Run:
    """Open a run for reading.

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
    return Run(folder, info, studies.load_study(url, info.study), url)
