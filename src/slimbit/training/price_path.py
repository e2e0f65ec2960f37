"""A price that rises while a network learns its levels, and the points that are taken on the way.

The training goes in cycles, one for each point. At the beginning of a cycle price and steps move along the frontier
without training (its prices, and the steps of its closed forms times what is learned of them) to the cycle's goal, a
cost; then they stay, while the learning rate falls to zero, and what is learned by then is the point. A rate that stays
the same, with a running average of the weights for points, lost 0.9 points of accuracy to this (ResNet-20, 10M bits).

Where the cost lags behind its goal, because accuracy is worth more than the price, the price is multiplied. Where it is
ahead, nothing is done: to lower the price took from the weights what holds them in place, they diffused, and accuracy
fell.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from slimbit.numerics.copies import copied
from slimbit.records.errors import InputError
from slimbit.training.learned_levels import LevelCost, learned_parts, levels_of

LOOK_EVERY = 5
"""Iterations between two looks at what the levels cost."""
URGE, MOST = 4.0, 16.0
"""Where the cost lags behind its goal, the price is multiplied by ``(cost / goal) ** URGE``, by `MOST` at most: where
goals were half of what could be reached, more than that ended a training in numbers that are not finite."""
ON_THE_WAY = 0.3
"""Share of a cycle in which price and steps move to its goal."""


@dataclass(frozen=True, kw_only=True)
class PriceSchedule:
    """A path along a frontier: prices and steps at some costs, straight lines in log between, and goals on the way.

    Attributes:
        prices: Rising.
        costs: What the network costs at each of them, falling.
        iterations: Of the whole training.
        goals: Costs to come to, falling: a cycle and a point for each.
        log_steps: By layer name, a row for each price: a number, or one for each filter.

    >>> schedule = PriceSchedule(prices=(1.0, 100.0), costs=(9.0, 1.0), iterations=30, goals=(9.0, 3.0, 1.0))
    >>> [round(schedule.cost(iteration), 6) for iteration in (0, 9, 19, 20, 29)]
    [9.0, 9.0, 3.0, 3.0, 1.0]
    >>> round(schedule.price(3.0), 6)
    10.0
    """

    prices: tuple[float, ...]
    costs: tuple[float, ...]
    iterations: int
    goals: tuple[float, ...]
    log_steps: Mapping[str, Tensor] = field(default_factory=dict)

    def cycle(self, iteration: int) -> int:
        """Cycle of an iteration, counted from 0; the number of cycles after the last iteration."""
        return min(len(self.goals), iteration * len(self.goals) // self.iterations)

    def cost(self, iteration: int) -> float:
        """The cost that price and steps of an iteration, counted from 0, are for."""
        cycle = min(self.cycle(iteration), len(self.goals) - 1)
        passed = iteration * len(self.goals) / self.iterations - cycle
        before, goal = self.goals[max(0, cycle - 1)], self.goals[cycle]
        return float(before * (goal / before) ** min(1.0, passed / ON_THE_WAY))

    def price(self, cost: float) -> float:
        """The price for a cost."""
        below, above, share = self._around(cost)
        low, high = math.log(self.prices[below]), math.log(self.prices[above])
        return math.exp(low + share * (high - low))

    def shifts(self, cost: float) -> dict[str, Tensor]:
        """By how much log steps for a cost are above those of the beginning, by layer name."""
        below, above, share = self._around(cost)
        return {
            name: rows[below] + share * (rows[above] - rows[below]) - rows[0] for name, rows in self.log_steps.items()
        }

    def _around(self, cost: float) -> tuple[int, int, float]:
        """The two prices around that for a cost, and how far it is from one to the other."""
        below = max(0, bisect_right([-known for known in self.costs], -cost) - 1)
        above = min(below + 1, len(self.costs) - 1)
        whole = math.log(self.costs[below] / self.costs[above])
        return below, above, min(1.0, max(0.0, math.log(self.costs[below] / cost) / whole)) if whole > 0 else 0.0


class PricePath:
    """Adds ``price * cost(levels)`` to the loss and takes a point at the end of every cycle.

    A regularizer for `slimbit.training.task.TrainTask`, of a network that `learn_levels` has prepared.

    Args:
        cost: What is saved.
        schedule: Goals, prices and steps.
        take: Called in every process with the number of a cycle that has ended, a copy of the network, the price, and
            the exact cost.

    Attributes:
        taken: How many points are behind.
        iteration: Iterations that have passed.
        urgency: What the price of the schedule is multiplied by.
    """

    def __init__(
        self, cost: LevelCost, schedule: PriceSchedule, *, take: Callable[[int, nn.Module, float, float], None]
    ) -> None:
        for name, costs in (("costs", schedule.costs), ("goals", schedule.goals)):
            if not costs or list(costs) != sorted(costs, reverse=True):
                raise InputError(f"{name} of a schedule must fall, got {list(costs)}")
        self.cost, self.schedule, self._take = cost, schedule, take
        self.taken, self.iteration, self.urgency = 0, 0, 1.0

    @property
    def price(self) -> float:
        """Of the iteration under way."""
        return self.urgency * self.schedule.price(self.schedule.cost(self.iteration))

    def penalty(self, model: nn.Module) -> Tensor:
        """``price * cost``, with a gradient; called once in every iteration, before the weights move."""
        self._look(model)
        self._shift(model)
        price = self.price
        self.iteration += 1
        return price * self.cost.slope(model)

    def end_epoch(self, model: nn.Module, epoch: int) -> None:  # noqa: ARG002 - as the protocol has it
        """At the end of the training, the last point."""
        if self.iteration >= self.schedule.iterations:
            self._look(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that continues it exactly."""
        counts = {"iteration": torch.tensor(self.iteration), "taken": torch.tensor(self.taken)}
        return counts | {"urgency": torch.tensor(self.urgency, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave.

        Raises:
            InputError: The state is of something else.
        """
        if state.keys() != self.state_dict().keys():
            raise InputError(f"state of learning must hold {', '.join(self.state_dict())}, got {', '.join(state)}")
        self.iteration, self.taken, self.urgency = int(state["iteration"]), int(state["taken"]), float(state["urgency"])

    @torch.no_grad()
    def _look(self, model: nn.Module) -> None:
        """Set the urgency; take the point of a cycle that has ended."""
        ended = self.schedule.cycle(self.iteration) > self.taken
        if not ended and self.iteration % LOOK_EVERY:
            return
        cost = self.cost.exact(levels_of(model))
        if ended:
            last = self.urgency * self.schedule.price(self.schedule.cost(self.iteration - 1))
            self._take(self.taken, copied(model), last, cost)
            self.taken = self.schedule.cycle(self.iteration)
        self.urgency = min(MOST, max(1.0, cost / self.schedule.cost(self.iteration)) ** URGE)

    @torch.no_grad()
    def _shift(self, model: nn.Module) -> None:
        shifts = self.schedule.shifts(self.schedule.cost(self.iteration))
        for part, _ in learned_parts(model):
            for layer in part.layers:
                if layer.name in shifts:
                    part.shift(layer.name, shifts[layer.name])
