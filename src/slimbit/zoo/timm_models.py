"""Networks of timm, also where the torchvision that timm imports is missing or broken.

timm takes torchvision for its data transforms and for one type of normalization that its models do not use. Where
torchvision cannot be imported, placeholders stand in for it while timm is, so that the networks work.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from torch import nn

from slimbit.records.errors import InputError, MissingExtraError, closest

_TORCHVISION = "torchvision"


def timm_model(name: str, *, classes: int | None = None) -> nn.Module:
    """A network of timm with random weights.

    Args:
        name: As timm knows it; names that would download something are not known.
        classes: Number of outputs; default: the network's own.

    Raises:
        MissingExtraError: timm is not installed.
        InputError: timm cannot be imported, does not know the name, or cannot build the network.
    """
    timm = imported_timm()
    if not timm.is_model(name):
        raise InputError(f"timm must know the model, got {name}{closest(name, timm.list_models())}")
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=False, **({} if classes is None else {"num_classes": classes})
        )
    except Exception as error:
        raise InputError(f"timm must be able to build {name}, got {type(error).__name__}: {error}") from error
    return model


def imported_timm() -> Any:
    """The package timm.

    Raises:
        MissingExtraError: It is not installed.
        InputError: It cannot be imported, for whatever reason.
    """
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError("timm", "timm", "a network of timm")
    try:
        with contextlib.nullcontext() if "timm" in sys.modules else torchvision_or_placeholders():
            import timm
    except Exception as error:
        raise InputError(f"timm must be importable, got {type(error).__name__}: {error}") from error
    return timm


def torchvision_or_placeholders() -> AbstractContextManager[None]:
    """A context in which torchvision can be imported, if need be as placeholders; what is imported then keeps them."""
    return contextlib.nullcontext() if _torchvision_works() else _placeholders()


def _torchvision_works() -> bool:
    try:
        import torchvision.ops
        import torchvision.transforms.functional  # noqa: F401 - what timm imports
    except Exception:  # noqa: BLE001 - a build for another torch raises anything at all
        _forget()
        return False
    return True


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    """Any import from torchvision gives a placeholder, and is forgotten afterwards."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == _TORCHVISION]:
        del sys.modules[name]


class _Named(type):
    """Type of placeholders: any attribute of one is its name, as of an enumeration."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != _TORCHVISION:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
