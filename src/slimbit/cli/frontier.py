"""`slimbit frontier`: trace accuracy against cost of a trained network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from slimbit.cli.live import Screen
from slimbit.cli.networks import check_prunable, device_named, example_of
from slimbit.cli.opened import Opened, opened
from slimbit.cli.points import clampings, failures, points_table
from slimbit.cli.slimming import calibration_of, slimming_of, tune_options
from slimbit.records.config import FrontierConfig, SlimmingConfig, load_config
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.point import Frontier
from slimbit.records.training import TrainConfig

if TYPE_CHECKING:
    from slimbit.frontier.slim import Slimming
    from slimbit.frontier.trace import Origin
    from slimbit.plan.inputs import Layout
    from slimbit.records.signal import EpochSignal

MOST_EPOCHS = 8
"""Points of policy ``signal`` where no epochs were named."""


def frontier(  # noqa: PLR0913 - one argument per option of the command
    network: Annotated[
        str | None, typer.Argument(metavar="[NETWORK]", help="As for `slimbit cost`.", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run, new or to be continued.", show_default=False)],
    weights: Annotated[Path | None, typer.Option(help="Weights: .safetensors, .pth or .th.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="digits, cifar10:DIR, cifar100:DIR, images:DIR, npz:FILE, hub:NAME or package.module:callable, "
            "with options behind commas: cifar10:DIR,normalize=imagenet.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="Shape of one input; default: the data's.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="esn_digital (default), esn_analog or esn_filterwise.", show_default=False)
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Points of each width, those for comparison not counted; default 16.")
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(metavar="1,0.75,0.5", help="Prune to these shares of the filters first, and sweep each network."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="What stays of narrower networks: as for `slimbit prune`; default norm.")
    ] = None,
    scope: Annotated[str | None, typer.Option(help="Rank filters per layer (default), or global.")] = None,
    tune_epochs: Annotated[int | None, typer.Option(help="Epochs of training after pruning; default: none.")] = None,
    tune_lr: Annotated[float | None, typer.Option(help="Learning rate at their beginning; default 0.1.")] = None,
    tune_config: Annotated[
        Path | None, typer.Option(help="TOML file as for slimbit train, over the paper's settings of that training.")
    ] = None,
    distill: Annotated[
        bool | None, typer.Option("--distill", help="Learn the outputs of the original network instead of labels.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="Folder of pruned and tuned networks, for several runs; default: in the run.")
    ] = None,
    calibration_images: Annotated[int | None, typer.Option(help="Unlabelled images; default 500.")] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment", help="Crop and flip these images as in training: for absolute BatchNorm statistics."),
    ] = None,
    evaluate_images: Annotated[int | None, typer.Option(help="Images to score on; default: all.")] = None,
    baselines: Annotated[
        bool | None, typer.Option("--baselines/--no-baselines", help="Add plain quantization at 8 to 2 bits.")
    ] = None,
    signal: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Training run, or its signal.jsonl: add points by its S/N; --by signal ranks by it."
        ),
    ] = None,
    signal_epochs: Annotated[
        str | None, typer.Option(metavar="10,20,30", help="Epochs for them; default: at most 8, spread evenly.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampled images, labels and positions; default 0.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Database for the study; default: RUN/study.db.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where networks are compressed and scored: cpu (default) or cuda.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try points again that failed.")] = False,
) -> None:
    """Trace accuracy against cost of a trained network. Interrupt at will: the same command continues."""
    options: dict[str, Any] = {
        "network": network,
        "weights": None if weights is None else str(weights),
        "data": data,
        "input": input_,
        "metric": metric,
        "points": points,
        "widths": None if widths is None else parse_widths(widths),
        "stages": None if stages is None else str(stages),
        "slimming": {
            "by": by,
            "scope": scope,
            "tune_epochs": tune_epochs,
            "tune_lr": tune_lr,
            "distill": distill,
            "tune": tune_options(tune_config),
        },
        "calibration_images": calibration_images,
        "calibration_augment": augment,
        "evaluate_images": evaluate_images,
        "baselines": baselines,
        "signal": None if signal is None else str(signal),
        "signal_epochs": None if signal_epochs is None else parse_epochs(signal_epochs),
        "seed": seed,
        "storage": storage,
        "device": device,
    }
    settings = (load_config(config) if config is not None else FrontierConfig()).with_options(options)
    result = trace(settings, out, retry_failed=retry_failed)
    Console().print(points_table(result, result.points, result.metric), *clampings(result.points))
    for line in failures(result.points):
        Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    if not any(point.state == "done" for point in result.points):
        raise SlimbitError(f"every point of {out} failed: the reasons are above")


def trace(settings: FrontierConfig, out: Path, *, retry_failed: bool = False) -> Frontier:
    """Trace what the settings name, shown as it goes."""
    signal = _signal(settings)
    weights = None if settings.weights is None else Path(settings.weights)
    found = opened(settings.network, weights=weights, spec=settings.data, input_text=settings.input)
    slimming = _slimming(settings, found)
    from slimbit.frontier.trace import trace_frontier
    from slimbit.records.plan import Recipe

    seen, device = found.data, device_named(settings.device)
    calibration = calibration_of(
        seen,
        settings.calibration_images,
        seed=settings.seed,
        augment=settings.slimming.tune.augment if settings.calibration_augment else None,
    )
    with Screen(Console(), metric=settings.metric, folder=str(out)) as screen:
        return trace_frontier(
            found.network.model.to(device),
            example_input=example_of(found.shape).to(device),
            calibration=[batch.to(device) for batch in calibration],
            evaluate=seen.evaluator(settings.evaluate_images),
            out=out,
            metric=settings.metric,
            points=settings.points,
            baselines=settings.baselines,
            signal=signal,
            widths=settings.widths,
            slimming=slimming,
            stages=settings.stages,
            seed=settings.seed,
            storage=settings.storage,
            recipe=Recipe(**settings.recipe.model_dump(exclude_none=True)),
            layout=_layout(settings),
            likelihood=settings.likelihood,
            retry_failed=retry_failed,
            progress=screen,
            network_name=found.network.name,
            origin=_origin(found),
        )


def parse_widths(text: str) -> tuple[float, ...]:
    """Widths of ``1,0.75,0.5``.

    >>> parse_widths("1, 0.75")
    (1.0, 0.75)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--widths must be numbers with commas between them, got {text!r}") from None


def parse_epochs(text: str) -> tuple[int, ...]:
    """Epochs of ``10,20,30``.

    >>> parse_epochs("10, 20")
    (10, 20)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"--signal-epochs must be whole numbers with commas between them, got {text!r}")
    return tuple(map(int, parts))


def _signal(settings: FrontierConfig) -> "tuple[EpochSignal, ...]":
    """The training epochs to take steps from."""
    from slimbit.records.training_run import read_training_run, spread_epochs

    if settings.signal is None:
        if settings.signal_epochs is not None:
            raise InputError("--signal must be given with --signal-epochs, got none")
        return ()
    known = {epoch.epoch: epoch for epoch in read_training_run(settings.signal).signal}
    if settings.signal_epochs is None:
        return spread_epochs(tuple(known.values()), MOST_EPOCHS)
    missing = [number for number in settings.signal_epochs if number not in known]
    if missing:
        raise InputError(
            f"--signal-epochs must be epochs of {settings.signal}, from {min(known)} to {max(known)}, got {missing[0]}"
        )
    return tuple(known[number] for number in settings.signal_epochs)


def _origin(found: Opened) -> "Origin":
    from slimbit.frontier.trace import Origin

    norm = found.data.normalization
    normalization = {"mean": list(norm.mean), "std": list(norm.std)}
    return Origin(reference=found.reference, weights=found.weights, data=found.spec, normalization=normalization)


def _slimming(settings: FrontierConfig, found: Opened) -> "Slimming | None":
    """How the narrower networks are made, where there are any."""
    import torch

    if max(settings.widths) == min(settings.widths) == 1:
        untuned = settings.slimming.model_copy(update={"tune": TrainConfig()})  # whose crops calibration may follow
        if untuned != SlimmingConfig():
            raise InputError("--widths must be given with settings of pruning, e.g. --widths 1,0.5, got none")
        return None
    slimming = settings.slimming
    if slimming.by == "signal" and slimming.signal is None:
        slimming = slimming.model_copy(update={"signal": settings.signal})
    if slimming.by == "dead":
        raise InputError("--by must be one that reaches a width, got dead, which decides by itself: see slimbit prune")
    check_prunable(found.network)
    example = torch.zeros(1, *found.shape)
    return slimming_of(
        slimming, network=found.network.form.source, data=found.data, example=example, seed=settings.seed
    )


def _layout(settings: FrontierConfig) -> "Layout":
    from dataclasses import replace

    from slimbit.frontier.trace import default_layout

    return replace(default_layout(settings.metric), **settings.layout.model_dump(exclude_none=True))
