"""Weight files: safetensors, and what ``torch.save`` writes; code in a file is never run."""

import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from slimbit.records.containers import check_inflation, check_safetensors
from slimbit.records.errors import InputError
from slimbit.records.files import check_regular
from slimbit.records.pickles import check_torch_file

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar")  # .tar: many training scripts write NAME.pth.tar
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
"""Entries under which training scripts keep the state dict; the first one present wins."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
ADVICE = "where it is trusted, save the network's state_dict() as .safetensors"
DEEPEST_WRAPPING = 4
LONGEST_PATH = 200
ALWAYS_FINE = 1 << 26
"""Bytes that an archive may hold whatever its own size."""
MOST_INFLATION = 4


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU, without wrappers and common prefixes.

    Checkpoints may keep the state dict under ``state_dict``, ``model_state_dict``, ``model``, ``net``,
    ``state_dict_ema`` or ``model_ema`` (in this order); everything beside it is ignored. ``module.`` and
    ``_orig_mod.`` are removed where every name starts with them. Values are not checked; `load_weights` does.

    Args:
        path: A ``.safetensors`` file, or ``.pth``, ``.pt``, ``.th``, ``.tar`` as ``torch.save`` writes them.
            The latter are read with ``weights_only=True``: a file that needs more than tensors is refused.

    Raises:
        InputError: The file is missing, damaged, of another kind, refused, or holds no state dict.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "example.pth"
    >>> torch.save({"epoch": 3, "state_dict": {"module.fc.weight": torch.ones(2)}}, file)
    >>> read_weights(file)
    {'fc.weight': tensor([1., 1.])}
    """
    file = Path(path)
    _check_readable(file)
    suffix = file.suffix.lower()
    if suffix not in (".safetensors", *TORCH_SUFFIXES):
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise InputError(f"weights file must end in one of {known}, got {str(file)!r}")
    content = _read_safetensors(file) if suffix == ".safetensors" else _read_torch(file)
    state = _state_dict(content, file)
    prefix = common_prefix(state)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def common_prefix(names: Iterable[str]) -> str:
    """The wrappers' prefix that every name has, nested ones included; "" if there is none.

    >>> common_prefix(["_orig_mod.module.conv.weight", "_orig_mod.module.bn.bias"])
    '_orig_mod.module.'
    >>> common_prefix(["module.conv.weight", "head.weight"])
    ''
    """
    every, prefix = list(names), ""
    for _ in range(DEEPEST_WRAPPING):
        longer = [prefix + more for more in PREFIXES if all(name.startswith(prefix + more) for name in every)]
        if not every or not longer:
            break
        prefix = longer[0]
    return prefix


def _check_readable(file: Path) -> None:
    """Exists, is a file, is not empty, may be opened."""
    try:
        if not file.exists():
            raise InputError(f"weights file must exist, got {str(file)!r}")
        if not file.is_file():
            raise InputError(f"weights file must be a file, got {str(file)!r}, which is something else")
        with file.open("rb") as stream:
            if not stream.read(1):
                raise InputError(f"weights file must not be empty, got {str(file)!r} with 0 bytes")
    except OSError as error:
        shown = str(file)[:LONGEST_PATH]
        raise InputError(f"weights file must be readable, got {shown!r}: {error.strerror}") from error


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    check_safetensors(file, "weights file")
    try:
        return load_file(file)
    # Beside its own error the reader lets through whatever torch raises at impossible shapes and types.
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError, OverflowError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"weights file must be a complete safetensors file, got {str(file)!r}: {reason}") from error


def _read_torch(file: Path) -> object:
    # ``torch.save`` compresses nothing: an archive that does may fill the memory with a few bytes
    what = f"weights file {str(file)!r}"
    check_inflation(file, check_regular(file, "weights file"), what, times=MOST_INFLATION, always=ALWAYS_FINE)
    check_torch_file(file, what)
    try:
        with warnings.catch_warnings():
            # About old protocols and TorchScript: such a file loads, or the error below says why not.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    # A damaged pickle makes torch's reader raise anything (KeyError, struct.error, MemoryError, ...).
    except Exception as error:
        raise InputError(f"weights file {str(file)!r} {_torch_fault(error)}") from error


def _torch_fault(error: Exception) -> str:
    """What is wrong with a file, from the error of ``torch.load``."""
    text = str(error)
    if "TorchScript" in text:
        return f"is refused because it is a TorchScript archive, which holds code; {ADVICE}"
    wanted = re.search(r"GLOBAL (\S+)", text) if isinstance(error, pickle.UnpicklingError) else None
    if wanted:
        return (
            f"is refused because it needs {wanted[1][:80]}: only tensors are loaded, "
            f"since unpickling anything else can run code from the file; {ADVICE}"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "is refused because it is damaged or pickles more than tensors, while only tensors are loaded"
    return "must be complete and undamaged, as torch.save wrote it"


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint."""
    for _ in range(DEEPEST_WRAPPING):
        if not isinstance(content, Mapping):
            break
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    where = f"in weights file {str(file)!r}"
    if not isinstance(content, Mapping) or not content:
        got = "an empty one" if isinstance(content, Mapping) else type(content).__name__
        raise InputError(f"state dict {where} must map names to tensors, got {got}")
    if not any(isinstance(value, Tensor) for value in content.values()):
        shown = ", ".join(repr(key)[:40] for key in list(content)[:8])
        known = ", ".join(WRAPPERS)
        raise InputError(f"state dict {where} must be at the top or under one of {known}, got only {shown}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = f"{type(name).__name__} to {type(value).__name__}"
            raise InputError(f"entry {repr(name)[:80]} {where} must be a name with its tensor, got {kind}")
    return dict(content)
