"""Interpret the pickles that torch.save writes, and those of plain values, without running them.

A pickle is a program for a small stack machine, and Python's own interpreter lets it call any
function. This one calls nothing: its opcodes build numbers, texts, lists, tuples and dictionaries,
and the few names that torch.save refers to stand for the descriptions below. Any other name or
opcode is refused.

    opcode                     effect on the stack
    BININT, BINUNICODE, …      push the number or text that follows the opcode
    EMPTY_DICT, EMPTY_LIST, …  push an empty container
    MARK                       remember the height of the stack
    TUPLE, APPENDS, SETITEMS   pop everything above the mark; push or fill a container with it
    BINPUT, BINGET             note the top of the stack under a number; push what was noted
    MEMOIZE                    note the top of the stack under the next number
    GLOBAL, STACK_GLOBAL       push what "module name" stands for
    BINPERSID                  pop ("storage", dtype, key, device, elements); push a Storage
    REDUCE                     pop arguments and function; push the result
    BUILD                      pop attributes of an object, which nobody needs here
    STOP                       the top of the stack is the value

Values are never walked recursively, so neither depth nor cycles nor shared containers matter, and
each opcode costs a constant time for each byte or element that it takes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, BinaryIO

import torch

# What a call copies is bounded, or a few bytes that repeat it would take hours and gigabytes.
_MOST_ARGUMENTS = 16
_MOST_AXES = 64  # as many as a tensor of torch may have


class Unreadable(Exception):
    """The pickle is damaged, or needs more than this interpreter has; the message says what."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers of one dtype that tensors are views of."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage, as described in the pickle: nothing is read or checked yet."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements


def unpickle(file: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Return the value of the pickle at the file's position, and its storages by key.

    The position moves to the end of the pickle. Raises Unreadable for everything that is not a
    pickle of tensors and plain values.
    """
    machine = _Machine()
    try:
        # genops only splits the bytes into opcodes and their arguments; it builds no object of
        # them.
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.stack.pop(), machine.storages
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise Unreadable("the pickle in it is damaged") from error


# --- what the names in a pickle stand for ---------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> PickledTensor:
    """Stand for torch._utils._rebuild_tensor_v2; the rest is requires_grad and hooks."""
    sizes = [shape, stride]
    if (
        not isinstance(storage, Storage)
        or not all(isinstance(size, tuple) and len(size) <= 8 for size in sizes)
        or not all(type(n) is int and 0 <= n < 2**63 for n in (offset, *shape, *stride))
        or len(shape) != len(stride)
    ):
        raise Unreadable("a tensor in it has an impossible description")
    return PickledTensor(storage, offset, shape, stride)


def _tensor_v3(*arguments: Any) -> PickledTensor:
    """Stand for torch._utils._rebuild_tensor_v3: a view of raw bytes with a dtype of its own."""
    tensor, dtype = _tensor(*arguments), _require(arguments[6], torch.dtype)
    # torch gives the size of such a storage in bytes, but the offset in elements.
    storage = Storage(tensor.storage.key, dtype, tensor.storage.numel // dtype.itemsize)
    return PickledTensor(storage, tensor.offset, tensor.shape, tensor.stride)


def _parameter(data: Any, *_: Any) -> Any:
    """Stand for torch._utils._rebuild_parameter."""
    return data


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """Stand for collections.OrderedDict; Python 2 pickled the pairs as arguments."""
    result: dict[Any, Any] = {}  # dictionaries keep their order anyway
    for key, value in pairs:
        _set(result, key, value)
    if pairs:  # a list that could be copied again and again would become any amount of memory
        _require(pairs, list).clear()
    return result


def _size(shape: Any = ()) -> tuple[Any, ...]:
    """Stand for torch.Size."""
    if len(shape) > _MOST_AXES:
        raise Unreadable("a shape in it has too many axes")
    return tuple(shape)


def _nothing(*_: Any) -> None:
    """Stand for a torch.device, which nobody needs here."""


_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_NAMES: dict[str, Any] = {
    **{f"torch {name}Storage": dtype for name, dtype in _DTYPES.items()},
    **{f"torch {name}": dtype for name, dtype in vars(torch).items() if type(dtype) is torch.dtype},
    "torch.storage UntypedStorage": torch.uint8,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_v3,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered_dict,
    "torch Size": _size,
    "torch device": _nothing,
}

# --- the machine ----------------------------------------------------------------------------------

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE"),
    *("BINSTRING", "SHORT_BINSTRING"),  # Python 2's
}


class _Machine:
    """The stack, the marks on it and the memo of a pickle that is being interpreted."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []  # heights of the stack
        self._memo: dict[int, Any] = {}  # a dictionary: numbers in the pickle may be huge
        self.storages: dict[str, Storage] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode."""
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in _CONTAINERS:
            stack.append(_CONTAINERS[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif opcode == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode == "TUPLE":
            stack.append(tuple(self._above_mark()))
        elif opcode in _TUPLES:
            stack[-_TUPLES[opcode] :] = [tuple(self._top(_TUPLES[opcode]))]
        elif opcode in ("APPEND", "APPENDS"):
            items = [stack.pop()] if opcode == "APPEND" else self._above_mark()
            _require(stack[-1], list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            pairs = [*self._top(2)] if opcode == "SETITEM" else self._above_mark()
            if opcode == "SETITEM":
                del stack[-2:]
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                _set(_require(stack[-1], dict), key, value)
        elif opcode == "GLOBAL":
            stack.append(_named(argument))
        elif opcode == "STACK_GLOBAL":
            stack[-2:] = [_named(" ".join(_require(name, str) for name in self._top(2)))]
        elif opcode == "BINPERSID":
            storage = _storage(stack.pop())
            if self.storages.setdefault(storage.key, storage) != storage:
                raise Unreadable("two storages in it have the same key")
            stack.append(storage)
        elif opcode == "REDUCE":
            # Only functions of this module are ever on the stack: see _NAMES.
            arguments = _require(stack.pop(), tuple)
            if len(arguments) > _MOST_ARGUMENTS:
                raise Unreadable("a call in it has too many arguments")
            stack.append(_require(stack.pop(), FunctionType)(*arguments))
        elif opcode == "BUILD":
            stack.pop()  # for example the _metadata of a state_dict
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise Unreadable(f"the pickle in it uses {opcode}, which plain values do not need")

    def _top(self, count: int) -> list[Any]:
        """Return the top elements of the stack, which must be there."""
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        return self.stack[-count:]

    def _above_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _require(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}")
    return value


def _set(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item. Keys are texts and small numbers, whose hashes cannot be made to collide."""
    if not isinstance(key, str) and not (type(key) is int and abs(key) < 2**32):
        raise Unreadable("a dictionary in it has keys that are neither texts nor numbers")
    target[key] = value


def _named(name: str) -> Any:
    """Return what a GLOBAL stands for; raise Unreadable for a name that is not in the table."""
    if name not in _NAMES:
        # ascii(), because the name may hold control characters.
        shown = ascii(name[:80].replace(" ", "."))
        raise Unreadable(f"it refers to {shown}, and only plain tensors and values are read")
    return _NAMES[name]


def _storage(identity: Any) -> Storage:
    """Return the storage of a persistent id: 5 parts in the zip format, 6 in the older one."""
    # The fourth part is the device that the tensor was on: here everything is read to the CPU.
    parts = _require(identity, tuple)
    if len(parts) not in (5, 6) or parts[0] != "storage" or (len(parts) == 6 and parts[5]):
        raise Unreadable("it refers to something that is no plain storage")
    _, dtype, key, _, numel = parts[:5]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int:
        raise Unreadable("a storage in it has an impossible description")
    if not 0 <= numel < 2**63:
        raise Unreadable("a storage in it has an impossible size")
    return Storage(key, dtype, numel)
