"""Signal and noise of weights while a network trains, and the cost that they stand for: Eqs. (4) and (5)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from slimbit.records.codec import from_plain, plain, record
from slimbit.records.terminal import quantity

DEAD_THRESHOLDS = (1e-1, 5e-2, 1e-2, 1e-3)
"""A filter is dead below this share of its layer's 90th percentile of filter norms; 5e-2 is the one to quote."""
PERCENTILE = 0.9


@record
class LayerSignal:
    """Signal and noise of one layer in one epoch.

    Over the I iterations of an epoch that begins at weights ``W_start``: ``signal = mean_i ||W_i||^2`` and
    ``noise = mean_i ||W_i - W_start||^2``, Eq. (5) of Prune or quantize? (2019) (as this project reads it).

    Attributes:
        name: As `slimbit.records.network.LayerSpec` has it; ``layer`` in files.
        epoch: Counted from 1.
        nonzero_weights: Number of non-zero weights, ``||W||_0``; ``weights`` in files.
        positions: Output positions per image ``c_l``; None where nobody told.
        filter_signal: Per filter; the layer's signal is their sum.
        filter_noise: Per filter.
    """

    name: str
    epoch: int
    nonzero_weights: int
    positions: int | None
    filter_signal: tuple[float, ...]
    filter_noise: tuple[float, ...]

    @property
    def signal(self) -> float:
        """``mean_i ||W_i||^2``."""
        return math.fsum(self.filter_signal)

    @property
    def noise(self) -> float:
        """``mean_i ||W_i - W_start||^2``."""
        return math.fsum(self.filter_noise)

    @property
    def signal_to_noise(self) -> float:
        """Power ratio; infinite for weights that did not move."""
        return ratio(self.signal, self.noise)

    @property
    def filter_signal_to_noise(self) -> tuple[float, ...]:
        """Power ratio of each filter."""
        return tuple(ratio(s, n) for s, n in zip(self.filter_signal, self.filter_noise, strict=True))

    @property
    def esn_analog_estimate(self) -> float | None:
        """``c_l ||W||_0 S/N / 12``, Eq. (4); None where the positions are not known."""
        return self._esn(self.signal_to_noise)

    @property
    def esn_analog_estimate_plus(self) -> float | None:
        """``c_l ||W||_0 (S/N + 1) / 12``, the next order (derived)."""
        return self._esn(self.signal_to_noise + 1)

    def __str__(self) -> str:
        esn = self.esn_analog_estimate
        about = "" if esn is None else f", ESN_a about {quantity(esn)}"
        filters = len(self.filter_signal)
        return f"{self.name} in epoch {self.epoch}: S/N {self.signal_to_noise:.4g}, {filters} filters{about}"

    def __repr__(self) -> str:
        return f"LayerSignal({self})"

    def _esn(self, signal_to_noise: float) -> float | None:
        if self.positions is None:
            return None
        macs = self.positions * self.nonzero_weights
        return macs * signal_to_noise / 12 if macs else 0.0  # also where the ratio is infinite

    @property
    def dead_filters(self) -> dict[float, int]:
        """Number of dead filters at each of `DEAD_THRESHOLDS`; a filter's norm is the root of its signal."""
        norms = [math.sqrt(max(s, 0.0)) for s in self.filter_signal]
        high = percentile(norms, PERCENTILE)
        return {t: sum(norm < t * high for norm in norms) if high > 0 else len(norms) for t in DEAD_THRESHOLDS}


@record
class EpochSignal:
    """All layers in one epoch.

    Attributes:
        epoch: Counted from 1.
        iterations: Optimizer steps in it.
        layers: In order of the network.

    >>> powers = {"filter_signal": (4.0,), "filter_noise": (1.0,)}
    >>> layer = LayerSignal(name="fc", epoch=1, nonzero_weights=12, positions=10, **powers)
    >>> print(EpochSignal(epoch=1, iterations=9, layers=(layer,)))  # 12 x 10 x 4 / 12
    epoch 1 (9 iterations): S/N 4 of 1 layers, 0 of 1 filters dead, ESN_a about 40
    """

    epoch: int
    iterations: int
    layers: tuple[LayerSignal, ...]

    @property
    def signal_to_noise(self) -> float:
        """Of all layers together; a weight that layers share counts for each."""
        return ratio(math.fsum(x.signal for x in self.layers), math.fsum(x.noise for x in self.layers))

    @property
    def esn_analog_estimate(self) -> float | None:
        """``(1/12) sum_l c_l ||W_l||_0 S/N_l``, Eq. (4); None where positions are not known."""
        return _total([layer.esn_analog_estimate for layer in self.layers])

    @property
    def esn_analog_estimate_plus(self) -> float | None:
        """``(1/12) sum_l c_l ||W_l||_0 (S/N_l + 1)`` (derived)."""
        return _total([layer.esn_analog_estimate_plus for layer in self.layers])

    @property
    def filters(self) -> int:
        """Number of tracked filters."""
        return sum(len(layer.filter_signal) for layer in self.layers)

    @property
    def dead_filters(self) -> dict[float, int]:
        """Number of dead filters in all layers at each of `DEAD_THRESHOLDS`."""
        return {t: sum(layer.dead_filters[t] for layer in self.layers) for t in DEAD_THRESHOLDS}

    def __str__(self) -> str:
        esn = self.esn_analog_estimate
        about = "" if esn is None else f", ESN_a about {quantity(esn)}"
        dead = self.dead_filters[DEAD_THRESHOLDS[1]]
        return (
            f"epoch {self.epoch} ({self.iterations} iterations): S/N {self.signal_to_noise:.4g} of {len(self.layers)} "
            f"layers, {dead} of {self.filters} filters dead{about}"
        )

    def __repr__(self) -> str:
        return f"EpochSignal({self})"

    def layer(self, name: str) -> LayerSignal:
        """The layer of that name; ``KeyError`` if there is none."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the keys of ``signal.jsonl``; what is not finite is None."""
        layers = tuple(_row(layer) for layer in self.layers)
        row: dict[str, Any] = plain(_EpochRow(epoch=self.epoch, iterations=self.iterations, layers=layers))
        return row

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "record of an epoch") -> "EpochSignal":
        """What `to_dict` wrote; what is None is nan.

        Args:
            data: Plain data.
            where: Where they stand, for the message.

        Raises:
            InputError: It is no record of an epoch; the sentence names the place.

        >>> powers = {"filter_signal": (4.0,), "filter_noise": (1.0,)}
        >>> layer = LayerSignal(name="fc", epoch=1, nonzero_weights=2, positions=1, **powers)
        >>> epoch = EpochSignal(epoch=1, iterations=10, layers=(layer,))
        >>> EpochSignal.from_dict(epoch.to_dict()) == epoch, epoch.signal_to_noise
        (True, 4.0)
        """
        return from_plain(_EpochRow, data, where=where).epoch_signal()


Power = Annotated[float, Field(ge=0)] | None
"""None where it is not finite, which JSON has no number for."""


@record
class _LayerRow:
    """A layer as files have it: ``layer`` and ``weights`` for its name and its non-zero weights."""

    layer: str
    epoch: Annotated[int, Field(ge=1)]
    weights: Annotated[int, Field(ge=0)]
    positions: Annotated[int, Field(ge=0)] | None
    filter_signal: Annotated[tuple[Power, ...], Field(min_length=1)]
    filter_noise: Annotated[tuple[Power, ...], Field(min_length=1)]


@record
class _EpochRow:
    """One epoch as files have it."""

    epoch: Annotated[int, Field(ge=1)]
    iterations: Annotated[int, Field(ge=1)]
    layers: tuple[_LayerRow, ...]

    def epoch_signal(self) -> EpochSignal:
        layers = tuple(
            LayerSignal(
                name=row.layer,
                epoch=row.epoch,
                nonzero_weights=row.weights,
                positions=row.positions,
                filter_signal=tuple(math.nan if value is None else value for value in row.filter_signal),
                filter_noise=tuple(math.nan if value is None else value for value in row.filter_noise),
            )
            for row in self.layers
        )
        return EpochSignal(epoch=self.epoch, iterations=self.iterations, layers=layers)


def _row(layer: LayerSignal) -> _LayerRow:
    return _LayerRow(
        layer=layer.name,
        epoch=layer.epoch,
        weights=layer.nonzero_weights,
        positions=layer.positions,
        filter_signal=tuple(value if math.isfinite(value) else None for value in layer.filter_signal),
        filter_noise=tuple(value if math.isfinite(value) else None for value in layer.filter_noise),
    )


def ratio(signal: float, noise: float) -> float:
    """``signal / noise``; infinite without noise, 0 without signal, not a number where either is none.

    >>> ratio(4.0, 2.0), ratio(1.0, 0.0), ratio(0.0, 0.0)
    (2.0, inf, 0.0)
    """
    if noise > 0 or math.isnan(noise):
        return signal / noise
    return math.inf if signal > 0 else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the sorted values, as `numpy.percentile` does by default.

    >>> percentile([1.0, 2.0, 3.0], 0.9)
    2.8
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None
