"""Trying again what fails now and then: a database that restarts, an artifact store that is overloaded."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

Result = TypeVar("Result")
PATIENCE_SECONDS = 600.0
"""How long a worker tries again before it gives up; a database restarts in seconds, a node is replaced in minutes."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0


def silent(_: str) -> None:
    """Tell nobody."""


@dataclass
class Patience:
    """Carries out actions on something that may be away for a while, with pauses that double up to ten seconds.

    The pauses are random within a factor of two, so that workers that lost a server together do not return together.

    Attributes:
        what: What is tried, as the subject of a sentence, without passwords.
        is_passing: Whether an error is likely to pass; any other one is raised at once.
        reason: An error in a few words, without passwords.
        tell: Called with a sentence when trying again begins, and when it has helped.
        seconds: How long to go on after the first failure.
        last_failure: When something failed last, by `time.monotonic`; None = never.
    """

    what: str
    is_passing: Callable[[Exception], bool]
    reason: Callable[[Exception], str]
    tell: Callable[[str], None] = silent
    seconds: float = PATIENCE_SECONDS
    last_failure: float | None = field(default=None, init=False)

    def __call__(self, action: Callable[[], Result]) -> Result:
        """The result of an action.

        Raises:
            Exception: What the action raised last, once it is not likely to pass or the time is over.

        >>> answers = iter([OSError("away"), None])
        >>> def action():
        ...     if (error := next(answers)) is not None:
        ...         raise error
        ...     return "there"
        >>> Patience("server", is_passing=lambda error: True, reason=str)(action)
        'there'
        """
        begun, pause = 0.0, FIRST_PAUSE
        while True:
            try:
                found = action()
            except Exception as error:
                now = self.last_failure = time.monotonic()
                begun = begun or now
                if not self.is_passing(error) or now - begun >= self.seconds:
                    raise
                if pause == FIRST_PAUSE:
                    length = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
                    self.tell(f"{self.what} did not answer ({self.reason(error)}): trying again for up to {length}")
                time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if begun:
                    self.tell(f"{self.what} answered again after {time.monotonic() - begun:.1f} s")
                return found
