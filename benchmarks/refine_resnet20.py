"""What refinement gives and costs: a ResNet-20 at budgets of ESN_d, with and without, over choices of images.

    python benchmarks/refine_resnet20.py CIFAR10_DIR WEIGHTS [--passes 4] [--budgets 20e6 12e6] [--seeds 0 1 2]

Accuracy is that of all test images, where settings are not chosen; time is processor time, of the refined point over
that of the plain one. Results: experiments/learned_frontier/README.md.
"""

import argparse
import statistics
import time

import torch

import slimbit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("weights")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--budgets", type=float, nargs="+", default=[20e6, 12e6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = slimbit.open_data(f"cifar10:{given.data},normalize=cifar10")
    model, evaluate = slimbit.network("resnet20", weights=given.weights), data.evaluator()
    gains: dict[float, list[float]] = {budget: [] for budget in given.budgets}
    for seed in given.seeds:
        calibration = data.calibration(500, seed=seed)
        prepared = slimbit.prepare(model, torch.zeros(1, 3, 32, 32), calibration, seed=seed)
        slimbit.quantize(prepared, price=1e-8)  # whatever is measured once
        for budget in given.budgets:
            price = slimbit.quantize(prepared, budget={"esn_digital": budget}).plan.setting.value
            found = []
            for passes in (0, given.passes):
                begin = time.process_time()
                small = slimbit.quantize(prepared, price=price, config=slimbit.QuantConfig(refine=passes))
                found.append((time.process_time() - begin, float(evaluate(small.model)), small.cost))
            (plain, before, cost), (refined, after, noted) = found
            gains[budget].append(after - before)
            note = next(note for note in noted.notes if note.startswith("refined by"))
            print(
                f"seed {seed}, ESN_d {cost.total.esn_digital / 1e6:.1f}M: {before:.2f} -> {after:.2f} %, "
                f"{refined / plain:.1f} times the time of the point; {note}",
                flush=True,
            )
    for budget, found in gains.items():
        print(f"{budget / 1e6:g}M: mean gain {statistics.fmean(found):+.2f} points over {len(found)} choices of images")


if __name__ == "__main__":
    main()
