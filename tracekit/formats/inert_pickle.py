"""A pickle read as data: a machine over its opcodes that imports nothing and calls nothing.

Names of classes and functions stay names. What an object is made of is asked of the caller, who knows a few makers;
every other one is an `Unread` with its arguments and its state. Source of the opcodes: CPython's `pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

Persistent = Callable[[Any], Any]
Maker = Callable[[str, tuple[Any, ...]], Any]
KEYS = (str, int, float, bool, bytes, type(None))
"""What may be a key of a dict: nothing whose hash has to walk through it."""


class UnsoundPickle(Exception):
    """The bytes are no pickle, or one that nothing sound has written."""


@dataclass(frozen=True)
class Name:
    """A class or function, as `module.name`."""

    path: str


@dataclass(eq=False)
class Unread:
    """An object of a class that the caller does not know: its arguments, and its state as `BUILD` gives it."""

    path: str
    arguments: tuple[Any, ...]
    state: Any = None


class _Mark:
    pass


MARK = _Mark()
PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NOTHING = {"PROTO", "FRAME", "STOP", "MEMOIZE"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(file: IO[bytes] | Any, persistent: Persistent, make: Maker) -> Any:
    """The one object of the pickle at the file's place, which is then after it. `persistent` says what an id stands
    for, `make` what `function(*arguments)` or `class(*arguments)` is; neither may run what the file says.

    `file` reads no more than it holds (an mmap does so): lengths in the file are not to be allocated.
    Raises UnsoundPickle.
    """
    machine = _Machine(persistent, make)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except UnsoundPickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnsoundPickle(type(error).__name__) from None
    return result


class _Machine:
    def __init__(self, persistent: Persistent, make: Maker) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._persistent, self._make = persistent, make

    def step(self, code: str, argument: Any) -> None:
        if code in PLAIN:
            self.stack.append(argument)
        elif code in CONSTANTS:
            self.stack.append(CONSTANTS[code])
        elif code in TUPLES:
            count = TUPLES[code]
            self.stack[-count:] = [tuple(self._top(count))]
        elif code == "MEMOIZE":
            self._memo[len(self._memo)] = self.stack[-1]
        elif code not in NOTHING:
            method = getattr(self, f"_{code.lower()}", None)
            if method is None:
                raise UnsoundPickle(code)
            method(argument)

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise UnsoundPickle("stack")
        return self.stack[-count:]

    def _since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise UnsoundPickle("mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # what is made

    def _mark(self, _: None) -> None:
        self.stack.append(MARK)

    def _empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _empty_set(self, _: None) -> None:
        self.stack.append([])

    def _empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _: None) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, _: None) -> None:
        values = self._since_mark()
        self.stack.append({})
        self._set(values)

    def _append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Unread):
            raise UnsoundPickle("append")

    def _setitem(self, _: None) -> None:
        values = self._top(2)
        del self.stack[-2:]
        self._set(values)

    def _setitems(self, _: None) -> None:
        self._set(self._since_mark())

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if len(values) % 2 or not isinstance(target, dict | Unread):
            raise UnsoundPickle("items")
        if isinstance(target, Unread):
            return
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, KEYS):
                raise UnsoundPickle("key")
            target[key] = value

    # memo and stack

    def _put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    _binget = _long_binget = _get

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    # names and what would be called

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Name(f"{module}.{name}"))

    def _stack_global(self, _: None) -> None:
        module, name = self._top(2)
        self.stack[-2:] = [Name(f"{module}.{name}")]

    def _reduce(self, _: None) -> None:
        maker, arguments = self._top(2)
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise UnsoundPickle("reduce")
        self.stack[-2:] = [self._make(maker.path, arguments)]

    def _newobj(self, _: None) -> None:
        maker, arguments = self._top(2)
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise UnsoundPickle("newobj")
        self.stack[-2:] = [Unread(maker.path, arguments)]

    def _newobj_ex(self, _: None) -> None:
        maker, arguments, _keywords = self._top(3)
        if not isinstance(maker, Name) or not isinstance(arguments, tuple):
            raise UnsoundPickle("newobj")
        self.stack[-3:] = [Unread(maker.path, arguments)]

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Unread):
            self.stack[-1].state = state
        # A dict keeps its items (an OrderedDict's state is its attributes); a tensor has no state of its own.

    def _persid(self, argument: str) -> None:
        self.stack.append(self._persistent(argument))

    def _binpersid(self, _: None) -> None:
        self.stack.append(self._persistent(self.stack.pop()))
