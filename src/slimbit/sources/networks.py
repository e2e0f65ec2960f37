"""Networks by reference: a name of the zoo, timm, a Python callable, a pruned folder, or a file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit._imports import import_callable
from slimbit.records.cost_names import HARDWARE
from slimbit.records.errors import InputError
from slimbit.records.files import expanded, has_file
from slimbit.records.keep import PRUNED, PRUNED_WEIGHTS
from slimbit.records.origin import runs_code
from slimbit.records.text import fault_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from slimbit.records.keep import KeepPlan
    from slimbit.records.origin import NetworkOrigin
    from slimbit.survey.result import Survey

FILES = (".onnx", ".pt2", ".safetensors")
WEIGHT_FILES = (".pth", ".th", ".pt", ".bin")
LARGEST_INPUT = 1 << 31
MOST_SIZES = 8
"""Dimensions of an input that any layer has; more are a slip."""


def survey_of(
    reference: str,
    *,
    weights: Path | None = None,
    input_text: str | None = None,
    named_inputs: "Mapping[str, tuple[int, ...]] | None" = None,
    batch: int | None = None,
    allow_code: bool = False,
) -> "Survey":
    """Survey whatever NETWORK names.

    Args:
        reference: Zoo name, ``timm:NAME``, ``package.module:callable``, a file of type `FILES`, or a folder that
            ``slimbit prune`` has written.
        weights: Weights to load into it.
        input_text: ``3x32x32``; default: the network's own.
        named_inputs: Shapes of inputs of an ONNX file by name.
        batch: How many images the inputs of a file hold; default: found out.
        allow_code: Whether code in a ``.pt2`` file, or that a pruned folder names, may run.
    """
    pruned = is_pruned(reference)
    suffix = "" if pruned else Path(reference).suffix.lower()
    if suffix in FILES and ":" not in reference:
        if weights is not None:
            raise InputError(f"--weights must not be given for a file that has its own, got both for {reference}")
        if suffix == ".onnx":
            return _survey_onnx(reference, input_text, named_inputs or {}, batch)
        given = input_text or ", ".join(named_inputs or {})
        if given:
            raise InputError(f"--input must not be given for {suffix} files, which fix their own, got {given}")
        return _survey_file(reference, suffix, batch, allow_code=allow_code)
    if named_inputs:
        raise InputError(f"--input NAME=SIZES must be given for an ONNX file, got {reference}")
    if batch is not None:
        raise InputError(f"--batch must be given for an ONNX or .pt2 file, got {reference}, counted on one image")
    if suffix in WEIGHT_FILES:
        raise InputError(f"NETWORK must be a network, got the weights file {reference}: give it with --weights")
    if pruned:
        found = _pruned_network(reference, weights=weights, input_text=input_text, allow_code=allow_code)
        model, shape = found.model, found.origin.input_shape
    else:
        model, shape = model_of(reference, weights=weights, input_text=input_text)
    from slimbit.numerics.batches import zeros_like_input
    from slimbit.survey.module import survey_network

    survey = survey_network(model, zeros_like_input(shape), name=reference)
    if weights is None and not pruned and ":" not in reference and default_weights(reference) is None:
        note = "The weights are a random initialization: give --weights for what depends on their values."
        survey = replace(survey, spec=replace(survey.spec, notes=(*survey.spec.notes, note)))
    return survey


def model_of(
    reference: str,
    *,
    weights: Path | None = None,
    input_text: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    trained: bool = True,
) -> "tuple[nn.Module, tuple[int, ...]]":
    """The module that NETWORK names, with its weights, and the shape of one input without the batch dimension.

    Args:
        reference: As for `survey_of`, but for files, which are not modules, and pruned folders.
        weights: Weights to load into it; default: those that come with Slimbit, if any.
        input_text: ``3x32x32``; default: the network's own.
        classes: Number of outputs of a zoo or timm network; default: its own.
        seed: Of random initial weights.
        trained: Whether weights that come with Slimbit are loaded where none are given.
    """
    check_runnable(reference)
    if is_pruned(reference):
        raise InputError(f"NETWORK must be one with all its filters here, got the pruned folder {reference}")
    model, shape = _built(reference, classes, seed)
    weights = weights or (default_weights(reference) if trained else None)
    if weights is not None:
        from slimbit.zoo import load_weights

        load_weights(model, weights)
    if input_text is not None:
        shape = input_shape(input_text)
    if shape is None:
        raise InputError(f"--input must be given for {reference}, e.g. --input 3x224x224")
    return model, shape


def is_pruned(reference: str) -> bool:
    """Whether it names a folder that ``slimbit prune`` has written; a name of the zoo never does.

    >>> is_pruned("resnet20"), is_pruned("resnet20@0.5"), is_pruned("")
    (False, False, False)
    """
    from slimbit.zoo.registry import names

    if not reference or reference.partition("@")[0] in names():
        return False
    return has_file(reference, PRUNED)


@dataclass(frozen=True)
class OpenedNetwork:
    """A network, and how it is built again.

    Attributes:
        model: With its weights, in evaluation mode.
        origin: How the network, or what it was before ``slimbit prune``, is built.
        keep: What ``slimbit prune`` left of it; None: all of it.
    """

    model: "nn.Module"
    origin: "NetworkOrigin"
    keep: "KeepPlan | None" = None

    @property
    def name(self) -> str:
        """For people."""
        source = self.origin.source
        return source if self.keep is None else f"{source}, {self.keep.policy}, {self.keep.setting}"


def open_network(
    reference: str,
    *,
    weights: Path | None = None,
    input_text: str | None = None,
    classes: int | None = None,
    allow_code: bool = False,
) -> OpenedNetwork:
    """The network that a reference names, pruned or not, with its weights; arguments as of `model_of`.

    Args:
        reference: As for `model_of`, or a folder that ``slimbit prune`` wrote.
        weights: Weights to load into it.
        input_text: ``3x32x32``; default: the network's own.
        classes: Number of outputs of a zoo or timm network; default: its own.
        allow_code: Whether code that a pruned folder names may be run.
    """
    from slimbit.records.origin import NetworkOrigin

    if is_pruned(reference):
        return _pruned_network(
            reference, weights=weights, input_text=input_text, classes=classes, allow_code=allow_code
        )
    model, shape = model_of(reference, weights=weights, input_text=input_text, classes=classes)
    return OpenedNetwork(model.eval(), NetworkOrigin(source=reference, input_shape=shape, classes=classes))


def _pruned_network(
    folder: str,
    *,
    weights: Path | None,
    input_text: str | None,
    classes: int | None = None,
    allow_code: bool = False,
) -> OpenedNetwork:
    """The smaller network of a folder that ``slimbit prune`` has written."""
    from slimbit.apply.surgery import rebuild as rebuild_pruned
    from slimbit.artifacts.pruned import read_pruned
    from slimbit.artifacts.rebuild import rebuild
    from slimbit.records.origin import NetworkOrigin
    from slimbit.zoo.files import read_weights

    if weights is not None:
        raise InputError(f"--weights must not be given for a folder that has its own, got both for {folder}")
    found = read_pruned(folder)
    form = found.network
    if classes is not None and form.classes not in (None, classes):
        raise InputError(f"data must have the {form.classes} classes of {folder}, got {classes}")
    check_trusted_network(form.source, str(Path(folder) / PRUNED), allow_code=allow_code)
    network = rebuild_pruned(
        rebuild(form, allow_code=allow_code), found.plan, read_weights(Path(folder) / PRUNED_WEIGHTS)
    )
    shape = form.input_shape if input_text is None else input_shape(input_text)
    origin = NetworkOrigin(source=form.source, classes=form.classes, input_shape=shape)
    return OpenedNetwork(network.eval(), origin, found.plan)


def check_trusted_network(
    reference: str | None, file: str, *, allow_code: bool, otherwise: str = "type the name as NETWORK"
) -> None:
    """Refuse a network that a file names and that is built by running code, unless the user has agreed to that.

    What the user types runs; what a file says may have been written by anybody.

    Args:
        reference: The name in the file; None: there is none.
        file: The file, for the message.
        allow_code: Whether ``--allow-code`` was given.
        otherwise: What the user can do instead, for the message; "": nothing.

    >>> check_trusted_network("resnet20", "run.json", allow_code=False)
    >>> check_trusted_network("os:getcwd", "run.json", allow_code=False)
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: run.json names a network that is built by running code, os:getcwd: add \
--allow-code where you trust it, or type the name as NETWORK
    """
    if not reference or allow_code or not runs_code(reference) or is_pruned(reference):
        return
    raise InputError(
        f"{file} names a network that is built by running code, {reference}: add --allow-code where you trust it"
        + (f", or {otherwise}" if otherwise else "")
    )


def check_trusted_data(
    spec: str | None, file: str, *, allow_code: bool, otherwise: str = ", or type it with --data"
) -> None:
    """The same for a data spec.

    >>> check_trusted_data("digits", "card.json", allow_code=False)
    """
    from slimbit.zoo.data.request import parse

    if not spec or allow_code or parse(spec).kind != "callable":
        return
    raise InputError(
        f"{file} names data that are made by running code, {spec}: add --allow-code where you trust it{otherwise}"
    )


def check_trusted_cost(cost: str, file: str, *, allow_code: bool) -> None:
    """The same for a cost: ``package.module:function`` runs code.

    >>> check_trusted_cost("hardware:loom", "run.toml", allow_code=False)
    """
    if allow_code or ":" not in cost.removeprefix(HARDWARE) or cost.lower().endswith(".toml"):
        return
    raise InputError(
        f"{file} names a cost that is computed by running code, {cost}: add --allow-code where you trust it, or type "
        "it with --metric"
    )


def check_runnable(reference: str) -> None:
    """Raise `InputError` for a file: it can be surveyed, not run and changed."""
    if Path(reference).suffix.lower() in (*FILES, *WEIGHT_FILES) and ":" not in reference:
        raise InputError(f"NETWORK must be a network that can be run and changed here, got the file {reference}")


def default_weights(reference: str) -> Path | None:
    """Weights that come with Slimbit for this network, or None."""
    from slimbit.zoo import shipped_weights

    return None if not reference or ":" in reference or is_pruned(reference) else shipped_weights(reference)


def _built(reference: str, classes: int | None, seed: int) -> "tuple[nn.Module, tuple[int, ...] | None]":
    import torch

    # the same initial weights each time, and the caller's random numbers as they were
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if reference.startswith("timm:"):
            return _timm_model(reference.removeprefix("timm:"), classes)
        if ":" in reference:
            return _own_model(reference), None
        from slimbit import zoo

        return zoo.network(reference, classes=classes), zoo.default_input(reference)


def device_named(text: str) -> "torch.device":
    """A device that this machine has.

    >>> device_named("cpu")
    device(type='cpu')
    """
    import torch

    try:
        device = torch.device(text)
        torch.zeros(1, dtype=torch.float64, device=device).tolist()  # statistics are summed in float64
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:  # which one, depends on the device
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"--device must be one that this machine has, with float64, like cpu or cuda, got {text!r}: {reason}"
        ) from error
    return device


def inputs_of(texts: "Sequence[str]") -> tuple[str | None, dict[str, tuple[int, ...]]]:
    """What ``--input`` says, given once as ``3x32x32`` or for several inputs as ``NAME=1x3x32x32``.

    >>> inputs_of(["3x32x32"]), inputs_of(["image=1x3x8x8", "mask=1x8"])
    (('3x32x32', {}), (None, {'image': (1, 3, 8, 8), 'mask': (1, 8)}))
    """
    named = {name: input_shape(sizes) for name, mark, sizes in (text.rpartition("=") for text in texts) if mark}
    plain = [text for text in texts if "=" not in text]
    if len(plain) > 1 or (plain and named):
        raise InputError(f"--input must be given once, or for every input as NAME=SIZES, got {' '.join(texts)}")
    return plain[0] if plain else None, named


def input_shape(text: str) -> tuple[int, ...]:
    """Parse ``3x32x32``.

    >>> input_shape("3x32x32")
    (3, 32, 32)
    """
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--input must be positive sizes like 3x32x32, got {text!r}")
    if len(parts) > MOST_SIZES:
        raise InputError(f"--input must have at most {MOST_SIZES} sizes, got {text}")
    shape = tuple(map(int, parts))
    elements = 1
    for size in shape:
        elements *= size
    if elements > LARGEST_INPUT:
        raise InputError(f"--input must have at most {LARGEST_INPUT} elements, got {text}")
    return shape


def _own_model(reference: str) -> "nn.Module":
    from torch import nn

    build = import_callable(reference, "NETWORK")
    if isinstance(build, nn.Module):
        return build
    try:
        model = build()
    except (Exception, SystemExit) as error:  # the callable is the user's: it may raise anything, or end the program
        reason = fault_of(error)
        raise InputError(f"{reference} must return a network when called without arguments, got {reason}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _timm_model(name: str, classes: int | None) -> "tuple[nn.Module, tuple[int, ...]]":
    from slimbit.zoo.timm_models import timm_model

    model: Any = timm_model(name, classes=classes)
    return model, tuple(model.pretrained_cfg["input_size"])


def _survey_onnx(
    reference: str, input_text: str | None, named: "Mapping[str, tuple[int, ...]]", batch: int | None
) -> "Survey":
    from slimbit.survey.onnx_file import survey_onnx

    first = None if input_text is None else input_shape(input_text)
    return survey_onnx(expanded(reference, "network"), input_shape=named or first, batch=batch)


def _survey_file(reference: str, suffix: str, batch: int | None, *, allow_code: bool) -> "Survey":
    if suffix == ".pt2":
        from slimbit.survey.exported import survey_exported

        return survey_exported(expanded(reference, "network"), batch=batch, allow_code=allow_code)
    from slimbit.survey.safetensors_file import survey_safetensors

    if batch is not None:
        raise InputError(f"--batch must not be given for {suffix} files, which have no inputs, got {batch}")
    return survey_safetensors(expanded(reference, "network"))
