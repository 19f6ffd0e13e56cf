"""Items as the data set gives them: copied, whatever they are made of, and packed for transport."""

from __future__ import annotations

import array
import io
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Generator, Iterable, MutableMapping, MutableSequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from crest.containers import attributes_of, own_slots, remade, shallow

__all__ = ["Copier", "Packed", "pack", "unpack"]

_ATOMS = frozenset(
    {type(None), type(...), int, float, complex, bool, str, bytes, range, slice, torch.dtype}
)
_SHARED = (  # what has no copy, or none that would be of use
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    weakref.ref,
    np.generic,
    nn.Module,
    Dataset,
    torch.Generator,
)
_INNER = object()  # stands for an item with parts
_FLAT = (bytearray, array.array, memoryview)
_MAX_DEPTH = 8  # of items that are packed column by column
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BIG_STACK = 512 * 1024 * 1024

_Steps = Generator[Any, Any, Any]


class Copier:
    """Copies items to any depth: tensors, arrays, containers and objects, with cycles.

    What cannot be copied, such as a lock or an open file, is shared, and so are modules of torch
    and data sets, which an item may point at. Copies are of the type of the original, without a
    call of its constructor.

    Attributes:
        tensors: The copies of tensors that were made.

    Args:
        shared: Objects that are never copied.
    """

    def __init__(self, shared: Iterable[Any] = ()) -> None:
        self.tensors: list[Tensor] = []
        self._shared = {id(one): one for one in shared}
        self._memo: dict[int, Any] = dict(self._shared)
        self._originals: list[Any] = []  # kept, so that no other object gets the id of one

    def copy(self, item: Any) -> Any:
        """Copy one item; what it shares with items copied before stays shared among the copies.

        Args:
            item: Of a data set. Asked for a second time, it is copied a second time.

        Returns:
            The copy; the item itself if nothing in it can be changed.
        """
        if id(item) in self._memo:
            self._memo = dict(self._shared)
        if type(item) is tuple:  # most items are flat
            parts = [self._leaf(part) for part in item]
            if not any(part is _INNER for part in parts):
                return tuple(parts)
        answer = self._leaf(item)
        waiting = [] if answer is not _INNER else [self._steps(item)]
        answer = None if waiting else answer
        while waiting:  # in place of recursion, whose depth is bounded
            try:
                part = waiting[-1].send(answer)
            except StopIteration as end:
                waiting.pop()
                answer = end.value
                continue
            answer = self._leaf(part)
            if answer is _INNER:
                waiting.append(self._steps(part))
                answer = None
        return answer

    def _leaf(self, item: Any) -> Any:
        """Copy what has no parts, or was copied before; `_INNER` for anything else."""
        kind = type(item)
        if kind in _ATOMS:
            return item
        found = self._memo.get(id(item), _INNER)
        if found is not _INNER:
            return found
        if isinstance(item, Tensor):
            copied = _copied_tensor(item)
            self.tensors.append(copied)
            return self._remember(item, copied)
        if isinstance(item, np.ndarray) and not item.dtype.hasobject:
            return self._remember(item, item.copy(order="K"))
        return item if isinstance(item, _SHARED) else _INNER

    def _remember(self, item: Any, copied: Any) -> Any:
        self._memo[id(item)] = copied
        self._originals.append(item)
        return copied

    def _steps(self, item: Any) -> _Steps:
        """Copy what has parts: yield each of them, and be sent its copy."""
        if isinstance(item, tuple):
            parts = []
            for part in item:
                parts.append((yield part))
            if id(item) in self._memo:  # it is a part of its parts
                return self._memo[id(item)]
            attributes = attributes_of(item)
            if not attributes and all(map(_is, parts, item)):
                return self._remember(item, item)
            copied = self._remember(item, remade(item, parts))
            if attributes:
                yield from self._fields(copied)
            return copied
        if type(item) is list:
            copied = self._remember(item, [])
            for part in item:
                copied.append((yield part))
            return copied
        if type(item) is dict:
            copied = self._remember(item, {})
            for key, part in item.items():
                copied[key] = yield part
            return copied
        knows_best = hasattr(type(item), "__deepcopy__") and not isinstance(item, np.ndarray)
        try:
            if isinstance(item, np.ndarray):
                copied = item.copy()
            else:
                copied = item.__deepcopy__(dict(self._shared)) if knows_best else shallow(item)
        except Exception:  # a lock, an open file
            copied = item
        self._remember(item, copied)
        if knows_best or copied is item:
            return copied
        if isinstance(item, np.ndarray):
            places: Any = copied.reshape(-1)
            yield from self._parts(places, range(len(places) if item.dtype == object else 0))
        elif isinstance(item, MutableSequence) and not isinstance(item, _FLAT):
            yield from self._parts(copied, range(len(copied)))
        elif isinstance(item, dict) or (
            isinstance(item, MutableMapping) and attributes_of(item) is None
        ):
            yield from self._parts(copied, list(copied))
        yield from self._fields(copied)
        return copied

    def _parts(self, copied: Any, places: Iterable[Any]) -> _Steps:
        for place in places:
            part = copied[place]
            new = yield part
            if new is not part:
                copied[place] = new

    def _fields(self, copied: Any) -> _Steps:
        """Copy the attributes of a shallow copy."""
        attributes = attributes_of(copied)
        if type(attributes) is dict:
            yield from self._parts(attributes, list(attributes))
        for slot in own_slots(type(copied)):
            try:
                part = slot.__get__(copied)
            except AttributeError:
                continue  # not set
            new = yield part
            if new is not part:
                slot.__set__(copied, new)


def _is(one: Any, other: Any) -> bool:
    return one is other


def _copied_tensor(tensor: Tensor) -> Tensor:
    if type(tensor) is Tensor and not tensor.requires_grad and not tensor.__dict__:
        return tensor.clone()
    copied = tensor.detach().clone()
    if tensor.requires_grad:
        copied.requires_grad_()
    if tensor.__dict__:
        copied.__dict__.update(tensor.__dict__)
    return copied


class Packed(NamedTuple):
    """Items on their way out of a worker, column by column."""

    kind: str
    detail: Any
    columns: list[Any]


def pack(items: list[Any]) -> Packed:
    """Turn items into few large tensors, which cross between processes in shared memory.

    Args:
        items: Items of one request: tensors, tuples, lists or dicts of such, or anything else.

    Returns:
        What `unpack` turns back into the same items.
    """
    try:
        return _columns(items, 0)
    except RecursionError:  # deep or cyclic
        return Packed("other", None, [_dumps(items)])


def _columns(items: list[Any], depth: int) -> Packed:
    if depth > _MAX_DEPTH:
        raise RecursionError
    first = items[0]
    kind = type(first)
    alike = all(type(item) is kind for item in items)
    if alike and kind is Tensor and all(_stacks_with(item, first) for item in items):
        return Packed("tensor", None, [torch.stack(items)])
    # What is empty has no columns to tell the number of rows by.
    if alike and _is_plain_sequence(items) and first and len({len(item) for item in items}) == 1:
        columns = [_columns(list(column), depth + 1) for column in zip(*items, strict=True)]
        return Packed("sequence", kind, columns)
    if alike and kind is dict and first and all(item.keys() == first.keys() for item in items):
        columns = [_columns([item[key] for item in items], depth + 1) for key in first]
        return Packed("mapping", list(first), columns)
    return Packed("other", None, [_dumps(items)])


def _stacks_with(tensor: Tensor, first: Tensor) -> bool:
    return (
        tensor.shape == first.shape
        and tensor.dtype == first.dtype
        and tensor.device == first.device
        and tensor.layout == torch.strided
        and not tensor.requires_grad
        and not tensor.__dict__
    )


def _is_plain_sequence(items: list[Any]) -> bool:
    """Whether rows can be made again from their parts: no attributes beside them."""
    kind = type(items[0])
    if kind is tuple or kind is list:
        return True
    is_named = issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make")
    return is_named and not any(attributes_of(item) for item in items)


class _Pickler(pickle.Pickler):
    """Takes of a tensor what it shows, not the storage it may be a small view of."""

    def reducer_override(self, item: Any) -> Any:
        if type(item) is not Tensor or item.__dict__ or item.device.type != "cpu":
            return NotImplemented
        if item.requires_grad or item.layout != torch.strided or item.is_quantized:
            return NotImplemented
        compact = item.contiguous().resolve_conj().resolve_neg()
        try:
            return torch.from_numpy, (compact.numpy(),)
        except TypeError:  # of a type that NumPy lacks
            bits = _BITS.get(item.element_size())
            return (torch.Tensor.view, (compact.view(bits), item.dtype)) if bits else NotImplemented


def _dumps(items: list[Any]) -> bytes:
    def dump() -> None:
        file = io.BytesIO()
        _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(items)
        found.append(file.getvalue())

    found: list[bytes] = []
    try:
        dump()
    except RecursionError:
        _with_deep_stack(dump)
        if not found:
            raise
    return found[0]


def _with_deep_stack(function: Any) -> None:
    """Run a recursive function in a thread whose stack is large enough for deep items."""
    limit, size = sys.getrecursionlimit(), threading.stack_size(_BIG_STACK)
    thread = threading.Thread(target=function)
    sys.setrecursionlimit(200_000)
    try:
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
        threading.stack_size(size)


def unpack(packed: Packed) -> list[Any]:
    """Undo `pack`.

    Args:
        packed: The result of `pack`.

    Returns:
        The items, in order, in memory of this process.
    """
    kind, detail, columns = packed
    if kind == "tensor":
        # Shared memory takes an open file a tensor, for as long as a view of it is held.
        return list(columns[0].clone().unbind(0))
    if kind == "other":
        items: list[Any] = pickle.loads(columns[0])
        return items
    rows = zip(*(unpack(column) for column in columns), strict=True)
    if kind == "mapping":
        return [dict(zip(detail, row, strict=True)) for row in rows]
    make = detail._make if hasattr(detail, "_make") else detail
    return [make(row) for row in rows]
