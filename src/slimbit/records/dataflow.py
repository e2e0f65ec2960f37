"""What a network computes, operation by operation: the values between modules, without torch.

Layers, sums, concatenations, poolings, activation functions and operations that only move entries; everything that
integer hardware does has a kind of its own, and a network with anything else has no `Dataflow`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

OperationKind = Literal["layer", "norm", "add", "multiply", "concat", "average", "maximum", "function", "move"]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation and the value that it makes, which has its name.

    Attributes:
        name: Module path, with the operation appended where a module does several: ``layer1.0.add``.
        kind: "layer" multiplies a weight; "norm" scales and shifts each channel; "average" and "maximum" pool;
            "function" acts on each entry alone; "move" only moves entries.
        inputs: Values that it reads.
        shape: Of its value, for one image.
        module: Path of the module whose call is this operation and nothing else; "" = none.
        settings: What the kind needs besides, see `slimbit.survey.dataflow_rules`.
    """

    name: str
    kind: OperationKind
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    module: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, setting: str) -> Any:
        """One of the settings."""
        return self.settings[setting]


@dataclass(frozen=True, kw_only=True)
class Dataflow:
    """The operations of a network in an order of execution.

    Attributes:
        network: Its name, for people.
        inputs: Names of its inputs, in the order of the forward method's arguments, and their shapes for one image.
        operations: Each behind those that it reads.
        outputs: Values that it returns.
        output_keys: Their keys where it returns a dict; None where it returns a tensor or a tuple.
        single_output: Whether it returns a tensor, not a tuple of one.
    """

    network: str
    inputs: Mapping[str, tuple[int, ...]]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    output_keys: tuple[str, ...] | None = None
    single_output: bool = True

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __getitem__(self, value: str) -> Operation:
        """The operation that makes a value; ``KeyError`` for inputs."""
        return self._makers[value]

    def readers(self, value: str) -> tuple[Operation, ...]:
        """The operations that read a value."""
        return self._readers.get(value, ())

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of a value for one image."""
        return self.inputs[value] if value in self.inputs else self[value].shape

    def structured(self, outputs: tuple[Any, ...]) -> Any:
        """Outputs in the form in which the network returns them."""
        if self.output_keys is not None:
            return dict(zip(self.output_keys, outputs, strict=True))
        return outputs[0] if self.single_output else outputs

    def __post_init__(self) -> None:
        readers: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for value in dict.fromkeys(operation.inputs):
                readers.setdefault(value, []).append(operation)
        object.__setattr__(self, "_makers", {operation.name: operation for operation in self.operations})
        object.__setattr__(self, "_readers", {value: tuple(found) for value, found in readers.items()})

    _makers: Mapping[str, Operation] = field(init=False, repr=False, compare=False)
    _readers: Mapping[str, tuple[Operation, ...]] = field(init=False, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Operations that integer hardware does in one go, with one rounding at the end: a layer, its BatchNorm, its ReLU.

    Attributes:
        head: The operation that combines values.
        norms: Scales and shifts of channels that fold into it.
        low: Smallest number of the result, where a clamp follows.
        high: Largest.
        value: What comes out.
    """

    head: Operation
    norms: tuple[Operation, ...] = ()
    low: float | None = None
    high: float | None = None
    value: str

    @property
    def is_transparent(self) -> bool:
        """Whether its values are those that it reads, in other places."""
        return self.head.kind in ("concat", "maximum", "move")


def stages_of(flow: Dataflow) -> tuple[Stage, ...]:
    """The stages of a network: norms fold into the layer before them, clamps into whatever computes their input."""
    found: list[Stage] = []
    merged: set[str] = set()
    for head in flow:
        if head.name in merged:
            continue
        norms: list[Operation] = []
        low = high = None
        if _is_clamp(head):
            low, high = _tighter(low, high, head)
        value, clamps = head.name, head.kind not in ("concat", "maximum", "move")
        while (reader := _only_reader(flow, value)) is not None:
            if reader.kind == "norm" and _scales_channels(head) and (low, high) == (None, None):
                norms.append(reader)
            elif clamps and _is_clamp(reader):
                low, high = _tighter(low, high, reader)
            else:
                break
            value = reader.name
            merged.add(value)
        found.append(Stage(head=head, norms=tuple(norms), low=low, high=high, value=value))
    return tuple(found)


def _scales_channels(head: Operation) -> bool:
    """Whether a norm's channels are the filters of what is before it."""
    return head.kind == "norm" or (head.kind == "layer" and (head["form"] != "linear" or len(head.shape) == 1))


def _is_clamp(operation: Operation) -> bool:
    return operation.kind == "function" and bool(operation["function"] == "clamp")


def _only_reader(flow: Dataflow, value: str) -> Operation | None:
    readers = flow.readers(value)
    return readers[0] if len(readers) == 1 and value not in flow.outputs else None


def _tighter(low: float | None, high: float | None, clamp: Operation) -> tuple[float | None, float | None]:
    """Bounds after one more clamp; where they cross, the later one wins."""
    if clamp["low"] is not None:
        low = clamp["low"] if low is None else max(low, clamp["low"])
        high = high if high is None else max(high, low)
    if clamp["high"] is not None:
        high = clamp["high"] if high is None else min(high, clamp["high"])
        low = low if low is None else min(low, high)
    return low, high
