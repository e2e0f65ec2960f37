"""A network with more of every unit runs again, and each operation is compared with the traced one."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from slimbit.survey.channel_growth import Growth
from slimbit.survey.channel_operation import arguments, numbers_among, plain_name
from slimbit.survey.channel_trace import Record, Trace

COMPUTED = {"view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "slice", "narrow", "split", "repeat",
            "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "convolution", "native_group_norm",
            "native_layer_norm", "constant_pad_nd"}  # fmt: skip
"""Operations that take sizes: these numbers may differ at other sizes, what comes out tells whether rightly."""
DETACH = "detach"
"""Left out of the comparison: torch makes one more or one less of it where a tensor is also held elsewhere."""


class Replay(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Compares each operation of a grown network with the traced one.

    Attributes:
        wrong: Operations that made other shapes than expected, or failed.
        scaled: Operations that got another number which is no size.
        follow: For undecided views, the dimension that became longer.
        reached: Number of the next operation.
        diverged: Whether other operations ran than in the trace.
        path: Paths of the running modules, innermost last.
        error: What the code raised.
        asked: Integers among the arguments of what is wrong.
        stiff: Operations whose numbers are those of the trace.
    """

    def __init__(self, trace: Trace, growth: Growth, *, open_: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._trace, self.growth, self._open, self._aside = trace, growth, open_, False
        self.wrong: list[int] = []
        self.scaled: list[int] = []
        self.follow: dict[int, int] = {}
        self.reached = 0
        self.diverged = False
        self.path: list[str] = [""]
        self.error: Exception | None = None
        self.asked: dict[int, set[int]] = {}
        self.stiff: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        records = self._trace.records
        if self._aside or plain_name(func) == DETACH:
            return func(*args, **kwargs)
        record = records[self.reached] if self.reached < len(records) else None
        if self.diverged or record is None or record.name != plain_name(func):
            self.diverged = True
            return func(*args, **kwargs)
        self.reached += 1
        carry = self._open or any(found is not None for _, found in record.outputs)  # others are statistics
        allowed = [self.growth.shapes(x, found) if found or not carry else [] for x, found in record.outputs]
        numbers = numbers_among(arguments(func, args, kwargs), shapes_only=self._trace.shapes_only)
        if numbers == record.numbers:
            self.stiff.add(self.reached - 1)
        try:
            outputs = computed(func, args, kwargs)
        except (RuntimeError, ValueError, IndexError):
            if record.known:
                self._blame(self.reached - 1, args)
            return self._made_up(func, args, record, allowed)
        if not record.known:
            return outputs
        if not _same(record, numbers):
            self.scaled.append(self.reached - 1)
        parts = [x for x in (outputs if isinstance(outputs, list | tuple) else (outputs,)) if isinstance(x, Tensor)]
        found = [tuple(part.shape) for part in parts]
        right = len(found) == len(allowed) and all(s in a or not a for s, a in zip(found, allowed, strict=True))
        right = right and self._counts_right(record, numbers, args)
        follows = self._followed(record, found[0]) if record.undecided and found else None
        if follows is not None:
            self.follow[self.reached - 1] = follows
        elif not right:
            self._blame(self.reached - 1, args)
            return self._made_up(func, args, record, allowed)
        return outputs

    def _blame(self, index: int, args: Any) -> None:
        self.wrong.append(index)
        self.asked[index] = {x for x in tree_leaves(args) if isinstance(x, int) and not isinstance(x, bool)}

    def skip(self, call: int, args: Any) -> Any:
        """What a call should have returned that failed before it came to its operations, which are passed over."""
        records = self._trace.records
        if self.diverged or call >= len(self._trace.results):
            raise LookupError("other calls than in the trace")
        mine = [i for i in range(self.reached, len(records)) if records[i].call == call]
        self.reached = max([self.reached, *(i + 1 for i in mine)])
        blamed = [i for i in mine if records[i].known]
        if blamed:
            self._blame(blamed[-1], args)
        elif not mine:
            raise LookupError("nothing is known of what the call does")

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shapes = self.growth.shapes(value, self._trace.channels(value))
            return torch.zeros(shapes[0] if shapes else value.shape, dtype=value.dtype, device=value.device)

        self._aside = True
        made = tree_map(one, self._trace.results[call])
        self._aside = False
        return made

    def _counts_right(self, record: Record, numbers: dict[str, Any], args: Any) -> bool:
        """Whether numbers of channels among the arguments are those that were expected."""
        for size in record.sizes:
            number = numbers.get(size.slot)
            if number is not None:
                length = args[0].shape[numbers.get("dim", 0)] if number < 0 else 0
                if number + length != self.growth.size(size.ids):
                    return False
        return True

    def _followed(self, record: Record, shape: tuple[int, ...]) -> int | None:
        """The dimension that became longer of those over which a view splits channels."""
        tensor, channels = record.outputs[0]
        assert channels is not None
        changed = [d for d, n in enumerate(shape) if n != tensor.shape[d]]
        whole = [n for d, n in enumerate(shape) if d in record.undecided]
        total = self.growth.size(channels.ids)
        return (
            changed[0] if len(changed) == 1 and changed[0] in record.undecided and math.prod(whole) == total else None
        )

    @staticmethod
    def _made_up(func: Any, args: Any, record: Record, allowed: list[list[tuple[int, ...]]]) -> Any:
        """What should have come out, so that only the first of a chain of mistakes counts."""
        if func._schema.is_mutable:
            return args[0]
        made = [
            torch.zeros(shapes[0] if shapes else tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
            for (tensor, _), shapes in zip(record.outputs, allowed, strict=True)
        ]
        kinds = [str(part.type) for part in func._schema.returns]
        if kinds == ["Tensor"]:
            return made[0]
        return made if len(kinds) == 1 else tuple(made)


class ReplayCalls(TorchFunctionMode):
    """Lets the replay go on where a function of torch refuses its arguments itself."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay = replay
        self._call = -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self._call += 1
        try:
            return func(*args, **(kwargs or {}))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            try:
                return self._replay.skip(self._call, (args, kwargs))
            except LookupError:
                pass
            raise


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator makes; of shapes alone, batch normalization by a shorter way than torch's, half of all time."""
    if plain_name(func) == "native_batch_norm" and args[0].is_meta and not args[5]:
        values, means = args[0], args[3]
        if values.shape[1] == len(means):
            return torch.empty_like(values), means.new_empty(0), means.new_empty(0)
    return func(*args, **kwargs)


def _same(record: Record, numbers: dict[str, Any]) -> bool:
    """Whether all numbers that are no sizes are as they were."""
    for name, value in record.numbers.items():
        other = numbers.get(name)
        size = record.name in COMPUTED and not isinstance(value, float)
        if value != other and not size:
            return False
    return True
