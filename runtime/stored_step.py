"""One step of a checkpoint as it lies on a disk: every byte of it is verified."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from runtime import errors
from runtime.arrays import PyTree, checksum
from runtime.buckets import BucketError


class Restored(NamedTuple):
    """One step, as `Checkpoints.restore` reads it."""

    step: int
    state: PyTree  # shaped as the template; {name: array} without one
    data_state: Any
    config_json: str


def read(path: epath.Path) -> Restored:
    """The step in a folder, which has its number, its state as `{name: array}`.

    Raises:
      MemoryError, PermissionError, BucketError: it cannot be read now.
      Exception: any other one means that it is damaged.
    """
    step, body = int(path.name), checksums(path)
    items = {name: item(path, name, body) for name in ("data", "config")}
    data_state = from_json(items["data"])
    stated = data_state.get("step") if isinstance(data_state, dict) else None
    stated = body.get("step", stated)  # of earlier versions, that of the data
    if stated not in (None, step):
        raise ValueError(f"it is that of step {stated}; give the folder that name")
    arrays = dict(_verified_arrays(path, body["leaves"]))
    return Restored(step, arrays, data_state, json.dumps(items["config"]))


def checksums(path: epath.Path) -> dict[str, Any]:
    """The checksums of a step, see `checkpoints`, with its number and its metric."""
    stored = _json(path, "checksums")
    if stored["crc32"] != crc_of_json(stored["body"]):
        raise ValueError("checksums do not match their own checksum")
    body: dict[str, Any] = stored["body"]
    return body


def item(path: epath.Path, name: str, body: dict[str, Any]) -> Any:
    """The state of the data, or the config, of a step with these checksums."""
    value = _json(path, name)["value"]
    if crc_of_json(value) != body[name]:
        raise ValueError(f"{name} does not match its checksum")
    return value


def crc_of_json(value: Any) -> int:
    """CRC-32 of a value of JSON."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _json(path: epath.Path, name: str) -> Any:
    import orbax.checkpoint as ocp

    if not (path / name).is_dir():
        raise ValueError(f"{name} is missing")
    try:
        return ocp.JsonCheckpointHandler().restore(path / name)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read: {reason(error)}") from error


def _verified_arrays(
    path: epath.Path, fingerprints: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of one step by name, each with the fingerprint that it was saved with."""
    from runtime import orbax_handlers

    handler = orbax_handlers.ArchiveHandler()
    try:
        arrays = handler.restore(path / "state")
    except (MemoryError, PermissionError, BucketError):
        raise
    except Exception as error:
        raise ValueError(f"{handler.FILE} cannot be read: {reason(error)}") from error
    for name, fingerprint in fingerprints.items():
        if name not in arrays:
            raise ValueError(f"array {name} is missing")
        array = arrays[name]
        if array.dtype.kind == "V":  # bfloat16, to NumPy
            array = array.view(jnp.dtype(fingerprint["dtype"]))
        if checksum(array) != fingerprint:
            raise ValueError(f"array {name} does not match its checksum")
        yield name, array


def to_json(data_state: Any) -> dict[str, Any]:
    """A state of the data, bytes or what JSON can hold, as JSON."""
    if isinstance(data_state, bytes):
        return {"base64": base64.b64encode(data_state).decode()}
    return {"json": json.loads(json.dumps(data_state))}


def from_json(item: dict[str, Any]) -> Any:
    """The inverse of `to_json`."""
    return base64.b64decode(item["base64"]) if "base64" in item else item["json"]


def reason(error: BaseException) -> str:
    """What is wrong with a step, in a line."""
    return errors.one_line(error, limit=200)
