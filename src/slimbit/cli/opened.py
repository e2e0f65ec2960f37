"""A trained network and its data, as `slimbit frontier` and `slimbit prune` open them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from slimbit.export.manifest import NetworkReference
    from slimbit.records.keep import KeepPlan
    from slimbit.zoo.data import DataSet


@dataclass(frozen=True)
class Opened:
    """A trained network and its data.

    Attributes:
        model: In evaluation mode.
        data: What it is for.
        spec: The data as given.
        form: How the network, or what it was before ``slimbit prune``, is built.
        reference: What to give as NETWORK to open it again, from anywhere.
        weights: Path of its weights, "" where they come with it.
        keep: What ``slimbit prune`` left of the form; None: all of it.
    """

    model: "nn.Module"
    data: "DataSet"
    spec: str
    form: "NetworkReference"
    reference: str
    weights: str = ""
    keep: "KeepPlan | None" = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, without the batch dimension."""
        return self.form.input_shape

    @property
    def name(self) -> str:
        """For people."""
        return self.form.source if self.keep is None else f"{self.form.source}, {self.keep.policy}, {self.keep.setting}"


def opened(network: str | None, *, weights: Path | None, spec: str | None, input_text: str | None = None) -> Opened:
    """Open network, weights and data; what is not given may stand in the weights' card.

    Args:
        network: As for ``slimbit cost``, files excluded.
        weights: Its weights; default: those that come with it.
        spec: Data spec.
        input_text: Shape of one input, ``3x32x32``; default: the data's.

    Raises:
        InputError: Something is missing, does not exist or does not fit.
    """
    from slimbit.cli.networks import check_runnable, default_weights, is_pruned, model_of
    from slimbit.export.manifest import NetworkReference

    if is_pruned(network or ""):
        return _opened_folder(Path(network or ""), weights, spec, input_text)
    check_runnable(network or "")
    weights = weights or default_weights(network or "")
    card = _card_of(weights)
    network = network or card.get("network")
    if not network:
        raise InputError("NETWORK must be given, on the command line, in --config or in the weights' card, got none")
    data, spec = _data(spec, card)
    if weights is None and ":" not in network:
        raise InputError(f"--weights must be given for {network}, got none: it has to be a trained network")
    text = input_text or _text(data.input_shape)
    model, shape = model_of(network, weights=weights, input_text=text, classes=data.classes)
    form = NetworkReference(source=network, classes=data.classes, input_shape=shape)
    return Opened(model.eval(), data, spec, form, network, "" if weights is None else str(weights.resolve()))


def _opened_folder(folder: Path, weights: Path | None, spec: str | None, input_text: str | None) -> Opened:
    """The network of a folder that ``slimbit prune`` has written."""
    from slimbit.cli.networks import pruned_model_of
    from slimbit.export.pruned import WEIGHTS, pruned_from

    data, spec = _data(spec, _card_of(folder / WEIGHTS))
    text = input_text or _text(data.input_shape)
    model, shape = pruned_model_of(str(folder), weights=weights, input_text=text)
    form, keep = pruned_from(folder)
    form = form.model_copy(update={"input_shape": shape})
    return Opened(model, data, spec, form, str(folder.resolve()), keep=keep)


def _card_of(weights: Path | None) -> Mapping[str, Any]:
    from slimbit.zoo.cards import read_card

    return (read_card(weights) if weights is not None else None) or {}


def _data(spec: str | None, card: Mapping[str, Any]) -> "tuple[DataSet, str]":
    from slimbit.zoo.data import open_data

    spec = spec or card.get("data")
    if not spec:
        raise InputError("--data must be given, e.g. --data cifar10:DIR,normalize=imagenet, got none")
    return open_data(spec, card=card or None), spec


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
