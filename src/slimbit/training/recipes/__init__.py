"""Settings that come with Slimbit: the paper's figures in three scales, and networks to build on."""

from pathlib import Path

from slimbit.records.config import read_config
from slimbit.records.errors import InputError, closest
from slimbit.records.training import TrainConfig

FOLDER = Path(__file__).parent


def recipe_names() -> tuple[str, ...]:
    """Every recipe, sorted.

    >>> "fig2-quick" in recipe_names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def recipe(name: str) -> TrainConfig:
    """The settings of a recipe.

    Args:
        name: One of `recipe_names`.

    Raises:
        InputError: There is no such recipe.

    >>> recipe("fig2-paper").epochs
    160
    """
    if name not in recipe_names():
        hint = closest(name, recipe_names()) or f"; the recipes are {', '.join(recipe_names())}"
        raise InputError(f"recipe must be one that comes with Slimbit, got {name[:60]!r}{hint}")
    config: TrainConfig = read_config(TrainConfig, FOLDER / f"{name}.toml")
    return config
