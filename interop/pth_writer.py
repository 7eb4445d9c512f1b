"""PyTorch files (`torch.save`: .pth) written without PyTorch; `pth` says how they are laid out."""

from __future__ import annotations

import collections
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from interop.pth import STORAGES

FOLDER = "archive"
KINDS = {np.dtype(dtype): name for name, dtype in STORAGES.items()}


def write(path: str | os.PathLike[str], content: Any) -> None:
    """Writes nested dictionaries, lists and tuples of arrays, numbers and texts.

    `torch.load` makes a tensor of every array; the file is the same whenever it is written.

    Raises:
      TypeError: a value of another kind.
      OSError: the file could not be written.
    """
    pickled = _Pickle()
    data = pickled.dump(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_member("data.pkl"), data)
        archive.writestr(_member("byteorder"), b"little")
        for number, array in enumerate(pickled.storages):
            flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            archive.writestr(_member(f"data/{number}"), flat.tobytes())
        archive.writestr(_member("version"), b"3\n")


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{FOLDER}/{name}")  # of 1980, whatever the time


class _Pickle:
    """A pickle of protocol 2, with the arrays that its tensors are views of."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []

    def dump(self, content: Any) -> bytes:
        return pickle.PROTO + b"\x02" + self.code(content) + pickle.STOP

    def code(self, value: Any) -> bytes:
        """The operations that put a value on the stack."""
        plain: Any = value
        match value:
            case np.ndarray():
                return self.tensor(value)
            case collections.OrderedDict():
                return self.call("collections", "OrderedDict") + self.items(value)
            case Mapping():
                return pickle.EMPTY_DICT + self.items(value)
            case list():
                return pickle.EMPTY_LIST + self.marked(value) + pickle.APPENDS
            case tuple():
                return self.marked(value) + pickle.TUPLE
            case None | bool() | str():
                pass
            case int():
                plain = int(value)
            case float():
                plain = float(value)  # of a NumPy number, too
            case _:
                raise TypeError(f"a {type(value).__name__} is not written to a PyTorch file")
        return pickle.dumps(plain, 2)[len(pickle.PROTO) + 1 : -len(pickle.STOP)]

    def marked(self, values: Any) -> bytes:
        return pickle.MARK + b"".join(self.code(value) for value in values)

    def items(self, values: Mapping[Any, Any]) -> bytes:
        pairs = [part for pair in values.items() for part in pair]
        return self.marked(pairs) + pickle.SETITEMS

    def name(self, module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def call(self, module: str, name: str, *arguments: Any) -> bytes:
        return self.name(module, name) + self.code(arguments) + pickle.REDUCE

    def tensor(self, array: np.ndarray) -> bytes:
        """`_rebuild_tensor_v2(storage, offset, shape, stride, requires_grad, hooks)`."""
        kind = KINDS.get(array.dtype.newbyteorder("="))
        if kind is None:
            raise TypeError(f"an array of {array.dtype} is not written to a PyTorch file")
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        key = str(len(self.storages))
        self.storages.append(array)
        storage = (
            pickle.MARK
            + self.code("storage")
            + self.name("torch", kind)
            + b"".join(self.code(part) for part in (key, "cpu", array.size))
            + pickle.TUPLE
            + pickle.BINPERSID
        )
        hooks: dict[Any, Any] = collections.OrderedDict()
        rest = (0, array.shape, strides, False, hooks)
        arguments = pickle.MARK + storage + b"".join(map(self.code, rest)) + pickle.TUPLE
        return self.name("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE
