"""`slimbit cost`: what a network costs, layer by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from slimbit.artifacts.manifest import MANIFEST
from slimbit.cli.points import points
from slimbit.records.codec import pretty
from slimbit.records.config import Grid
from slimbit.records.cost import CostReport, CostTable
from slimbit.records.errors import InputError
from slimbit.records.files import has_file
from slimbit.records.run import RUN_FILE
from slimbit.records.text import clipped

if TYPE_CHECKING:
    from slimbit.measure.cost_config import CostConfig

UNASKED = {"policy": "max_abs", "grid": "midrise", "formula": "standard"}

Network = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="Zoo name (resnet20, resnet20-A, resnet20@0.5, vgg7, resnet50, ...), timm:NAME, package.module:callable, "
        "a .onnx, .pt2 (torch.export) or .safetensors file, a folder of slimbit pick or prune, or a run.",
        show_default=False,
    ),
]


def cost(  # noqa: PLR0913 - one argument per option of the command
    network: Network,
    others: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    weights: Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pth or .th.")] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="CxHxW", help="Shape of one input, e.g. 3x32x32; NAME=1x3x32x32 for several of a file."
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images in the inputs of a file; default: learned from its graph.")
    ] = None,
    bits: Annotated[float | None, typer.Option(help="Bits per weight, 1 to 16; default: weights as stored.")] = None,
    policy: Annotated[str, typer.Option(help="How bits become a step: max_abs or sigma.")] = "max_abs",
    grid: Annotated[str, typer.Option(help="midrise, midrise_zero or midtread.")] = "midrise",
    formula: Annotated[str, typer.Option(help="Bit formula: standard, or literal (as printed).")] = "standard",
    activation_bits: Annotated[
        int | None, typer.Option(help="Bits per activation; default 8, beside float weights 32.")
    ] = None,
    per: Annotated[str, typer.Option(help="Weigh a weight by its positions (mac) or once (parameter).")] = "",
    hardware: Annotated[
        list[str] | None, typer.Option(help="Hardware cost model: name, .toml or module:function; repeatable.")
    ] = None,
    versus: Annotated[
        list[str] | None, typer.Option(metavar="NETWORK2 ...", help="Other networks to compare with.")
    ] = None,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Let code run that a pruned folder names or a .pt2 file holds; only where you trust it.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    layers: Annotated[bool, typer.Option(help="List the layers.")] = True,
) -> None:
    """What a network costs, layer by layer, in units that no particular chip distorts."""
    if others and not versus:
        raise InputError(f"NETWORK must be one, got also {clipped(' '.join(others))}: compare with --versus")
    if as_json and as_csv:
        raise InputError("only one of --json and --csv must be given, got both")
    if as_csv and (versus or hardware):
        raise InputError(f"--csv must be given without {'--versus' if versus else '--hardware'}: take --json for both")
    if has_file(network, RUN_FILE):
        _refuse(f"run {network}, whose points are counted", weights, input_, batch, bits, hardware, versus)
        points(Path(network), as_json=as_json, as_csv=as_csv)
        return
    if has_file(network, MANIFEST):
        _refuse(f"folder {network}, which holds its cost", weights, input_, batch, bits)
    from slimbit.measure.cost_config import cost_config_from

    bare = Path(network).suffix == ".safetensors"
    counting = cost_config_from(
        bits=bits,
        policy=policy,
        grid=grid,
        formula=formula,
        activation_bits=activation_bits,
        per=per or ("parameter" if bare else "mac"),
    )
    report = _measured(
        network, counting, hardware or [], weights=weights, inputs=input_ or [], batch=batch, allow_code=allow_code
    )
    _refuse_unused(report, policy=policy, grid=grid, formula=formula)
    compared = [*(versus or []), *(others or [])]  # `--versus A B`: click gives B to the arguments
    plain = [text for text in input_ or [] if "=" not in text]  # names are those of the first file
    reports = [_measured(other, counting, hardware or [], inputs=plain, allow_code=allow_code) for other in compared]
    _print(report, reports, as_json=as_json, as_csv=as_csv, layers=layers)


def _refuse(what: str, *given: object) -> None:
    """Refuse options that say how a network is built or quantized where nothing is left to say."""
    options = ("--weights", "--input", "--batch", "--bits", "--hardware", "--versus")
    named = [option for option, value in zip(options, given, strict=False) if value]
    if named:
        raise InputError(f"{named[0]} must not be given for {what}")


def _refuse_unused(report: CostReport, **given: str) -> None:
    """Refuse options that say how weights are quantized where none are."""
    if any(layer.grid in get_args(Grid) for layer in report.layers):
        return
    for option, value in given.items():
        if value != UNASKED[option]:
            raise InputError(f"--{option} {value} must be given with --bits: the weights of {report.network} are float")


def _measured(
    network: str,
    counting: "CostConfig",
    hardware: list[str],
    *,
    weights: Path | None = None,
    inputs: Sequence[str] = (),
    batch: int | None = None,
    allow_code: bool = False,
) -> CostReport:
    from slimbit.artifacts.manifest import read_cost
    from slimbit.measure.cost import cost_of_survey, with_hardware
    from slimbit.sources.networks import inputs_of, survey_of

    if has_file(network, MANIFEST):
        return with_hardware(read_cost(network), hardware)
    plain, named = inputs_of(inputs)
    survey = survey_of(
        network, weights=weights, input_text=plain, named_inputs=named, batch=batch, allow_code=allow_code
    )
    return with_hardware(cost_of_survey(survey, counting), hardware)


def _print(report: CostReport, others: list[CostReport], *, as_json: bool, as_csv: bool, layers: bool) -> None:
    if as_json:
        data = report.to_dict() if layers else {**report.to_dict(), "layers": []}
        if others:
            compared = [(report.versus(other).to_dict(), other.to_dict()) for other in others]
            data["versus"] = [
                {**ratios, **{key: whole[key] for key in ("inputs", "total", "hardware")}} for ratios, whole in compared
            ]
        typer.echo(pretty(data))
    elif as_csv:
        typer.echo(report.to_csv(layers=layers), nl=False)
    else:
        Console().print(CostTable(report, tuple(others), layers=layers))
