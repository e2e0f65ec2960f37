"""Whether a network's code follows other sizes, and what it takes: the judgement of a run with more channels.

Where the code makes another shape than follows from the channels, a number in it is to blame: an attribute of the
module, which pruning can change with the channels, a size computed from the whole (``chunk``), which follows if all
parts lose the same units, or something that nothing can change, and then the channels stay.
"""

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.padding import _ConstantPadNd

from slimbit.survey.axes import numbers_of
from slimbit.survey.channel_growth import Growth
from slimbit.survey.channel_operation import NORMS
from slimbit.survey.channel_replay import COMPUTED, Replay
from slimbit.survey.channel_trace import ALL, Decisions, Record, Size, Trace

PARTS = {"slice", "narrow", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"}
KNOWN = (_ConvNd, nn.Linear, *NORMS, nn.PReLU, _ConstantPadNd)
"""Modules whose sizes are changed with their channels."""
OF_TORCH = {*vars(nn.Conv2d(1, 1, 1)), *vars(nn.BatchNorm2d(1)), *vars(nn.GroupNorm(1, 1)), *vars(nn.PReLU()),
            *vars(nn.Linear(1, 1)), *vars(nn.ConstantPad2d(1, 0.0))}  # fmt: skip
"""Their own attributes; a subclass may have others."""


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
    for index, record in enumerate(trace.records[replay.reached :], start=replay.reached):
        # torch leaves out slices of everything (``weight[:n]``) until there is more
        whole = record.path[-1] == path and any(size.slot.endswith(ALL) for size in record.sizes)
        known = dict(decisions.sizes)
        if whole and _by_attributes(trace, replay.growth, decisions, index) and decisions.sizes != known:
            return
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
    holding = {size.slot: next(_holding(trace, record, size, decisions), None) for size in stiff}
    missing = [slot for slot, name in holding.items() if name is None and not slot.endswith(ALL)]
    new = {(index, slot): name for slot, name in holding.items() if name is not None}
    if missing or not new:
        return False
    decisions.sizes |= new
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
        own = OF_TORCH if isinstance(module, KNOWN) else ()
        names = [name for name, n in numbers_of(module) if n == size.value and name.partition("[")[0] not in own]
        hint = "out" if size.slot.startswith("filters") else "in"
        for name in sorted(names, key=lambda name: (not name.endswith(f"[{size.slot}]"), hint not in name)):
            full = f"{path}.{name}".removeprefix(".")
            if full not in decisions.banned:
                yield full


def refusal(record: Record, growth: Growth) -> str:
    """Why channels that meet an operation stay: the number in the code that does not follow, where it is known."""
    stiff = [size.value for size in record.sizes if growth.size(size.ids) != size.value]
    if record.name in COMPUTED and stiff:
        return f"{record.where} holds the size {stiff[0]} in its code"
    return f"{record.where} does not follow other numbers of channels"
