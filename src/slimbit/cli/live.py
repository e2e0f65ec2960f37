"""A run under way in the terminal: a table that grows, a bar, and the time left; plain lines where there is none."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from slimbit.cli.points import between
from slimbit.records.point import FrontierPoint
from slimbit.records.terminal import UNITS, quantity, score_text, shown
from slimbit.records.text import printable

if TYPE_CHECKING:
    from slimbit.frontier.progress import Progress

COLUMNS = ("accuracy", "95 %", "cost", "point", "seconds")
SPOKEN = ("float accuracy", "sensitivity", "range", "refine", "waiting")
"""Stages whose first message is printed where there is no terminal."""
ROOMY = 70
SHOWN = 24
"""Rows that fit an ordinary terminal: a long run shows its latest points."""


class Screen:
    """Shows every `slimbit.frontier.progress.Progress` it is called with; use it as a context.

    Attributes:
        console: Where to.
        metric: Cost metric to show.
        folder: The run, named when it is interrupted.
        score_name: What is called accuracy elsewhere.
    """

    def __init__(self, console: Console, *, metric: str, folder: str, score_name: str = "accuracy") -> None:
        self.console, self.metric, self.folder, self.score_name = console, metric, folder, shown(score_name)
        self._points: tuple[FrontierPoint, ...] = ()
        self._state = (0, 0)
        self._said = ""
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
            console=console, auto_refresh=False,
        )  # fmt: skip
        self._task: TaskID = self._bars.add_task("starting", total=None, left="")
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done, total = self._state
            self._line(f"stopped with {done} of {total} points done in {self.folder}; the same command continues")

    def __call__(self, progress: "Progress") -> None:
        """Show one message."""
        self._state = (progress.done, progress.total)
        self._points = progress.points or self._points
        left = _time_left(progress.seconds_left, progress.trainings_left)
        if self._live is None:
            self._plain(progress, left)
            return
        if progress.stage == "start":
            self._line(_outlook(progress.message, left))
        elif progress.stage == "note":
            self._line(progress.message)
        text = shown(progress.message) or progress.stage
        self._bars.update(
            self._task, description=text, completed=progress.done, total=max(progress.total, 1), left=left
        )
        self._live.update(Group(self._table(), self._bars), refresh=True)

    def _plain(self, progress: "Progress", left: str) -> None:
        """One line per finished point and per stage, for logs."""
        if progress.point is not None:
            point = progress.point
            result = f"failed: {point.error}" if point.state == "failed" else f"{self.score_name} {self._row(point)[0]}"
            cost = "" if point.state == "failed" else f", {self.metric} {self._row(point)[2]}"
            self._line(f"{progress.done}/{progress.total} {point.label}: {result}{cost}, {left}")
        elif progress.stage == "start":
            self._line(_outlook(progress.message, left))
        elif progress.stage in ("prune", "learn", "note") or (progress.stage in SPOKEN and self._is_new(progress)):
            self._line(progress.message)

    def _is_new(self, progress: "Progress") -> bool:
        """Whether a stage was not spoken of yet; its counter alone is no news."""
        said, self._said = self._said, progress.stage
        return progress.stage != said

    def _line(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        unit = UNITS.get(self.metric)
        heads = {"cost": f"{self.metric} ({unit})" if unit else self.metric, "accuracy": self.score_name}
        table = Table(*(Column(heads.get(name, name), no_wrap=name != "point") for name in self._columns))
        for point in self._points[-SHOWN:]:
            table.add_row(
                *(self._row(point)[COLUMNS.index(name)] for name in self._columns),
                style="red" if point.state == "failed" else "dim" if point.baseline else "",
            )
        return table

    @property
    def _columns(self) -> Sequence[str]:
        """The interval and the time are left out where there is little room."""
        return COLUMNS if self.console.width >= ROOMY else ("accuracy", "cost", "point")

    def _row(self, point: FrontierPoint) -> tuple[str, ...]:
        scale = max((abs(one.accuracy) for one in self._points if one.accuracy is not None), default=0.0)
        accuracy = "failed" if point.accuracy is None else score_text(point.accuracy, scale)
        seconds = f"{sum(point.seconds.values()):.1f}"
        cost = quantity(point.costs.get(self.metric))
        return accuracy, between(point), cost, shown(point.label), seconds


def _outlook(message: str, left: str) -> str:
    return f"{message}, about {left}" if left else message


def _time_left(seconds: float | None, trainings: int) -> str:
    """Time of the points that are left, and what it does not hold."""
    trained = f"{trainings} training{'' if trainings == 1 else 's'}" if trainings else ""
    parts = ["" if seconds is None else duration(seconds), trained]
    known = " and ".join(filter(None, parts))
    return f"{known} left" if known else ""


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(4.2), duration(75), duration(7300)
    ('4 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
