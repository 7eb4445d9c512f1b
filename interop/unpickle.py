"""Pickles of plain containers and numbers, without pickle's dangers.

A pickle is a program for a stack machine, which calls functions, changes objects, and is short
where what it makes is long. Here it makes dictionaries, lists, tuples, texts and numbers, and calls
what its reader allows; how large it is and what it holds are bounded.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np

# The largest checkpoint of this field has a pickle of 2 MB, 30,000 values and 6 levels of nesting.
MAX_PICKLE = 2**24  # bytes
MAX_VALUES = 10**6  # a list that is in two lists is counted twice
MAX_DEPTH = 32
MAX_VIEWS = 16  # bytes of all tensors, in sizes of the file: several may be views of one storage


class Call(NamedTuple):
    """A function that a pickle may call. It cannot be changed, as a function's defaults can."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class DType:
    """`numpy.dtype` as a pickle builds it: a code such as "f8", then the byte order by BUILD."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        del align, copy
        if not isinstance(code, str) or len(code) > 8:
            raise ValueError("a NumPy dtype that is no short code is not allowed")
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"NumPy dtype {code!r} is not allowed")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def key_of(key: Any) -> Any:
    """The key of a dictionary, if it is plain: nested ones may take for ever to compare."""
    if key is not None and not isinstance(key, str | int | float | bytes):
        raise ValueError(f"a {type(key).__name__} as the key of a dictionary is not allowed")
    return key


def check_length(length: int) -> None:
    """Raises ValueError for a pickle of too many bytes."""
    if length > MAX_PICKLE:
        raise ValueError(f"its pickle has more than {MAX_PICKLE:,} bytes")


class Bounded:
    """A stream of pickles and other things that gives no more bytes than a pickle may have."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.left = file, min(size, MAX_PICKLE)

    def read(self, count: int) -> bytes:
        return self._within(self.file.read(min(count, self.left + 1)))

    def readline(self) -> bytes:
        return self._within(self.file.readline(self.left + 1))

    def _within(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"its pickles have more than {MAX_PICKLE:,} bytes, or the file ends")
        return data


_Dispatch = dict[int, Callable[["Unpickler"], None]]
_PYTHON: Any = pickle._Unpickler  # type: ignore[attr-defined]  # its steps can be replaced one by one

# What containers, texts and numbers are written with. INST, OBJ, NEWOBJ and EXT make objects, LONG4
# numbers that take long to compare; sets, byte arrays and buffers are in no file of PyTorch.
PLAIN_OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT", "GET", "BINGET", "LONG_BINGET", "PUT",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "BINPERSID",
)  # fmt: skip


class Unpickler(_PYTHON):
    """An unpickler that resolves the names in `allowed` and no other, and makes plain containers.

    It is the one in Python: that in C keeps a table as large as the largest number that a file
    gives, compares any keys, and lets BUILD replace what a container's methods are.
    """

    dispatch: ClassVar[_Dispatch] = {}

    def __init__(
        self,
        file: Bounded | IO[bytes],
        allowed: Mapping[str, Any],
        persistent: Callable[[Any], Any],
    ):
        super().__init__(file)
        self.allowed = allowed
        self.persistent_load = persistent
        self.items_left = MAX_VALUES  # that calls may copy: they could all be given one list

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise ValueError(f"it asks for {module[:60]}.{name[:60]}, which is not allowed")
        return self.allowed[f"{module}.{name}"]

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if type(function) is not Call or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(function).__name__}, which is not allowed")
        self.items_left -= sum(len(part) for part in arguments if isinstance(part, list | tuple))
        if self.items_left < 0:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        self.stack[-1] = function(*arguments)

    def load_build(self) -> None:
        """The state of an OrderedDict is dropped: PyTorch keeps versions of layers in it."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is DType and type(state) is tuple:
            target.__setstate__(state)
        elif type(target) is not collections.OrderedDict or type(state) is not dict:
            raise ValueError(f"it sets the state of a {type(target).__name__}: not allowed")
        else:
            methods = [key for key in state if hasattr(collections.OrderedDict, str(key))]
            if methods:
                raise ValueError(f"it replaces OrderedDict.{methods[0]}, which is not allowed")

    def append_all(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def set_all(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, collections.OrderedDict) or len(items) % 2:
            raise ValueError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key_of(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_all(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_all([key, value])


def _refused(unpickler: Unpickler) -> None:
    raise ValueError("it has an instruction that no file of PyTorch has")


Unpickler.dispatch.update(
    {
        **dict.fromkeys(range(256), _refused),
        **{
            opcode: _PYTHON.dispatch[opcode]
            for opcode in (getattr(pickle, name)[0] for name in PLAIN_OPCODES)
        },
        pickle.REDUCE[0]: Unpickler.load_reduce,
        pickle.BUILD[0]: Unpickler.load_build,
        pickle.APPEND[0]: lambda unpickler: unpickler.append_all([unpickler.stack.pop()]),
        pickle.APPENDS[0]: lambda unpickler: unpickler.append_all(unpickler.pop_mark()),
        pickle.DICT[0]: Unpickler.load_dict,
        pickle.SETITEM[0]: Unpickler.load_setitem,
        pickle.SETITEMS[0]: lambda unpickler: unpickler.set_all(unpickler.pop_mark()),
    }
)


def leaves(content: Any) -> Iterator[Any]:
    """Everything in nested dictionaries, lists and tuples that is none of them."""
    return (value for value, _ in _values(content) if not isinstance(value, dict | list | tuple))


def _values(content: Any) -> Iterator[tuple[Any, int]]:
    """All values in nested containers and how deep they are; endless where one holds itself."""
    stack = [iter([content])]
    while stack:
        for value in stack[-1]:
            yield value, len(stack)
            if type(value) in (dict, collections.OrderedDict):
                stack.append(iter(value.values()))
                break
            if type(value) in (list, tuple):
                stack.append(iter(value))
                break
        else:
            stack.pop()


def check_extent(content: Any, size: int) -> None:
    """Refuses what is nested too deeply, or would be too large if all of it were looked at."""
    room = MAX_VIEWS * size + 2**20
    most = min(MAX_VALUES, size + 1000)  # a value takes more than a byte
    for count, (value, depth) in enumerate(_values(content)):
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels, or contains itself")
        if count > most:
            raise ValueError(f"it holds more than {most:,} values, in {size:,} bytes")
        if isinstance(value, np.ndarray):
            room -= value.nbytes
            if room < 0:
                raise ValueError(f"its tensors have over {MAX_VIEWS} times the bytes of the file")
