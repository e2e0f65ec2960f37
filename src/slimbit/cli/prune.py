"""`slimbit prune`: a really smaller network."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from slimbit.cli.options import BatchSize, Memory, parse_budget, stopped_training, training_options
from slimbit.records.codec import pretty
from slimbit.records.config import By, Constants, PruneConfig, Scope, Statistics
from slimbit.records.errors import InputError, check_choice
from slimbit.records.terminal import quantity
from slimbit.records.text import printable

if TYPE_CHECKING:
    from slimbit.compress.model import CompressedModel
    from slimbit.compress.prepared import PreparedNetwork
    from slimbit.zoo.data.evaluator import Evaluator


def prune(  # noqa: PLR0913 - one argument per option of the command
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="As for `slimbit cost`.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="SPEC", help="As for `slimbit frontier`.", show_default=False)],
    weights: Annotated[Path | None, typer.Option(help="Weights of the network.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="0.5",
            help="Share of filters that stays, or shares by layer: 'layer1.*=0.75,layer3.*=0.5'; default 0.5.",
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE", help="Instead: macs=20M, or macs=0.5 (at most 1: a share); repeatable, all hold."
        ),
    ] = None,
    bits: Annotated[float, typer.Option(help="Bit width at which an ESN budget is counted.")] = 8,
    by: Annotated[
        str,
        typer.Option(
            help="norm, signal (of training, see --signal), fisher, admm (training that drives filters to zero), "
            "or dead (filters whose norm collapsed during training)."
        ),
    ] = "norm",
    signal: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Training run whose last epoch --by signal ranks by.")
    ] = None,
    tune_epochs: Annotated[int, typer.Option(help="Epochs of training afterwards; default: none.")] = 0,
    tune_lr: Annotated[float | None, typer.Option(help="Learning rate at their beginning; default 0.1.")] = None,
    tune_config: Annotated[
        Path | None, typer.Option(help="TOML file as for slimbit train, over the paper's settings of that training.")
    ] = None,
    admm_epochs: Annotated[
        int | None, typer.Option(help="Epochs of each of the four stages of --by admm; default 3.")
    ] = None,
    admm_lr: Annotated[float | None, typer.Option(help="Highest learning rate of these stages; default 0.05.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images that it sees; default: flip.")
    ] = None,
    distill: Annotated[
        bool | None, typer.Option("--distill", help="Learn the outputs of the original network instead of labels.")
    ] = None,
    scope: Annotated[str, typer.Option(help="Rank filters per layer, or global.")] = "layer",
    protect: Annotated[
        list[str] | None, typer.Option(help="Layer, or pattern of names, that loses no filter; repeatable.")
    ] = None,
    constants: Annotated[str, typer.Option(help="Constants of removed filters: fold or zero.")] = "fold",
    statistics: Annotated[str, typer.Option(help="BatchNorm afterwards: paired, absolute or stored.")] = "paired",
    calibration_images: Annotated[int | None, typer.Option(help="Unlabelled images; default: 500, or all.")] = None,
    evaluate_images: Annotated[int | None, typer.Option(help="Test images; default: all.")] = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    seed: Annotated[int, typer.Option(help="Of sampled images and labels.")] = 0,
    device: Annotated[str, typer.Option(help="Where the network is pruned and scored: cpu or cuda.")] = "cpu",
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let code run that a pruned folder names; only where you trust it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove filters, and with them everything that reads them: a smaller network, not just zeros."""
    check_choice("--by", by, get_args(By))
    check_choice("--scope", scope, get_args(Scope))
    check_choice("--constants", constants, get_args(Constants))
    check_choice("--statistics", statistics, get_args(Statistics))
    budget = budget or None
    if by == "dead" and (keep is not None or budget is not None):
        raise InputError("--keep and --budget must not be given with --by dead, which decides by itself")
    if keep is not None and budget is not None:
        raise InputError("one of --keep and --budget may be given, got both")
    for name, value in (("admm_epochs", admm_epochs), ("admm_lr", admm_lr)):
        if value is not None and by != "admm":
            raise InputError(f"--by admm must be given with --{name.replace('_', '-')}, got {by}")
    tune = training_options(
        "tune",
        tune_epochs,
        config=tune_config,
        learning_rate=tune_lr,
        distill=distill,
        admm_epochs=admm_epochs,
        admm_learning_rate=admm_lr,
    )
    if by == "admm" and tune is None:
        raise InputError("--tune-epochs must be given for --by admm, which trains before and after the cut, got none")
    if tune is not None and flip is not None:
        train = dict(tune.get("train", {}))
        tune = {**tune, "train": {**train, "augment": {**train.get("augment", {}), "flip": flip}}}
    config: PruneConfig = PruneConfig().with_options(
        {
            "by": by,
            "scope": scope,
            "protect": tuple(protect or ()),
            "constants": constants,
            "statistics": statistics,
            "signal": None if signal is None else str(signal),
            "tune": tune,
            "keep": None if keep is None else parse_keep(keep),
            "budget": None if budget is None else dict(map(parse_budget, budget)),
            "budget_bits": bits,
        }
    )
    from slimbit.artifacts.manifest import AccuracyEntry
    from slimbit.artifacts.pruned import check_pruned_folder, write_pruned
    from slimbit.compress.prepared import prepare
    from slimbit.compress.prune import Pruner
    from slimbit.compress.tuning import tuning_for
    from slimbit.numerics.batches import zeros_like_input
    from slimbit.sources.network_and_data import open_network_and_data
    from slimbit.sources.networks import device_named

    found, place = (
        open_network_and_data(network, weights=weights, spec=data, allow_code=allow_code),
        device_named(device),
    )
    prepared = prepare(
        found.network.model.to(place),
        zeros_like_input(found.shape).to(place),
        [batch.to(place) for batch in found.data.calibration(calibration_images, seed=seed)],
        name=found.network.origin.source,
        seed=seed,
        origin=found.network.origin,
        keep=found.network.keep,
        batch_size=batch_size,
        memory_gib=memory,
    )
    pruner = Pruner(prepared, config, None if config.tune is None else tuning_for(config.tune, found.data, prepared))
    plan = pruner.plan_of_config()
    content = pruner.content(plan)
    check_pruned_folder(out, content)
    messages = Console(stderr=True, soft_wrap=True, highlight=False)
    with stopped_training(messages, str(out)):
        slim = pruner.prune(plan, out, partial(messages.print, markup=False))
    plan = slim.keep or plan  # training may have decided what stays
    results = _results(prepared, slim, found.data.evaluator(evaluate_images, batch_size=batch_size))
    slim = replace(slim, accuracy=AccuracyEntry(value=results["after"]["accuracy"], measured_on=results["measured_on"]))
    about = {**slim.about_pruned(), **results}
    write_pruned(out, slim.model, plan, network=slim.reference(), about=about, content=content)
    if as_json:
        typer.echo(pretty({"schema": 1, "out": str(out), **results}))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(f"{found.network.name}: {plan.policy}, {plan.setting}", results))
    for name, reason in pruner.groups.fixed.items():
        console.print(f"filters of {printable(name)} cannot be removed: {printable(reason)}", markup=False)
    console.print(f"wrote {out}: model.safetensors, prune.json", markup=False)


def parse_keep(text: str) -> float | dict[str, float]:
    """A share, or shares by name or pattern of layers.

    >>> parse_keep("0.5"), parse_keep("layer1.*=0.75, conv1=1")
    (0.5, {'layer1.*': 0.75, 'conv1': 1.0})
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        shares = {}
    if not shares or "" in shares or len(shares) < text.count("="):
        raise InputError(
            f"--keep must be a share like 0.5, or shares by layer like 'layer1.*=0.75,layer3.*=0.5', got {text!r}"
        )
    return shares


def _results(prepared: "PreparedNetwork", slim: "CompressedModel", evaluate: "Evaluator") -> dict[str, Any]:
    """Costs and accuracy before and after."""
    from slimbit.measure.cost import cost

    def side(report: Any, model: Any) -> dict[str, Any]:
        return {
            "macs": report.total.macs,
            "parameters": report.total.parameters,
            "filters": sum(layer.filters for layer in report.layers),
            "accuracy": float(evaluate(model)),
        }

    before = side(cost(prepared.model, prepared.example_input), prepared.model)
    admm = {"admm_residuals": list(slim.residuals)} if slim.residuals else {}
    return {"before": before, "after": side(slim.cost, slim.model), "measured_on": evaluate.description, **admm}


def _table(title: str, results: dict[str, Any]) -> Table:
    table = Table(title=title, caption=results["measured_on"])
    for name in ("", "before", "after", "left"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("macs", "parameters", "filters"):
        before, after = results["before"][key], results["after"][key]
        table.add_row(key, quantity(before), quantity(after), f"{100 * after / before:.1f} %")
    table.add_row("accuracy", *(f"{results[side]['accuracy']:.2f}" for side in ("before", "after")), "")
    return table
