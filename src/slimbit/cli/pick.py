"""`slimbit pick`: the model that fits a budget, as a folder to ship."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint

if TYPE_CHECKING:
    from slimbit.cli.networks import Network
    from slimbit.export.manifest import Accuracy, Manifest, Normalization
    from slimbit.frontier.info import RunInfo
    from slimbit.frontier.store import Run
    from slimbit.records.keep import KeepPlan
    from slimbit.records.plan import PlanGrid

FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
AMOUNT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?([kKMGT]?)")


def pick(  # noqa: PLR0913 - one argument per option of the command
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option(help="Folder to write: new, empty, or with this very content.", show_default=False)
    ],
    budget: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="Most accurate point within it, e.g. esn_digital=20M.")
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Cheapest point of at least this accuracy, by the run's metric.")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Address of the study, where it is not in RUN.")] = None,
    network: Annotated[
        str | None, typer.Option(help="The float network, where the run does not say; see slimbit cost --help.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights, where they have moved.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let code run that the run names; only where you trust it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the point of a run that fits, as a folder that slimbit.load reads.

    Baselines are points like any other; failed points and the float network are not.
    """
    from slimbit.frontier.store import open_run

    if (budget is None) == (min_accuracy is None):
        raise InputError("one of --budget and --min-accuracy must be given, got " + ("none" if not budget else "both"))
    opened = open_run(run, storage=storage)
    point = _chosen(opened, budget, min_accuracy)
    manifest = _write(opened, point, out, _float_network(opened, network, weights, allow_code=allow_code))
    _tell(point, manifest, out, metric=_metric(opened, budget), as_json=as_json)


def parse_budget(text: str) -> tuple[str, float]:
    """Metric and amount of ``METRIC=VALUE``.

    >>> parse_budget("esn_digital=1.5G")
    ('esn_digital', 1500000000.0)
    """
    metric, _, amount = text.partition("=")
    match = AMOUNT.fullmatch(amount.strip())
    value = math.inf if match is None else float(match[1] + (match[2] or "")) * FACTORS[match[3]]
    if not metric.strip() or math.isinf(value):
        raise InputError(f"--budget must be METRIC=VALUE like esn_digital=20M, 1.5G or 300k, got {text!r}")
    return metric.strip(), value


def _metric(run: "Run", budget: str | None) -> str:
    return run.info.metric if budget is None else parse_budget(budget)[0]


def _chosen(run: "Run", budget: str | None, min_accuracy: float | None) -> FrontierPoint:
    from slimbit.frontier.select import best_within_budget, cheapest_at_accuracy

    # a failed point has no levels to write
    points = [point for point in run.points() if "levels" in point.objects]
    if budget is not None:
        metric, amount = parse_budget(budget)
        return best_within_budget(points, metric, amount)
    assert min_accuracy is not None
    return cheapest_at_accuracy(points, run.info.metric, min_accuracy)


def _float_network(run: "Run", network: str | None, weights: Path | None, *, allow_code: bool) -> "Network":
    """The network that the run compressed, checked against the run's digest of it."""
    from slimbit.cli.networks import check_trusted_network, is_pruned, network_of
    from slimbit.frontier.info import NAME
    from slimbit.frontier.subject import digest_of

    info = run.info
    if not network:
        check_trusted_network(info.reference, str(run.path / NAME), allow_code=allow_code)
    source = network or info.reference
    if not source:
        raise InputError("--network must be given for a run that was made from Python, got none")
    if network is None and Path(source).is_absolute() and not is_pruned(source):
        raise InputError(f"the pruned folder of the run must still be there, got none at {source}: give --network")
    file = weights or (Path(info.weights) if info.weights else None)
    text = "x".join(map(str, info.input_shape)) or None
    found = network_of(source, weights=file, input_text=text, classes=info.classes, allow_code=allow_code)
    digest = digest_of(found.model.state_dict())
    if digest != info.network_digest:
        raise InputError(
            f"network must have the weights that the run began with, got others from {source}"
            f"{'' if file is None else f' with {file}'}: give --network or --weights"
        )
    return replace(found, form=found.form.model_copy(update={"weights_digest": digest}))


def _write(run: "Run", point: FrontierPoint, out: Path, original: "Network") -> "Manifest":
    import torch

    from slimbit.cli.networks import example_of
    from slimbit.export.artifact import Origin, write_artifact
    from slimbit.export.weights import LayerLevels, with_levels
    from slimbit.frontier.levels import unpack_levels
    from slimbit.frontier.narrow import narrow_network
    from slimbit.survey.module import survey_network

    network = narrow_network(original.model, point.objects, run.read_object)
    spec = survey_network(network, example_of(original.form.input_shape), name=run.info.network).spec
    stored = unpack_levels(run.read_object(point.objects["levels"], "safetensors"))
    levels = {
        name: LayerLevels(torch.tensor(array), torch.tensor(stored.steps[name]), cast("PlanGrid", stored.grids[name]))
        for name, array in stored.levels.items()
    }
    state = {key: torch.tensor(array) for key, array in stored.state.items()}
    origin = Origin(
        network=original.form,
        plan=run.read_object(point.objects["plan"], "json"),
        cost=run.read_object(point.objects["cost"], "json"),
        keep=_kept(run, point, original.keep),
        accuracy=_accuracy(run.info, point),
        normalization=_normalization(run.info),
        provenance={"point": point.number, "seed": run.info.seed, **point.provenance},
    )
    compressed = with_levels(network, spec, levels, state=state)
    return write_artifact(out, compressed, levels, spec=spec, origin=origin)


def _kept(run: "Run", point: FrontierPoint, before: "KeepPlan | None") -> bytes | None:
    """What is left of the form: after ``slimbit prune``, and after the run's own pruning."""
    from slimbit.frontier.workspace import canonical
    from slimbit.records.keep import KeepPlan

    own = run.read_object(point.objects["keep"], "json") if "keep" in point.objects else None
    if before is None:
        return own
    plan = before if own is None else before.then(KeepPlan.from_dict(json.loads(own)))
    return canonical(plan.to_dict())


def _accuracy(info: "RunInfo", point: FrontierPoint) -> "Accuracy":
    from slimbit.export.manifest import Accuracy

    assert point.accuracy is not None
    images = "" if info.evaluate_images is None else f"{info.evaluate_images} images"
    return Accuracy(
        value=point.accuracy,
        low=point.accuracy_low,
        high=point.accuracy_high,
        uncompressed=info.float_accuracy,
        measured_on=", ".join(filter(None, (_without_folders(info.data), images))),
    )


def _without_folders(spec: str) -> str:
    """A data spec for others: which folder of this computer the data were in is nobody's business.

    >>> _without_folders("cifar10:/home/me/data,normalize=imagenet"), _without_folders("digits")
    ('cifar10:data,normalize=imagenet', 'digits')
    """
    return re.sub(r"^(\w+:).*[/\\]", r"\1", spec)


def _normalization(info: "RunInfo") -> "Normalization | None":
    from slimbit.export.manifest import Normalization

    if not info.normalization:
        return None
    try:
        return Normalization(mean=tuple(info.normalization["mean"]), std=tuple(info.normalization["std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"normalization of the run must be mean and std, got {dict(info.normalization)}") from error


def _tell(point: FrontierPoint, manifest: "Manifest", out: Path, *, metric: str, as_json: bool) -> None:
    if as_json:
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        data = {"schema": 1, "out": str(out), "point": point.to_dict(), "bytes": sizes}
        typer.echo(json.dumps(data, indent=2, allow_nan=False))
        return
    from slimbit.report.tables import quantity

    what = point.label + (", for comparison" if point.baseline else "")
    typer.echo(f"point {point.number} ({what}): accuracy {point.accuracy:g}, {metric} {quantity(point.costs[metric])}")
    levels, state = manifest.files["levels.bin"].bytes, manifest.files["state.safetensors"].bytes
    typer.echo(f"wrote {out}: levels and steps {levels:,} bytes, other parameters and statistics {state:,} bytes")
    typer.echo(f"slimbit.load({str(out)!r}) gives the network back")
