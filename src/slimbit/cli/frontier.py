"""`slimbit frontier`: trace accuracy against cost of a trained network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from slimbit.cli.live import Screen
from slimbit.cli.options import BatchSize, Memory, parse_budget, training_options
from slimbit.cli.points import clampings, failures, points_table
from slimbit.records.config import FrontierConfig
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.training import AugmentConfig
from slimbit.report.answer import answer_of_run
from slimbit.sources.networks import check_trusted_cost, check_trusted_data, check_trusted_network

if TYPE_CHECKING:
    from slimbit.frontier.frontier import Frontier


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
        str | None,
        typer.Option(
            metavar="COST",
            help="Cost to save: esn_digital (default) or any other metric of slimbit cost, hardware:NAME, a .toml file "
            "or package.module:function.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(
            help="Points of each network, without those for comparison; default 16. More of a finished run are added."
        ),
    ] = None,
    near: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Add points near an accuracy or a cost: accuracy=91, esn_digital=10M; repeatable.",
        ),
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
    learn_epochs: Annotated[
        int | None,
        typer.Option(
            help="Learn further points in one training of so many epochs, while the price of cost rises; "
            "default: none. With --distill no labels are needed."
        ),
    ] = None,
    learn_points: Annotated[int | None, typer.Option(help="Points that this training yields; default 8.")] = None,
    learn_lr: Annotated[
        float | None, typer.Option(help="Highest learning rate of this training; default 0.04.")
    ] = None,
    learn_config: Annotated[
        Path | None, typer.Option(help="TOML file as for slimbit train, over the settings of this training.")
    ] = None,
    stages: Annotated[
        Path | None, typer.Option(help="Folder of pruned and tuned networks, for several runs; default: in the run.")
    ] = None,
    calibration_images: Annotated[int | None, typer.Option(help="Unlabelled images; default: 500, or all.")] = None,
    augment: Annotated[
        bool | None,
        typer.Option("--augment", help="Crop and flip these images as in training: for absolute BatchNorm statistics."),
    ] = None,
    select_images: Annotated[
        int | None,
        typer.Option(
            help="Images that points are scored and chosen by; default: the training images held out, else half of "
            "the test images; 0: all test images."
        ),
    ] = None,
    evaluate_images: Annotated[int | None, typer.Option(help="Instead: so many test images, held out or not.")] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="max_abs,aciq",
            help="Plain quantization to compare with, at 8 to 2 bits: the paper's max_abs (default), or Banner et al.",
        ),
    ] = None,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="Compare with nothing.")] = False,
    signal: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Training run, or its signal.jsonl: add points by its S/N; --by signal ranks by it."
        ),
    ] = None,
    signal_epochs: Annotated[
        str | None, typer.Option(metavar="10,20,30", help="Epochs for them; default: at most 8, spread evenly.")
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Passes over the calibration images in which every point's scales and biases are tuned towards the "
            "float network's values; default: none.",
        ),
    ] = None,
    activation_bits: Annotated[
        int | None,
        typer.Option(help="Quantize activations, too, to this width, 2 to 8: for `slimbit export`; default: float."),
    ] = None,
    activation_codes: Annotated[
        str | None,
        typer.Option(help="Codes of activations: unsigned (default), signed (for TensorRT) or affine (zero points)."),
    ] = None,
    metric_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the score is called in tables and on axes; default accuracy."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Most seconds to score a network; a point beyond fails. Default: no limit."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of sampled images, labels and positions; default 0.")] = None,
    batch_size: BatchSize = None,
    memory: Memory = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database for the study; default: RUN/study.db. With postgresql://... many machines share the run.",
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL", help="Where levels and networks are kept, also s3://bucket/prefix; default: in the run."
        ),
    ] = None,
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run on a database server; default: made of the settings.")
    ] = None,
    takeover_after: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            help="On a database server: when others take over from a worker that is gone; default 120.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where networks are compressed and scored: cpu (default) or cuda.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try points again that failed.")] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Let code run that a file (card, config, pruned folder) names; only where you trust it.",
        ),
    ] = False,
) -> None:
    """Trace accuracy against cost of a trained network. Interrupt at will: the same command continues."""
    options: dict[str, Any] = {
        "network": network,
        "weights": None if weights is None else str(weights),
        "data": data,
        "input": input_,
        "metric": metric,
        "points": points,
        "near": dict(map(parse_budget, near)) if near else None,
        "keep_ratios": None if widths is None else parse_widths(widths),
        "stages": None if stages is None else str(stages),
        "prune": {
            "by": by,
            "scope": scope,
            "signal": str(signal) if by == "signal" and signal is not None else None,
            "tune": training_options(
                "tune",
                tune_epochs,
                learning_rate=tune_lr,
                distill=distill if tune_epochs or not learn_epochs else None,
                config=tune_config,
            ),
        },
        "learn": training_options(
            "learn",
            learn_epochs,
            points=learn_points,
            learning_rate=learn_lr,
            distill=distill if learn_epochs else None,
            config=learn_config,
        ),
        "quant": {"refine": refine, "activation_bits": activation_bits, "activation_codes": activation_codes},
        "calibration_images": calibration_images,
        "calibration_augment": augment,
        "evaluate_images": evaluate_images,
        "select_images": select_images,
        "baselines": _baselines(baselines, none=no_baselines),
        "signal": None if signal is None else str(signal),
        "signal_epochs": None if signal_epochs is None else parse_epochs(signal_epochs),
        "metric_name": metric_name,
        "timeout_seconds": timeout,
        "seed": seed,
        "batch_size": batch_size,
        "memory_gib": memory,
        "storage": storage,
        "artifacts": artifacts,
        "run_name": run_name,
        "takeover_seconds": takeover_after,
        "device": device,
        "retry_failed": retry_failed or None,
    }
    base: FrontierConfig = FrontierConfig() if config is None else FrontierConfig.from_toml(config)
    check_trusted_network(None if network else base.network, str(config), allow_code=allow_code)
    check_trusted_data(None if data else base.data, str(config), allow_code=allow_code)
    for cost in (*(() if metric else (base.metric,)), *(() if near else base.near)):
        check_trusted_cost(cost, str(config), allow_code=allow_code)
    result = trace(base.with_options(options), out, allow_code=allow_code)
    Console().print(points_table(result, result.points, result.metric), *clampings(result.points))
    if said := answer_of_run(result.info, result.points, result.metric):
        Console(highlight=False, soft_wrap=True).print(f"Prune or quantize? {said}", markup=False)
    for line in failures(result.points):
        Console(stderr=True, highlight=False, soft_wrap=True).print(line)
    if not any(point.state == "done" for point in result.points):
        raise SlimbitError(f"every point of {out} failed: the reasons are above")


def _baselines(text: str | None, *, none: bool) -> tuple[str, ...] | None:
    """Names of baselines; None = not given."""
    if none and text is not None:
        raise InputError("--baselines must not be given with --no-baselines, got both")
    return () if none else None if text is None else tuple(name.strip() for name in text.split(","))


def trace(settings: FrontierConfig, out: Path, *, allow_code: bool = False) -> "Frontier":
    """Trace what the settings name, shown as it goes."""
    from slimbit.compress.prepared import prepare
    from slimbit.frontier.points import Scorer
    from slimbit.frontier.trace import trace_frontier
    from slimbit.measure.named_cost import load_cost
    from slimbit.numerics.batches import zeros_like_input
    from slimbit.sources.network_and_data import open_network_and_data
    from slimbit.sources.networks import device_named

    found = open_network_and_data(
        settings.network,
        weights=None if settings.weights is None else Path(settings.weights),
        spec=settings.data,
        input_text=settings.input,
        allow_code=allow_code,
    )
    device, tune = device_named(settings.device), settings.prune.tune
    augment: AugmentConfig | bool = settings.calibration_augment
    if augment and tune is not None:
        augment = tune.train.augment
    images = found.data.calibration(settings.calibration_images, seed=settings.seed, augment=augment)
    prepared = prepare(
        found.network.model.to(device),
        zeros_like_input(found.shape).to(device),
        [batch.to(device) for batch in images],
        name=found.network.name,
        seed=settings.seed,
        likelihood=settings.likelihood,
        origin=found.network.origin,
        keep=found.network.keep,
        batch_size=settings.batch_size,
        memory_gib=settings.memory_gib,
    )
    if settings.evaluate_images is not None:
        evaluate = found.data.evaluator(settings.evaluate_images, batch_size=settings.batch_size)
    else:
        evaluate = found.data.selection(settings.select_images, batch_size=settings.batch_size)[0]
    name = Scorer(evaluate, settings.metric_name).name
    with Screen(Console(), metric=load_cost(settings.metric).name, folder=str(out), score_name=name) as screen:
        return trace_frontier(
            prepared,
            evaluate=evaluate,
            out=out,
            config=settings.run(),
            data=found.data,
            progress=screen,
        )


def parse_widths(text: str) -> tuple[float, ...]:
    """Shares of the filters of ``1,0.75,0.5``.

    >>> parse_widths("1, 0.75")
    (1.0, 0.75)
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--widths must be numbers with commas between them, got {text!r}") from None
    if not all(0 < share <= 1 for share in found):
        raise InputError(f"--widths must be shares of the filters, above 0 and up to 1, got {text!r}")
    return found


def parse_epochs(text: str) -> tuple[int, ...]:
    """Epochs of ``10,20,30``.

    >>> parse_epochs("10, 20")
    (10, 20)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"--signal-epochs must be whole numbers with commas between them, got {text!r}")
    return tuple(map(int, parts))
