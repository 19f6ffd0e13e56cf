"""What model and loss keep from one call to the next: found, remembered, and given back."""

from __future__ import annotations

import functools
import inspect
import operator
import random
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["Memory", "Reached", "every_module", "is_of_torch", "reach"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # attributes that are no state of a forward pass
_CONTAINERS = (list, dict, set, deque, tuple, OrderedDict, defaultdict, Counter)
_PACKAGES = ("torch", "numpy", __name__.partition(".")[0])  # whose functions keep nothing of yours
_FEW = 64  # elements of a container that are looked into
_MANY = 4096  # elements of a container that are remembered
_LARGE = 2**24  # elements of an attribute that is watched, not copied
_DEPTH = 4
_VALUES = (Tensor, np.ndarray, torch.Generator, random.Random, np.random.Generator)


@dataclass(frozen=True)
class Reached:
    """What a call of loss and model can reach.

    Attributes:
        modules: Of the model and the loss, each once; the model's come first.
        holders: Of these, those that may keep something in attributes; and callables of the loss
            that are no modules, and the objects of its bound methods.
        functions: Those that the loss is made of.
        values: Tensors, arrays and generators that functions of the loss refer to.
    """

    modules: list[nn.Module] = field(default_factory=list)
    holders: list[object] = field(default_factory=list)
    functions: list[types.FunctionType] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def name(self, word: str) -> bool:
        """Tell whether code of the user's own names something.

        Args:
            word: As in `self.word`.

        Returns:
            Whether a method of a holder or a function of the loss does.
        """
        kinds = {kind for holder in self.holders for kind in type(holder).__mro__}
        own = [kind for kind in kinds if kind.__module__.split(".")[0] not in _PACKAGES]
        parts = [part for kind in own for part in vars(kind).values()]
        parts += [part for holder in self.holders for part in _attributes(holder).values()]
        parts += self.functions
        return any(word in code.co_names for part in parts for code in _codes(part))


def every_module(model: nn.Module) -> list[nn.Module]:
    """List the modules of a model, each once; a fifth of the time of `model.modules()`.

    Args:
        model: The model.

    Returns:
        The model itself first.
    """
    found: dict[int, nn.Module] = {}
    stack = [model]
    while stack:
        module = stack.pop()
        if id(module) not in found:
            found[id(module)] = module
            if module._modules:
                stack += [child for child in module._modules.values() if child is not None]
    return list(found.values())


def reach(model: nn.Module, loss_fn: Callable[..., Any]) -> Reached:
    """Find what a call of loss and model can reach.

    Modules may be hidden in lists of a module, and in whatever a loss is made of: partials, bound
    methods, callable objects, closures, and the globals that its functions name.

    Args:
        model: The model.
        loss_fn: The loss.

    Returns:
        Modules, other holders of state, and values.
    """
    reached = Reached()
    seen: set[int] = set()
    of_torch: dict[type, bool] = {}

    def enter(root: nn.Module) -> None:
        stack = [root]
        while stack:
            module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            reached.modules.append(module)
            if module._modules:
                stack += [child for child in module._modules.values() if child is not None]
            kind = type(module)
            if kind not in of_torch:
                of_torch[kind] = is_of_torch(kind)
            # Layers of torch keep nothing, but what hooks put there.
            if not of_torch[kind] or module._forward_pre_hooks or module._forward_hooks:
                reached.holders.append(module)
                for name, value in module.__dict__.items():
                    if name not in _OF_EVERY_MODULE:
                        stack += _modules_in(value)

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, nn.Module):
            enter(value)
        elif depth < _DEPTH and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, _VALUES):
                reached.values.append(value)
            elif not isinstance(value, (type, types.ModuleType)):
                if isinstance(value, types.FunctionType):
                    reached.functions.append(value)
                if _holds_state(value):
                    reached.holders.append(value)
                for part in _parts(value):
                    visit(part, depth + 1)

    enter(model)
    visit(loss_fn, 0)
    if isinstance(loss_fn, types.MethodType) and not isinstance(loss_fn.__self__, nn.Module):
        reached.holders.append(loss_fn.__self__)
        for value in _attributes(loss_fn.__self__).values():
            visit(value, 1)
    return reached


class Memory:
    """Remembers what a pass may change, and gives it back.

    Buffers, and the attributes of modules and callables of the user's own: numbers, tensors, arrays
    and generators, in lists and dicts, too. Lists that a function refers to are left alone, so that
    a loss can still report what it was called with.

    Args:
        reached: What can be reached.
    """

    def __init__(self, reached: Reached) -> None:
        self._bindings: list[tuple[object, dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._states: list[tuple[Callable[[Any], object], Any]] = []
        self._tensors: dict[int, tuple[Tensor, int | None, Tensor]] = {}
        self._of_users: list[tuple[Tensor, Tensor]] = []
        self._watched: list[tuple[Tensor, int]] = []
        self._modules = reached.modules
        for module in reached.modules:
            if module._buffers:
                self._bindings.append((module, module._buffers, dict(module._buffers)))
                for buffer in module._buffers.values():
                    if buffer is not None and not is_lazy(buffer):
                        self._copy(buffer)
            if module._parameters:
                self._watched += [
                    (parameter, parameter._version)
                    for parameter in module._parameters.values()
                    if parameter is not None
                    if not (is_lazy(parameter) or parameter.is_inference())
                ]
        for holder in reached.holders:
            self._keep_attributes(holder)
            for buffer in getattr(holder, "_buffers", {}).values():
                if buffer is not None and not (is_lazy(buffer) or buffer.is_inference()):
                    self._of_users.append((buffer, self._copy(buffer)))
        for value in reached.values:
            self._keep(value, 0)

    def give_back(self) -> None:
        """Undo what has changed since."""
        for owner, now, before in self._bindings:
            same = len(now) == len(before) and all(map(operator.is_, now.values(), before.values()))
            if not same:
                was_lazy = isinstance(owner, nn.Module) and "_initialize_hook" in before
                if not was_lazy:
                    now.clear()
                    now.update(before)
        for container, before in self._containers:
            if isinstance(container, list):
                container[:] = before
            else:
                container.clear()
                (container.update if hasattr(container, "update") else container.extend)(before)
        for array, copied in self._arrays:
            np.copyto(array, copied)
        for set_state, state in self._states:
            set_state(state)
        for tensor, copied_tensor in self._of_users:  # through .data no version tells of a change
            tensor.data.copy_(copied_tensor)
        for tensor, version, copied_tensor in self._tensors.values():
            if version is None or tensor._version != version:
                with torch.no_grad(), torch.inference_mode(version is None):
                    tensor.copy_(copied_tensor)

    def changed_for_good(self) -> list[str]:
        """Name parameters, and large tensors, that a pass has changed in place: no copy is kept.

        Returns:
            Their names, none as a rule.
        """
        changed = {id(tensor) for tensor, version in self._watched if tensor._version != version}
        if not changed:
            return []
        names = {
            id(value): name
            for module in self._modules
            for name, value in [*vars(module).items(), *module._parameters.items()]
        }
        for name, parameter in self._modules[0].named_parameters():
            names[id(parameter)] = name
        return [names.get(number, "a tensor") for number in changed]

    def _keep_attributes(self, holder: object) -> None:
        attributes = _attributes(holder)
        self._bindings.append((holder, attributes, dict(attributes)))
        is_module = isinstance(holder, nn.Module)
        for name, value in attributes.items():
            if not (is_module and name in _OF_EVERY_MODULE):
                self._keep(value, 0)

    def _keep(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if value.numel() <= _LARGE:
                copied = self._copy(value)
                if not value.is_inference():
                    self._of_users.append((value, copied))
            elif not value.is_inference():
                self._watched.append((value, value._version))
        elif type(value) in _CONTAINERS:
            if len(value) > _MANY:
                return
            if not isinstance(value, tuple):
                self._containers.append((value, value.copy()))
            if len(value) <= _FEW and depth < _DEPTH:
                for part in value.values() if isinstance(value, dict) else value:
                    self._keep(part, depth + 1)
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and value.size <= _LARGE:
                self._arrays.append((value, value.copy()))
        elif isinstance(value, torch.Generator):
            self._states.append((value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._states.append((value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._states.append((functools.partial(setattr, bits, "state"), bits.state))

    def _copy(self, tensor: Tensor) -> Tensor:
        known = self._tensors.get(id(tensor))
        if known is None:
            version = None if tensor.is_inference() else tensor._version
            plain = tensor.detach() if tensor.requires_grad else tensor
            known = self._tensors[id(tensor)] = (tensor, version, plain.clone())
        return known[2]


def is_of_torch(kind: type) -> bool:
    """Tell whether a kind of module is one of torch."""
    return kind.__module__.startswith(("torch.nn.", "torch.ao."))


def _attributes(holder: object) -> dict[str, Any]:
    attributes = getattr(holder, "__dict__", None)  # none where there are slots
    return attributes if isinstance(attributes, dict) else {}


def _holds_state(value: Any) -> bool:
    plain = isinstance(value, (types.FunctionType, types.MethodType, functools.partial))
    return callable(value) and hasattr(value, "__dict__") and not plain


def _modules_in(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    if isinstance(value, (list, tuple, dict)) and len(value) <= _FEW:
        parts = value.values() if isinstance(value, dict) else value
        return [part for part in parts if isinstance(part, nn.Module)]
    return []


def _parts(value: Any) -> Iterable[Any]:
    """List what a callable or a container is made of."""
    if isinstance(value, dict):
        return list(value.values())[:_FEW]
    if isinstance(value, (list, tuple, set, deque)):
        return list(value)[:_FEW]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    return list(vars(value).values()) if _holds_state(value) else []


def _parts_of_function(function: types.FunctionType) -> Iterator[Any]:
    if (function.__module__ or "").split(".")[0] in _PACKAGES:
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # __wrapped__
    for code in _codes(function):
        for name in code.co_names:
            if name in function.__globals__:
                yield function.__globals__[name]


def _codes(part: Any) -> Iterator[types.CodeType]:
    """Give the code of a function, a method or a property, and of the functions within."""
    if isinstance(part, property):
        part = part.fget
    part = inspect.unwrap(getattr(part, "__func__", part)) if callable(part) else part
    codes = [part.__code__] if isinstance(part, types.FunctionType) else []
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield code
