"""The report as one HTML file that needs no network: data, scripts and styles are all inside."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slimbit.records.codec import plain
from slimbit.records.config import ADMM_STAGES, TuneConfig
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.files import as_path, parse_json, write_whole
from slimbit.records.origin import runs_code
from slimbit.records.point import FrontierPoint
from slimbit.records.run import RunInfo
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.verification import ExportedFile
from slimbit.report.answer import epochs_after_pruning, epochs_text
from slimbit.report.compare import compare_page
from slimbit.report.exported import exported_frames
from slimbit.report.figures import accuracy_figure, baseline_policies, histogram_figure, template, ways_of
from slimbit.report.frames import CostData, ReportData, ReportFacts, report_data
from slimbit.report.html import composed
from slimbit.report.still import still_page


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """What the report of a run is made from.

    Attributes:
        info: What the run is about.
        points: Its points.
        read: Gives a verified object by digest and kind.
        read_cost: Gives a point's `CostReport`, with the machines to show.
        run: Its folder, as commands should name it.
        exported: What was proved of files that were written of its points.
        hardware: Machines that were added to it, as commands name them.
        sensitivity: What was measured of each keep ratio's network.
        missing: What a run that is not finished still lacks; "" for a finished one.
    """

    info: RunInfo
    points: Sequence[FrontierPoint]
    read: Callable[[str, Any], bytes]
    read_cost: Callable[[FrontierPoint], CostReport]
    run: str
    exported: Sequence[ExportedFile] = ()
    hardware: Sequence[str] = ()
    sensitivity: Mapping[float, Sensitivity] = field(default_factory=dict)
    missing: str = ""


def write_report(source: ReportSource, out: str | Path | None = None) -> Path:
    """Write the report of a run: one HTML file that needs no network.

    Args:
        source: The run.
        out: File to write; default ``report.html`` in the run's folder.

    Returns:
        The file.

    Raises:
        InputError: A cost report is missing or damaged, or no point is finished.
        StoreError: The file cannot be written; an older one stays.
    """
    text = page(data_of(source), source.exported, hardware=source.hardware)
    file = as_path(out, "out") if out is not None else Path(source.run) / "report.html"
    write_whole(file, text.encode())
    return file


def write_comparison(first: ReportSource, second: ReportSource, out: str | Path | None = None) -> Path:
    """Write one HTML file with two runs side by side.

    Args:
        first: A run.
        second: Another one.
        out: File to write; default ``versus.html`` in the folder of the first.

    Returns:
        The file.

    Raises:
        InputError: As of `write_report`, or the runs have no cost in common.
        StoreError: The file cannot be written; an older one stays.
    """
    text = compare_page(data_of(first), data_of(second))
    file = as_path(out, "out") if out is not None else Path(first.run) / "versus.html"
    write_whole(file, text.encode())
    return file


def data_of(source: ReportSource) -> ReportData:
    """What the report of a run shows.

    Raises:
        InputError: A cost report or a plan is missing or damaged, or no point is finished.
    """

    def content(point: FrontierPoint, role: str) -> bytes:
        if role not in point.objects:
            raise InputError(f"point {point.number} of run {source.run} must have a {role} object, got none")
        return source.read(point.objects[role], "json")

    def config_of(point: FrontierPoint) -> Mapping[str, Any]:
        where = f"plan of point {point.number}"
        plan = parse_json(content(point, "plan"), where)
        config = plan.get("config", {}) if isinstance(plan, Mapping) else None
        if not isinstance(config, Mapping):
            raise InputError(f"{where} must hold the settings of a plan, got {type(plan).__name__}")
        return config

    def cost_data(point: FrontierPoint) -> CostData:
        content(point, "cost")
        return source.read_cost(point).to_dict()

    baselines = [(point.policy, config_of(point)) for point in source.points if point.baseline]
    facts = about(source.info, source.run, source.points, baselines=baselines, missing=source.missing)
    sensitivity = {
        ratio: {layer: found.layer(layer) for layer in found.filters} for ratio, found in source.sensitivity.items()
    }
    return report_data(facts, source.points, cost_data, sensitivity)


def about(
    info: RunInfo,
    run: str | Path,
    points: Sequence[FrontierPoint] = (),
    *,
    baselines: Sequence[tuple[str, Mapping[str, Any]]] = (),
    missing: str = "",
) -> ReportFacts:
    """What a report says of the run itself.

    Args:
        info: The run's settings.
        run: Its folder, as commands should name it.
        points: Its points, for versions and hardware.
        baselines: Policy and settings of each of its baselines, the settings as plain data.
        missing: What it still lacks.
    """
    known = info.float_low is not None and info.float_high is not None
    images = "not told by evaluate" if info.evaluate_images is None else f"{info.evaluate_images:,}"
    interval = f"95 %, Wilson: float {info.float_low:.2f} to {info.float_high:.2f}" if known else "unknown"
    bits = info.quant.activation_bits
    scoring = {
        "data": info.origin.data or "the caller's own evaluate function",
        "images scored": images,
        "classes": "" if info.classes is None else str(info.classes),
        "interval": interval,
        "calibration": f"{info.calibration_images:,} images without labels",
        "activations": "float" if bits is None else f"{bits} bits, integer arithmetic",
        "seconds": f"{info.evaluate_seconds:.1f} for one evaluation",
    }
    made = [point.provenance for point in points]
    quant, prune = plain(info.quant), {} if info.prune is None else plain(info.prune)
    tune = None if info.prune is None or len(info.keep_ratios) < 2 else info.prune.tune
    ratios = ", ".join(f"{ratio:g}" for ratio in info.keep_ratios) if len(info.keep_ratios) > 1 else ""
    differing = {policy: _listed(_different(config, quant)) for policy, config in baselines}
    provenance = {
        "network": info.origin.source or info.network,
        "weights": info.origin.weights,
        "weights digest": info.network_digest[:16],
        "calibration digest": info.calibration_digest[:16],
        "evaluation digest": info.evaluate_digest[:16],
        "seed": str(info.seed),
        "quantization": _listed(quant),
        **{f"{policy}, for comparison": f"the same but for {text}" for policy, text in differing.items() if text},
        "keep ratios": ratios,
        "pruning": _listed({name: prune[name] for name in _of_pruning(prune, swept=bool(ratios))}),
        "training after pruning": info.training if tune is None or info.prune is None else _training(tune, info),
        "versions": "; ".join(_distinct([info.versions, *(one.get("versions", {}) for one in made)])),
        "hardware": "; ".join(_distinct(one.get("hardware", {}) for one in made)),
    }
    return ReportFacts(
        run=str(run),
        network=info.network,
        metric=info.metric,
        float_accuracy=info.float_accuracy,
        score_name=info.score_name,
        unit="%" if known else "",  # an interval exists only for the share of images that are right
        scoring={name: text for name, text in scoring.items() if text},
        provenance={name: text for name, text in provenance.items() if text},
        activation_bits=bits,
        code_network=info.origin.source if runs_code(info.origin.source) else "",
        missing=missing,
        trained=epochs_after_pruning(info),
        statistics={policy: str(config.get("statistics", "")) for policy, config in baselines},
    )


def _training(tune: TuneConfig, info: RunInfo) -> str:
    """The training after pruning, with what differs from run to run."""
    settings = tune.training()
    data = info.origin.data.split(",")[0].split(":")[0] or "the training data"
    images = "all that are not held out" if settings.train_images is None else f"{settings.train_images:,} images"
    target = "outputs of the original network (distilled)" if tune.distill else "labels"
    rate = f"learning rate {settings.optimizer.learning_rate:g}, schedule {settings.schedule.name}"
    parts = [f"{epochs_text(settings.epochs)} on {data}: {images}", target, rate, f"batch size {settings.batch_size}"]
    if info.prune is not None and info.prune.by == "admm":
        stages = f"ADMM before the cut: {ADMM_STAGES} stages of {epochs_text(tune.admm_epochs)}"
        parts.append(f"{stages} up to learning rate {tune.admm_learning_rate:g}")
    return ", ".join(parts)


def _of_pruning(settings: Mapping[str, Any], *, swept: bool) -> list[str]:
    """Names of the settings of pruning to show: no tables, and no single ratio where several are swept."""
    left_out = {"keep"} if swept else set()
    if settings.get("budget") is None:
        left_out.add("budget_bits")
    return [name for name, value in settings.items() if name not in left_out and not isinstance(value, dict | list)]


def _different(settings: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in others and others[name] != value}


def page(
    data: ReportData, exported: Sequence[ExportedFile] = (), *, hardware: Sequence[str] = (), watch: str = ""
) -> str:
    """The HTML text of a report; equal data give equal text.

    Args:
        data: What it shows.
        exported: What was proved of files that were written of its points.
        hardware: Machines that commands must name beside the run.
        watch: Entity tag of its data on the server that it asks for fresh ones; "" for a page that stays as it is.

    See `slimbit.report.html.composed` for how it is kept safe from hostile names.
    """
    return composed(
        "page",
        title=f"{data.about.network}: {data.about.score_name} against cost",
        data=contents(data, exported, hardware=hardware) | ({"watch": watch} if watch else {}),
        connects=bool(watch),
        still=still_page(data),
    )


def contents(
    data: ReportData, exported: Sequence[ExportedFile] = (), *, hardware: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that the page's script draws."""
    network = [f"--network {shlex.quote(data.about.code_network)}"] if data.about.code_network else []
    named = [shlex.quote(data.about.run), *network, *(f"--hardware {shlex.quote(machine)}" for machine in hardware)]
    return {
        "report": asdict(data),
        "figures": {metric.name: accuracy_figure(data, metric.name) for metric in data.metrics},
        "histogram": histogram_figure(data),
        "templates": {
            theme: template(theme, ways=len(ways_of(data)), baselines=len(baseline_policies(data)))
            for theme in ("light", "dark")
        },
        "exported": [asdict(one) for one in exported_frames(exported, data)],
        "pick": f"slimbit pick {' '.join(named)}",
    }


def _listed(settings: Mapping[str, Any]) -> str:
    named = ((name.replace("_", " "), value) for name, value in settings.items())
    return ", ".join(f"{name} {_said(value)}" for name, value in named if value not in ("", None, [], {}))


def _said(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _distinct(settings: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return filter(None, dict.fromkeys(_listed(one) for one in settings))
