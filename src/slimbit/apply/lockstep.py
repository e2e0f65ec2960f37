"""All calibration batches pass through a network together: where it matters, they wait for each other.

Each batch's forward pass runs in a thread of its own, but only one thread runs at any time: a pass runs until it
reaches a place where all batches are needed, e.g. the input of a layer that is quantized next, and hands over to the
next batch. Once all are there (or have ended elsewhere), what is to be done is done once, and all go on. The result is
that of one large batch; only what is between two places is held in memory, and nothing is computed twice. Where memory
is short, what a waiting batch holds is kept in half precision, but for the tensor that it waits with.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.numerics.batches import Forward, count_of
from slimbit.numerics.memory import LiveTensors, keep_in_half, tensors_of, watch_tensors

Act = Callable[[Any, dict[int, Tensor]], Any]
"""From a place and the value of each batch that came there, by number, to an answer that all of them get."""


class Lockstep:
    """The passes of all batches through one network; hooks of the caller call `wait`.

    With one batch there are no threads.

    Args:
        network: In evaluation mode.
        batches: What it is called on.
        forward: How.
        act: What is done at a place.
        halved: Whether waiting batches keep what they hold in half precision.

    Attributes:
        current: Number of the batch that is running.
    """

    def __init__(
        self, network: nn.Module, batches: Sequence[Any], forward: Forward, act: Act, *, halved: bool = False
    ) -> None:
        self.network, self.batches, self.forward, self.halved = network, batches, forward, halved
        self.current = 0
        self._act = act
        self._passes: list[_Pass] = []
        self._met: set[tuple[int, Hashable]] = set()

    def has_met(self, place: Hashable) -> bool:
        """Whether the batch that is running has been at a place before."""
        return (self.current, place) in self._met

    def wait(self, place: Hashable, value: Tensor) -> Any:
        """Wait at a place until all batches are there; a batch that comes again goes on at once.

        Returns:
            What was answered there; None for those who come again.
        """
        if self.has_met(place):
            return None
        self._met.add((self.current, place))
        if not self._passes:
            return self._act(place, {self.current: value})
        return self._passes[self.current].wait(place, value)

    def run(self, order: Callable[[Any], int]) -> None:
        """Pass all batches through the network.

        Args:
            order: Where batches wait at different places, those at the first one in this order go on, so that the
                others do not miss them.

        Raises:
            Exception: The first that a pass or an action raised; all other passes have ended by then.
        """
        if len(self.batches) == 1:
            self._forward(0)
            return
        live = [LiveTensors() for _ in self.batches] if self.halved else []
        fixed = {x.untyped_storage().data_ptr() for x in tensors_of((*self.network.state_dict().values(),))}
        self._passes = [
            _Pass(self._forward, number, partial(self._held, live[number], number, fixed) if live else None)
            for number in range(len(self.batches))
        ]
        handles = watch_tensors(self.network, lambda _, values: live[self.current].add(values)) if live else []
        try:
            moving = list(self._passes)
            while moving:
                for each in moving:
                    self.current = each.number
                    each.resume()
                waiting = [each for each in self._passes if not each.done]
                place = min((each.place for each in waiting), key=order, default=None)
                moving = [each for each in waiting if each.place == place]
                if moving:
                    answer = self._act(place, {each.number: each.take() for each in moving})
                    for each in moving:
                        each.answer = answer
        finally:
            for each in self._passes:
                each.stop()
            for handle in handles:
                handle.remove()
            self._passes = []

    def _held(self, live: LiveTensors, number: int, fixed: set[int], value: Tensor | None) -> list[Tensor]:
        """What a waiting pass may keep in half precision: rows of its images, and nobody else's."""
        batch = self.batches[number]
        not_ours = {x.untyped_storage().data_ptr() for x in tensors_of((batch, value))} | fixed
        count = count_of(batch)
        return [
            tensor
            for tensor in live.alive()
            # a table of positions, say, that all batches read has no row for each image
            if tensor.ndim and count > 1 and len(tensor) and len(tensor) % count == 0
            if tensor.untyped_storage().data_ptr() not in not_ours
        ]

    def _forward(self, number: int) -> None:
        with torch.no_grad():
            self.forward(self.network, self.batches[number])


class _Pass:
    """The forward pass of one batch, in a thread that runs only between `resume` and the next `wait`."""

    def __init__(
        self, forward: Callable[[int], None], number: int, held: Callable[[Tensor | None], list[Tensor]] | None = None
    ) -> None:
        self.number, self.done = number, False
        self._held = held
        self._whole_again: Callable[[], None] | None = None
        self.place: Any = None
        self.answer: Any = None
        self._value: Tensor | None = None
        self._forward, self._settings = forward, _settings()
        self._error: BaseException | None = None
        self._stopped = False
        self._run, self._ran = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, name=f"calibration batch {number}", daemon=True)

    def resume(self) -> None:
        """Let the pass run until it waits or ends; raises what it raised."""
        if self._whole_again is not None:
            self._whole_again()
            self._whole_again = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._run.release()
        self._ran.acquire()
        if self._error is not None:
            raise self._error
        if self._held is not None and not self.done:
            self._whole_again = keep_in_half(self._held(self._value))

    def wait(self, place: Hashable, value: Tensor) -> Any:
        """Called in the thread: hand over, until resumed."""
        self.place, self._value = place, value
        del value
        self._ran.release()
        self._run.acquire()
        if self._stopped:
            raise _StoppedError
        answer, self.answer = self.answer, None
        return answer

    def take(self) -> Tensor:
        """The value that the pass waits with, which is not kept here any longer."""
        value, self._value = self._value, None
        assert value is not None
        return value

    def stop(self) -> None:
        """End a pass that is still on its way; it never sees another module."""
        if self._thread.ident is None or self.done:
            return
        self._stopped = True
        if self._whole_again is not None:
            self._whole_again()  # the network's own code may look at them while it unwinds
        while self._thread.is_alive():  # a pass may meet several places while it unwinds
            self._run.release()
            self._thread.join(timeout=0.1)

    def _work(self) -> None:
        try:
            with self._settings():
                self._forward(self.number)
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in `resume`
            self._error = error
        self.done = True
        self._ran.release()


class _StoppedError(BaseException):
    """Unwinds a waiting pass; not an `Exception`, so that a network that catches those does not keep it."""


def _settings() -> Callable[[], Any]:
    """What torch keeps for each thread, as it is here: autocast, default device, current GPU."""
    casts = [(kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    device = torch.get_default_device()
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call] # torch leaves it untyped
    gpu = torch.cuda.current_device() if initialized else None

    @contextmanager
    def settings() -> Iterator[None]:
        with ExitStack() as stack:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            if device != torch.device("cpu"):
                stack.enter_context(device)
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return settings
