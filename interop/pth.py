"""PyTorch files (`torch.save`: .pth, .pt, .bin) without PyTorch, and without running their code.

Such a file is a zip archive. `<folder>/data.pkl` is a pickle of Python containers in which each
tensor is a call `_rebuild_tensor_v2(storage, offset, shape, stride, ...)`; the bytes of storage
number k are in `<folder>/data/k`. Before PyTorch 1.6 it was one stream instead: the pickles of a
magic number, a version, the writer's machine, the content and the list of storages, then the bytes
of each storage. A pickle may name any function for Python to call. Here only the names in `ALLOWED`
mean anything, and they mean what this file says; any other name is refused.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before PyTorch 1.6
LEGACY_VERSION = 1001

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def is_pth(path: str | os.PathLike[str]) -> bool:
    """True if the file looks as if `torch.save` had written it, be it damaged or too old."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return bool(_pickles(archive))
    with open(path, "rb") as file:
        return file.read(len(LEGACY_MAGIC)).startswith((b"PK\x03\x04", LEGACY_MAGIC))


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]


def read_pth(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file that `torch.save` wrote, with a read-only NumPy array per tensor.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such file of PyTorch, damaged, or with something in it that is not allowed.
    """
    with open(path, "rb") as file:
        try:
            if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
                content = _Stream(file, os.stat(path).st_size).load()
            else:
                with zipfile.ZipFile(file) as archive:
                    content = _Archive(archive).load()
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path} cannot be read as a PyTorch file: {text}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{path} holds a {kind}, expected a dictionary")
    return content


class Storage(NamedTuple):
    """A flat array of which tensors are views."""

    array: np.ndarray


class _StorageType(NamedTuple):
    """The meaning of `torch.FloatStorage` and the like."""

    dtype: np.dtype


class _Call(NamedTuple):
    """A function that a pickle may call. It cannot be changed, as a function's defaults can."""

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _DType:
    """`numpy.dtype` as a pickle builds it: a code such as "f8", then the byte order by BUILD."""

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        del align, copy
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"NumPy dtype {code!r} is not allowed")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _numpy_scalar(kind: _DType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`: how pickles of protocol 2 hold bytes."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _tensor(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> np.ndarray:
    """`torch._utils._rebuild_tensor_v2`: element i is `storage[offset + sum(i * stride)]`."""
    del requires_grad, hooks, metadata
    if len(shape) != len(stride) or min([offset, *shape, *stride], default=0) < 0:
        raise ValueError(f"tensor of shape {shape}, stride {stride}, offset {offset}")
    array = storage.array[offset:]
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= len(array):
        raise ValueError(
            f"tensor of shape {shape}, stride {stride}, offset {offset} does not fit into its "
            f"storage of {len(storage.array)} elements"
        )
    if 0 in shape:
        return np.zeros(shape, array.dtype)
    strides = [step * array.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(array, shape, strides, writeable=False)


def _parameter(data: np.ndarray, requires_grad: bool = True, hooks: Any = None) -> np.ndarray:
    """`torch._utils._rebuild_parameter`."""
    del requires_grad, hooks
    return data


ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": _Call(_tensor),
    "torch._utils._rebuild_parameter": _Call(_parameter),
    "numpy.dtype": _Call(
        _DType
    ),  # the learning rate in an official optimiser state is a NumPy number
    "numpy.core.multiarray.scalar": _Call(_numpy_scalar),
    "numpy._core.multiarray.scalar": _Call(_numpy_scalar),
    "_codecs.encode": _Call(_encode),
    "torch.Size": tuple,
    **{f"torch.{name}": _StorageType(np.dtype(dtype)) for name, dtype in STORAGES.items()},
}


def _checked(storage: Storage, key: str, dtype: np.dtype, count: int) -> Storage:
    """The storage, if it has the type and size that a tensor gives it."""
    array = storage.array
    if (array.dtype, len(array)) != (dtype, count):
        raise ValueError(
            f"storage {key} has {len(array)} elements of {array.dtype}, expected {count} of {dtype}"
        )
    return storage


class _Archive:
    """The zip archive of one file."""

    def __init__(self, archive: zipfile.ZipFile):
        pickles = _pickles(archive)
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} members are named data.pkl, expected one")
        self.archive = archive
        self.folder = pickles[0].removesuffix("data.pkl")
        self.members = set(archive.namelist())
        self.storages: dict[str, Storage] = {}
        order = b"little"
        if f"{self.folder}byteorder" in self.members:
            order = self.read("byteorder")
        if order not in (b"little", b"big"):
            raise ValueError(f"byte order {order!r}")
        self.swapped = order == b"big"

    def read(self, name: str) -> bytes:
        """A member, whose checksum zipfile verifies."""
        if f"{self.folder}{name}" not in self.members:
            raise ValueError(f"{name} is missing")
        info = self.archive.getinfo(f"{self.folder}{name}")
        if info.compress_type != zipfile.ZIP_STORED:  # PyTorch never does; it could be a bomb
            raise ValueError(f"{name} is compressed")
        return self.archive.read(info)

    def load(self) -> Any:
        return _Unpickler(io.BytesIO(self.read("data.pkl")), self.storage).load()

    def storage(self, persistent_id: Any) -> Storage:
        match persistent_id:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(count)):
                pass
            case _:
                raise ValueError(f"storage {str(persistent_id)[:60]} is not allowed")
        if key not in self.storages:
            order = dtype.newbyteorder(">") if self.swapped else dtype
            array = np.frombuffer(self.read(f"data/{key}"), order).astype(dtype, copy=False)
            array.flags.writeable = False
            self.storages[key] = Storage(array)
        return _checked(self.storages[key], key, dtype, count)


class _Stream:
    """A file written before PyTorch 1.6, from behind its magic number on."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size = file, size
        self.storages: dict[str, Storage] = {}
        if file.read(1) != pickle.STOP:  # of the magic number
            raise ValueError("it ends within its magic number")

    def load(self) -> Any:
        version, machine, content, keys = (self.unpickle() for _ in range(4))
        if version != LEGACY_VERSION:
            raise ValueError(f"version {str(version)[:20]}, expected {LEGACY_VERSION}")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("it is not little-endian")
        if not isinstance(keys, list) or sorted(keys) != sorted(self.storages):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            self.fill(key, self.storages[key].array)
        return content

    def unpickle(self) -> Any:
        return _Unpickler(self.file, self.storage).load()

    def fill(self, key: str, array: np.ndarray) -> None:
        """Reads a storage, of which tensors are views already: its size, then its elements."""
        count = int.from_bytes(self.file.read(8), "little")
        data = self.file.read(array.nbytes)
        if (count, len(data)) != (len(array), array.nbytes):
            raise ValueError(
                f"storage {key} has {count} elements in {len(data)} bytes, expected {len(array)}"
            )
        array[:] = np.frombuffer(data, array.dtype)
        array.flags.writeable = False

    def storage(self, persistent_id: Any) -> Storage:
        match persistent_id:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(count), None):
                pass
            case _:
                raise ValueError(f"storage {str(persistent_id)[:60]} is not allowed")
        if not 0 <= count * dtype.itemsize <= self.size:
            raise ValueError(f"storage {key} of {count} elements does not fit into the file")
        if key not in self.storages:
            self.storages[key] = Storage(np.zeros(count, dtype))
        return _checked(self.storages[key], key, dtype, count)


class _Unpickler(pickle.Unpickler):
    """An unpickler that resolves the names in `ALLOWED` and no other."""

    def __init__(self, file: IO[bytes], storage: Callable[[Any], Storage]):
        super().__init__(file)
        self.storage = storage

    def persistent_load(self, persistent_id: Any) -> Storage:
        return self.storage(persistent_id)

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ALLOWED:
            raise ValueError(f"it asks for {module}.{name}, which is not allowed")
        return ALLOWED[f"{module}.{name}"]
