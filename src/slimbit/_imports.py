"""Importing late: public names when they are first used, and the user's own functions by name."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from slimbit.records.errors import InputError, closest


def lazy_names(
    package: str, homes: Mapping[str, str], public: Sequence[str], *, rooms: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package whose names are imported when they are first used.

    Args:
        package: The package's ``__name__``.
        homes: Module of each late name.
        public: The package's ``__all__``.
        rooms: Packages inside it, imported when they are first used.
    """

    def getattr_(name: str) -> Any:
        if name in rooms:
            return importlib.import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_, lambda: list(public)


def import_named(reference: str, what: str, *, instead: Sequence[str] = ()) -> Any:
    """Whatever is at ``package.module:name`` or ``path/to/file.py:name``; this runs the module's code.

    The current folder is searched, too, as ``python -m`` does.

    Args:
        reference: What the user wrote.
        what: What it is for, as the subject of an error: "NETWORK", "data spec".
        instead: Names that a misspelt module may have been meant for.

    Raises:
        InputError: There is no such module or name, or importing it fails.

    >>> import_named("math:sqrt", "example")(9)
    3.0
    """
    module_name, _, name = reference.rpartition(":")
    try:
        module = _module(module_name)
    except (Exception, SystemExit) as error:  # the module is the user's: it may raise anything, or end the program
        hint = closest(module_name, tuple(instead))
        reason = f"SystemExit: {error}" if isinstance(error, SystemExit) else error
        raise InputError(f"{what} must name an importable module, got {module_name!r}: {reason}{hint}") from error
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError as error:
        raise InputError(
            f"{what} must name something in {module_name}, got {name!r}{closest(name, dir(module))}"
        ) from error


def import_callable(reference: str, what: str, *, instead: Sequence[str] = ()) -> Callable[..., Any]:
    """`import_named`, and it must be callable."""
    value = import_named(reference, what, instead=instead)
    if not callable(value):
        raise InputError(f"{what} must name a callable, got {reference}, which is {type(value).__name__}")
    function: Callable[..., Any] = value
    return function


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
