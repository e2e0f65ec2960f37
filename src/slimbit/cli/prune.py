"""`slimbit prune`: a really smaller network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from slimbit.cli.pick import parse_budget
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError, check_choice
from slimbit.records.text import printable
from slimbit.report.tables import quantity

if TYPE_CHECKING:
    from torch import nn

    from slimbit.plan.keep import Keeping
    from slimbit.records.groups import Ties
    from slimbit.records.keep import Constants, KeepPlan
    from slimbit.records.training import TrainConfig
    from slimbit.survey.result import Survey
    from slimbit.zoo.data import DataSet

POLICIES = ("norm", "signal", "fisher", "dead")
STATISTICS = ("paired", "absolute", "stored")


def prune(  # noqa: PLR0913 - one argument per option of the command
    network: Annotated[str, typer.Argument(metavar="NETWORK", help="As for `slimbit cost`.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    data: Annotated[str, typer.Option(metavar="SPEC", help="As for `slimbit frontier`.", show_default=False)],
    weights: Annotated[Path | None, typer.Option(help="Weights of the network.")] = None,
    keep: Annotated[float | None, typer.Option(help="Share of filters that stays; default 0.5.")] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="Instead: macs=20M, or macs=0.5 (at most 1: a share).")
    ] = None,
    bits: Annotated[float, typer.Option(help="Bit width at which an ESN budget is counted.")] = 8,
    by: Annotated[
        str, typer.Option(help="norm, signal (of training, see --signal), fisher, or dead (what training has killed).")
    ] = "norm",
    signal: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Training run whose last epoch --by signal ranks by.")
    ] = None,
    tune_epochs: Annotated[int, typer.Option(help="Epochs of training afterwards; default: none.")] = 0,
    tune_lr: Annotated[float, typer.Option(help="Learning rate at their beginning.")] = 0.1,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Mirror half of the images that it sees.")] = True,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove filters, and with them everything that reads them: a smaller network, not just zeros."""
    check_choice("--by", by, POLICIES)
    check_choice("--statistics", statistics, STATISTICS)
    if by == "dead" and (keep is not None or budget is not None):
        raise InputError("--keep and --budget must not be given with --by dead, which decides by itself")
    if keep is not None and budget is not None:
        raise InputError("one of --keep and --budget may be given, got both")
    if (by == "signal") != (signal is not None):
        raise InputError("--signal RUN must be given with --by signal, and only there, got one without the other")
    from slimbit.plan.keep import Keeping

    keeping = Keeping(
        ratio=0.5 if keep is None else keep,
        scope=_scope(scope),
        protect=tuple(protect or ()),
        constants=constants,  # type: ignore[arg-type] # checked by the record
    )
    tuning = _tuning(tune_epochs, tune_lr, flip=flip, seed=seed)
    subject = _subject(network, data, weights)
    plan = _plan(subject, by, keeping, limit=budget, bits=bits, images=calibration_images, seed=seed, signal=signal)
    small = _carried_out(subject, plan, statistics, calibration_images, seed)
    if tuning is not None:
        _tune(subject, small, plan, tuning, out, distill=distill)
    told = _told(subject, small, evaluate_images)
    _write(out, subject, small, plan, told)
    if as_json:
        typer.echo(json.dumps({"schema": 1, "out": str(out), **told}, indent=2, allow_nan=False))
    else:
        console = Console(soft_wrap=True, highlight=False)
        console.print(_table(subject, plan, told))
        for name, reason in subject.ties.fixed.items():
            console.print(f"filters of {printable(name)} cannot be removed: {printable(reason)}", markup=False)
        console.print(f"wrote {out}: model.safetensors, prune.json", markup=False)


@dataclass(frozen=True)
class _Subject:
    """What the command works on."""

    reference: str
    model: "nn.Module"
    survey: "Survey"
    ties: "Ties"
    data: "DataSet"
    example: Any
    card: dict[str, Any]


def _scope(text: str) -> Any:
    from slimbit.plan.keep import Scope

    check_choice("--scope", text, get_args(Scope))
    return text


def _subject(reference: str, spec: str, weights: Path | None) -> _Subject:
    import torch

    from slimbit.cli.networks import default_weights, model_of
    from slimbit.numerics.copies import plain_network
    from slimbit.survey.module import survey_network
    from slimbit.survey.ties import tied_filters
    from slimbit.zoo.cards import read_card
    from slimbit.zoo.data import open_data

    file = weights or default_weights(reference)
    card = dict(read_card(file) or {}) if file is not None else {}
    data = open_data(spec, card=card or None)
    text = "x".join(map(str, data.input_shape))
    model, shape = model_of(reference, weights=file, input_text=text, classes=data.classes)
    model, example = plain_network(model), torch.zeros(1, *shape)
    survey = survey_network(model, example, name=reference)
    return _Subject(reference, model, survey, tied_filters(model, example, name=reference), data, example, card)


def _plan(
    subject: _Subject,
    by: str,
    keeping: "Keeping",
    *,
    limit: str | None,
    bits: float,
    images: int,
    seed: int,
    signal: Path | None,
) -> "KeepPlan":
    from dataclasses import replace

    from slimbit.apply.layers import weights_of
    from slimbit.measure.counting import Counting
    from slimbit.measure.planned import budget_in
    from slimbit.plan.keep import keep_alive, keep_by_fisher, keep_by_norm, keep_within
    from slimbit.records.training_run import read_training_run

    weights = weights_of(subject.model, subject.survey.spec)
    if by == "dead":
        return keep_alive(subject.ties, weights, protect=keeping.protect)
    scores = _fisher(subject, images, seed, keeping.constants) if by == "fisher" else None
    epoch = None if signal is None else read_training_run(signal).signal[-1]

    def make(ratio: float) -> "KeepPlan":
        some = replace(keeping, ratio=ratio)
        if scores is not None:
            return keep_by_fisher(subject.ties, scores, some)
        return keep_by_norm(subject.ties, weights, some, signal=epoch)

    if limit is None:
        return make(float(keeping.ratio))  # type: ignore[arg-type] # the command line gives one number
    metric, amount = parse_budget(limit)
    cost = budget_in(subject.survey, metric, Counting(bits=bits) if metric.startswith("esn") else None)
    share = amount <= 1
    return keep_within(make, cost, amount * cost(make(1.0)) if share else amount)


def _fisher(subject: _Subject, images: int, seed: int, constants: "Constants") -> dict[str, tuple[float, ...]]:
    import torch

    from slimbit.measure.group_sensitivity import measure_group_sensitivity

    batches = subject.data.calibration(images, seed=seed)
    return measure_group_sensitivity(
        subject.model, subject.ties, batches, generator=torch.Generator().manual_seed(seed), constants=constants
    )


def _carried_out(subject: _Subject, plan: "KeepPlan", statistics: str, images: int, seed: int) -> "nn.Module":
    from slimbit.apply.reestimate import reestimate
    from slimbit.apply.surgery import prune as cut

    small = cut(subject.model, plan, subject.example)
    if statistics == "stored":
        return small
    batches = subject.data.calibration(images, seed=seed)
    if statistics == "absolute":
        return reestimate(small, batches)
    return reestimate(small, batches, original=subject.model, plan=plan)


def _tuning(epochs: int, learning_rate: float, *, flip: bool, seed: int) -> "TrainConfig | None":
    """Settings of the training afterwards, checked before anything is computed."""
    if epochs == 0:
        return None
    from slimbit.train.tune import tune_config

    return tune_config(epochs, learning_rate=learning_rate, seed=seed, augment={"flip": flip})


def _tune(
    subject: _Subject, small: "nn.Module", plan: "KeepPlan", config: "TrainConfig", out: Path, *, distill: bool
) -> None:
    """Train the smaller network itself, in the folder ``tune``; a run that was stopped goes on."""
    from dataclasses import replace

    from slimbit.cli.train import TrainScreen, materials_of
    from slimbit.train.objectives import distillation
    from slimbit.train.run import train_network

    config = config.with_options({"network": subject.reference})
    task, about = materials_of(config, subject.data, subject.example)
    about = replace(about, data=f"{about.data}, plan {plan.digest()[:12]}{', distilled' * distill}", test=None)
    if distill:
        task = replace(task, objective=distillation(subject.model))
    with TrainScreen(Console(stderr=True), folder=str(out / "tune")) as screen:
        train_network(small, replace(task, listener=screen), config, out / "tune", about=about)
    small.eval()


def _told(subject: _Subject, small: "nn.Module", images: int | None) -> dict[str, Any]:
    """Costs and accuracy before and after."""
    from slimbit.measure.cost import cost

    evaluate = subject.data.evaluator(images)

    def of(model: "nn.Module") -> dict[str, Any]:
        report: CostReport = cost(model, subject.example)
        filters = sum(layer.filters for layer in report.layers)
        return {
            "macs": report.total.macs,
            "parameters": report.total.parameters,
            "filters": filters,
            "accuracy": evaluate(model),
        }

    return {"before": of(subject.model), "after": of(small), "measured_on": evaluate.description}


def _write(out: Path, subject: _Subject, small: "nn.Module", plan: "KeepPlan", told: dict[str, Any]) -> None:
    from slimbit.export.manifest import NetworkReference
    from slimbit.export.pruned import write_pruned

    norm = subject.data.normalization
    card = {
        "network": subject.reference,
        "normalize": {"mean": list(norm.mean), "std": list(norm.std)} if norm.name == "custom" else norm.name,
        "classes": subject.data.classes,
        "accuracy": told["after"]["accuracy"],
        "description": f"pruned by {plan.policy}, {plan.setting}; rebuild it with prune.json",
    }
    shape = tuple(subject.example.shape[1:])
    reference = NetworkReference(source=subject.reference, classes=subject.data.classes, input_shape=shape)
    write_pruned(out, small, plan, network=reference, about={"card": card, **told})


def _table(subject: _Subject, plan: "KeepPlan", told: dict[str, Any]) -> Table:
    table = Table(title=f"{subject.reference}: {plan.policy}, {plan.setting}", caption=told["measured_on"])
    for name in ("", "before", "after", "left"):
        table.add_column(name, justify="left" if not name else "right")
    for key in ("macs", "parameters", "filters"):
        before, after = told["before"][key], told["after"][key]
        table.add_row(key, quantity(before), quantity(after), f"{100 * after / before:.1f} %")
    table.add_row("accuracy", *(f"{told[side]['accuracy']:.2f}" for side in ("before", "after")), "")
    return table
