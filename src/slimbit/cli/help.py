"""How the commands' help is laid out: options in panels, two examples each."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

from typer.models import OptionInfo

PANELS: dict[str, tuple[str, ...]] = {
    "Network and data": (
        "network", "weights", "data", "input_", "batch", "batch_size", "memory", "calibration_images", "augment",
        "select_images", "evaluate_images", "images", "score", "metric_name", "allow_code",
    ),
    "Compression": (
        "bits", "policy", "grid", "formula", "per", "refine", "activation_bits", "activation_codes", "hardware",
        "target", "format_", "as_float", "int4", "opset", "precise",
    ),
    "Sweep": (
        "metric", "points", "near", "widths", "baselines", "no_baselines", "signal", "signal_epochs", "budget",
        "min_accuracy", "max_drop", "pareto",
    ),
    "Pruning and tuning": (
        "keep", "by", "scope", "protect", "constants", "statistics", "tune_epochs", "tune_lr", "tune_config", "distill",
        "learn_epochs", "learn_points", "learn_lr", "learn_config",
        "admm_epochs", "admm_lr", "stages",
    ),
    "Training": (
        "recipe", "epochs", "lr", "weight_decay", "momentum", "schedule", "label_smoothing", "accumulate", "crop",
        "flip", "validation_images", "train_images", "precision", "compile_", "channels_last", "keep_weights",
    ),
    "Run": (
        "out", "config", "seed", "device", "storage", "artifacts", "run_name", "takeover_after", "workers",
        "retry_failed", "timeout", "threads", "runtime", "seconds",
    ),
    "Output": ("as_json", "as_csv", "layers", "layer", "versus", "export", "verify", "table", "watch", "port"),
}  # fmt: skip
"""Options by what they are about, under the names of their parameters; others stay in the panel of all."""

EXAMPLES: dict[str, tuple[str, str]] = {
    "cost": (
        "slimbit cost resnet20 --bits 4 --hardware loom",
        "slimbit cost model.onnx --versus resnet20@0.5 --json",
    ),
    "show": ("slimbit show RUN", "slimbit show small.onnx --json"),
    "train": (
        "slimbit train resnet20 --recipe resnet20-quick --data cifar10:DIR,normalize=cifar10 --out RUN",
        "slimbit train --config my.toml --out RUN",
    ),
    "signal": ("slimbit signal RUN", "slimbit signal RUN --json"),
    "prune": (
        "slimbit prune resnet20-A --weights W.safetensors --data cifar10:DIR --keep 0.75 --tune-epochs 4 --out pruned",
        "slimbit prune digits_resnet --data digits --keep 0.5 --out pruned",
    ),
    "frontier": (
        "slimbit frontier digits_resnet --data digits --out RUN",
        "slimbit frontier mynet:build --weights W.safetensors --data mynet:data --activation-bits 8 --out RUN",
    ),
    "points": ("slimbit points RUN --pareto", "slimbit points RUN --csv > points.csv"),
    "pick": (
        "slimbit pick RUN --budget esn_digital=20M --out small",
        "slimbit pick RUN --max-drop 1 --out small --export small.onnx",
    ),
    "export": ("slimbit export small --out small.onnx", "slimbit export small --format qonnx --out small.qonnx"),
    "verify": ("slimbit verify small.onnx small --data digits", "slimbit verify small.onnx --data images:DIR"),
    "latency": ("slimbit latency small.onnx float.onnx", "slimbit latency RUN --table cpu.toml"),
    "report": ("slimbit report RUN --versus OTHER", "slimbit report RUN --watch"),
}


def laid_out(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with its options in panels; the options themselves say nothing of it."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    for name, parameter in inspect.signature(command).parameters.items():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        for info in get_args(parameter.annotation)[1:]:
            if isinstance(info, OptionInfo) and info.rich_help_panel is None:
                info.rich_help_panel = panel_of.get(name)
    return command


def examples(name: str) -> str | None:
    """The examples of a command as the end of its help; None where its name says all."""
    return "\n\n".join(("Examples:", *EXAMPLES[name])) if name in EXAMPLES else None
