"""ADMM pruning: training that drives whole filters to zero, a little harder in each stage."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError

Choose = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""From values by parameter name to masks by parameter name, True = stays; every call keeps as many."""


@dataclass(frozen=True, kw_only=True)
class AdmmSettings:
    """Stages of the penalty.

    Attributes:
        rho_first: Penalty of the first stage.
        factor: How much larger each next one is.
        stages: How many.
        epochs_per_stage: Epochs of a stage; at its end the weights are projected and the multipliers follow, in the
            last stage after every epoch.
    """

    rho_first: float = 1e-4
    factor: float = 10.0
    stages: int = 4
    epochs_per_stage: int = 3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho_first) and self.rho_first > 0):
            raise InputError(f"rho_first must be a positive number, got {self.rho_first!r}")
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InputError(f"factor must be a number of 1 or more, got {self.factor!r}")
        if min(self.stages, self.epochs_per_stage) < 1:
            raise InputError(
                f"stages and epochs_per_stage must be 1 or more, got {self.stages} and {self.epochs_per_stage}"
            )

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return self.stages * self.epochs_per_stage

    def projects(self, epoch: int) -> bool:
        """Whether an epoch counted from 1 ends with a projection: the last of a stage, and all of the last stage.

        >>> settings = AdmmSettings(stages=2, epochs_per_stage=3)
        >>> [epoch for epoch in range(1, 8) if settings.projects(epoch)]
        [3, 4, 5, 6, 7]
        """
        return epoch % self.epochs_per_stage == 0 or epoch > (self.stages - 1) * self.epochs_per_stage

    def rho(self, epoch: int) -> float:
        """Penalty in an epoch counted from 1; the last stage's for all that come after.

        >>> [AdmmSettings(epochs_per_stage=2).rho(epoch) for epoch in (1, 2, 3, 9)]
        [0.0001, 0.0001, 0.001, 0.1]
        """
        stage = min((epoch - 1) // self.epochs_per_stage, self.stages - 1)
        return self.rho_first * self.factor**stage


class Admm:
    """The alternating direction method of multipliers for "only so many filters are not zero".

    Minimizes ``loss + sum_l rho/2 ||W_l - Z_l + U_l||^2``; at the end of every stage ``Z`` becomes the projection of
    ``W + U`` onto the constraint, and ``U`` grows by ``W - Z`` (Wang et al. 2019, arXiv 1907.02124, as the
    paper uses it). Where rho grows, U shrinks by the same factor: it is the multiplier divided by rho. A regularizer
    for `slimbit.training.task.TrainTask`.

    Projecting more often than rho grows does harm: where a penalty is too small to move the weights, ``U`` becomes as
    large as they are, and ``W + U`` prefers the very filters that were to go. Only in the last stage, whose penalty
    moves them within an epoch, every epoch ends with a projection, which takes what is left of ``U`` away.

    Args:
        model: The network whose training is to be constrained; not changed.
        choose: Which entries stay; called with ``W + U`` of the parameters that it returns masks for, as the network
            stores them: a transposed convolution has its inputs first (`slimbit.numerics.grid.layer_weight` puts
            filters first). The same keep ratios each time, e.g. ``held_masks(keep_by_norm(...))``.
        settings: Stages.

    Attributes:
        residuals: ``||W - P(W)|| / ||W||`` after each epoch, with P(W) the nearest weights that meet the constraint:
            the share that a cut would take away. Falls as the constraint is met.

    >>> model = nn.Linear(1, 2, bias=False)
    >>> largest = lambda values: {"weight": values["weight"].abs() >= values["weight"].abs().max()}
    >>> admm = Admm(model, largest, AdmmSettings(rho_first=1.0))
    >>> bool(admm.penalty(model) > 0)
    True
    """

    def __init__(self, model: nn.Module, choose: Choose, settings: AdmmSettings | None = None) -> None:
        self.settings = settings or AdmmSettings()
        self.residuals: list[float] = []
        self._choose, self._epoch = choose, 1
        start = {name: value.detach().clone() for name, value in _parameters(model).items()}
        self._names = tuple(choose(start))
        if not self._names:
            raise InputError("masks must be of at least one parameter, got none: nothing is to be removed")
        missing = [name for name in self._names if name not in start]
        if missing:
            raise InputError(f"masks must be of parameters of the network, got {missing[0]!r}")
        self._u = {name: torch.zeros_like(start[name]) for name in self._names}
        self._z = self._projected(start)

    def penalty(self, model: nn.Module) -> Tensor:
        """``sum_l rho/2 ||W_l - Z_l + U_l||^2``, with a gradient."""
        parameters = _parameters(model)
        self._follow(parameters[self._names[0]].device)
        distances = [(parameters[name] - self._z[name] + self._u[name]).square().sum() for name in self._names]
        return 0.5 * self.settings.rho(self._epoch) * torch.stack(distances).sum()

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Note how far the weights are from the constraint; at the end of a stage project, and move the multipliers."""
        weights = {name: value.detach() for name, value in _parameters(model).items()}
        self._follow(weights[self._names[0]].device)
        far = math.fsum(float(gap.double().square().sum()) for gap in self._outside(weights))
        whole = math.fsum(float(weights[name].double().square().sum()) for name in self._names)
        self.residuals.append(math.sqrt(far / whole) if whole > 0 else 0.0)
        if self.settings.projects(epoch):
            self._z = self._projected(weights)
            shrink = self.settings.rho(epoch) / self.settings.rho(epoch + 1)
            for name in self._names:
                self._u[name] = (self._u[name] + weights[name] - self._z[name]) * shrink
        self._epoch = epoch + 1

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that continues it exactly."""
        return {
            "epoch": torch.tensor(self._epoch),
            "residuals": torch.tensor(self.residuals, dtype=torch.float64),
            **{f"z.{name}": value for name, value in self._z.items()},
            **{f"u.{name}": value for name, value in self._u.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave.

        Raises:
            InputError: The state is of another network or of other masks.
        """
        wanted = self.state_dict()
        for name in sorted(wanted.keys() | state.keys()):
            shapes = [tuple(part[name].shape) if name in part else None for part in (state, wanted)]
            if shapes[0] != shapes[1] and name != "residuals":
                raise InputError(f"state of ADMM must be of this network, got {name!r} with shape {shapes[0]}")
        self._epoch = int(state["epoch"])
        self.residuals = state["residuals"].tolist()
        for name in self._names:
            self._z[name] = state[f"z.{name}"].clone()
            self._u[name] = state[f"u.{name}"].clone()

    def _outside(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """What the constraint leaves no room for."""
        masks = self._choose(weights)
        return [weights[name] * ~masks[name].to(weights[name].device) for name in self._names]

    def _projected(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The nearest weights with only so many filters: those of ``W + U`` that stay, and zeros."""
        moved = {name: value + self._u[name] if name in self._u else value for name, value in weights.items()}
        masks = self._choose(moved)
        return {name: moved[name] * masks[name].to(moved[name].device) for name in self._names}

    def _follow(self, device: torch.device) -> None:
        if self._z[self._names[0]].device != device:
            self._z = {name: value.to(device) for name, value in self._z.items()}
            self._u = {name: value.to(device) for name, value in self._u.items()}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By every name: a tied parameter has those of all its owners."""
    return dict(model.named_parameters(remove_duplicate=False))
