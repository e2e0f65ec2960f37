"""Train a network: stochastic gradient descent with momentum on one device or many, resumed exactly."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.numerics.strided import safe_gradients
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.training import TrainConfig, TrainEpoch
from slimbit.training.checkpoint import Checkpoint, check_fits, plain, read_checkpoint, write_checkpoint
from slimbit.training.devices import open_fabric
from slimbit.training.images import Batches, Share
from slimbit.training.schedule import learning_rate
from slimbit.training.task import Regularizer, TrainingProgress, TrainTask
from slimbit.training.tracker import SignalTracker

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT = "checkpoint.safetensors"
LOOK_EVERY = 25
"""Steps between two looks at the loss: a look waits for the device."""


class TrainingError(SlimbitError):
    """Training cannot go on; the last checkpoint is whole."""


@dataclass(eq=False)
class _State:
    """What changes from epoch to epoch."""

    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float | None = None
    best: dict[str, Tensor] = field(default_factory=dict)


def fit(model: nn.Module, task: TrainTask, config: TrainConfig, *, folder: Path) -> int:
    """Train ``model`` itself; at the end it holds the weights of the chosen epoch.

    A BatchNorm whose scale and shift do not require gradients keeps its statistics, too.

    A checkpoint is written after every epoch, and the same call goes on from it: the result is the same to the last
    bit as without the interruption, on the same machine with the same number of threads and processes; on a GPU but for
    the order in which its kernels add.

    Args:
        model: Changed.
        task: What to learn.
        config: Settings.
        folder: Where the checkpoint is.

    Returns:
        The epoch whose weights were chosen.

    Raises:
        InputError: Settings or images that do not fit, a checkpoint of another run or a damaged one.
        TrainingError: The loss is no finite number any more; the last checkpoint is kept.
        StoreError: The checkpoint cannot be written.
    """
    fabric = open_fabric(config.precision)
    try:
        return _Run(model, task, config, fabric=fabric, path=folder / CHECKPOINT).work()
    finally:
        if config.compile:
            torch.compiler.reset()  # it keeps eight shapes of a network, then stops compiling: widths may be more


class _Run:
    """One process of a run."""

    def __init__(self, model: nn.Module, task: TrainTask, config: TrainConfig, *, fabric: "Fabric", path: Path) -> None:
        self.network, self.task, self.config, self.fabric, self.path = model, task, config, fabric, path
        self.share = Share(
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            rank=fabric.global_rank,
            processes=fabric.world_size,
        )
        self.steps = len(task.images) // config.batch_size
        if self.steps < 1:
            raise InputError(
                f"batch_size must be at most the {len(task.images)} training images, got {config.batch_size}"
            )
        _check_precision(model)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch's stub lacks it
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True, **_optimizer_options(config))
        forward: Any = _compiled(model, fabric, config) if config.compile else model
        self.forward, self.optimizer = fabric.setup(forward, optimizer)
        self.safe = safe_gradients(model)
        self.tracker = SignalTracker(model, task.example_input)
        self.batches = Batches(task.images, config.augment, device=fabric.device, channels_last=config.channels_last)
        self.state = _State()

    def work(self) -> int:
        """All epochs that are left."""
        self._restore()
        while self.state.epoch < self.config.epochs:
            with _translating():
                self._epoch(self.state.epoch + 1)
        if self.config.select == "best" and self.state.best:
            self.network.load_state_dict(self.state.best)
            return self.state.best_epoch
        return self.state.epoch

    def _epoch(self, epoch: int) -> None:
        start, first = time.perf_counter(), (epoch - 1) * self.steps
        loss = self._learn(epoch)
        self._check_weights(epoch)
        signal = self.tracker.end_epoch()
        if self.task.regularizer is not None:
            self.task.regularizer.end_epoch(self.network, epoch)
        accuracy = self._validated()
        done = TrainEpoch(
            epoch=epoch,
            loss=loss,
            accuracy=accuracy,
            learning_rate_first=learning_rate(self.config, first, self.steps),
            learning_rate_last=learning_rate(self.config, first + self.steps - 1, self.steps),
            iterations=self.steps,
            seconds=time.perf_counter() - start,
            signal_to_noise=ratio if math.isfinite(ratio := signal.signal_to_noise) else None,
        )
        self._remember(done)
        if self.fabric.is_global_zero:
            if self.task.epoch_done is not None:
                self.task.epoch_done(done, signal, self.network)
            self._save()
        self.fabric.barrier()
        self._tell(replace(self._progress(epoch, self.steps, loss), finished=done, signal=signal))

    def _learn(self, epoch: int) -> float:
        """One pass over the images; returns the mean loss."""
        self.forward.train()
        for norm in _frozen_norms(self.network):
            norm.eval()
        device = self.fabric.device
        losses = torch.zeros(self.steps, device=device)
        # what the network itself draws (dropout) depends on the epoch alone, so that a run can go on at any epoch
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(self.config.seed, epoch, self.fabric.global_rank + 1))
            for step, parts in enumerate(self.batches.epoch(_seed(self.config.seed, epoch, 0), self.share)):
                losses[step] = self._step(
                    parts, learning_rate(self.config, (epoch - 1) * self.steps + step, self.steps)
                )
                if (step + 1) % LOOK_EVERY == 0 or step + 1 == self.steps:
                    self._look(losses[: step + 1], epoch)
        mean: Any = self.fabric.all_reduce(losses.mean())  # a tensor for a tensor
        return float(mean)

    def _step(self, parts: list[tuple[Tensor, Tensor | None]], rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.fabric.device)
        for number, (images, labels) in enumerate(parts):
            with self.safe, self.fabric.no_backward_sync(self.forward, enabled=number + 1 < len(parts)):
                loss = self._objective(images, labels) / len(parts)
                self.fabric.backward(loss)
            total += loss.detach()
        if self.task.regularizer is not None:
            total += self._add_penalty(self.task.regularizer)
        self.optimizer.step()
        for change in self.task.after_step:
            change(self.network)
        self.tracker.update()
        return total

    def _add_penalty(self, regularizer: Regularizer) -> Tensor:
        """Add its gradient; not by ``backward``, which would wake the reducers of DistributedDataParallel again."""
        penalty = regularizer.penalty(self.network)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        for parameter, slope in zip(
            parameters, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True
        ):
            if slope is not None:
                parameter.grad = slope if parameter.grad is None else parameter.grad.add_(slope)
        return penalty.detach()

    def _objective(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if self.task.objective is not None:
            with self.fabric.autocast():  # a teacher is as fast as the network then
                return self.task.objective(self.forward, images, labels)
        if labels is None:
            raise InputError("training images must have labels, got none")
        return F.cross_entropy(self.forward(images).float(), labels, label_smoothing=self.config.label_smoothing)

    def _look(self, losses: Tensor, epoch: int) -> None:
        """Stop where the loss is no number, and tell how it goes."""
        values = losses.tolist()
        bad = [number for number, value in enumerate(values, 1) if not math.isfinite(value)]
        if bad:
            raise _diverged("loss must be a finite number", f"{values[bad[0] - 1]} at step {bad[0]}", epoch)
        self._tell(self._progress(epoch, len(values), math.fsum(values) / len(values)))

    def _check_weights(self, epoch: int) -> None:
        """The last step of an epoch shows in no loss."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise _diverged("weights must be finite numbers", f"others in {name} after the last step", epoch)

    def _validated(self) -> float | None:
        """Percent on held-out images, scored once and told to all processes."""
        if self.task.validate is None:
            return None
        value = float(self.task.validate(self.network)) if self.fabric.is_global_zero else 0.0
        return float(self.fabric.broadcast(value))

    def _remember(self, done: TrainEpoch) -> None:
        state = self.state
        state.epoch = done.epoch
        if done.accuracy is None or self.config.select == "last":
            return
        if state.best_accuracy is None or done.accuracy >= state.best_accuracy:
            state.best_epoch, state.best_accuracy = done.epoch, done.accuracy
            state.best = {name: plain(tensor) for name, tensor in self.network.state_dict().items()}

    def _save(self) -> None:
        momentum = {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.network.named_parameters()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        state = self.state
        groups = {
            "model": self.network.state_dict(),
            "best": state.best,
            "momentum": momentum,
            "tracker": self.tracker.state_dict(),
            "regularizer": {} if self.task.regularizer is None else self.task.regularizer.state_dict(),
        }
        about = {"best_epoch": state.best_epoch, "best_accuracy": state.best_accuracy}
        digest = self.config.digest()
        write_checkpoint(self.path, Checkpoint(epoch=state.epoch, digest=digest, tensors=groups, **about))  # type: ignore[arg-type] # both as declared

    def _restore(self) -> None:
        checkpoint = read_checkpoint(self.path)
        if checkpoint is None:
            return
        check_fits(checkpoint, self.network, self.config.digest(), self.path)
        self.network.load_state_dict(checkpoint.tensors["model"])
        momentum = checkpoint.tensors.get("momentum", {})
        for name, parameter in self.network.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter).copy_(momentum[name])
                self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.tracker.load_state_dict(dict(checkpoint.tensors.get("tracker", {})))
        if self.task.regularizer is not None:
            self.task.regularizer.load_state_dict(checkpoint.tensors.get("regularizer", {}))
        self.state = _State(
            epoch=checkpoint.epoch,
            best_epoch=checkpoint.best_epoch,
            best_accuracy=checkpoint.best_accuracy,
            best=dict(checkpoint.tensors.get("best", {})),
        )

    def _progress(self, epoch: int, step: int, loss: float) -> TrainingProgress:
        return TrainingProgress(epoch=epoch, epochs=self.config.epochs, step=step, steps=self.steps, loss=loss)

    def _tell(self, progress: TrainingProgress) -> None:
        if self.task.listener is not None and self.fabric.is_global_zero:
            self.task.listener(progress)


def _compiled(model: nn.Module, fabric: "Fabric", config: TrainConfig) -> Any:
    """Compiled; on a GPU its kernels are recorded once and replayed, since a small network waits for Python otherwise.

    Recorded passes keep their gradients in memory of their own, where those of several parts or processes would not
    add up: there kernels are only compiled.
    """
    recorded = fabric.device.type == "cuda" and config.accumulate == 1 and fabric.world_size == 1
    return torch.compile(model, mode="reduce-overhead" if recorded else "default")


def _check_precision(model: nn.Module) -> None:
    """Steps are added to float32 weights; ``precision`` says what the passes are computed in."""
    for name, parameter in model.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"weights must be float32 or wider to be trained, got {parameter.dtype} in {name}: "
                'give network.float() and precision = "bfloat16" for speed'
            )


def _frozen_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """BatchNorms whose scale and shift are not to be learned: their statistics are not, either."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm) and module.affine)
    return (norm for norm in norms if not any(parameter.requires_grad for parameter in norm.parameters()))


@contextmanager
def _translating() -> Iterator[None]:
    """Say in one sentence that `torch.compile` cannot do its work here: it needs a C++ compiler, and more."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"torch.compile must work here, got {reason}: train with --no-compile") from error


def _diverged(rule: str, found: str, epoch: int) -> TrainingError:
    kept = f"the checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "there is no checkpoint yet"
    return TrainingError(f"{rule}, got {found} of epoch {epoch}; {kept}; a smaller learning rate may help")


def _optimizer_options(config: TrainConfig) -> dict[str, Any]:
    options = config.optimizer
    return {"momentum": options.momentum, "nesterov": options.nesterov, "weight_decay": options.weight_decay}


def _seed(seed: int, epoch: int, stream: int) -> int:
    """A seed for each use in each epoch; the generators of torch look at 32 bits of it, so it has to be mixed."""
    return int(np.random.SeedSequence([seed, epoch, stream]).generate_state(1)[0])
