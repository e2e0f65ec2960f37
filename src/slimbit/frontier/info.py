"""`run.json`: what a run is about, written once, when its float network has been scored."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slimbit.frontier.checked import checked
from slimbit.records.errors import InputError
from slimbit.records.files import write_whole

SCHEMA = 1
NAME = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run is about (docs/reference/run-folder.md).

    Attributes:
        network: Name of the network.
        network_digest: SHA-256 of its weights and buffers.
        reference: How the command line named it, "" from Python.
        weights: Weights file, "" where there was none.
        data: Data spec, "" from Python.
        input_shape: Shape of one input without the batch dimension; empty where it is no single tensor.
        normalization: ``mean`` and ``std`` per channel that the data were fed with; empty where unknown.
        metric: Cost metric of the sweep.
        points: Points asked for, baselines not counted.
        baselines: Whether the quantize-only baselines were asked for.
        signal_epochs: Training epochs whose signal-to-noise ratio gave steps.
        signal_digest: SHA-256 of their records, "" where there are none.
        calibration_images: Number of unlabelled images.
        calibration_digest: SHA-256 of them.
        evaluate_images: Number of images that accuracy is measured on; None where ``evaluate`` does not say.
        evaluate_digest: SHA-256 of these images and their labels; "" where ``evaluate`` gives none.
        classes: Number of classes; None where ``evaluate`` does not say.
        scoring: What ``evaluate`` says that it measures, "" where it does not.
        seed: Seed of sampled labels and positions.
        likelihood: What the sensitivity samples labels from.
        recipe: How plans are carried out, see `slimbit.records.plan.Recipe`.
        layout: Grid, granularity, skipped layers, weighting.
        widths: Shares of the filters that were kept, each a network of its own; 1 = the network as it was given.
        slimming: How the narrower ones were made, see `slimbit.frontier.slim.Slimming`; empty where there are none.
        float_accuracy: Accuracy before compression.
        float_low: Lower end of its 95 % confidence interval, where the number of images is known.
        float_high: Upper end.
        evaluate_seconds: Wall time of that one evaluation.
        study: Name of the Optuna study.
        versions: Of slimbit, torch, optuna and Python when the run began.
    """

    network: str
    network_digest: str
    reference: str = ""
    weights: str = ""
    data: str = ""
    input_shape: tuple[int, ...] = ()
    normalization: Mapping[str, Any] = field(default_factory=dict)
    metric: str
    points: int
    baselines: bool
    signal_epochs: tuple[int, ...] = ()
    signal_digest: str = ""
    calibration_images: int
    calibration_digest: str
    evaluate_images: int | None = None
    evaluate_digest: str = ""
    classes: int | None = None
    scoring: str = ""
    seed: int
    likelihood: str = "categorical"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    widths: tuple[float, ...] = (1.0,)
    slimming: Mapping[str, Any] = field(default_factory=dict)
    float_accuracy: float
    float_low: float | None = None
    float_high: float | None = None
    evaluate_seconds: float
    study: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``run.json``."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, allow_nan=False) + "\n"


FIXED = (
    "network_digest", "network", "data", "metric", "points", "baselines", "signal_epochs", "signal_digest",
    "calibration_images", "calibration_digest", "evaluate_images", "evaluate_digest", "seed", "likelihood",
    "recipe", "layout", "widths", "slimming",
)  # fmt: skip
"""Settings that a continued run must repeat, in the order in which a difference is reported."""

SPOKEN = {
    "network_digest": "network's weights",
    "calibration_digest": "calibration images' content",
    "evaluate_digest": "evaluation data (images, labels, normalization)",
    "signal_epochs": "training epochs (signal)",
    "signal_digest": "training signal's content",
    "slimming": "way of making narrower networks",
}


def write_info(folder: Path, info: RunInfo) -> None:
    """Write ``run.json``; raises `StoreError` when that is impossible."""
    write_whole(folder / NAME, info.to_json().encode())


def read_info(folder: Path) -> RunInfo:
    """Read ``run.json``.

    Raises:
        InputError: It is missing, damaged, or of another schema; file and field are named.
    """
    path = folder / NAME
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"run must be a folder with a {NAME}, got {folder}") from None
    except OSError as error:
        raise InputError(f"{path} must be readable, got {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} must be complete JSON, got {error}: the file is damaged") from error
    return _checked(data, path)


def _checked(data: Any, path: Path) -> RunInfo:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"{path} must have schema {SCHEMA}, got {found!r}")
    given = {key: value for key, value in data.items() if key != "schema"}
    for name in ("input_shape", "signal_epochs", "widths"):
        if isinstance(given.get(name), list):
            given[name] = tuple(given[name])
    return checked(RunInfo, given, str(path))


def check_same(stored: RunInfo, asked: Mapping[str, Any], folder: Path) -> None:
    """Refuse to continue a run with another setting.

    Raises:
        InputError: One sentence that names the setting and both values.
    """
    for name in FIXED:
        if name == "evaluate_digest" and not stored.evaluate_digest:
            continue  # nothing to compare with: `cautions` says so
        if name in asked and _plain(getattr(stored, name)) != _plain(asked[name]):
            what = SPOKEN.get(name, name.replace("_", " "))
            raise InputError(
                f"{what} of run {folder} must be {_shown(getattr(stored, name))} as when it began, "
                f"got {_shown(asked[name])}: give another --out for a new run"
            )


def cautions(stored: RunInfo, asked: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
    """What does not forbid to continue a run but should be known, as sentences.

    Args:
        stored: The run.
        asked: Settings of this call.
        versions: Of this process. Another one may change the last digits of results, and more where it brought a
            fault or its repair.
    """
    pairs = [(name, stored.versions.get(name, "unknown"), after) for name, after in versions.items()]
    changed = ", ".join(f"{name} {before} (now {after})" for name, before, after in pairs if before != after)
    found = [f"the run began with {changed}: points measured from now on may differ a little"] if changed else []
    if asked.get("evaluate_digest") and not stored.evaluate_digest:
        found.append("the run keeps no digest of its evaluation data: that they are still the same was not checked")
    return found


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    text = json.dumps(value) if isinstance(value, Mapping) else str(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
