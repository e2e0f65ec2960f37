"""A trained network and its data, as `slimbit frontier` and `slimbit prune` open them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbit.records.errors import InputError
from slimbit.records.keep import PRUNED_WEIGHTS
from slimbit.sources.networks import (
    OpenedNetwork,
    check_runnable,
    check_trusted_data,
    check_trusted_network,
    default_weights,
    is_pruned,
    open_network,
)

if TYPE_CHECKING:
    from slimbit.zoo.data import DataSet


@dataclass(frozen=True)
class NetworkAndData:
    """A trained network and its data.

    Attributes:
        network: The network; its origin names weights, data and normalization.
        data: What it is for.
    """

    network: OpenedNetwork
    data: "DataSet"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, without the batch dimension."""
        return self.network.origin.input_shape


def open_network_and_data(
    network: str | None,
    *,
    weights: Path | None,
    spec: str | None,
    input_text: str | None = None,
    allow_code: bool = False,
) -> NetworkAndData:
    """Open network, weights and data; what is not given may stand in the weights' card.

    Args:
        network: As for ``slimbit cost``, files excluded.
        weights: Its weights; default: those that come with it.
        spec: Data spec.
        input_text: Shape of one input, ``3x32x32``; default: the data's.
        allow_code: Whether code that a file names (a card, a pruned folder) may run.

    Raises:
        InputError: Something is missing, does not exist or does not fit, or a file names code that may not run.
    """
    given = network or ""
    pruned = is_pruned(given)
    if not pruned:
        check_runnable(given)
    file = weights or default_weights(given)
    card_file = Path(given) / PRUNED_WEIGHTS if pruned else file
    card = _card_of(card_file)
    network = given or card.get("network")
    if not network:
        raise InputError("NETWORK must be given, on the command line, in --config or in the weights' card, got none")
    if not given:
        check_trusted_network(network, f"the card of {card_file}", allow_code=allow_code)
    if not spec:
        check_trusted_data(card.get("data"), f"the card of {card_file}", allow_code=allow_code)
    data, spec = _data(spec, card)
    if file is None and not pruned and ":" not in network:
        raise InputError(f"--weights must be given for {network}, got none: it has to be a trained network")
    text = input_text or "x".join(map(str, data.input_shape))
    found = _opened(network, data, file, text, known=card.get("classes"), allow_code=allow_code)
    origin = replace(
        found.origin,
        weights=given if pruned else "" if file is None else str(file.resolve()),
        data=spec,
        normalization=data.normalization,
    )
    return NetworkAndData(replace(found, origin=origin), data)


def _opened(
    network: str, data: "DataSet", weights: Path | None, text: str, *, known: int | None, allow_code: bool
) -> OpenedNetwork:
    """The network with as many outputs as there are classes; where labels are all that is known of them, it decides."""
    options: dict[str, Any] = {"weights": weights, "input_text": text, "allow_code": allow_code}
    if not data.open_classes:
        return open_network(network, classes=data.classes, **options)
    if known is not None:
        return open_network(network, classes=known, **options)
    try:
        return open_network(network, classes=data.classes, **options)
    except InputError:
        # a subset whose labels end early, or labels beyond the outputs, which the evaluator refuses
        return open_network(network, **options)


def _card_of(weights: Path | None) -> Mapping[str, Any]:
    from slimbit.zoo.cards import read_card

    return (read_card(weights) if weights is not None else None) or {}


def _data(spec: str | None, card: Mapping[str, Any]) -> "tuple[DataSet, str]":
    from slimbit.zoo.data import open_data

    spec = spec or card.get("data")
    if not spec:
        raise InputError("--data must be given, e.g. --data cifar10:DIR,normalize=imagenet, got none")
    return open_data(spec, card=card or None), spec
