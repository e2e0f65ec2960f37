"""`slimbit prune`: a really smaller network."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from slimbit.cli.networks import check_prunable, device_named
from slimbit.cli.opened import Opened, opened
from slimbit.cli.pick import parse_budget
from slimbit.cli.slimming import slimming_of, stopped_training, tune_options
from slimbit.records.config import By, Scope, SlimmingConfig
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError, check_choice
from slimbit.records.keep import Constants
from slimbit.records.plan import Statistics
from slimbit.records.text import printable
from slimbit.records.toml import with_options
from slimbit.report.tables import quantity

if TYPE_CHECKING:
    from torch import nn

    from slimbit.frontier.slim import Slim, Slimmer
    from slimbit.records.keep import KeepPlan
    from slimbit.zoo.data import DataSet


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
        str | None, typer.Option(metavar="METRIC=VALUE", help="Instead: macs=20M, or macs=0.5 (at most 1: a share).")
    ] = None,
    bits: Annotated[float, typer.Option(help="Bit width at which an ESN budget is counted.")] = 8,
    by: Annotated[
        str,
        typer.Option(
            help="norm, signal (of training, see --signal), fisher, admm (training that presses filters to zero), "
            "or dead (what training has killed)."
        ),
    ] = "norm",
    signal: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Training run whose last epoch --by signal ranks by.")
    ] = None,
    tune_epochs: Annotated[int, typer.Option(help="Epochs of training afterwards; default: none.")] = 0,
    tune_lr: Annotated[float, typer.Option(help="Learning rate at their beginning.")] = 0.1,
    tune_config: Annotated[
        Path | None, typer.Option(help="TOML file as for slimbit train, over the paper's settings of that training.")
    ] = None,
    admm_epochs: Annotated[int, typer.Option(help="Epochs of each of the four stages of --by admm.")] = 3,
    admm_lr: Annotated[float, typer.Option(help="Highest learning rate of these stages.")] = 0.05,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images that it sees; default: flip.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn the outputs of the original network instead of labels.")
    ] = False,
    scope: Annotated[str, typer.Option(help="Rank filters per layer, or global.")] = "layer",
    protect: Annotated[
        list[str] | None, typer.Option(help="Layer, or pattern of names, that loses no filter; repeatable.")
    ] = None,
    constants: Annotated[str, typer.Option(help="Constants of removed filters: fold or zero.")] = "fold",
    statistics: Annotated[str, typer.Option(help="BatchNorm afterwards: paired, absolute or stored.")] = "paired",
    calibration_images: Annotated[int, typer.Option(help="Unlabelled images.")] = 500,
    evaluate_images: Annotated[int | None, typer.Option(help="Test images; default: all.")] = None,
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
    if by == "dead" and (keep is not None or budget is not None):
        raise InputError("--keep and --budget must not be given with --by dead, which decides by itself")
    if keep is not None and budget is not None:
        raise InputError("one of --keep and --budget may be given, got both")
    limit = None if budget is None else parse_budget(budget)
    share = 0.5 if keep is None else parse_keep(keep)
    options = {
        "by": by,
        "signal": None if signal is None else str(signal),
        "scope": scope,
        "protect": tuple(protect or ()),
        "constants": constants,
        "statistics": statistics,
        "tune_epochs": tune_epochs,
        "tune_lr": tune_lr,
        "distill": distill,
        "admm_epochs": admm_epochs,
        "admm_lr": admm_lr,
        "tune": {"augment": {"flip": flip}},
    }
    settings = with_options(with_options(SlimmingConfig(), {"tune": tune_options(tune_config)}), options)
    found = opened(network, weights=weights, spec=data, allow_code=allow_code)
    check_prunable(found.network)
    subject = _subject(found, settings, images=calibration_images, seed=seed, device=device)
    from slimbit.export.pruned import check_pruned_folder

    plan = subject.slimmer.plan(share) if limit is None else subject.slimmer.plan_within(*limit, bits=bits)
    content = subject.slimmer.content(plan)
    check_pruned_folder(out, content)
    said = Console(stderr=True, soft_wrap=True, highlight=False)
    with stopped_training(said, str(out)):
        slim = subject.slimmer.slim(plan, out, partial(said.print, markup=False))
    told = _told(subject, slim, evaluate_images)
    _write(out, subject, slim, told, content)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "out": str(out), **told}, indent=2, allow_nan=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(subject, slim.plan, told))
    for name, reason in subject.slimmer.ties.fixed.items():
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


@dataclass(frozen=True)
class _Subject:
    """What the command works on."""

    found: Opened
    slimmer: "Slimmer"

    @property
    def data(self) -> "DataSet":
        return self.found.data


def _subject(found: Opened, settings: SlimmingConfig, *, images: int, seed: int, device: str) -> _Subject:
    import torch

    from slimbit.frontier.slim import Slimmer

    source, data, place = found.network.form.source, found.data, device_named(device)
    example = torch.zeros(1, *found.shape)
    slimming = slimming_of(settings, network=source, data=data, example=example, seed=seed)
    batches = tuple(batch.to(place) for batch in data.calibration(images, seed=seed))
    slimmer = Slimmer(found.network.model.to(place), example.to(place), batches, slimming, source, seed)
    return _Subject(found, slimmer)


def _told(subject: _Subject, slim: "Slim", images: int | None) -> dict[str, Any]:
    """Costs and accuracy before and after."""
    from slimbit.measure.cost import cost

    evaluate = subject.data.evaluator(images)

    def of(model: "nn.Module") -> dict[str, Any]:
        report: CostReport = cost(model, subject.slimmer.example)
        filters = sum(layer.filters for layer in report.layers)
        return {
            "macs": report.total.macs,
            "parameters": report.total.parameters,
            "filters": filters,
            "accuracy": evaluate(model),
        }

    admm = {"admm_residuals": list(slim.residuals)} if slim.residuals else {}
    before, after = of(subject.slimmer.model), of(slim.network)
    return {"before": before, "after": after, "measured_on": evaluate.description, **admm}


def _write(out: Path, subject: _Subject, slim: "Slim", told: dict[str, Any], content: str) -> None:
    from slimbit.export.pruned import write_pruned

    found, norm = subject.found, subject.data.normalization
    plan = slim.plan if found.network.keep is None else found.network.keep.then(slim.plan)
    card = {
        "network": found.network.form.source,
        "normalize": {"mean": list(norm.mean), "std": list(norm.std)} if norm.name == "custom" else norm.name,
        "classes": subject.data.classes,
        "accuracy": told["after"]["accuracy"],
        "description": f"pruned by {plan.policy}, {plan.setting}; slimbit.load_pruned puts it together",
    }
    write_pruned(out, slim.network, plan, network=found.network.form, about={"card": card, **told}, content=content)


def _table(subject: _Subject, plan: "KeepPlan", told: dict[str, Any]) -> Table:
    table = Table(title=f"{subject.found.network.name}: {plan.policy}, {plan.setting}", caption=told["measured_on"])
    for name in ("", "before", "after", "left"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("macs", "parameters", "filters"):
        before, after = told["before"][key], told["after"][key]
        table.add_row(key, quantity(before), quantity(after), f"{100 * after / before:.1f} %")
    table.add_row("accuracy", *(f"{told[side]['accuracy']:.2f}" for side in ("before", "after")), "")
    return table
