"""What the experiments share: run a command of `slimbit`, smooth a curve, write and read tables."""

import csv
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def train(out: Path, *options: str) -> Path:
    """Run ``slimbit train ... --out OUT``; a finished run is left as it is."""
    if not (out / "model.safetensors").exists():
        slimbit_command("train", *options, out=out)
    return out


def slimbit_command(name: str, *options: str, out: Path) -> Path:
    """Run ``slimbit NAME ... --out OUT``, which goes on where it was stopped."""
    command = [sys.executable, "-m", "slimbit", name, *options, "--out", str(out)]
    print("$ slimbit", *command[3:], flush=True)
    subprocess.run(command, check=True)
    return out


def results_folder(here: Path, out: Path, scale: str) -> Path:
    """Where results go: beside the experiment at the scale that its README tells of, else to the runs."""
    return here if scale == "quick" else out


def moving_average(values: Sequence[float], width: int = 3) -> list[float]:
    """Mean of each value and its neighbours, fewer at the ends."""
    half = width // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with the keys of the first row as columns."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    print(f"wrote {path}")
