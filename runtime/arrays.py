"""Trees of arrays as `{name: array}`, and archives of these, as checkpoints and snapshots are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from runtime import errors, files

PyTree = Any

# Of a row of a shard: the kinds of dtypes that it may have, in NumPy's letters, and its shape.
Row = tuple[str, tuple[int, ...]]
NUMBER: Row = ("iuf", ())
FLAG: Row = ("b", ())

# What NumPy and zipfile raise where an archive is cut, or its bytes are others.
DAMAGE = (
    *(ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error),
    *(NotImplementedError, RuntimeError, MemoryError, OverflowError, TypeError, RecursionError),
)


def flatten(tree: PyTree) -> dict[str, np.ndarray]:
    """`{name: array}` of a pytree, names being the path of each leaf: "opt_state/0/mu/kernel".

    Raises:
      ValueError: a leaf that is no numeric array (of typed keys, give `jax.random.key_data`), or
        two leaves with one name.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = _leaf_name(path)
        try:
            array = np.asarray(leaf)
        except TypeError as error:
            reason = errors.one_line(error, limit=200)
            raise ValueError(f"{name} cannot be stored as a numpy array: {reason}") from error
        if array.dtype.kind in "OUSMm":
            raise ValueError(f"{name} has dtype {array.dtype}, expected a number or a boolean")
        if name in arrays:
            raise ValueError(f"two leaves of the state are named {name}")
        arrays[name] = array
    return arrays


def unflatten(template: PyTree, arrays: Mapping[str, np.ndarray], prefix: str = "") -> PyTree:
    """The `arrays` by name (see `flatten`) in the structure of `template`.

    Args:
      template: pytree whose leaves have `shape` and `dtype`, e.g. from `jax.eval_shape`.
      arrays: arrays by name; those outside `prefix` are not looked at.
      prefix: where the template lies in the stored tree, e.g. "ema_params".

    Raises:
      ValueError: arrays that are missing, left over, or of another shape or dtype, by name.
    """
    prefix = f"{prefix}/" if prefix else ""
    leaves, structure = jax.tree_util.tree_flatten_with_path(template)
    expected = {f"{prefix}{_leaf_name(path)}": leaf for path, leaf in leaves}
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [
        f"{name} is not expected"
        for name in arrays
        if name.startswith(prefix) and name not in expected
    ]
    for name in expected.keys() & arrays.keys():
        stored, required = _dtype_and_shape(arrays[name]), _dtype_and_shape(expected[name])
        if stored != required:
            problems.append(f"{name} is {stored}, expected {required}")
    if problems:
        raise ValueError(errors.abridged(sorted(problems), "; "))
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in expected])


def write_arrays(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an uncompressed NumPy archive; it is on the disk itself when this returns."""
    with epath.Path(path).open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
        file.flush()
        with contextlib.suppress(io.UnsupportedOperation):  # a bucket has no descriptor
            os.fsync(file.fileno())


def read_arrays(path: epath.PathLike, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of an archive whose names begin with `prefix`; each is verified (CRC-32).

    Those of dtypes unknown to NumPy (bfloat16) come as plain bytes, of kind "V".
    """
    arrays = {}
    with epath.Path(path).open("rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.startswith(prefix):
                data = io.BytesIO(archive.read(member))  # verified before it is parsed
                array = np.lib.format.read_array(data, allow_pickle=False)
                arrays[member.removesuffix(".npy")] = array
    return arrays


def read_archive(path: files.Path) -> dict[str, np.ndarray]:
    """All arrays of an archive, each verified.

    Raises:
      OSError: it is not there, or cannot be read.
      ValueError: it is damaged; names it.
    """
    try:
        return read_arrays(files.as_path(path))
    except DAMAGE as error:
        reason = errors.one_line(error, limit=200)
        raise ValueError(f"{path} is damaged ({reason})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning of a file that was cut
            raise
        raise ValueError(f"{path} is damaged (it is cut)") from error


def read_shard(path: files.Path, row: Mapping[str, Row]) -> dict[str, np.ndarray]:
    """The arrays of a shard: "index" [n], ascending, and others, among them all of `row` [n, ...].

    Raises:
      OSError: it is not there, or cannot be read.
      ValueError: it is damaged, or its rows are none of these; names it.
    """
    arrays = read_archive(path)
    index = arrays.get("index", np.zeros(1))
    if index.dtype.kind != "i" or index.ndim != 1 or (np.diff(index, prepend=-1) <= 0).any():
        raise ValueError(f"{path} is damaged (it has no 'index' of ascending numbers)")
    for name, (kinds, shape) in row.items():
        if name not in arrays:
            raise ValueError(f"{path} is damaged (it has no {name!r})")
        array, expected = arrays[name], (len(index), *shape)
        if array.dtype.kind not in kinds or array.shape != expected:
            raise ValueError(
                f"{path} is damaged (its {name!r} is {array.dtype}{list(array.shape)}, and that of "
                f"this run has shape {list(expected)} and a dtype of kind {kinds})"
            )
    return arrays


def checksum(array: np.ndarray) -> dict[str, Any]:
    """CRC-32, dtype and shape of an array."""
    crc = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"crc32": crc, "dtype": array.dtype.name, "shape": list(array.shape)}


def fingerprint(tree: PyTree) -> str:
    """SHA-256 of all arrays of a tree, with their names, and the types that they have on a device.

    It is the same for a tree in NumPy and for `devices.fetch` of its copies on all devices.
    """
    content = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        array = np.ascontiguousarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
        shape = np.shape(leaf)
        content.update(f"{jax.tree_util.keystr(path)} {array.dtype} {shape}\n".encode())
        content.update(array.tobytes())
    return content.hexdigest()


def _leaf_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _dtype_and_shape(leaf: Any) -> str:
    """Such as "float32[3, 4]", with the dtype that the leaf has on a device."""
    return f"{jax.dtypes.canonicalize_dtype(jnp.dtype(leaf.dtype))}{list(leaf.shape)}"
