"""The page of a training run: signal and noise by epoch and layer, as one HTML file that needs no network."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimbit.records.files import write_whole
from slimbit.records.terminal import quantity
from slimbit.records.training_run import TrainingRun
from slimbit.report.html import composed
from slimbit.report.signal_figures import signal_figures, signal_templates
from slimbit.report.signal_frames import QUOTED, TrainingData, training_data


def write_signal_page(run: TrainingRun, out: str | Path | None = None) -> Path:
    """Write the page of a training run.

    Args:
        run: From `slimbit.records.training_run.read_training_run`.
        out: File to write; default ``signal.html`` beside the records.

    Returns:
        The file.

    Raises:
        StoreError: The file cannot be written; an older one stays.
    """
    folder = run.path if run.path.is_dir() else run.path.parent
    file = Path(out) if out is not None else folder / "signal.html"
    write_whole(file, signal_page(training_data(run)).encode())
    return file


def signal_page(data: TrainingData) -> str:
    """The HTML text; equal data give equal text. See `slimbit.report.html.composed` for hostile names."""
    title = f"{data.network or data.run}: signal and noise in training"
    return composed("signal", title=title, data=signal_contents(data))


def signal_contents(data: TrainingData) -> dict[str, Any]:
    """Everything that the page's script draws."""
    return {
        "report": asdict(data),
        "columns": [name for name, _ in TABLE],
        "rows": table_rows(data),
        "figures": signal_figures(data),
        "templates": {theme: signal_templates(data, theme) for theme in ("light", "dark")},
    }


TABLE = (
    ("epoch", "epoch"),
    ("learning rate", "learning_rate"),
    ("loss", "loss"),
    ("accuracy", "accuracy"),
    ("S/N", "signal_to_noise"),
    ("closed form", "predicted_signal_to_noise"),
    ("ESN_a", "esn_analog_estimate"),
    ("corrected", "esn_analog_estimate_plus"),
)
"""Headings and fields of the table, dead filters not among them."""


def table_rows(data: TrainingData) -> list[list[str]]:
    """The epochs for people, one text per column of `TABLE` and one for the dead filters at `QUOTED`."""
    place = data.thresholds.index(QUOTED)
    return [
        [_text(name, getattr(epoch, name)) for _, name in TABLE] + [f"{epoch.dead[place]}"] for epoch in data.epochs
    ]


def _text(name: str, value: float | None) -> str:
    if value is None:
        return quantity(None)
    if name == "epoch":
        return f"{value}"
    if name in ("accuracy", "loss"):
        return f"{value:.2f}" if name == "accuracy" else f"{value:.3f}"
    return f"{value:.3g}" if name == "learning_rate" else quantity(value)
