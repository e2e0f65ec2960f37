"""Whether a network's code follows other sizes: it is run with more channels, and each operation is compared.

A trace tells which entries of which tensor belong to which unit. So if every unit is given copies, the shape of every
tensor is known in advance. Where the code makes another, a number in it is to blame: an attribute of the module, which
pruning can change with the channels, a size computed from the whole (``chunk``), which follows if all parts lose the
same units, or something that nothing can change, and then the channels stay.
"""

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.padding import _ConstantPadNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from slimbit.survey.axes import find_axis, numbers_of
from slimbit.survey.channel_groups import NOT_A_FILTER, Channels
from slimbit.survey.channel_operation import (
    NORMS,
    Decisions,
    Record,
    Size,
    TensorChannels,
    Trace,
    arguments,
    numbers_among,
    plain_name,
)

COMPUTED = {"view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "slice", "narrow", "split", "repeat",
            "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "convolution", "native_group_norm",
            "native_layer_norm", "constant_pad_nd"}  # fmt: skip
"""Operations that take sizes: these numbers may differ at other sizes, what comes out tells whether rightly."""
PARTS = {"slice", "narrow", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"}
KNOWN = (_ConvNd, nn.Linear, *NORMS, nn.PReLU, _ConstantPadNd)
"""Modules whose sizes are changed with their channels."""
MOST, COPIES = 997, 1 + 64 * 3 * 5 * 7
DETACH = "detach"
"""Left out of the comparison: torch makes one more or one less of it where a tensor is also held elsewhere."""


class Growth:
    """How many copies every unit gets."""

    def __init__(self, trace: Trace, copies: Callable[[int], int]) -> None:
        self._ledger = trace.channel_groups
        roots = trace.channel_groups.all_roots()
        self._copies = np.ones(len(roots), dtype=np.int64)
        for root in np.unique(roots).tolist():
            if root != NOT_A_FILTER:
                self._copies[root] = copies(root)

    def counts(self, ids: Channels) -> Channels:
        """Copies of each channel."""
        counts: Channels = self._copies[self._ledger.roots(ids)]
        return counts

    def size(self, ids: Channels) -> int:
        """How many entries channels become."""
        return int(self.counts(ids).sum())

    def shapes(self, tensor: Tensor, channels: TensorChannels | None) -> list[tuple[int, ...]]:
        """Shapes that a tensor may have: several while it is open which dimension grows, none if any will do."""
        shape = tuple(tensor.shape)
        if channels is None:
            return [shape]
        counts, roots = self.counts(channels.ids), self._ledger.roots(channels.ids)
        if int(counts.max()) == 1:
            return [shape]
        wide = [d for d, n in enumerate(roots.shape) if n > 1]
        found = []
        for d in wide:
            if all((roots == roots.take([0], e)).all() for e in wide if e != d):
                line = np.moveaxis(counts, d, 0).reshape(counts.shape[d], -1)[:, 0]
                found.append((*shape[:d], int(line.sum()), *shape[d + 1 :]))
        whole = [n if d in wide else 1 for d, n in enumerate(shape)]
        total = int(np.broadcast_to(counts, whole).sum())
        return found or [(*shape[:d], total * shape[d] // math.prod(whole), *shape[d + 1 :]) for d in wide]


def even(trace: Trace) -> Growth:
    """As many copies of every unit that may be removed, and of those that views split in a way that is not decided.

    So many that what a number up to 8 (or 64) divides is still divided by it, whatever else stays as it is.
    """
    open_ = {
        root
        for record in trace.records if record.undecided
        for _, channels in record.outputs if channels is not None
        for root in trace.channel_groups.roots(channels.ids).ravel().tolist()
    }  # fmt: skip
    copies = COPIES if trace.shapes_only else 3
    return Growth(trace, lambda root: copies if root in open_ or trace.channel_groups.reason(root) is None else 1)


def mixed(trace: Trace) -> Growth:
    """A number of its own of copies of every unit that may be removed; units of a family have the same."""
    numbers = random.Random(len(trace.records))  # noqa: S311 - no secret
    known: dict[int, int] = {}
    leaders = trace.channel_groups.families()
    most = MOST if trace.shapes_only else 3

    def copies(root: int) -> int:
        if trace.channel_groups.reason(root) is not None:
            return 1
        number = known.setdefault(leaders.get(root, root), numbers.randint(2, most))
        return 1 + (COPIES - 1) * (1 + number % 7) if root in leaders else number

    return Growth(trace, copies)


def grow(network: nn.Module, trace: Trace, growth: Growth) -> None:
    """Give every unit its copies, in place."""
    modules = dict(network.named_modules())
    for place, ids in trace.channel_groups.axes.items():
        (name, role), counts = place, growth.counts(ids)
        if int(counts.max(initial=1)) > 1 and role != "window":  # a kernel slides over any number of channels
            axis = find_axis(modules, name, role, len(ids), trace.channel_groups.dim(place))
            if trace.shapes_only and role != "padding":  # which is told apart by its places
                places = torch.empty(int(counts.sum()), dtype=torch.long, device="meta")
            else:
                places = torch.from_numpy(np.repeat(np.arange(len(ids)), counts))
            axis.take(places, whole_groups=axis.groups > 1 and name not in trace.channel_groups.thinned)


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


def judge(trace: Trace, replay: Replay, decisions: Decisions, *, final: bool) -> bool:
    """Decide about every operation that did not follow.

    Args:
        trace: The run at the sizes of the network.
        replay: The run at others.
        decisions: Changed in place.
        final: Whether what cannot be helped is refused; else it is left to a later run.

    Returns:
        Whether anything was decided.
    """
    before = repr(decisions)
    decisions.follow |= replay.follow
    for index in replay.scaled:
        record = trace.records[index]
        inside = record.path[-1]
        if not _ban(decisions, partial(_is_of, inside)) and final:
            decisions.refuse(index, f"{record.where} computes with the number of channels")
    for index in replay.wrong:
        record = trace.records[index]
        used = {name for (i, _), name in decisions.sizes.items() if i == index}
        computed_parts = record.name in PARTS and index not in replay.stiff  # an attribute of that value is not its own
        if used:
            _ban(decisions, used.__contains__)
        elif not computed_parts and _by_attributes(trace, replay.growth, decisions, index):
            pass
        elif final and computed_parts and index not in decisions.parts:
            decisions.parts.add(index)
        elif final and not _by_others(trace, replay, decisions, index):
            decisions.refuse(index, refusal(record, replay.growth))
    stopped = replay.error is not None or (replay.diverged and trace.shapes_only)
    if stopped and repr(decisions) == before:  # else what was found may be the cause of the stop as well
        _judge_stop(trace, replay, decisions)
    return repr(decisions) != before


def _judge_stop(trace: Trace, replay: Replay, decisions: Decisions) -> None:
    """The code raised an error, or went another way: what it was about to use cannot follow."""
    path = replay.path[-1]
    if _ban(decisions, lambda name: name.rpartition(".")[0] == path):
        return
    where = f" of module {path!r}" if path else ""
    what = "goes another way" if replay.error is None else f"raises {type(replay.error).__name__}"
    for index, record in enumerate(trace.records[replay.reached :], start=replay.reached):
        if record.inputs and index not in decisions.opaque:
            decisions.refuse(index, f"the code{where} {what} at other numbers of channels")
            return


def _ban(decisions: Decisions, which: Callable[[str], bool]) -> bool:
    """Attributes are used for something else than a size; whether there are any."""
    found = {name for name in decisions.sizes.values() if which(name)}
    decisions.banned |= found
    decisions.sizes = {key: name for key, name in decisions.sizes.items() if name not in found}
    return bool(found)


def _by_attributes(trace: Trace, growth: Growth, decisions: Decisions, index: int) -> bool:
    """Find the attributes that hold the sizes which should have changed; whether all were found."""
    record = trace.records[index]
    if record.undecided:
        found = [(int(size.slot), name) for size in record.sizes for name in _holding(trace, record, size, decisions)]
        for axis, name in decisions.choices.setdefault(index, found)[:1]:
            decisions.follow[index], decisions.sizes[index, str(axis)] = axis, name
        return index in decisions.follow
    stiff = [size for size in record.sizes if growth.size(size.ids) != size.value]
    names = [next(_holding(trace, record, size, decisions), None) for size in stiff]
    if not stiff or None in names:
        return False
    decisions.sizes |= {(index, size.slot): name for size, name in zip(stiff, names, strict=True) if name is not None}
    return True


def _by_others(trace: Trace, replay: Replay, decisions: Decisions, index: int) -> bool:
    """Find the channels whose number the code asked for where others were expected; whether all were found."""
    found = {}
    for size in trace.records[index].sizes:
        if replay.growth.size(size.ids) == size.value or (index, size.slot) in decisions.like:
            continue
        source = _counting(trace, replay, size, index)
        if source is None:
            return False
        found[index, size.slot] = source
    decisions.like |= found
    return bool(found)


def _is_of(module: str, name: str) -> bool:
    return name.rpartition(".")[0] == module


def _counting(trace: Trace, replay: Replay, size: Size, index: int) -> tuple[int, int] | None:
    """The last tensor before an operation with as many channels, of which there are as many as the code asks for."""
    for earlier in range(index - 1, -1, -1):
        for number, (_, channels) in enumerate(trace.records[earlier].outputs):
            if channels is None or not channels.ids.size == max(channels.ids.shape) == size.value:
                continue
            if replay.growth.size(channels.ids) in replay.asked[index]:
                return earlier, number
    return None


def _holding(trace: Trace, record: Record, size: Size, decisions: Decisions) -> Iterator[str]:
    """Attributes of the running modules, innermost first, that hold a size."""
    for path in dict.fromkeys(reversed(record.path)):
        module = trace.modules[path]
        if isinstance(module, KNOWN):
            continue
        names = [name for name, number in numbers_of(module) if number == size.value]
        for name in sorted(names, key=lambda name: not name.endswith(f"[{size.slot}]")):
            full = f"{path}.{name}".removeprefix(".")
            if full not in decisions.banned:
                yield full


def refusal(record: Record, growth: Growth) -> str:
    """Why channels that meet an operation stay: the number in the code that does not follow, where it is known."""
    stiff = [size.value for size in record.sizes if growth.size(size.ids) != size.value]
    if record.name in COMPUTED and stiff:
        return f"{record.where} holds the size {stiff[0]} in its code"
    return f"{record.where} does not follow other numbers of channels"
