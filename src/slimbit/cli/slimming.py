"""What ``slimbit prune`` and ``slimbit frontier --widths`` have in common: pruning and the training after it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from slimbit.records.config import SlimmingConfig
from slimbit.records.errors import InputError
from slimbit.records.toml import read_toml
from slimbit.records.training import AugmentConfig, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

    from slimbit.frontier.slim import Slimming
    from slimbit.training.hold import Tuning
    from slimbit.zoo.data import DataSet

ADMM_STAGES = 4


def tune_options(path: Path | None) -> Mapping[str, Any] | None:
    """Settings of ``--tune-config FILE``, to be put over those of the paper."""
    return None if path is None else read_toml(path, TrainConfig).model_dump(exclude_unset=True)


@contextmanager
def stopped_training(console: Console, folder: str) -> Iterator[None]:
    """Say how to go on where training is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        text = f"stopped; what is trained is kept in {folder}, the same command continues"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise


def calibration_of(
    data: "DataSet", images: int, *, seed: int, augment: AugmentConfig | None = None
) -> "Iterable[Tensor]":
    """Unlabelled training images, as they are or as training sees them.

    Args:
        data: Where they come from.
        images: How many.
        seed: Another seed, another choice.
        augment: Crops and flips; None = as they are.
    """
    batches = data.calibration(images, seed=seed)
    if augment is None:
        return batches
    import torch

    from slimbit.training.images import TrainImages, augmented_images
    from slimbit.zoo.data.dataset import CALIBRATION_BATCH

    norm = data.normalization
    chosen = TrainImages(
        pixels=data.train.images,
        mean=norm.mean,
        std=norm.std,
        full_scale=data.full_scale,
        chosen=batches.indices,
    )
    return torch.split(augmented_images(chosen, augment, seed=seed), CALIBRATION_BATCH)


def slimming_of(settings: SlimmingConfig, *, network: str, data: "DataSet", example: Any, seed: int) -> "Slimming":
    """How narrower networks are made, with everything opened that it needs.

    Raises:
        InputError: Settings that contradict each other, or data without labels where they are needed.
    """
    from slimbit.frontier.slim import Slimming
    from slimbit.plan.keep import Keeping
    from slimbit.records.training_run import read_training_run

    if (settings.by == "signal") != (settings.signal is not None):
        raise InputError("--signal RUN must be given with --by signal, and only there, got one without the other")
    if settings.by == "admm" and not settings.tune_epochs:
        raise InputError("--tune-epochs must be given for --by admm, which trains before and after the cut, got none")
    _check_used(settings)
    return Slimming(
        by=settings.by,
        keeping=Keeping(scope=settings.scope, protect=settings.protect, constants=settings.constants),
        statistics=settings.statistics,
        signal=None if settings.signal is None else read_training_run(settings.signal).signal[-1],
        tuner=_tuning(settings, network=network, data=data, example=example, seed=seed),
    )


def _check_used(settings: SlimmingConfig) -> None:
    """Refuse settings that nothing would look at, and those that an option of their own has."""
    needs = (
        ("--tune-epochs", settings.tune_epochs > 0, ("distill", "tune_lr")),
        ("--by admm", settings.by == "admm", ("admm_epochs", "admm_lr")),
    )
    plain = SlimmingConfig()
    for option, is_given, names in needs:
        for name in names:
            if not is_given and getattr(settings, name) != getattr(plain, name):
                raise InputError(f"{option} must be given with --{name.replace('_', '-')}, got none")
    given = settings.tune.model_dump(exclude_unset=True)
    if "epochs" in given:
        raise InputError("epochs of --tune-config must be left out: --tune-epochs gives them")
    if "learning_rate" in given.get("optimizer", {}):
        raise InputError("learning_rate of --tune-config must be left out: --tune-lr gives it")


def _tuning(settings: SlimmingConfig, *, network: str, data: "DataSet", example: Any, seed: int) -> "Tuning | None":
    if not settings.tune_epochs:
        return None
    from slimbit.cli.train import materials_of
    from slimbit.training.admm import AdmmSettings
    from slimbit.training.hold import Tuning, tune_config

    chosen = tune_config(settings.tune_epochs, learning_rate=settings.tune_lr, seed=seed)
    config = chosen.with_options({**settings.tune.model_dump(exclude_unset=True), "network": network})
    task, about = materials_of(config, data, example, labelled=not settings.distill)
    return Tuning(
        task=task,
        config=config,
        data=about.data,
        distill=settings.distill,
        admm=AdmmSettings(stages=ADMM_STAGES, epochs_per_stage=settings.admm_epochs),
        admm_rate=settings.admm_lr,
    )
