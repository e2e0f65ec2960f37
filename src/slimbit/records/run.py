"""`run.json`: what a run is about, written once, when its float network has been scored."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from slimbit.records.codec import json_file, plain, record, with_schema
from slimbit.records.config import Baselines, PruneConfig, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.origin import NetworkOrigin

SCHEMA = 2
RUN_FILE = "run.json"


@record
class RunInfo:
    """What a run is about (docs/reference/run-folder.md).

    Attributes:
        network: Name of the network.
        network_digest: SHA-256 of its weights and buffers.
        origin: Where network and data came from.
        metric: Cost that the sweep is for: a metric, or ``hardware:`` and the name of a machine.
        machine: What the machine's file says, as JSON; of a built-in one or a function its source; "" for a metric.
        points: Points asked for when it began, baselines not counted; more may have been added.
        baselines: What the run is compared with.
        signal_epochs: Training epochs whose signal-to-noise ratio gave steps.
        signal_digest: SHA-256 of their records, "" where there are none.
        calibration_images: Number of unlabelled images.
        calibration_digest: SHA-256 of them.
        evaluate_images: Number of images that accuracy is measured on; None where ``evaluate`` does not say.
        evaluate_digest: SHA-256 of them and their labels, "" where ``evaluate`` does not say.
        classes: Number of classes; None where ``evaluate`` does not say.
        scoring: What ``evaluate`` says that it measures, "" where it does not.
        score_name: Name of the accuracy in tables and on axes.
        seed: Seed of sampled labels and positions.
        likelihood: What the sensitivity samples labels from.
        quant: How networks are quantized.
        keep_ratios: Shares of the filters that were kept, each a network of its own; 1 = the network as it was given.
        prune: How those were made; None where there are none.
        training: Data and settings of their training, for people; "" where there was none.
        float_accuracy: Accuracy before compression.
        float_low: Lower end of its 95 % confidence interval, where the number of images is known.
        float_high: Upper end.
        float_hits: Which images were right, as in `slimbit.Accuracy`; "" where that is not known.
        evaluate_seconds: Wall time of that one evaluation.
        study: Name of the Optuna study.
        artifacts: Folder or address of the run's objects, "" where they are in the run's folder.
        versions: Of slimbit, torch, optuna and Python when the run began.
    """

    network: str
    network_digest: str
    origin: NetworkOrigin = NetworkOrigin()
    metric: str
    machine: str = ""
    points: int
    baselines: Baselines
    signal_epochs: tuple[int, ...] = ()
    signal_digest: str = ""
    calibration_images: int
    calibration_digest: str
    evaluate_images: int | None = None
    evaluate_digest: str = ""
    classes: int | None = None
    scoring: str = ""
    score_name: str = "accuracy"
    seed: int
    likelihood: str = "categorical"
    quant: QuantConfig = QuantConfig()
    keep_ratios: tuple[float, ...] = (1.0,)
    prune: PruneConfig | None = None
    training: str = ""
    float_accuracy: float
    float_low: float | None = None
    float_high: float | None = None
    float_hits: str = ""
    evaluate_seconds: float
    study: str
    artifacts: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The text of ``run.json``."""
        return json_file(with_schema(self, SCHEMA))


FIXED = (
    "network_digest", "network", "metric", "machine", "score_name", "baselines", "signal_epochs",
    "signal_digest", "calibration_images", "calibration_digest", "evaluate_images", "evaluate_digest", "seed",
    "likelihood", "quant", "keep_ratios", "prune", "training",
)  # fmt: skip
"""Settings that a continued run must repeat, in the order in which a difference is reported."""

SPOKEN = {
    "network_digest": "network's weights",
    "calibration_digest": "calibration images' content",
    "score_name": "name of the score",
    "evaluate_digest": "evaluation data (images, labels, normalization)",
    "signal_epochs": "training epochs (signal)",
    "signal_digest": "training signal's content",
    "quant": "settings of quantization",
    "prune": "settings of pruning",
    "training": "training of pruned networks",
}


def check_same(stored: RunInfo, asked: Mapping[str, Any], run: object, remedy: str = "--out") -> None:
    """Refuse to continue a run with another setting.

    Args:
        stored: The run.
        asked: Settings of this call.
        run: What to call the run.
        remedy: Option that makes another run.

    Raises:
        InputError: One sentence that names the setting and both values.
    """
    for name in FIXED:
        if name == "evaluate_digest" and not stored.evaluate_digest:
            continue  # nothing to compare with: `cautions` says so
        before, now = plain(getattr(stored, name)), plain(asked.get(name, getattr(stored, name)))
        if before == now:
            continue
        what = SPOKEN.get(name, name.replace("_", " "))
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
            what, before, now = f"{key} ({what})", before.get(key), now.get(key)
        renamed = f", or metric_name={before!r} where only the name is new" if name == "score_name" else ""
        raise InputError(
            f"{what} of run {run} must be {_shown(before)} as when it began, "
            f"got {_shown(now)}: give another {remedy} for a new run{renamed}"
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


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else text
