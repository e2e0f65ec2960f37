"""Settings that come with Slimbit: the paper's figures in three scales, and networks to build on."""

from pathlib import Path

from slimbit.records.errors import InputError, closest

FOLDER = Path(__file__).parent


def recipe_names() -> tuple[str, ...]:
    """Every recipe, sorted.

    >>> "fig2-quick" in recipe_names()
    True
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def recipe_file(name: str) -> Path:
    """The TOML file of a recipe.

    Args:
        name: One of `recipe_names`.

    Raises:
        InputError: There is no such recipe.

    >>> recipe_file("fig2-paper").name
    'fig2-paper.toml'
    """
    if name not in recipe_names():
        hint = closest(name, recipe_names()) or f"; the recipes are {', '.join(recipe_names())}"
        raise InputError(f"recipe must be one that comes with Slimbit, got {name[:60]!r}{hint}")
    return FOLDER / f"{name}.toml"
