"""The range of prices worth sweeping, from nearly float to collapse; found without labels and with few tries."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from slimbit.apply.compress import compress
from slimbit.compress.prepared import PreparedNetwork
from slimbit.frontier.spacing import price_for
from slimbit.measure.named_cost import NamedCost
from slimbit.numerics.batches import call_network, output_heads
from slimbit.numerics.copies import copied
from slimbit.numerics.fidelity import fidelity_of
from slimbit.plan.widths import price_bounds
from slimbit.records.config import QuantConfig
from slimbit.records.cost_names import allocation_of

FINE_BITS, COARSE_BITS = 8.0, 0.02
"""Mean bits per weight between which every useful price lies: as good as float, and next to nothing left."""
NEARLY_FLOAT = 0.995
"""Share of the outputs' variance that the dearest point keeps: 23 dB."""
COLLAPSED = 0.5
"""Agreement with the float network, chance taken out, at which nothing is left worth measuring."""
FIRST_BITS, FIRST_FILTERWISE_BITS = (1.0, 2.0, 0.5), (3.0, 4.0, 2.0)
"""Mean bits per weight of the points that are measured before the range is known. Between twice and half a bit per
weight, a ResNet-20, a ResNet-50 and an EfficientNet lose from little to most; where every filter has one width for all
its weights, and no level is zero, between four bits and two."""
COLLAPSE, COLLAPSE_FILTERWISE = (1.0, COARSE_BITS), (3.0, 1.05)
"""Mean bits between which the collapse is looked for first, ..."""
FLOAT, FLOAT_FILTERWISE = (4.0, 1.0), (6.0, 3.0)
"""... and the point that is nearly float."""
STRIDE = 16.0
FEW_IMAGES = 16
"""Fewer than so many calibration images are no measure of what was fitted to them."""
TRIES, FURTHER_TRIES = 4, 2
"""Bisections of the likely range of prices for the cheap end, and for the dear one."""
MOST_STRIDES = 40


@dataclass(frozen=True)
class PriceRange:
    """Prices to sweep between.

    Attributes:
        low: Price of the dearest point: nearly float.
        high: Price of the cheapest point: about half of the decisions are others than the float network's.
    """

    low: float
    high: float


@dataclass
class OutputFidelity:
    """Fidelity of a compressed network's outputs to the float ones, on images that it was not compressed with.

    Attributes:
        prepared: The network.
        metric: Cost that prices are for.
        config: How plans are carried out.
    """

    prepared: PreparedNetwork
    metric: NamedCost
    config: QuantConfig
    tried: dict[float, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._calibration, self._judged = self.prepared.probe
        # a copy: a forward pass may change what a network keeps beside its weights
        self._float = self._outputs(copied(self.prepared.model))

    def fidelity(self, price: float) -> float:
        """``1 - ||y_q - y_f||^2 / ||y_f - mean y_f||^2``, means per output over images; 1 = the same."""
        return self._both(price)[0]

    def agreement(self, price: float) -> float:
        """Cohen's kappa of the arg-max decisions: 1 = all the same, 0 = as by chance; fidelity where none are made."""
        return self._both(price)[1]

    def _both(self, price: float) -> tuple[float, float]:
        if price not in self.tried:
            prepared = self.prepared
            plan = prepared.plan_at(price, self.metric, self.config)
            if allocation_of(self.metric.name) != "table":
                plan = replace(plan, activations=())  # what they lose is the same at every price
            if prepared.images < FEW_IMAGES:  # they fit any statistics and compensation: judge plain rounding
                plain = {"compensation": False, "target": "weights", "statistics": "stored"}
                plan = replace(plan, config=plan.config.model_copy(update=plain))
            flow = prepared.flow if plan.activations else None
            result = compress(prepared.model, plan, prepared.spec, self._calibration, flow=flow)
            found = self._outputs(result.model)
            fidelity = fidelity_of(_side_by_side(found), _side_by_side(self._float))
            classifies = prepared.sensitivity.likelihood == "categorical"
            kappas = [kappa_of(mine, theirs) for mine, theirs in zip(found, self._float, strict=True)]
            decided = [kappa for kappa in kappas if kappa is not None and classifies]
            self.tried[price] = (fidelity, min(decided, default=fidelity))
        return self.tried[price]

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            parts = [output_heads(call_network(network.eval(), batch)) for batch in self._judged]
            return [torch.cat(heads).double() for heads in zip(*parts, strict=True)]


def kappa_of(found: Tensor, wanted: Tensor) -> float | None:
    """Cohen's kappa of the arg-max along dimension 1; None where ``wanted`` decides for one class only.

    >>> kappa_of(torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]]))  # (1/2 - 1/2) / (1 - 1/2)
    0.0
    """
    if wanted.ndim < 2 or wanted.shape[1] < 2:
        return None
    mine, theirs = found.argmax(1).reshape(-1), wanted.argmax(1).reshape(-1)
    classes = wanted.shape[1]
    share = [torch.bincount(x, minlength=classes).double() / len(x) for x in (mine, theirs)]
    if float(share[1].max()) == 1.0:
        return None
    chance = float((share[0] * share[1]).sum())
    return (float((mine == theirs).double().mean()) - chance) / (1 - chance)


def find_price_range(
    prepared: PreparedNetwork, metric: NamedCost, config: QuantConfig, progress: Callable[[str], None]
) -> PriceRange:
    """The range of prices from nearly float to collapse.

    Costs are predicted from plans alone. Only the two ends need compressed networks, on few images: six, and as many
    again for an end that is not where it is likely to be.

    Args:
        prepared: The network.
        metric: Cost that prices are for.
        config: How plans are carried out.
        progress: Called before each try.
    """
    bits = PredictedBits(prepared, metric, config)
    fine, coarse = _bounds(bits)
    fidelity = OutputFidelity(prepared, metric, config)

    def bisected(holds: Callable[[float], bool], low: float, high: float, tries: int) -> tuple[float, float]:
        for turn in range(tries):
            progress(f"try {turn + 1} of {tries}")
            middle = math.sqrt(low * high)
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low, high

    def last(holds: Callable[[float], bool], likely: tuple[float, float], most: float, tries: int) -> float:
        """The price up to ``most`` where ``holds`` turns false, looked for between two likely mean bits first."""
        begin, end = (min(bits.price(value, fine, coarse), most) for value in likely)
        low, high = bisected(holds, begin, end, tries)
        if low == begin > fine:  # it held nowhere: it turns false before
            low, high = bisected(holds, fine, begin, tries)
        elif high == end < most:
            low, high = bisected(holds, end, most, tries)
        return math.sqrt(low * high)

    collapse, nearly = (COLLAPSE_FILTERWISE, FLOAT_FILTERWISE) if _has_widths(metric) else (COLLAPSE, FLOAT)
    high = last(lambda price: fidelity.agreement(price) > COLLAPSED, collapse, coarse, TRIES)
    low = last(lambda price: fidelity.fidelity(price) >= NEARLY_FLOAT, nearly, high, FURTHER_TRIES)
    return PriceRange(low, high)


def first_prices(prepared: PreparedNetwork, metric: NamedCost, config: QuantConfig) -> list[float]:
    """Prices of the points that are measured before the range is known, by mean bits per weight; none is compressed."""
    # not shared with the search of the range: what is known narrows it, and a worker that continues was not here
    bits = PredictedBits(prepared, metric, config)
    fine, coarse = _bounds(bits)
    wanted = FIRST_FILTERWISE_BITS if _has_widths(metric) else FIRST_BITS
    return [bits.price(value, fine, coarse) for value in wanted]


@dataclass
class PredictedBits:
    """Mean bits per weight that a price leads to, of the layers that it decides on.

    Layers that are only looked up, and skipped ones, do not count.

    Attributes:
        prepared: The network.
        metric: Cost that prices are for.
        config: How plans are carried out.
    """

    prepared: PreparedNetwork
    metric: NamedCost
    config: QuantConfig
    known: dict[float, float] = field(default_factory=dict)

    def __call__(self, price: float) -> float:
        """Mean bits per weight at a price."""
        if price not in self.known:
            spec, config = self.prepared.spec, self.config
            plan = self.prepared.plan_at(price, self.metric, config)
            positions = {layer.name: layer.multiplicity(config.per) for layer in spec.layers}
            for layer in spec.layers:
                positions[layer.shared_with or layer.name] += positions[layer.name] if layer.shared_with else 0
            report = self.prepared.predicted(plan)
            counted = [x for x in report.layers if x.name not in config.skip and positions[x.name]]
            weights = max(1, sum(x.weights for x in counted))
            self.known[price] = sum(x.mean_bits * x.weights for x in counted) / weights
        return self.known[price]

    def price(self, bits: float, low: float, high: float) -> float:
        """The price between two at which weights have so many bits, within one percent where there is one."""
        above = [price for price, there in self.known.items() if there >= bits and low <= price <= high]
        below = [price for price, there in self.known.items() if there < bits and low <= price <= high]
        return price_for(self, bits, max(above, default=low), min(below, default=high))


def _has_widths(metric: NamedCost) -> bool:
    """Whether a price decides on whole widths, of filters or layers, instead of steps."""
    return allocation_of(metric.name) in ("filterwise", "table")


def _bounds(bits: PredictedBits) -> tuple[float, float]:
    """Prices between which every useful one lies."""
    config = bits.config.for_metric(bits.metric.name)
    if allocation_of(bits.metric.name) != "table":
        return _bracket(bits)
    inputs = bits.prepared.inputs(config, priced=True)
    return price_bounds(inputs, config, bits.prepared.width_costs(bits.metric, config))


def _bracket(bits: Callable[[float], float]) -> tuple[float, float]:
    """A price so low that weights have `FINE_BITS`, and one so high that next to nothing is left."""
    low = high = 1e-9  # nats per bit and image; where the search starts is of no consequence
    for _ in range(MOST_STRIDES):
        before = bits(low)
        if before >= FINE_BITS:
            break
        if bits(low / STRIDE) <= before > COARSE_BITS:
            break  # widths have reached their largest
        low /= STRIDE
    for _ in range(MOST_STRIDES):
        if bits(high) <= COARSE_BITS:
            break
        high *= STRIDE
    while bits(low * STRIDE) >= FINE_BITS:
        low *= STRIDE
    while high > low * STRIDE and bits(high / STRIDE) <= COARSE_BITS:
        high /= STRIDE
    return low, high


def _side_by_side(heads: list[Tensor]) -> Tensor:
    """One tensor, each image a row."""
    return (
        heads[0]
        if len(heads) == 1
        else torch.cat([head.flatten(1) if head.ndim > 1 else head[:, None] for head in heads], 1)
    )
