"""`slimbit pick`: the model that fits a budget, as a folder to ship."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimbit.cli.export import exported, exported_file
from slimbit.cli.options import check_machines, parse_budget
from slimbit.cli.verify import ImagesToVerify, images_of, plain_proof, print_verification
from slimbit.records.codec import pretty
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.files import StoreError, write_whole
from slimbit.records.origin import is_findable, runs_code
from slimbit.records.point import FrontierPoint
from slimbit.records.terminal import quantity, shown

VERIFIED_IMAGES = 50

if TYPE_CHECKING:
    from torch import nn

    from slimbit.artifacts.manifest import Manifest
    from slimbit.compress.model import CompressedModel
    from slimbit.frontier.frontier import Frontier
    from slimbit.measure.named_cost import CostLike
    from slimbit.records.run import RunInfo
    from slimbit.records.verification import ExportedFile, Verification
    from slimbit.sources.networks import OpenedNetwork


def pick(  # noqa: PLR0913 - one argument per option of the command
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    out: Annotated[
        Path, typer.Option(help="Folder to write: new, empty, or with this very content.", show_default=False)
    ],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COST=VALUE",
            help="Most accurate point within it, e.g. esn_digital=20M: a metric, hardware:NAME, a .toml file or "
            "package.module:function; repeatable, all hold.",
        ),
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="A machine that --budget hardware:NAME or --metric names, as in slimbit points; repeatable.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="COST", help="Cost that is least with --min-accuracy and --max-drop; default: the run's."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Cheapest point of at least this accuracy, by --metric.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Cheapest point whose score is at most so much below the float network's, in units of the metric: 1 "
            "is one point of percent; 0.01 for a metric from 0 to 1."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an ONNX file of it, too, verified; see slimbit export.")
    ] = None,
    storage: Annotated[str | None, typer.Option(help="Address of the study, where it is not in RUN.")] = None,
    network: Annotated[
        str | None, typer.Option(help="The float network, where the run does not say; see slimbit cost --help.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the float network, to check that they are the run's.")
    ] = None,
    score: Annotated[
        bool, typer.Option(help="Score the model once on images that did not choose it, where the data have such.")
    ] = True,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the code that the run names to build its network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the point of a run that fits, as a folder that slimbit.load reads.

    Baselines are points like any other; failed points and the float network are not.
    """
    from slimbit.artifacts.manifest import read_manifest
    from slimbit.frontier.frontier import open_run
    from slimbit.frontier.quote import quoted_accuracy

    ways = {"--budget": budget or None, "--min-accuracy": min_accuracy, "--max-drop": max_drop}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"one of {', '.join(ways)} must be given, got {' and '.join(given) or 'none'}")
    if export is not None and export.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--export must be a file outside of --out, got {export}")
    if budget and metric is not None:
        raise InputError(
            "--metric must be given with --min-accuracy or --max-drop, got --budget, which names its costs"
        )
    frontier = open_run(run, storage=storage).with_hardware(*(hardware or ()))
    asked = dict(map(parse_budget, budget or ()))
    check_machines([*asked, metric], frontier.costs, "--budget" if asked else "--metric")
    _check_trusted(frontier.info, run, network, allow_code=allow_code)
    frontier, names = frontier.with_costs(asked or [metric or frontier.metric])
    within: dict[CostLike, float] = dict(zip(names, asked.values(), strict=False))
    point = frontier.best(within) if within else frontier.cheapest(min_accuracy, names[0], max_drop=max_drop)
    info = frontier.info
    form = _form(frontier, network, weights, allow_code=allow_code)
    small = frontier.load(point, model=form, allow_code=allow_code)
    note = ""
    if score:
        float_network = _float_network(frontier, network, weights, allow_code=allow_code)
        quoted, note = quoted_accuracy(info, small.model, float_network=float_network, allow_code=allow_code)
        small = small if quoted is None else replace(small, accuracy=quoted)
    proof = None
    if export is None:
        small.save(out)
    else:
        content, proof = exported(small, export.name, _images_to_verify(info, small, allow_code=allow_code))
        _save_both(small, out, export, content)
        if proof is not None:
            _keep_proof(frontier, exported_file(point.number, small, proof, size=len(content)))
    metrics = tuple(names)
    _print(
        point,
        read_manifest(out),
        out,
        metrics=metrics,
        note=note,
        as_json=as_json,
        file=export,
        proof=proof,
        info=info,
    )
    if export is None or proof is None:
        return
    if not as_json:
        typer.echo(f"wrote {export}: {export.stat().st_size:,} bytes")
        print_verification(proof)
    if not proof.is_exact:
        raise typer.Exit(1)


def _images_to_verify(info: "RunInfo", small: "CompressedModel", *, allow_code: bool) -> ImagesToVerify:
    """Some of the images that did not choose the point, or random ones where there are none."""
    from slimbit.frontier.quote import quoting_images

    found, _ = quoting_images(info, allow_code=allow_code)
    if found is None:
        return images_of(small, data=None, images=VERIFIED_IMAGES)
    first = next(iter(found.batches()))[:VERIFIED_IMAGES]
    return ImagesToVerify([first], found.labels[: len(first)])


def _save_both(small: "CompressedModel", out: Path, export: Path, content: bytes) -> None:
    """Write the folder and the file, or neither."""
    is_new = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    small.save(out)
    try:
        write_whole(export, content)
    except SlimbitError:
        if is_new:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _keep_proof(frontier: "Frontier", file: "ExportedFile") -> None:
    """Keep the proof in the run, where the report finds it; a run that cannot be written stays as it is."""
    try:
        frontier.add_exported(file)
    except StoreError as error:
        typer.echo(f"the report will not show the file: {error}", err=True)


def _check_trusted(info: "RunInfo", run: Path, network: str | None, *, allow_code: bool) -> None:
    """Refuse to run code that only the run names, before anything that takes time."""
    from slimbit.records.run import RUN_FILE
    from slimbit.sources.networks import check_trusted_network

    source = info.origin.source
    if not network:
        named = source if is_findable(source) else "module:callable, the function that builds it"
        check_trusted_network(source, str(run / RUN_FILE), allow_code=allow_code, otherwise=f"give --network {named}")


def _form(frontier: "Frontier", network: str | None, weights: Path | None, *, allow_code: bool) -> "nn.Module | None":
    """The network that the options name, whose shape is that of the float one; None where they name none."""
    origin = frontier.info.origin
    if not network and not origin.source and weights is not None:
        raise InputError("--network must be given with --weights for a run that was made from Python, got none")
    if not network and not origin.source:
        raise InputError(
            "--network must be given for a run that was made from Python, got none: name the function that builds the "
            "network, module:callable"
        )
    if network is None and weights is None:
        return None
    found = _opened(frontier, network or origin.source, weights, allow_code=allow_code)
    if weights is not None:
        try:
            frontier.check_weights(found.model)
        except InputError as error:
            raise InputError(f"{error} from {network or origin.source} with {weights}") from error
    # a pruned network is built from its original's form, which the run names, and from the run's own keep plan
    return found.model if found.keep is None else None


def _opened(frontier: "Frontier", reference: str, weights: Path | None, *, allow_code: bool) -> "OpenedNetwork":
    from slimbit.sources.networks import open_network

    return open_network(
        reference,
        weights=weights,
        input_text="x".join(map(str, frontier.info.origin.input_shape)) or None,
        classes=frontier.info.classes,
        allow_code=allow_code,
    )


def _float_network(
    frontier: "Frontier", network: str | None, weights: Path | None, *, allow_code: bool
) -> "nn.Module | None":
    """The float network with the weights that the run began with; None where they are not where they were."""
    from slimbit.sources.networks import is_pruned

    origin = frontier.info.origin
    reference, file = network or origin.source, weights or (Path(origin.weights) if origin.weights else None)
    if is_pruned(origin.weights):
        reference, file = origin.weights, None
    try:
        model = _opened(frontier, reference, file, allow_code=allow_code).model
        frontier.check_weights(model)
    except InputError:
        return None
    return model


def _print(
    point: FrontierPoint,
    manifest: "Manifest",
    out: Path,
    *,
    metrics: tuple[str, ...],
    note: str,
    as_json: bool,
    file: Path | None,
    proof: "Verification | None",
    info: "RunInfo",
) -> None:
    from slimbit.frontier.quote import UNCHOSEN

    if as_json:
        sizes = {name: entry.bytes for name, entry in manifest.files.items()}
        measured = None if manifest.accuracy is None else manifest.accuracy.model_dump(mode="json")
        data = {"schema": 1, "out": str(out), "point": point.to_dict(), "accuracy": measured, "bytes": sizes}
        if file is not None and proof is not None:
            data["export"] = {"file": str(file), "bytes": file.stat().st_size, "verification": plain_proof(proof)}
        typer.echo(pretty(data))
        return
    what = point.label + (", for comparison" if point.baseline else "")
    costs: Mapping[str, float | None] = point.costs
    spent = ", ".join(f"{metric} {quantity(costs[metric])}" for metric in metrics)
    name = shown(info.score_name)
    on = "" if point.images is None else f" on the {point.images:,} images that chose it"
    typer.echo(f"point {point.number} ({what}): {name} {point.accuracy:g}{on}, float network {info.float_accuracy:g}")
    typer.echo(f"cost: {spent}")
    if note:
        typer.echo(f"{name} is that of the images which chose the point: {note}")
    elif (found := manifest.accuracy) is not None and UNCHOSEN in found.measured_on:
        beside = "" if found.uncompressed is None else f", float network {found.uncompressed:.2f}"
        typer.echo(f"{name} {found.value:.2f} ({found.low:.1f}-{found.high:.1f}){beside}: {found.measured_on}")
        if not beside:
            typer.echo("float network: its weights are not where they were, so it was not scored there; give --weights")
    levels, state = manifest.files["levels.bin"].bytes, manifest.files["state.safetensors"].bytes
    typer.echo(f"wrote {out}: levels and steps {levels:,} bytes, other parameters and statistics {state:,} bytes")
    typer.echo(f"in Python: model = {loading(out, manifest.network.source)}.model")


def loading(folder: Path, source: str) -> str:
    """The call that opens a folder again, to be pasted.

    >>> loading(Path("small"), "resnet20"), loading(Path("small"), "mynet:build"), loading(Path("small"), "")
    ("slimbit.load('small')", "slimbit.load('small', allow_code=True)", "slimbit.load('small', model=network)")
    """
    if not source:
        return f"slimbit.load({str(folder)!r}, model=network)"
    return f"slimbit.load({str(folder)!r}{', allow_code=True' if runs_code(source) else ''})"
