"""Output positions of each layer, learned from the first pass of training, which the user makes anyway."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from slimbit.survey.batch import batch_of_pass, divided_where_possible
from slimbit.survey.kinds import images_seen, rule_of
from slimbit.survey.module import layers_of_calls
from slimbit.survey.trace import Call


class PositionsWatch:
    """Watches the first forward pass in training mode of a network, or of the parts that are called by themselves.

    Until `stop` there are hooks on the network and its children, and during the first pass of each also on its layers.
    They do nothing inside ``torch.compile`` and in copies of the network.

    Args:
        network: Out of its wrappers.

    Attributes:
        positions: Output positions per image by layer name, of the layers seen so far.
    """

    def __init__(self, network: nn.Module) -> None:
        self.positions: dict[str, int] = {}
        self._network = network
        self._inside: str | None = None
        self._calls: list[Call] = []
        self._on_layers: list[RemovableHandle] = []
        self._hooks = {path: _Hook(self._enter, path) for path in ("", *dict(network.named_children()))}
        self._on_parts = {
            path: network.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            for path, hook in self._hooks.items()
        }

    def stop(self) -> None:
        """Learn no more, and take the hooks away.

        Where nothing was learned, the network was compiled meanwhile and knows of its hooks: they stay, without effect,
        because it would have to be compiled again without them.
        """
        for hook in self._hooks.values():
            hook.function = None
        if self.positions or self._inside is not None:
            self._remove(*self._on_parts.values(), *self._on_layers)

    def _enter(self, path: str, part: nn.Module, _args: Any, _kwargs: Any) -> None:
        if not part.training or self._inside not in (None, path):
            return
        self._remove(*self._on_layers)  # of a pass that broke off
        self._inside, self._calls = path, []
        layers = [(name, module) for name, module in self._network.named_modules() if rule_of(module) is not None]
        hooks = [(module, _Hook(self._note, name)) for name, module in layers] + [(part, _Hook(self._leave, path))]
        self._on_layers = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks]

    def _note(self, path: str, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        rule = rule_of(layer)
        assert rule is not None
        self._calls.append(Call(path, [*rule(layer, args, kwargs, output)], images=images_seen(layer, args, kwargs)))

    def _leave(self, path: str, part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._remove(*self._on_layers, self._on_parts.pop(path))
        self._inside = None
        batch = batch_of_pass(part, (args, kwargs), output, self._calls)
        layers = layers_of_calls(self._network, divided_where_possible(self._calls, batch))
        self.positions |= {layer.name: layer.positions for layer in layers.values()}
        if not path:
            self.stop()

    @staticmethod
    def _remove(*handles: RemovableHandle) -> None:
        for handle in handles:
            handle.remove()


class _Hook:
    """Calls a function with a path; nothing that goes wrong in it stops the pass that it watches."""

    def __init__(self, function: Callable[..., None] | None = None, path: str = "") -> None:
        self.function = function
        self._path = path

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling() or self.function is None:
            return
        with contextlib.suppress(Exception):  # then the positions stay unknown, which the record says
            self.function(self._path, *args)

    def __deepcopy__(self, _memo: Any) -> "_Hook":
        return _Hook()

    def __reduce__(self) -> Any:
        return _Hook, ()
