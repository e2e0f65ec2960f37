"""Settings of ``slimbit frontier`` as a TOML file: data in, unknown keys refused, errors with the path of the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slimbit.records.keep import Constants
from slimbit.records.network import Per
from slimbit.records.plan import PlanGrid, Rounding, Statistics, Target
from slimbit.records.toml import ConfigTable, read_toml, with_options
from slimbit.records.training import TrainConfig

Metric = Literal["esn_analog", "esn_digital", "esn_filterwise"]
By = Literal["norm", "signal", "fisher", "admm", "dead"]
"""What decides which filters stay."""
Scope = Literal["layer", "global"]
"""Whether filters are ranked layer by layer or all together."""


class RecipeConfig(ConfigTable):
    """Table ``[recipe]``: how plans are carried out; what is left out keeps its default.

    Attributes are those of `slimbit.records.plan.Recipe`.
    """

    rounding: Rounding | None = None
    compensation: bool | None = None
    target: Target | None = None
    refit: bool | None = None
    statistics: Statistics | None = None


class LayoutConfig(ConfigTable):
    """Table ``[layout]``: what is asked of every policy; what is left out keeps its default.

    Attributes:
        grid: Grid of the levels.
        granularity: One step per layer, or one per filter.
        skip: Layers that stay float.
        per: Weighting of cost.
    """

    grid: PlanGrid | None = None
    granularity: Literal["layer", "filter"] | None = None
    skip: tuple[str, ...] | None = Field(default=None, strict=False)
    per: Per | None = None


class SlimmingConfig(ConfigTable):
    """Table ``[slimming]``: how narrower networks are made, by ``slimbit prune`` and by ``slimbit frontier --widths``.

    Attributes:
        by: What decides which filters stay.
        signal: Training run whose last epoch "signal" ranks by.
        scope: Whether filters are ranked layer by layer or all together.
        protect: Layers that lose no filter, by name or pattern.
        constants: What happens to the constants of removed filters.
        statistics: BatchNorm statistics after the cut.
        tune_epochs: Epochs of training afterwards; 0 = none.
        tune_lr: Learning rate at their beginning.
        distill: Whether it learns the outputs of the original network instead of labels.
        admm_epochs: Epochs of each of the four stages of ADMM.
        admm_lr: Highest learning rate of these stages.
        tune: Any other setting of the training, as in a file for ``slimbit train --config``; what is left out
            follows the paper, see `slimbit.train.tune.tune_config`.
    """

    by: By = "norm"
    signal: str | None = None
    scope: Scope = "layer"
    protect: tuple[str, ...] = Field(default=(), strict=False)
    constants: Constants = "fold"
    statistics: Statistics = "paired"
    tune_epochs: int = Field(default=0, ge=0, le=100_000)
    tune_lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    distill: bool = False
    admm_epochs: int = Field(default=3, ge=1, le=10_000)
    admm_lr: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    tune: TrainConfig = TrainConfig()


class FrontierConfig(ConfigTable):
    """Settings of a run; every key is optional, and every option of the command wins over the file.

    Attributes:
        network: As NETWORK on the command line.
        weights: Weights file; relative to the current folder.
        data: Data spec.
        input: Shape of one input, ``3x32x32``.
        metric: Cost metric of the sweep.
        points: Number of points of each width, baselines not counted.
        widths: Shares of the filters to keep, each a network of its own; 1 = the network as it is.
        stages: Folder of pruned and tuned networks, kept by content; default: in the run.
        baselines: Whether to add the quantize-only baselines.
        signal: Training run, or its ``signal.jsonl``, to take steps from; relative to the current folder.
        signal_epochs: Its epochs to take; default: at most eight, spread evenly.
        calibration_images: Number of unlabelled images.
        calibration_augment: Whether they are cropped and flipped as in training.
        evaluate_images: Number of images to score on; None = all.
        seed: Of sampled images, labels and positions.
        storage: Database for the study.
        device: Where networks are compressed and scored: cpu, cuda or cuda:1.
        likelihood: What the sensitivity samples labels from.
        recipe: How plans are carried out.
        layout: Grid, granularity, skipped layers.
        slimming: How the narrower networks of ``widths`` are made.
    """

    network: str | None = None
    weights: str | None = None
    data: str | None = None
    input: str | None = None
    metric: Metric = "esn_digital"
    points: int = Field(default=16, ge=1, le=1000)
    widths: tuple[float, ...] = Field(default=(1.0,), min_length=1, strict=False)
    stages: str | None = None
    baselines: bool = True
    signal: str | None = None
    signal_epochs: tuple[int, ...] | None = Field(default=None, strict=False)
    calibration_images: int = Field(default=500, ge=1)
    calibration_augment: bool = False
    evaluate_images: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    storage: str | None = None
    device: str = "cpu"
    likelihood: Literal["categorical", "gaussian"] = "categorical"
    recipe: RecipeConfig = RecipeConfig()
    layout: LayoutConfig = LayoutConfig()
    slimming: SlimmingConfig = SlimmingConfig()

    def with_options(self, options: Mapping[str, Any]) -> "FrontierConfig":
        """The settings with options of the command put over them; None means not given.

        >>> FrontierConfig(points=8).with_options({"points": None, "seed": 3}).points
        8
        """
        return with_options(self, options)


def load_config(path: str | Path) -> FrontierConfig:
    """Read a TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML, or a key is unknown or has a wrong value; the sentence
            names file and key.
    """
    return read_toml(path, FrontierConfig)
