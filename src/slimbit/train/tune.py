"""Training that goes with pruning: the paper's recipes for any number of epochs, and weights held at zero."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig
from slimbit.train.admm import Admm, AdmmSettings, Choose
from slimbit.train.objectives import distillation
from slimbit.train.run import About, train_network
from slimbit.train.task import Progress, TrainTask

SHORT = 40
"""Up to so many epochs the learning rate falls in two steps, as in the paper's 4 epochs; beyond along a cosine."""


def tune_config(epochs: int, *, learning_rate: float = 0.1, **more: object) -> TrainConfig:
    """Settings to recover after pruning, after HkxAS6VFDB.

    A few epochs: batch 64, the learning rate divided by 10 after half and after three quarters of the epochs (its
    ImageNet setting is 4 epochs, divided at 2 and 3). More than 40: batch 100 and a cosine (its 160 epochs).

    Args:
        epochs: How many.
        learning_rate: At the beginning; the paper's 0.1.
        more: Any other setting of `TrainConfig`.

    >>> tune_config(4).schedule.milestones, tune_config(1).schedule.milestones, tune_config(160).schedule.name
    ((2, 3), (), 'cosine')
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise InputError(f"tune_epochs must be a whole number of 1 or more, got {epochs!r}")
    milestones = sorted({epochs // 2, epochs * 3 // 4} - {0})
    short = {"batch_size": 64, "schedule": {"name": "step", "milestones": milestones}}
    long = {"batch_size": 100, "schedule": {"name": "cosine"}}
    chosen = short if epochs <= SHORT else long
    return TrainConfig(epochs=epochs, optimizer={"learning_rate": learning_rate}, **{**chosen, **more})  # type: ignore[arg-type] # pydantic checks them


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a pruned network learns with: a `slimbit.frontier.slim.Tuner`.

    Attributes:
        task: Images, labels, held-out images, example.
        config: Settings of the training after the cut, e.g. `tune_config`.
        data: Name of the data; a run is continued with the same one only.
        distill: Whether it learns the outputs of the original network, without labels.
        admm: Stages of pressing filters to zero before the cut, where that is asked for.
        admm_rate: Highest learning rate of these stages: it rises until the last stage, in which it falls to zero, so
            that neither noise nor statistics that trail moving weights are left to be cut.
    """

    task: TrainTask
    config: TrainConfig
    data: str = ""
    distill: bool = False
    admm: AdmmSettings = field(default_factory=AdmmSettings)
    admm_rate: float = 0.05

    @property
    def name(self) -> str:
        """Everything that the result depends on, for people; an objective of one's own must be told by ``data``."""
        images = self.task.images.fingerprint()[:12]
        text = f"{self.data} {images}, {self.config.epochs} epochs of settings {self.config.digest()[:12]}"
        return f"{text}{', distilled' * self.distill}, ADMM {self.admm} at {self.admm_rate:g}"

    def tune(
        self, network: nn.Module, *, original: nn.Module, content: str, folder: Path, tell: Callable[[str], None]
    ) -> None:
        """Train ``network`` itself, in a folder; a call that was stopped goes on there."""
        task = self._task(original)
        self._run(network, task, self.config, folder, content=content, tell=lambda p: tell(f"tuning: {_line(p)}"))

    def press(
        self,
        network: nn.Module,
        choose: Choose,
        *,
        original: nn.Module,
        content: str,
        folder: Path,
        tell: Callable[[str], None],
    ) -> tuple[float, ...]:
        """Train ``network`` itself with `Admm` until what ``choose`` does not keep is nearly zero.

        Returns:
            Residual after each epoch, see `Admm`.
        """
        admm = Admm(network, choose, self.admm)
        config = self.config.with_options(
            {
                "epochs": self.admm.epochs,
                "select": "last",
                "optimizer": {"learning_rate": self.admm_rate},
                "schedule": {**_until_last_stage(self.admm.stages), "milestones": ()},
            }
        )

        def line(progress: Progress) -> None:
            tell(f"ADMM, rho {self.admm.rho(progress.epoch):g}: {_line(progress)}, residual {admm.residuals[-1]:.4f}")

        task = replace(self._task(original), regularizer=admm)
        self._run(network, task, config, folder, content=content, tell=line)
        return tuple(admm.residuals)

    def _task(self, original: nn.Module) -> TrainTask:
        return replace(self.task, objective=distillation(original)) if self.distill else self.task

    def _run(
        self,
        network: nn.Module,
        task: TrainTask,
        config: TrainConfig,
        folder: Path,
        *,
        content: str,
        tell: Callable[[Progress], None],
    ) -> None:
        def listen(progress: Progress) -> None:
            if progress.finished is not None:
                tell(progress)

        about = About(data=self.data, fingerprint=content)
        train_network(network, replace(task, listener=listen), config, folder, about=about)
        network.eval()


def _until_last_stage(stages: int) -> dict[str, object]:
    return {"name": "one_cycle", "warm_up": (stages - 1) / stages} if stages > 1 else {"name": "cosine"}


def _line(progress: Progress) -> str:
    done = progress.finished
    assert done is not None, "the caller asked"
    held = "" if done.accuracy is None else f", held out {done.accuracy:.2f} %"
    return f"epoch {progress.epoch}/{progress.epochs}, loss {done.loss:.4f}{held}, {done.seconds:.0f} s"


def held_at_zero(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """A function for `slimbit.TrainTask.after_step` that puts pruned weights back to zero.

    Args:
        masks: By parameter name, True = stays; e.g. of `slimbit.apply.mask.held_masks`.

    Raises:
        InputError: From the function, for a network without such a parameter.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> held_at_zero({"weight": torch.tensor([[True, False]])})(net)
    >>> (net.weight != 0).tolist()
    [[True, False]]
    """

    def hold(model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied one by all of its names
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise InputError(f"masks must be of parameters of the network, got {name!r} of {tuple(mask.shape)}")
            with torch.no_grad():
                parameters[name].mul_(mask.to(parameters[name].device))

    return hold
