"""The report as one HTML file that needs no network: data, scripts and styles are all inside."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from slimbit.frontier.info import RunInfo
from slimbit.frontier.store import open_run
from slimbit.records.errors import InputError
from slimbit.records.files import write_whole
from slimbit.records.plan import Recipe
from slimbit.records.point import FrontierPoint
from slimbit.report.figures import accuracy_figure, histogram_figure, template, widths_of
from slimbit.report.frames import About, ReportData, report_data
from slimbit.report.html import composed


def write_report(run: str | Path, out: str | Path | None = None, *, storage: str | None = None) -> Path:
    """Write the report of a run: one HTML file that needs no network.

    Args:
        run: Folder of the run.
        out: File to write; default ``report.html`` in the run's folder.
        storage: Address of the run's study, where that is not ``study.db`` in its folder.

    Returns:
        The file.

    Raises:
        InputError: The run, its study or a cost report is missing or damaged, or no point is finished.
        StoreError: The file cannot be written; an older one stays.
    """
    opened = open_run(run, storage=storage)

    def read(point: FrontierPoint, role: str) -> Any:
        if role not in point.objects:
            raise InputError(f"point {point.number} of run {run} must have a {role} object, got none")
        return json.loads(opened.read_object(point.objects[role], "json"))

    points = opened.points()
    baselines = [read(point, "plan") for point in points if point.baseline]
    facts = about(opened.info, run, points, baselines=baselines)
    text = page(report_data(facts, points, lambda point: read(point, "cost")))
    file = Path(out) if out is not None else opened.path / "report.html"
    write_whole(file, text.encode())
    return file


def about(
    info: RunInfo,
    run: str | Path,
    points: Sequence[FrontierPoint] = (),
    *,
    baselines: Sequence[Mapping[str, Any]] = (),
) -> About:
    """What a report says of the run itself.

    Args:
        info: The run's settings.
        run: Its folder, as commands should name it.
        points: Its points, for versions and hardware.
        baselines: JSON data of the plans of its baselines.
    """
    known = info.float_low is not None and info.float_high is not None
    images = "not told by evaluate" if info.evaluate_images is None else f"{info.evaluate_images:,}"
    interval = f"95 %, Wilson: float {info.float_low:.2f} to {info.float_high:.2f}" if known else "unknown"
    scoring = {
        "data": info.data or "the caller's own evaluate function",
        "images scored": images,
        "classes": "" if info.classes is None else str(info.classes),
        "interval": interval,
        "calibration": f"{info.calibration_images:,} images without labels",
        "seconds": f"{info.evaluate_seconds:.1f} for one evaluation",
    }
    made = [point.provenance for point in points]
    recipe = [field.name for field in fields(Recipe)]
    provenance = {
        "network": info.reference or info.network,
        "weights": info.weights,
        "weights digest": info.network_digest[:16],
        "calibration digest": info.calibration_digest[:16],
        "evaluation digest": info.evaluate_digest[:16],
        "seed": str(info.seed),
        "recipe": _listed(info.recipe),
        "of baselines": "; ".join(_distinct({name: plan.get(name) for name in recipe} for plan in baselines)),
        "layout": _listed(info.layout),
        "widths": ", ".join(f"{width:g}" for width in info.widths) if len(info.widths) > 1 else "",
        "narrower networks": _listed(info.slimming),
        "versions": "; ".join(_distinct([info.versions, *(one.get("versions", {}) for one in made)])),
        "hardware": "; ".join(_distinct(one.get("hardware", {}) for one in made)),
    }
    return About(
        run=str(run),
        network=info.network,
        metric=info.metric,
        float_accuracy=info.float_accuracy,
        unit="%" if known else "",  # an interval exists only for the share of images that are right
        scoring={name: text for name, text in scoring.items() if text},
        provenance={name: text for name, text in provenance.items() if text},
    )


def page(data: ReportData) -> str:
    """The HTML text of a report; equal data give equal text.

    See `slimbit.report.html.composed` for how it is kept safe from hostile names.
    """
    return composed("page", title=f"{data.about.network}: accuracy against cost", data=contents(data))


def contents(data: ReportData) -> dict[str, Any]:
    """Everything that the page's script draws."""
    return {
        "report": asdict(data),
        "figures": {metric.name: accuracy_figure(data, metric.name) for metric in data.metrics},
        "histogram": histogram_figure(data),
        "templates": {theme: template(theme, widths=len(widths_of(data))) for theme in ("light", "dark")},
        "pick": f"slimbit pick {shlex.quote(data.about.run)}",
    }


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_said(value)}" for name, value in settings.items() if value not in ("", None, [], {}))


def _said(value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _distinct(settings: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return filter(None, dict.fromkeys(_listed(one) for one in settings))
