"""A frontier from one training: the price of cost rises while a network learns its levels, and points are taken."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.compress.prepared import PreparedNetwork
from slimbit.compress.prune_stage import held_stage, packed
from slimbit.compress.quantize import quantized
from slimbit.compress.tuning import TrainingData, settings_of, task_of
from slimbit.measure.named_cost import NamedCost
from slimbit.numerics.copies import copied
from slimbit.numerics.levels import LayerLevels
from slimbit.plan.steps import kept_filters, units_per_bit
from slimbit.records.codec import digest, from_json, json_file, sha256, with_schema
from slimbit.records.codec import record as stored_record
from slimbit.records.config import QuantConfig
from slimbit.records.cost_names import allocation_of
from slimbit.records.errors import InputError
from slimbit.records.files import read_regular, write_whole
from slimbit.records.learning import LearnConfig
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import LEARNED, Learned
from slimbit.records.training import TrainConfig
from slimbit.training.images import Batches, Share
from slimbit.training.learned_levels import LevelCost, learn_levels, learned_parts, levels_of, state_behind
from slimbit.training.objectives import distillation
from slimbit.training.price_path import PricePath, PriceSchedule
from slimbit.training.run import RunLabel, train_network
from slimbit.training.task import TrainingProgress, TrainTask

SCHEMA = 1
LARGEST = 1 << 28
STATISTICS_BATCHES = 16
"""Training batches from which a point's BatchNorm statistics are averaged, augmented as in training: of a ResNet-20
whose images were cropped, statistics of uncropped images cost 4 points of accuracy."""
Report = Callable[[str], None]


@stored_record
class _PointRecord:
    """``point-03.json``: one point of a training.

    Attributes:
        network: SHA-256 of the weights behind its levels, ``point-03.safetensors``.
        layers: Steps of every layer.
        price: Price at which it was taken.
        epochs: Epochs that had passed.
    """

    network: str
    layers: tuple[LayerPlan, ...]
    price: float
    epochs: float


@dataclass(frozen=True, kw_only=True)
class LearnedPoint:
    """A point that a training has passed.

    Attributes:
        network: The weights behind its levels, and its statistics, as of `packed`.
        layers: Steps of every layer: weights rounded to the nearest level are its levels.
        price: Price at which it was taken.
        epochs: Epochs that had passed.
    """

    network: bytes = field(repr=False)
    layers: tuple[LayerPlan, ...]
    price: float
    epochs: float

    def plan(self, name: str, metric: str, epochs: int, config: QuantConfig) -> CompressionPlan:
        """How its levels follow from its weights; policy ``learned``.

        Args:
            name: Of the network.
            metric: Cost that the price is for.
            epochs: Of the whole training.
            config: Settings of the run, of which what concerns rounding and statistics is already done.
        """
        done = {"compensation": False, "target": "weights", "statistics": "stored", "rounding": "nearest"}
        more = {"refit": False, "bias_correction": False, "bit_allocation": False}
        config = config.model_copy(update=done | more)
        setting = Learned(self.epochs, epochs, self.price, metric)
        return CompressionPlan(network=name, policy=LEARNED, layers=self.layers, setting=setting, config=config)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What a frontier is learned from.

    Attributes:
        task: Images, labels, held-out images, example.
        config: Settings of the training.
        learn: Number of epochs and points, distillation.
        data: Name of the data; a run is continued with the same one only.
    """

    task: TrainTask
    config: TrainConfig
    learn: LearnConfig
    data: str = ""

    @property
    def name(self) -> str:
        """Everything that the result depends on, for people."""
        images = self.task.images.fingerprint()[:12]
        settings = self.learn.model_dump(mode="json", exclude={"train"})
        return f"{self.data} {images}, {settings}, settings {self.config.digest()[:12]}"

    def points(
        self,
        prepared: PreparedNetwork,
        cost: NamedCost,
        quant: QuantConfig,
        prices: Sequence[float],
        *,
        end: float,
        goals: Sequence[float] = (),
        stages: Path,
        progress: Report,
    ) -> list[LearnedPoint]:
        """Train once while the price rises, and return the points that were taken, the dearest first.

        A call that was stopped goes on where its last epoch ended; one that was finished is read.

        It begins at the network of a price that was compressed without training: the first, or with goals the cheapest
        one that costs no less than the first of them.

        Args:
            prepared: The network; not changed.
            cost: What is saved.
            quant: Grid, granularity, layers to skip, and how the first network is compressed.
            prices: Rising prices of the frontier without training, which the price follows.
            end: Cost of the cheapest network without training.
            goals: Falling costs, a point for each. Default: as many as the settings say, evenly over log cost from the
                first price's to ``end``.
            stages: Folder of what is trained, a folder in it by content.
            progress: Called with a line for people after every epoch and point.

        Raises:
            InputError: A folder of something else, or damaged.
            StoreError: The folder cannot be written.
            TrainingError: The loss is no finite number any more.
        """
        content = digest(
            [prepared.digest, prepared.calibration_digest, self.name, cost.name, cost.definition, quant, end, *goals]
            + [f"{price:.17g}" for price in prices]
        )
        folder = stages / f"learned-{content[:16]}"
        with held_stage(folder):
            self._train(
                prepared, cost, quant, prices, end=end, goals=goals, folder=folder, content=content, progress=progress
            )
            found = (read_point(folder, number) for number in range(len(goals) or self.learn.points))
            return [point for point in found if point is not None]

    def _train(
        self,
        prepared: PreparedNetwork,
        cost: NamedCost,
        quant: QuantConfig,
        prices: Sequence[float],
        *,
        end: float,
        goals: Sequence[float],
        folder: Path,
        content: str,
        progress: Report,
    ) -> None:
        plans = [prepared.plan_at(price, cost, quant) for price in prices]
        level_cost = level_cost_of(prepared, cost, plans[0])
        costs = [*itertools.accumulate((level_cost.exact(prepared.rounded(plan)) for plan in plans), min)]
        first = max((place for place, there in enumerate(costs) if goals and there >= goals[0]), default=0)
        plans, costs, prices = plans[first:], costs[first:], prices[first:]
        start = quantized(prepared, replace(plans[0], activations=()))
        network = copied(start.network)
        masks = _masks(prepared, start.layers)
        learn_levels(network, prepared.spec.layers, start.layers, weights=prepared.weights, masks=masks)
        log_steps = {x.name: _log_steps([plan.layer(x.name) for plan in plans]) for x in plans[0].layers}
        goals = tuple(goals) or _even(costs[0], min(costs[0], end), self.learn.points)
        iterations = self.config.epochs * (len(self.task.images) // self.config.batch_size)

        def take(number: int, learned: nn.Module, price: float, there: float) -> None:
            point = self._point(learned, price, path.iteration / (iterations / self.config.epochs))
            write_point(folder, number, point)
            score = "" if self.task.validate is None else f", held out {float(self.task.validate(learned)):.2f} %"
            progress(f"point {number + 1} of {len(goals)}: {cost.name} {there:.4g}{score}")

        schedule = PriceSchedule(
            prices=tuple(prices), costs=tuple(costs), iterations=iterations, goals=goals, log_steps=log_steps
        )
        path = PricePath(level_cost, schedule, take=take)
        objective = distillation(prepared.model, temperature=self.learn.temperature) if self.learn.distill else None

        def listen(now: TrainingProgress) -> None:
            if now.message:
                progress(now.message)
            elif now.finished is not None:
                done = now.finished
                progress(f"learning: epoch {now.epoch}/{now.epochs}, loss {done.loss:.4f}, {done.seconds:.0f} s")

        task = replace(self.task, objective=objective, regularizer=path, validate=None, listener=listen)
        rate = self.config.schedule.model_copy(update={"cycles": len(goals)})
        config = self.config.model_copy(update={"schedule": rate})
        train_network(network, task, config, folder / "train", label=RunLabel(data=self.data, fingerprint=content))

    def _point(self, network: nn.Module, price: float, epochs: float) -> LearnedPoint:
        """A point of a network, which gets the statistics of its levels."""
        self._average_statistics(network)
        found = levels_of(network)
        layers = tuple(
            LayerPlan(
                name=layer.name,
                steps=tuple(found[layer.name].steps.double().reshape(-1).tolist()),
                grid=part.grid,
                kept=kept_filters(found[layer.name].levels, part.grid),
            )
            for part, _ in learned_parts(network)
            for layer in part.layers
        )
        return LearnedPoint(network=packed(state_behind(network)), layers=layers, price=price, epochs=epochs)

    @torch.no_grad()
    def _average_statistics(self, network: nn.Module) -> None:
        """Mean of the statistics of some training batches in every BatchNorm that keeps any.

        All else stays in evaluation mode, which `torch.optim.swa_utils.update_bn` does not leave it in.
        """
        norms = [x for x in network.modules() if isinstance(x, _BatchNorm) and x.running_mean is not None]
        network.eval()
        if not norms:
            return
        before = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the plain mean of all batches
        device = next(network.parameters()).device
        size = self.config.batch_size
        batches = Batches(self.task.images, self.config.augment, device=device, channels_last=self.config.channels_last)
        for number, ((images, _), *_) in enumerate(batches.epoch(self.config.seed, Share(batch_size=size)), 1):
            network(images)
            if number == STATISTICS_BATCHES:
                break
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()


def learning_for(learn: LearnConfig, data: TrainingData | None, prepared: PreparedNetwork) -> Learning:
    """The training that settings ask for, on this data.

    Raises:
        InputError: No data, or data without labels where they are needed.
    """
    config = learn.training(**settings_of(prepared))
    task, name = task_of(data, config, labelled=not learn.distill, purpose="learn a frontier")
    return Learning(task=task, config=config, learn=learn, data=name)


def level_cost_of(prepared: PreparedNetwork, cost: NamedCost, plan: CompressionPlan) -> LevelCost:
    """What levels of a network cost, with a slope.

    Args:
        prepared: The network.
        cost: What is counted.
        plan: One that was made for it; says how cost is weighted.
    """
    form = allocation_of(cost.name)
    inputs = prepared.inputs(plan.config, priced=True)
    decided = [layer for layer in inputs.layers(plan.config) if not layer.shared_with]
    if form != "table":
        units = {layer.name: units_per_bit(inputs, layer, cost.name, plan.config) for layer in decided}
        return LevelCost(form=form, units=units)
    table = prepared.width_costs(cost, plan.config)
    first = table.weight_bits[0]
    rows = {}
    for layer in decided:
        column = table.costs[layer.name][:, -1].float()
        finite = column[column.isfinite()]
        column = torch.where(column.isfinite(), column, finite.max())
        rows[layer.name] = torch.cat([column[:1].expand(first - 1), column])
    return LevelCost(form=form, units={}, tables=rows)


def _even(begin: float, end: float, count: int) -> tuple[float, ...]:
    """So many costs, evenly spread over log cost from ``begin`` to ``end``.

    >>> [round(cost, 6) for cost in _even(9.0, 1.0, 3)]
    [9.0, 3.0, 1.0]
    """
    return tuple(begin * (end / begin) ** (place / max(1, count - 1)) for place in range(count))


def _log_steps(layers: Sequence[LayerPlan]) -> Tensor:
    """A row for each plan; numbers, or one for each filter."""
    rows = torch.tensor([layer.steps for layer in layers], dtype=torch.float64).log().float()
    return rows[:, 0] if rows.shape[1] == 1 else rows


def _masks(prepared: PreparedNetwork, start: Mapping[str, LayerLevels]) -> dict[str, Tensor]:
    """False where a weight was pruned, or is one of a filter that the start has dropped on a grid without zero."""
    masks = dict(prepared.masks)
    for name, found in start.items():
        alive = found.levels.flatten(1).any(1)
        if found.grid == "midrise" and not bool(alive.all()):
            whole = alive.reshape(-1, *[1] * (found.levels.ndim - 1)).expand_as(found.levels)
            masks[name] = whole & masks[name] if name in masks else whole
    return masks


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"point-{number:02d}.json", folder / f"point-{number:02d}.safetensors"


def write_point(folder: Path, number: int, point: LearnedPoint) -> None:
    """Keep a point in the folder of its training, the weights first.

    Raises:
        StoreError: It cannot be written.
    """
    about, weights = _files(folder, number)
    write_whole(weights, point.network)
    found = _PointRecord(network=sha256(point.network), layers=point.layers, price=point.price, epochs=point.epochs)
    write_whole(about, json_file(with_schema(found, SCHEMA)))


def read_point(folder: Path, number: int) -> LearnedPoint | None:
    """The point of a number; None where the training has none.

    Raises:
        InputError: What is there is damaged.
    """
    about, weights = _files(folder, number)
    if not about.exists():
        return None
    content = read_regular(about, "point of a training", limit=LARGEST)
    found = from_json(_PointRecord, content, where=str(about), schema=SCHEMA)
    network = weights.read_bytes() if weights.is_file() else b""
    if sha256(network) != found.network:
        raise InputError(f"{about} must name the network beside it, got another or none: delete {folder}")
    return LearnedPoint(network=network, layers=found.layers, price=found.price, epochs=found.epochs)


def network_of(prepared: PreparedNetwork, content: bytes) -> nn.Module:
    """A copy of a network with the weights behind learned levels.

    Raises:
        InputError: Damaged bytes, or those of another network.
    """
    network = copied(prepared.model)
    try:
        network.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"weights of a learned point must fit {prepared.name}, got {error}") from error
    return network.eval()
