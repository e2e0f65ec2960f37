"""The learning rate of every step: a function of the step alone, so that nothing about it needs to be kept."""

import math

from slimbit.records.training import TrainConfig

WARM_UP_START = 0.04
"""The one-cycle schedule begins at 1/25 of its peak, as `torch.optim.lr_scheduler.OneCycleLR` does."""


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of one optimizer step.

    "constant": the same everywhere; "step": times ``factor`` after each milestone; "cosine":
    ``lr (1 + cos(pi t)) / 2`` with ``t`` from 0 to 1 over the run, or over each of its ``cycles``; "one_cycle": from
    ``lr / 25`` along a cosine up to ``lr`` in the first ``warm_up`` of the steps, then along a cosine to 0.

    Args:
        config: Schedule, highest learning rate and number of epochs.
        step: Counted from 0 over the whole run.
        steps_per_epoch: Optimizer steps of an epoch.

    >>> config = TrainConfig(epochs=4, schedule={"name": "cosine", "cycles": 2})
    >>> [round(learning_rate(config, step, 10), 4) for step in (0, 10, 19, 20, 30)]
    [0.1, 0.05, 0.0006, 0.1, 0.05]
    >>> config = TrainConfig(epochs=4, schedule={"name": "step", "milestones": [2, 3]})
    >>> [round(learning_rate(config, step, 10), 4) for step in (0, 19, 20, 30)]
    [0.1, 0.1, 0.01, 0.001]
    """
    peak, shape, total = config.optimizer.learning_rate, config.schedule, config.epochs * steps_per_epoch
    if shape.name == "constant":
        return peak
    if shape.name == "step":
        return peak * shape.factor ** sum(step >= epoch * steps_per_epoch for epoch in shape.milestones)
    if shape.name == "cosine":
        return peak * _falling(step * shape.cycles % total / total)
    rising = max(1, round(shape.warm_up * total))
    if step < rising:
        return peak * (WARM_UP_START + (1 - WARM_UP_START) * (1 - _falling(step / rising)))
    return peak * _falling((step - rising) / max(1, total - rising))


def _falling(place: float) -> float:
    """From 1 at 0 to 0 at 1 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * place))
