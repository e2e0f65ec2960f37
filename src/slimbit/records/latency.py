"""How long files take in runtimes, without a runtime."""

from collections.abc import Sequence

from slimbit.records.codec import record


@record
class Latency:
    """Time of one pass of a file in a runtime.

    Attributes:
        file: Its name.
        runtime: Name and version.
        batch: Images per pass.
        threads: Threads of the runtime.
        passes: Number of passes timed.
        median_seconds: Of one pass.
        low_seconds: First quartile.
        high_seconds: Third quartile.
    """

    file: str
    runtime: str
    batch: int
    threads: int
    passes: int
    median_seconds: float
    low_seconds: float
    high_seconds: float

    @property
    def seconds_per_image(self) -> float:
        """Median of one pass over its images."""
        return self.median_seconds / self.batch


def speed_ratios(latencies: Sequence[Latency], baseline: str) -> dict[Latency, float]:
    """How many times faster than the baseline file each is, under the same runtime, batch and threads.

    Args:
        latencies: Measured in one run.
        baseline: Name of the file to compare with; its own ratio is 1.

    >>> one = Latency(file="a", runtime="r", batch=1, threads=1, passes=9, median_seconds=2.0, low_seconds=2.0,
    ...               high_seconds=2.0)
    >>> two = Latency(file="b", runtime="r", batch=1, threads=1, passes=9, median_seconds=1.0, low_seconds=1.0,
    ...               high_seconds=1.0)
    >>> list(speed_ratios([one, two], "a").values())
    [1.0, 2.0]
    """
    slow = {(x.runtime, x.batch, x.threads): x.median_seconds for x in latencies if x.file == baseline}
    return {x: slow[key] / x.median_seconds for x in latencies if (key := (x.runtime, x.batch, x.threads)) in slow}
