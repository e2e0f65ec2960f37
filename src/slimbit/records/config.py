"""Settings of ``slimbit frontier`` as a TOML file: data in, unknown keys refused, errors with the path of the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slimbit.records.network import Per
from slimbit.records.plan import PlanGrid, Rounding, Statistics, Target
from slimbit.records.toml import ConfigTable, read_toml, validated

Metric = Literal["esn_analog", "esn_digital", "esn_filterwise"]


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


class FrontierConfig(ConfigTable):
    """Settings of a run; every key is optional, and every option of the command wins over the file.

    Attributes:
        network: As NETWORK on the command line.
        weights: Weights file; relative to the current folder.
        data: Data spec.
        input: Shape of one input, ``3x32x32``.
        metric: Cost metric of the sweep.
        points: Number of points, baselines not counted.
        baselines: Whether to add the quantize-only baselines.
        signal: Training run, or its ``signal.jsonl``, to take steps from; relative to the current folder.
        signal_epochs: Its epochs to take; default: at most eight, spread evenly.
        calibration_images: Number of unlabelled images.
        evaluate_images: Number of images to score on; None = all.
        seed: Of sampled images, labels and positions.
        storage: Database for the study.
        likelihood: What the sensitivity samples labels from.
        recipe: How plans are carried out.
        layout: Grid, granularity, skipped layers.
    """

    network: str | None = None
    weights: str | None = None
    data: str | None = None
    input: str | None = None
    metric: Metric = "esn_digital"
    points: int = Field(default=16, ge=1, le=1000)
    baselines: bool = True
    signal: str | None = None
    signal_epochs: tuple[int, ...] | None = Field(default=None, strict=False)
    calibration_images: int = Field(default=500, ge=1)
    evaluate_images: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    storage: str | None = None
    likelihood: Literal["categorical", "gaussian"] = "categorical"
    recipe: RecipeConfig = RecipeConfig()
    layout: LayoutConfig = LayoutConfig()

    def with_options(self, options: Mapping[str, Any]) -> "FrontierConfig":
        """The settings with options of the command put over them; None means not given.

        >>> FrontierConfig(points=8).with_options({"points": None, "seed": 3}).points
        8
        """
        given = {name: value for name, value in options.items() if value is not None}
        return validated(FrontierConfig, {**self.model_dump(exclude_unset=True), **given}, where="option ")


def load_config(path: str | Path) -> FrontierConfig:
    """Read a TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML, or a key is unknown or has a wrong value; the sentence
            names file and key.
    """
    return read_toml(path, FrontierConfig)
