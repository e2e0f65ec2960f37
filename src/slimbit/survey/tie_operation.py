"""One operation of a traced pass: its arguments by name, and the channels that its tensors carry."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from slimbit.survey.ledger import FREE, Ledger

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Channels:
    """The axis of a tensor that runs over filters, and which channel each of its entries is."""

    axis: int
    atoms: list[int]


@dataclass
class Trace:
    """What is known while the network runs.

    Attributes:
        modules: Modules by path.
        owners: Names of the parameters and buffers in each storage.
        ledger: What is tied to what.
        path: Paths of the running modules, innermost last.
        strayed: Parameters that met an operation which their module does not make by itself, and which.
    """

    modules: dict[str, nn.Module]
    owners: dict[int, list[str]]
    ledger: Ledger = field(default_factory=Ledger)
    path: list[str] = field(default_factory=lambda: [""])
    strayed: dict[str, str] = field(default_factory=dict)
    _known: dict[Key, tuple[Tensor, Channels]] = field(default_factory=dict)

    def channels(self, tensor: Any) -> Channels | None:
        """The channels of a tensor; None where it carries none."""
        found = self._known.get(_key(tensor)) if isinstance(tensor, Tensor) else None
        return None if found is None else found[1]

    def note(self, tensor: Tensor, channels: Channels) -> None:
        """A tensor carries these channels; tensors are kept, so that no memory is used twice."""
        assert tensor.shape[channels.axis] == len(channels.atoms)
        self._known[_key(tensor)] = (tensor, channels)

    def names(self, tensor: Any) -> list[str]:
        """Names of the parameters or buffers that share a tensor's memory."""
        return self.owners.get(storage_of(tensor), []) if isinstance(tensor, Tensor) else []


@dataclass
class Operation:
    """An operation that has just run.

    Attributes:
        trace: Where it belongs.
        name: Without namespace and the underscore of in-place forms: ``relu``, ``max_pool2d_with_indices``.
        values: Arguments by name.
        outputs: The tensors that it made.
        pointwise: Whether torch marks it as acting on each entry alone.
    """

    trace: Trace
    name: str
    values: dict[str, Any]
    outputs: list[Tensor]
    pointwise: bool
    proper: set[str] = field(default_factory=set)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the trace."""
        return self.trace.ledger

    @property
    def output(self) -> Tensor:
        """The first tensor that it made."""
        return self.outputs[0]

    @property
    def where(self) -> str:
        """For reasons: the operation and its module."""
        path = next((p for p in reversed(self.trace.path) if p), "")
        return f"{self.name} in {path!r}" if path else self.name

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def tensors(self) -> Iterator[Tensor]:
        """Tensors among the arguments, also those in lists."""
        for value in self.values.values():
            yield from (x for x in (value if isinstance(value, list | tuple) else (value,)) if isinstance(x, Tensor))

    def channels(self, tensor: Any) -> Channels | None:
        """As `Trace.channels`."""
        return self.trace.channels(tensor)

    def put(self, axis: int, atoms: list[int], output: Tensor | None = None) -> None:
        """The output carries these channels; none where all of them are nobody's."""
        if any(atom != FREE for atom in atoms):
            self.trace.note(self.output if output is None else output, Channels(axis, atoms))

    def give_up(self, reason: str = "") -> None:
        """Channels of all arguments cannot be removed, and the output carries none."""
        for tensor in self.tensors():
            found = self.channels(tensor)
            if found is not None:
                self.ledger.fix(found.atoms, reason or f"{self.where} does not keep channels apart")

    def owner(self, tensor: Any, attribute: str, kind: Any) -> str | None:
        """Path of the module of that type whose attribute, all of it and nothing else, this tensor is."""
        names = self.trace.names(tensor)
        if len(names) != 1:
            return None
        path, _, found = names[0].rpartition(".")
        module = self.trace.modules[path]
        if found != attribute or not isinstance(module, kind) or tensor.numel() != getattr(module, found).numel():
            return None
        self.proper.add(names[0])
        return path

    def stray(self) -> None:
        """Note parameters that this operation has no business with."""
        for tensor in self.tensors():
            for name in self.trace.names(tensor):
                if name not in self.proper:
                    self.trace.strayed.setdefault(name, self.where)


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator by the names of its schema, defaults included."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            found[argument.name] = args[place]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found


def storage_of(tensor: Tensor) -> int:
    """Identity of a tensor's memory."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _key(tensor: Tensor) -> Key:
    return (storage_of(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))
