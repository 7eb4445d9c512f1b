"""PyTorch files (`torch.save`: .pth, .pt, .bin) without PyTorch, and without running their code.

Such a file is a zip archive. `<folder>/data.pkl` is a pickle of Python containers in which each
tensor is a call `_rebuild_tensor_v2(storage, offset, shape, stride, ...)`; the bytes of storage
number k are in `<folder>/data/k`. Before PyTorch 1.6 it was one stream instead: the pickles of a
magic number, a version, the writer's machine, the content and the list of storages, then the bytes
of each storage. A pickle may name any function for Python to call. Here only the names in `ALLOWED`
mean anything, and they mean what this file says; any other name is refused. So is a file that is
small and makes much: its pickle, what that holds and its bytes are bounded.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from interop import unpickle
from runtime import errors

LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # torch.save before PyTorch 1.6
LEGACY_VERSION = 1001

MAX_AXES = 64

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
        try:
            with zipfile.ZipFile(path) as archive:
                return bool(_pickles(archive))
        except Exception:  # zipfile has many; whoever reads the file hears which
            return True
    with open(path, "rb") as file:
        return file.read(len(LEGACY_MAGIC)).startswith((b"PK\x03\x04", LEGACY_MAGIC))


def _pickles(archive: zipfile.ZipFile) -> list[str]:
    return [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]


def read(path: str | os.PathLike[str]) -> Any:
    """The value in a file that `torch.save` wrote, with a read-only NumPy array per tensor.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no such file of PyTorch, damaged, or with something in it that is not allowed.
    """
    with open(path, "rb") as file:
        size = os.stat(path).st_size
        try:
            if file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
                content = _Stream(file, size).load()
            else:
                with zipfile.ZipFile(file) as archive:
                    content = _Archive(archive, size).load()
            unpickle.check_extent(content, size)
        except Exception as error:
            text = errors.one_line(error, 300)
            raise ValueError(f"{path} cannot be read as a PyTorch file: {text}") from error
    return content


def read_pth(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file; raises as `read` does, and for anything but a dictionary."""
    content = read(path)
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


def _numpy_scalar(kind: unpickle.DType, data: bytes) -> Any:
    return np.frombuffer(data, kind.dtype, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`: how pickles of protocol 2 hold bytes, here those of a NumPy number."""
    if encoding != "latin1" or not isinstance(text, str) or len(text) > 64:
        raise ValueError("an encoding that is not latin1, of at most 64 bytes, is not allowed")
    return text.encode("latin1")


def _size(axes: Any = ()) -> tuple[int, ...]:
    """`torch.Size`."""
    if not isinstance(axes, list | tuple) or len(axes) > MAX_AXES:
        raise ValueError("a torch.Size that is no short list is not allowed")
    return tuple(axes)


def _ordered(items: Any = ()) -> collections.OrderedDict[Any, Any]:
    """`collections.OrderedDict`; with its items at once, as Python 2 wrote it, or without."""
    if not isinstance(items, list | tuple):
        raise ValueError("an OrderedDict of something else than a list is not allowed")
    return collections.OrderedDict((unpickle.key_of(key), value) for key, value in items)


def _axes(*axes: Any) -> bool:
    """True if these are numbers of elements or steps that an array may have."""
    return len(axes) <= 2 * MAX_AXES + 1 and all(
        isinstance(number, int) and abs(number) < 2**63 for number in axes
    )


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
    if not (
        isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    ):
        raise ValueError("a tensor without a storage, a shape and a stride is not allowed")
    if not _axes(offset, *shape, *stride):
        raise ValueError("a tensor whose shape and stride are no numbers is not allowed")
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
    "collections.OrderedDict": unpickle.Call(_ordered),
    "torch._utils._rebuild_tensor_v2": unpickle.Call(_tensor),
    "torch._utils._rebuild_parameter": unpickle.Call(_parameter),
    # The learning rate in an official optimiser state is a NumPy number.
    "numpy.dtype": unpickle.Call(unpickle.DType),
    "numpy.core.multiarray.scalar": unpickle.Call(_numpy_scalar),
    "numpy._core.multiarray.scalar": unpickle.Call(_numpy_scalar),
    "_codecs.encode": unpickle.Call(_encode),
    "torch.Size": unpickle.Call(_size),
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


def _described(persistent_id: Any) -> str:
    """A few words on what stands for a storage."""
    parts = persistent_id if isinstance(persistent_id, tuple) else (persistent_id,)
    words = [str(p)[:20] if type(p) in (str, int) else type(p).__name__ for p in parts[:6]]
    return f"({', '.join(words)})"


def read_storage(data: bytes) -> Storage:
    """The storage in bytes that `torch.save` wrote before PyTorch 1.6, of it alone.

    Raises:
      ValueError: other bytes, or with something in them that is not allowed.
    """
    file = io.BytesIO(data)
    if file.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
        raise ValueError("a storage is in no format of PyTorch before 1.6")
    storage = _Stream(file, len(data)).load()
    if not isinstance(storage, Storage):
        raise ValueError(f"a {type(storage).__name__} is in the place of a storage")
    return storage


class _Archive:
    """The zip archive of one file, of so many bytes."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self.left = size  # that its members may have: they could overlap
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
        self.left -= info.file_size
        if self.left < 0:
            raise ValueError(f"{name} and what was read before it are larger than the file")
        return self.archive.read(info)

    def load(self) -> Any:
        data = self.read("data.pkl")
        unpickle.check_length(len(data))
        return unpickle.Unpickler(io.BytesIO(data), ALLOWED, self.storage).load()

    def storage(self, persistent_id: Any) -> Storage:
        match persistent_id:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(count)):
                pass
            case _:
                raise ValueError(f"storage {_described(persistent_id)} is not allowed")
        if key not in self.storages:
            order = dtype.newbyteorder(">") if self.swapped else dtype
            array = np.frombuffer(self.read(f"data/{key}"), order).astype(dtype, copy=False)
            array.flags.writeable = False
            self.storages[key] = Storage(array)
        return _checked(self.storages[key], key, dtype, count)


class _Stream:
    """A file written before PyTorch 1.6, from behind its magic number on."""

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.left = file, size
        self.pickles = unpickle.Bounded(file, size)
        self.storages: dict[str, Storage] = {}
        if file.read(1) != pickle.STOP:  # of the magic number
            raise ValueError("it ends within its magic number")

    def load(self) -> Any:
        version, machine, content, keys = (self.unpickle() for _ in range(4))
        if not isinstance(version, int) or version != LEGACY_VERSION:
            raise ValueError(
                f"version {version if _axes(version) else '?'}, expected {LEGACY_VERSION}"
            )
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("it is not little-endian")
        if (
            not isinstance(keys, list)
            or not all(isinstance(key, str) for key in keys)
            or sorted(keys) != sorted(self.storages)
        ):
            raise ValueError("its list of storages is not that of its tensors")
        for key in keys:
            self.fill(key, self.storages[key].array)
        return content

    def unpickle(self) -> Any:
        return unpickle.Unpickler(self.pickles, ALLOWED, self.storage).load()

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
                raise ValueError(f"storage {_described(persistent_id)} is not allowed")
        if key not in self.storages:
            if not 0 <= count * dtype.itemsize <= self.left:
                raise ValueError(f"storage {key[:20]} does not fit into the file")
            self.left -= count * dtype.itemsize
            self.storages[key] = Storage(np.zeros(count, dtype))
        return _checked(self.storages[key], key, dtype, count)
