"""A price that rises while a network learns its levels, and the points that are taken on the way.

Price and steps go along the frontier without training: its prices, and the steps of its closed forms times what is
learned of them. So the path is passed in any number of iterations. Where the cost lags behind an even fall in log cost,
because accuracy is worth more than the price, the price is multiplied. Where it is ahead, nothing is done: to lower the
price took from the weights what holds them in place, they diffused, and accuracy fell (ResNet-20).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimbit.numerics.copies import copied
from slimbit.records.errors import InputError
from slimbit.training.learned_levels import LevelCost, learned_parts, levels_of

LOOK_EVERY = 5
"""Iterations between two looks at what the averaged levels cost."""
URGE, MOST = 4.0, 1e4
"""Where the cost lags behind its target, the price is multiplied by ``(cost / target) ** URGE``, by `MOST` at most."""
WINDOWS = 2
"""The running average is over no more than a part in so many of the time between two points."""
WARM_UP = 20
"""At first the running average is over a part of the iterations that there were, so that it forgets the start."""


@dataclass(frozen=True, kw_only=True)
class PriceSchedule:
    """A path along a frontier: prices, steps and costs at some places 0, 1, 2, ..., and straight lines in log between.

    Attributes:
        prices: Rising.
        costs: What the network costs at the first of them, where the training begins, and at the last, where it ends.
        iterations: Of the whole training.
        log_steps: By layer name, a row for each price: a number, or one for each filter.

    >>> schedule = PriceSchedule(prices=(1.0, 100.0), costs=(9.0, 1.0), iterations=11)
    >>> round(schedule.cost(5), 9), round(schedule.price(0.5), 9)
    (3.0, 10.0)
    """

    prices: tuple[float, ...]
    costs: tuple[float, float]
    iterations: int
    log_steps: Mapping[str, Tensor] = field(default_factory=dict)

    def cost(self, iteration: int) -> float:
        """The cost that an iteration, counted from 0, should have come to."""
        share = min(1.0, iteration / max(1, self.iterations - 1))
        return float(self.costs[0] * (self.costs[1] / self.costs[0]) ** share)

    def place(self, iteration: int) -> float:
        """Where an iteration is on the path."""
        return (len(self.prices) - 1) * min(1.0, iteration / max(1, self.iterations - 1))

    def price(self, place: float) -> float:
        """The price at a place."""
        below, above = self._around(place)
        low, high = math.log(self.prices[below]), math.log(self.prices[above])
        return math.exp(low + (place - below) * (high - low))

    def shifts(self, place: float) -> dict[str, Tensor]:
        """By how much log steps have grown since the start, by layer name."""
        below, above = self._around(place)
        share = place - below
        return {
            name: rows[below] + share * (rows[above] - rows[below]) - rows[0] for name, rows in self.log_steps.items()
        }

    def _around(self, place: float) -> tuple[int, int]:
        below = min(int(place), len(self.prices) - 1)
        return below, min(below + 1, len(self.prices) - 1)


class PricePath:
    """Adds ``price * cost(levels)`` to the loss and takes a point whenever the cost has fallen by a step.

    Steps grow with the price as those of the schedule do. Points are running averages of weights and steps, which are
    quieter than the weights of any one iteration. A regularizer for `slimbit.training.task.TrainTask`, of a network
    that `learn_levels` has prepared.

    Args:
        model: The network that trains; not changed.
        cost: What is saved.
        schedule: Costs, prices and steps.
        targets: Costs, falling; when the averaged levels cost no more than the next ones, a point is taken.
        average: Share of the running average that one iteration leaves.
        take: Called in every process with the number of a target that was reached, a copy of the network with the
            averaged weights, the price, and the exact cost.

    Attributes:
        taken: How many targets are behind.
        iteration: Iterations that have passed.
        urgency: What the price of the schedule is multiplied by.
    """

    def __init__(
        self,
        model: nn.Module,
        cost: LevelCost,
        schedule: PriceSchedule,
        *,
        targets: Sequence[float],
        average: float,
        take: Callable[[int, nn.Module, float, float], None],
    ) -> None:
        if list(targets) != sorted(targets, reverse=True):
            raise InputError(f"targets must fall, got {list(targets)}")
        self.cost, self.schedule, self.targets, self.average = cost, schedule, tuple(targets), average
        self.taken = 0
        self._take, self.iteration, self.urgency = take, 0, 1.0
        self._mean = {name: value.detach().clone() for name, value in model.named_parameters()}

    @property
    def price(self) -> float:
        """Of the iteration under way."""
        return self.urgency * self.schedule.price(self.schedule.place(self.iteration))

    def penalty(self, model: nn.Module) -> Tensor:
        """``price * cost``, with a gradient; called once in every iteration, before the weights move."""
        self._follow(model)
        price = self.price
        self.iteration += 1
        self._shift(model)
        return price * self.cost.slope(model)

    def end_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: ARG002 - as the protocol has it
        """At the end of the training, the last point: what the last price has led to."""
        if self.iteration >= self.schedule.iterations and self.taken < len(self.targets):
            self._look(model, last=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that continues it exactly."""
        counts = {"iteration": torch.tensor(self.iteration), "taken": torch.tensor(self.taken)}
        counts["urgency"] = torch.tensor(self.urgency, dtype=torch.float64)
        return counts | {f"mean.{name}": value for name, value in self._mean.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave.

        Raises:
            InputError: The state is of another network.
        """
        wanted = self.state_dict()
        for name in sorted(wanted.keys() | state.keys()):
            shapes = [tuple(part[name].shape) if name in part else None for part in (state, wanted)]
            if shapes[0] != shapes[1]:
                raise InputError(f"state of learning must be of this network, got {name!r} with shape {shapes[0]}")
        self.iteration, self.taken, self.urgency = int(state["iteration"]), int(state["taken"]), float(state["urgency"])
        for name, value in self._mean.items():
            self._mean[name] = torch.empty_like(value).copy_(state[f"mean.{name}"])

    @torch.no_grad()
    def _follow(self, model: nn.Module) -> None:
        """Take the weights into the average, and a point where it has come to one."""
        window = max(2.0, self.schedule.iterations / (WINDOWS * max(1, len(self.targets))))
        keep = min(self.average, 1 - 1 / window, self.iteration / (self.iteration + WARM_UP))
        parameters = dict(model.named_parameters())
        if next(iter(self._mean.values())).device != next(iter(parameters.values())).device:
            self._mean = {name: value.to(parameters[name].device) for name, value in self._mean.items()}
        torch._foreach_lerp_([*self._mean.values()], [parameters[name].detach() for name in self._mean], 1 - keep)
        if self.iteration % LOOK_EVERY == 0 and self.iteration:
            self._look(model)

    @torch.no_grad()
    def _shift(self, model: nn.Module) -> None:
        shifts = self.schedule.shifts(self.schedule.place(self.iteration))
        for part, _ in learned_parts(model):
            for layer in part.layers:
                if layer.name in shifts:
                    part.shift(layer.name, shifts[layer.name])

    @torch.no_grad()
    def _look(self, model: nn.Module, *, last: bool = False) -> None:
        cost = self.cost.exact(levels_of(model, self._mean))
        target = self.schedule.cost(self.iteration)
        self.urgency = min(MOST, max(1.0, cost / target) ** URGE)
        if self.taken == len(self.targets):
            return
        behind = bisect_right([-target for target in self.targets], -cost)
        if behind <= self.taken and not last:
            return
        number = max(behind - 1, self.taken)  # targets that were jumped over have no point
        self._take(number, self._averaged(model), self.price, cost)
        self.taken = number + 1

    def _averaged(self, model: nn.Module) -> nn.Module:
        network = copied(model)
        for name, value in network.named_parameters():
            value.copy_(self._mean[name])
        return network
