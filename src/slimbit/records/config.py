"""Settings of ``slimbit frontier`` as a TOML file: data in, unknown keys refused, errors with the path of the key."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slimbit.records.errors import InputError, closest
from slimbit.records.network import Per
from slimbit.records.plan import PlanGrid, Rounding, Statistics, Target

Metric = Literal["esn_analog", "esn_digital", "esn_filterwise"]
LARGEST_FILE = 1 << 20


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RecipeConfig(_Table):
    """Table ``[recipe]``: how plans are carried out; what is left out keeps its default.

    Attributes are those of `slimbit.records.plan.Recipe`.
    """

    rounding: Rounding | None = None
    compensation: bool | None = None
    target: Target | None = None
    refit: bool | None = None
    statistics: Statistics | None = None


class LayoutConfig(_Table):
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


class FrontierConfig(_Table):
    """Settings of a run; every key is optional, and every option of the command wins over the file.

    Attributes:
        network: As NETWORK on the command line.
        weights: Weights file; relative to the current folder.
        data: Data spec.
        input: Shape of one input, ``3x32x32``.
        metric: Cost metric of the sweep.
        points: Number of points, baselines not counted.
        baselines: Whether to add the quantize-only baselines.
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
        return _validated({**self.model_dump(exclude_unset=True), **given}, where="option ")


def load_config(path: str | Path) -> FrontierConfig:
    """Read a TOML file.

    Raises:
        InputError: The file cannot be read or is no TOML, or a key is unknown or has a wrong value; the sentence
            names file and key.
    """
    file = Path(path)
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise InputError(f"configuration {file} must be at most {LARGEST_FILE:,} bytes, got more")
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"configuration {file} must be readable, got {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"configuration {file} must be TOML, got {error}") from error
    return _validated(data, where=f"{file}: ")


def _validated(data: Mapping[str, Any], *, where: str) -> FrontierConfig:
    try:
        return FrontierConfig.model_validate(dict(data))
    except ValidationError as error:
        raise InputError(f"{where}{'; '.join(_faults(error))}") from error


def _faults(error: ValidationError) -> Iterator[str]:
    """Each fault as a clause, unknown keys with the known one that is most like them."""
    for fault in error.errors(include_url=False):
        path = ".".join(str(step) for step in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _keys(str(fault["loc"][0]) if len(fault["loc"]) > 1 else "")
            yield f"{path} must be a known key, got an unknown one{closest(str(fault['loc'][-1]), known)}"
        else:
            rule = fault["msg"].removeprefix("Input should be ")
            yield f"{path} must be {rule}, got {repr(fault['input'])[:80]}"


def _keys(table: str) -> tuple[str, ...]:
    tables: dict[str, type[BaseModel]] = {"": FrontierConfig, "recipe": RecipeConfig, "layout": LayoutConfig}
    return tuple(tables[table].model_fields)
