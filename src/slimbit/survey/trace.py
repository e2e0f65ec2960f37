"""One forward pass, watched: which module ran, which weights it used, and how many MACs its operations made."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from slimbit.numerics.memory import hookable
from slimbit.survey.kinds import Use, images_seen, rule_of

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass
class Call:
    """One call of one module.

    Attributes:
        path: Module path ("" = the network).
        uses: The counted weights it used.
        work: MACs of its own operations (its children's are theirs), by operation and the parameters among
            its operands.
        slices: Parameters of which only a part was an operand.
        images: How many images it worked on, where the module knows (`images_seen`).
        failure: Why the rule of its type could not tell what it used ("" = it could).
        unknown: Operations outside of torch's own, of which nobody knows what they multiply, and how many.
    """

    path: str
    uses: list[Use] = field(default_factory=list)
    work: Counter[tuple[str, tuple[str, ...]]] = field(default_factory=Counter)
    slices: set[str] = field(default_factory=set)
    images: int | None = None
    failure: str = ""
    unknown: Counter[str] = field(default_factory=Counter)


def trace_calls(model: nn.Module, example_input: Inputs) -> list[Call]:
    """Run ``model`` once on ``example_input`` and return its calls in the order in which they began.

    Hooks stay on the model: give a copy. Works on meta tensors, where it costs no arithmetic and no memory.
    """
    calls: list[Call] = [Call("")]
    stack = [calls[0]]
    for path, module in hookable(model):
        _watch(module, path, calls, stack)
    names = {_storage(p): (name, p.numel()) for name, p in model.named_parameters()}
    with torch.no_grad(), _plain_attention(), _WorkCounter(stack, names):
        if isinstance(example_input, Tensor):
            model(example_input)
        elif isinstance(example_input, Mapping):
            model(**example_input)
        else:
            model(*example_input)
    return calls


def _watch(module: nn.Module, path: str, calls: list[Call], stack: list[Call]) -> None:
    rule = rule_of(module)

    def enter(_module: nn.Module, _args: Any) -> None:
        calls.append(Call(path))
        stack.append(calls[-1])

    def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = stack.pop()
        try:
            call.images = images_seen(module, args, kwargs)
            if rule is not None:
                call.uses.extend(rule(module, args, kwargs, output))
        except Exception as error:  # noqa: BLE001 - a subclass may take and return anything
            call.failure = f"{type(error).__name__}: {error}"

    module.register_forward_pre_hook(enter, prepend=True)
    module.register_forward_hook(leave, prepend=True, with_kwargs=True)  # other hooks may change the output


_KNOWN = {"aten", "prim", "prims", "profiler", "quantized"}
"""Namespaces of operations that multiply nothing but what has a formula, or whose modules `hints` names."""


def _matrix_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(_: Any, matrix: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(matrix)


def _over_time(_: Any, weight: Sequence[int], *__: Any, out_shape: Sequence[int], **___: Any) -> int:
    return 2 * math.prod(out_shape[:2]) * math.prod(weight)


def _sparse_product(_: Any, left: Sequence[int], right: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(values: Sequence[int], inputs: Sequence[int], state: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(values[:-1]) * (math.prod(inputs) + math.prod(state))


aten = torch.ops.aten
_FURTHER = {
    operation: shape_wrapper(formula)  # type: ignore[no-untyped-call] # torch leaves it untyped
    for formula, operations in {
        _matrix_vector: (aten.mv, aten.dot, aten.vdot),
        _added_matrix_vector: (aten.addmv,),
        _over_time: (aten.conv_tbc,),
        _sparse_product: (aten._sparse_addmm,),
        _attention: (aten._scaled_dot_product_flash_attention_for_cpu,),
        _recurrent: (aten.mkldnn_rnn_layer,),
    }.items()
    for operation in operations
}
"""Products that torch's counter leaves out; zeros of sparse factors are multiplied like others."""


class _WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Adds the MACs of every operation that torch's FLOP formulas know to the module on top of the stack."""

    def __init__(self, stack: list[Call], names: Mapping[int, tuple[str, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._stack = stack
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket) or _FURTHER.get(func._overloadpacket)
        if formula is None and func.namespace not in _KNOWN:
            self._stack[-1].unknown[f"{func.namespace}.{func._opname}"] += 1
        if formula is not None:
            operation = str(func._overloadpacket).removeprefix("aten.")
            call, parameters = self._stack[-1], []
            for operand in args:
                if isinstance(operand, Tensor) and operand.layout is torch.strided and _storage(operand) in self._names:
                    name, elements = self._names[_storage(operand)]
                    parameters.append(name)
                    call.slices.update([name] if operand.numel() != elements else [])
            call.work[operation, tuple(parameters)] += formula(*args, **kwargs, out_val=output) // 2
        return output


def _storage(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention in its separate steps: the fused inference kernel hides the projections."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
