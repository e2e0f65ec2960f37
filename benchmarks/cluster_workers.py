"""How much faster a run gets with 1 to 256 workers: a simulation on measured stage times.

    python benchmarks/cluster_workers.py [--figure docs/how-to/cluster-workers.png]

Workers begin together. One of them scores the float network, and for each keep ratio one prunes and tunes, measures the
sensitivity and finds the range of prices, while others wait or work on another keep ratio; points are independent, but
those that refine a curve are decided on when its even sweep is finished. That is what `slimbit frontier` does. Stage
times are of ResNet-20 on CIFAR-10 (10,000 test images, 2 threads), from the run of benchmarks/frontier_resnet20.py in
benchmarks/RESULTS.md: 270 s for 16 points and 7 baselines, 154 s of them 23 evaluations, a point's compression 0.67 of
one evaluation. The simulation of one worker has to give that run's time, which is asserted.
"""

import argparse
import heapq
from dataclasses import dataclass
from pathlib import Path

EVALUATION, COMPRESSION, BASELINE = 154 / 23, 0.67 * 154 / 23, 0.3
RUN_SECONDS = 270.0
BEGIN = 2 * EVALUATION
"""The float network is scored twice where ``evaluate`` does not say which images it uses; here it does not."""
PREPARE = RUN_SECONDS - BEGIN - 16 * (COMPRESSION + EVALUATION) - 7 * (BASELINE + EVALUATION)
"""Sensitivity and range of prices: the rest of that run."""
OVERHEAD = 0.05
"""Of a point, on a database server: the aim of benchmarks/cluster_overhead.py."""
WORKERS = tuple(2**power for power in range(9))


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        name: For the figure.
        points: Of each network.
        networks: How many keep ratios.
        tuning: Seconds to prune and tune one of them; the first is the network as it was given.
    """

    name: str
    points: int
    networks: int = 1
    tuning: float = 0.0


CASES = (
    Case("16 points", 16),
    Case("100 points", 100),
    Case("4 keep ratios, 16 points each, 20 min of tuning", 16, networks=4, tuning=1200.0),
)


def simulated(case: Case, workers: int) -> float:
    """Wall-clock seconds of a run.

    A worker that is free takes the first task of the first network that may begin; there are no other rules.
    """
    refined = case.points // 4
    swept = case.points - refined
    point, baseline = COMPRESSION + EVALUATION + OVERHEAD, BASELINE + EVALUATION + OVERHEAD
    free = [0.0] * workers
    unfinished, last, end = [swept] * case.networks, [0.0] * case.networks, 0.0
    tasks = [
        (BEGIN, number, 0, "prepare", PREPARE + (case.tuning if number else 0.0)) for number in range(case.networks)
    ]
    heapq.heapify(tasks)
    while tasks:
        begin, network, _, kind, seconds = heapq.heappop(tasks)
        done = max(heapq.heappop(free), begin) + seconds
        heapq.heappush(free, done)
        end = max(end, done)
        if kind == "prepare":
            for _ in range(swept):
                heapq.heappush(tasks, (done, network, 1, "sweep", point))
            for _ in range(7):
                heapq.heappush(tasks, (done, network, 2, "baseline", baseline))
        elif kind == "sweep":
            unfinished[network] -= 1
            last[network] = max(last[network], done)
            if not unfinished[network]:
                for _ in range(refined):
                    heapq.heappush(tasks, (last[network], network, 1, "refine", point))
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, default=None)
    arguments = parser.parse_args()
    alone = simulated(CASES[0], 1)
    assert abs(alone - RUN_SECONDS) < 23 * OVERHEAD + 1e-6, alone
    print("workers | " + " | ".join(f"{case.name}: seconds (times faster)" for case in CASES))
    times = {case: [simulated(case, workers) for workers in WORKERS] for case in CASES}
    for column, workers in enumerate(WORKERS):
        cells = [f"{times[case][column]:.0f} ({times[case][0] / times[case][column]:.1f}x)" for case in CASES]
        print(f"{workers} | " + " | ".join(cells))
    if arguments.figure is not None:
        draw(times, arguments.figure)


def draw(times: dict[Case, list[float]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for case, seconds in times.items():
        axes.plot(WORKERS, [seconds[0] / value for value in seconds], marker="o", label=case.name)
    axes.plot(WORKERS, WORKERS, color="0.6", linestyle=":", label="in proportion")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="times faster than one worker", ylim=(0.9, 40))
    axes.set_xticks(WORKERS, [str(count) for count in WORKERS])
    axes.set_yticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
