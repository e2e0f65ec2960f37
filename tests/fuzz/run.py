"""Damaged and hostile files against everything that reads files: ``make fuzz``, or ``python tests/fuzz/run.py --help``.

Every case is a copy of a small folder in which one file, rarely two, is damaged, and one call that reads it, in a
process of its own (`isolated`). It must come to an end or refuse in one sentence: no traceback, no end beyond 20 s, not
more than 2 GB, no code of a file run, nothing written elsewhere. A case follows from its seed and number alone.
"""

import argparse
import gc
import importlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from isolated import BAIT, Ending, run_isolated
from material import KINDS, call, damage, with_bait, words_of

WARM = (
    "onnx.inliner", "onnx.shape_inference", "onnxruntime", "optuna", "optuna.storages", "PIL.Image", "PIL.BmpImagePlugin",
    "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "plotly.offline", "safetensors.torch", "sklearn.datasets", "sympy",
    "torch.export", "torch._dynamo", "torch.distributed.fsdp", "torch.fx.experimental.symbolic_shapes", "torch.onnx",
    "lightning_fabric", "torchmetrics", "matplotlib",
    "rich._emoji_codes", "slimbit.cli", "slimbit.compress.prune", "slimbit.compress.load", "slimbit.exchange.export",
    "slimbit.exchange.latency", "slimbit.exchange.verify", "slimbit.frontier.trace", "slimbit.report.page",
    "slimbit.report.signal_page", "slimbit.survey.exported", "slimbit.survey.onnx_file", "slimbit.survey.onnx_layers",
    "slimbit.survey.safetensors_file", "slimbit.training.run", "slimbit.zoo.data.cifar", "slimbit.zoo.data.folder",
    "slimbit.zoo.data.npz", "slimbit.zoo.resnet_cifar", "slimbit.zoo.weights",
)  # fmt: skip
"""Modules that cases need; most of the time would go into importing them."""


def warm() -> None:
    """Import once what every case needs; nothing is computed, so that the process can be forked."""
    for name in WARM:
        importlib.import_module(name)
    import onnxruntime
    import torch

    torch.set_num_threads(1)
    platform.processor()  # asks another program, once
    onnxruntime.set_default_logger_severity(4)
    gc.collect()
    gc.freeze()  # a child that looks through what is here would copy it


def make(kind: str, folder: Path) -> Path:
    """The undamaged folder of a kind."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    ending = run_isolated(lambda: KINDS[kind].make(folder), folder, seconds=600)
    if ending.fault or ending.is_refused:
        raise SystemExit(f"the folder of {kind} could not be made: {ending.fault}\n{ending.detail}")
    for words in KINDS[kind].calls if KINDS[kind].files else ():
        copy = folder.with_name(f"{kind}-read")
        shutil.copytree(folder, copy)
        ending = run_isolated(lambda words=words: call(words), copy, allow_code=True, seconds=600)
        shutil.rmtree(copy)
        is_consent = words == "cost net.pt2"
        if ending.fault or ending.is_refused is not is_consent:
            shutil.rmtree(folder)
            raise SystemExit(f"the undamaged folder of {kind} could not be read: {words}\n{ending.detail}")
    return with_bait(folder)


def case(kind: str, seed: int, number: int, intact: Path, folder: Path) -> tuple[str, Ending]:
    """One case: what was done, and how it ended."""
    rng = Random(f"{seed}/{kind}/{number}")
    shutil.copytree(intact, folder)
    said, words = damage(rng, KINDS[kind], folder), words_of(rng, KINDS[kind])
    ending = run_isolated(
        lambda: call(words), folder, allow_code="--allow-code" in words or BAIT in words
    )  # typed: consent
    return f"{words}   [{said}]", ending


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=4000, help="of all kinds together")
    parser.add_argument("--begin", type=int, default=0, help="leave out so many of them, which were run before")
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so long")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; repeatable")
    parser.add_argument("--only", type=int, help="only the case of this number, with all that it says")
    parser.add_argument("--keep", type=Path, help="keep the folder of the first case of every fault here")
    parser.add_argument("--material", type=Path, help="keep the undamaged folders here, to make them once only")
    given = parser.parse_args()
    warm()
    chosen = given.kind or list(KINDS)
    shares = sum(KINDS[kind].share for kind in chosen)
    counts = {kind: max(1, round(given.cases * KINDS[kind].share / shares)) for kind in chosen}
    with tempfile.TemporaryDirectory(prefix="slimbit-fuzz-") as name:
        place = Path(name)
        os.environ |= {"XDG_CACHE_HOME": str(place / "cache"), "XDG_CONFIG_HOME": str(place / "config")}
        material = (given.material or place / "intact").resolve()
        intact = {kind: make(kind, material / kind) for kind in chosen}
        if given.only is not None:
            said, ending = case(chosen[0], given.seed, given.only, intact[chosen[0]], place / "case")
            print(
                said,
                ending.detail,
                ending.fault or "no fault",
                f"{ending.seconds:.1f} s, {ending.bytes >> 20} MB",
                sep="\n",
            )
            if given.keep:
                shutil.copytree(place / "case", given.keep, symlinks=True)
            return bool(ending.fault)
        return _all(given, counts, intact, place)


def _all(given: argparse.Namespace, counts: dict[str, int], intact: dict[str, Path], place: Path) -> int:
    start, faults = time.monotonic(), defaultdict[str, list[str]](list)
    table, slowest, largest = defaultdict[str, Counter[str]](Counter), (0.0, ""), (0, "")
    todo = [(number, kind) for kind, count in counts.items() for number in range(count)]
    todo.sort(key=lambda pair: pair[0] / counts[pair[1]])  # all kinds in turn, whenever it is stopped
    for done, (number, kind) in enumerate(todo[given.begin :], given.begin):
        if done > given.begin and done % 500 == 0:
            print(f"{done} of {len(todo)} cases, {time.monotonic() - start:.0f} s", flush=True)
        if time.monotonic() - start > given.seconds:
            print(f"stopped after {done} of {len(todo)} cases")
            break
        folder = place / "case"
        said, ending = case(kind, given.seed, number, intact[kind], folder)
        slowest = max(slowest, (ending.seconds, f"{kind} {number}"))
        largest = max(largest, (ending.bytes, f"{kind} {number}"))
        table[kind]["fault" if ending.fault else "refused" if ending.is_refused else "read"] += 1
        if ending.fault:
            if given.keep and ending.fault not in faults:
                shutil.copytree(folder, given.keep / f"{kind}-{given.seed}-{number}", symlinks=True)
            faults[ending.fault].append(f"--kind {kind} --seed {given.seed} --only {number}   {said}")
            if len(faults[ending.fault]) == 1:
                print(f"\n{ending.fault}\n  {faults[ending.fault][0]}\n{ending.detail[-1500:]}", flush=True)
        shutil.rmtree(folder)
    print(f"\n{'kind':12}{'read':>8}{'refused':>9}{'faults':>8}")
    for kind, found in table.items():
        print(f"{kind:12}{found['read']:8}{found['refused']:9}{found['fault']:8}")
    total = sum(sum(found.values()) for found in table.values())
    print(f"\n{total} files of seed {given.seed} in {time.monotonic() - start:.0f} s; slowest {slowest[0]:.1f} s ({slowest[1]}), "
          f"largest {largest[0] >> 20} MB ({largest[1]}); {sum(map(len, faults.values()))} faults of {len(faults)} kinds")  # fmt: skip
    for fault, cases in sorted(faults.items(), key=lambda pair: -len(pair[1])):
        print(f"  {len(cases):4} {fault}: {cases[0]}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
