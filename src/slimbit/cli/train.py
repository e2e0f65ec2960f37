"""`slimbit train`: train a network, with its signal-to-noise ratio in view."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from slimbit.cli.live import duration
from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig
from slimbit.records.training_run import EPOCHS, read_epochs
from slimbit.sources.networks import check_trusted_data, check_trusted_network

if TYPE_CHECKING:
    from slimbit.training.run import TrainResult
    from slimbit.training.task import TrainingProgress


def train(  # noqa: PLR0913 - one argument per option of the command
    network: Annotated[
        str | None, typer.Argument(metavar="[NETWORK]", help="As for `slimbit cost`.", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run, new or to be continued.", show_default=False)],
    data: Annotated[str | None, typer.Option(metavar="SPEC", help="As for `slimbit frontier`.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Settings that come with Slimbit, e.g. fig2-quick.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these settings and more.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights to start from; default: random.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step, over all processes.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Parts that a batch is cut into to save memory.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of stochastic gradient descent.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of every parameter.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine, step, constant or one_cycle.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target for all classes alike.")] = None,
    validation_images: Annotated[
        int | None, typer.Option(help="Training images held out to choose the epoch; default: a tenth.")
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="Training images to use; default: all others.")] = None,
    crop: Annotated[int | None, typer.Option(help="Pixels that images are moved by; default: an eighth.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16 (autocast).")] = None,
    compile_: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--channels-first", help="Memory layout.")
    ] = None,
    keep_weights: Annotated[
        bool | None, typer.Option("--keep-weights/--no-keep-weights", help="Keep the weights of every epoch.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of initial weights, order and augmentation.")] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let code run that --config names; only where you trust it.")
    ] = False,
) -> None:
    """Train a network. Interrupt at will: the same command continues.

    The same command runs on the CPU, on a GPU, and under torchrun on several machines.
    """
    options: dict[str, Any] = {
        "network": network,
        "data": data,
        "weights": None if weights is None else str(weights),
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "label_smoothing": label_smoothing,
        "validation_images": validation_images,
        "train_images": train_images,
        "precision": precision,
        "compile": compile_,
        "channels_last": channels_last,
        "keep_weights": keep_weights,
        "seed": seed,
        "optimizer": {"learning_rate": lr, "momentum": momentum, "weight_decay": weight_decay},
        "schedule": {"name": schedule},
        "augment": {"crop": crop, "flip": flip},
    }
    base = _base(recipe, config)
    settings: TrainConfig = base.with_options(options)
    check_trusted_network(None if network else base.network, str(config), allow_code=allow_code)
    check_trusted_data(None if data else base.data, str(config), allow_code=allow_code)
    console = Console()
    with TrainScreen(console, folder=str(out)) as screen:
        result = train_from(settings, out, screen=screen)
    _print_result(console, result, out)


def _base(recipe: str | None, config: Path | None) -> TrainConfig:
    if recipe is not None and config is not None:
        raise InputError("one of --recipe and --config may be given, got both")
    if recipe is not None:
        return TrainConfig.from_recipe(recipe)
    return TrainConfig() if config is None else TrainConfig.from_toml(config)


def train_from(settings: TrainConfig, out: Path, *, screen: "TrainScreen | None" = None) -> "TrainResult":
    """Train what the settings name."""
    from slimbit.compress.train import train as train_model
    from slimbit.sources.networks import check_runnable, model_of
    from slimbit.zoo.cards import read_card
    from slimbit.zoo.data import open_data

    if not settings.network:
        raise InputError("NETWORK must be given, on the command line or in the settings, got none")
    if not settings.data:
        raise InputError("--data must be given, e.g. --data cifar10:DIR, got none")
    check_runnable(settings.network)
    weights = None if settings.weights is None else Path(settings.weights)
    card = (read_card(weights) if weights is not None else None) or {}
    data = open_data(settings.data, card=card or None)
    text = settings.input or "x".join(map(str, data.input_shape))
    # labels at hand may be those of a subset: they never decide how many outputs there are
    classes = card.get("classes") if data.open_classes else data.classes
    model, _ = model_of(
        settings.network, weights=weights, input_text=text, classes=classes, seed=settings.seed, trained=False
    )
    begun = "" if weights is None else _digest(weights)
    return train_model(model, data, out=out, config=settings, fingerprint=begun, progress=screen)


def _digest(weights: Path) -> str:
    """SHA-256 of the file that training begins from, which was read before."""
    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _print_result(console: Console, result: "TrainResult", out: Path) -> None:
    if not result.epochs:
        return  # another process than the first
    held = "" if result.accuracy is None else f", {result.accuracy:.2f} % of the held-out images"
    test = "" if result.test_accuracy is None else f", {result.test_accuracy:.2f} % of the test images"
    text = f"{out / 'model.safetensors'}: epoch {result.epoch} of {len(result.epochs)}{held}{test}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class TrainScreen:
    """One line per epoch, and a bar in a terminal; use it as a context.

    Attributes:
        console: Where to.
        folder: The run, named when it is interrupted.
    """

    def __init__(self, console: Console, *, folder: str) -> None:
        self.console, self.folder = console, folder
        self._seconds: list[float] = []
        self._done = max(read_epochs(Path(folder) / EPOCHS), default=0)
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None

    def __enter__(self) -> "TrainScreen":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._bars.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            text = f"stopped; {self._done} epochs are done in {self.folder}, the same command continues"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, progress: "TrainingProgress") -> None:
        """Show one message."""
        if progress.message:
            self.console.print(progress.message, markup=False, highlight=False, soft_wrap=True)
            return
        if progress.finished is not None:
            self._seconds.append(progress.finished.seconds)
            self._done = progress.epoch
            self._line(progress)
            return
        if self._task is None:
            self._task = self._bars.add_task("", total=progress.steps, loss="")
        self._bars.update(
            self._task,
            description=f"epoch {progress.epoch}/{progress.epochs}",
            completed=progress.step,
            total=progress.steps,
            loss=f"{progress.loss:.4f}",
        )

    def _line(self, progress: "TrainingProgress") -> None:
        done = progress.finished
        assert done is not None, "the caller asked"
        recent = self._seconds[-3:]
        left = (progress.epochs - progress.epoch) * sum(recent) / len(recent)
        parts = [
            f"epoch {progress.epoch:>{len(str(progress.epochs))}}/{progress.epochs}",
            f"loss {done.loss:.4f}",
            *([] if done.accuracy is None else [f"held out {done.accuracy:.2f} %"]),
            *([] if done.signal_to_noise is None else [f"S/N {done.signal_to_noise:.4g}"]),
            f"lr {done.learning_rate_last:.3g}",
            f"{done.seconds:.0f} s",
            *([f"{duration(left)} left"] if left else []),
        ]
        self.console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)
