"""What a run reports while it is under way; printing is left to the caller."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from slimbit.records.point import FrontierPoint

Stage = Literal[
    "float accuracy", "prune", "sensitivity", "range", "start", "point", "refine", "learn", "waiting", "note", "done"
]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One message.

    Attributes:
        stage: "float accuracy", "prune" (a network is pruned and tuned, one message per epoch), "sensitivity" and
            "range" prepare; "start" comes when what is left is known, and when that has changed; then "point" before
            and after each point (``point`` is None before), "refine" when places for more points were chosen,
            "learn" while a network learns further points (a message per epoch and point), "waiting" while other
            processes hold what is left, "note" for what a reader of the results should know, and "done".
        done: Points finished, by any process, in this or an earlier start.
        total: Points in all.
        seconds_left: Estimate, without trainings that are still to come; None before a network was compressed.
        trainings_left: Trainings to come: of pruned networks, and of learned points.
        point: The finished point.
        points: Every point that is finished, by any process, in this or an earlier start.
        message: For people.
    """

    stage: Stage
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    trainings_left: int = 0
    point: FrontierPoint | None = None
    points: tuple[FrontierPoint, ...] = ()
    message: str = ""


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Listen to nothing."""
