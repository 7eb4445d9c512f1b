"""Checkpoints of the official JAX code: one msgpack file of Flax (`checkpoint_<n>`)."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import flax.serialization
import numpy as np

FIELDS = ("step", "optimizer", "lr", "model_state", "ema_rate", "params_ema", "rng")


def read_flax_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training state in an official JAX checkpoint; see `training_state`."""
    return training_state(path, restore(path))


def restore(path: str | os.PathLike[str]) -> Any:
    """What is in a Flax file: nested dictionaries of arrays and numbers.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged.
    """
    data = pathlib.Path(path).read_bytes()
    try:
        return flax.serialization.msgpack_restore(data)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a Flax file: {text}") from error


def is_parameters(content: Any) -> bool:
    """True of parameters alone, nested by name, as of a network that is not trained any more."""
    return isinstance(content, dict) and not set(FIELDS) & set(content) and _all_arrays(content)


def _all_arrays(tree: dict[Any, Any]) -> bool:
    return bool(tree) and all(
        _all_arrays(value) if isinstance(value, dict) else isinstance(value, np.ndarray)
        for value in tree.values()
    )


def training_state(path: str | os.PathLike[str], state: Any) -> dict[str, Any]:
    """The training state in what `restore` returned of an official JAX checkpoint.

    Returns:
      step: int, optimiser steps done (as the file says; the name holds another count).
      params, params_ema: trees of arrays, raw and averaged weights.
      grad_ema, grad_sq_ema: trees of the same structure, Adam's first and second moments.
      optimizer_step: int, Adam's own count of steps.
      lr, ema_rate: float.
      model_state: dict, empty for all official networks.
      rng: uint32 [2].
      unused: names of the entries that a training here does not go on with.

    Raises:
      ValueError: not of this format.
    """
    try:
        return _checked(state)
    except ValueError as error:
        raise ValueError(f"{path} is no official JAX checkpoint: {error}") from error


def _checked(state: Any) -> dict[str, Any]:
    if isinstance(state, dict) and "ema_train_bpd" in state:
        raise ValueError(
            "it is a variational dequantiser of score_flow (flowpp_dequantizer), which is not "
            "served; the score network is in the folder checkpoints beside that one"
        )
    state = _dict(state, "the file", FIELDS)
    optimizer = _dict(state["optimizer"], "optimizer", ("target", "state"))
    adam = _dict(optimizer["state"], "optimizer/state", ("step", "param_states"))
    params = _tree(optimizer["target"], "optimizer/target")
    moments = _tree(adam["param_states"], "optimizer/state/param_states")
    ema = _tree(state["params_ema"], "params_ema")
    grad_ema = _moment(params, moments, "grad_ema", "optimizer/state/param_states")
    grad_sq_ema = _moment(params, moments, "grad_sq_ema", "optimizer/state/param_states")
    _same_shapes(params, ema, "params_ema")
    read = {"step", "optimizer", "ema_rate", "params_ema"}
    unused = [
        str(name)
        for name, value in state.items()
        if name not in read and not (isinstance(value, dict) and not value)
    ]
    return {
        "step": _number(state["step"], "step", int),
        "params": params,
        "params_ema": ema,
        "grad_ema": grad_ema,
        "grad_sq_ema": grad_sq_ema,
        "optimizer_step": _number(adam["step"], "optimizer/state/step", int),
        "lr": _number(state["lr"], "lr", float),
        "ema_rate": _number(state["ema_rate"], "ema_rate", float),
        "model_state": _dict(state["model_state"], "model_state", ()),
        "rng": np.asarray(state["rng"]),
        "unused": unused,
    }


def _dict(value: Any, where: str, fields: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__}, expected a dictionary")
    missing = [field for field in fields if field not in value]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    return value


def _number(value: Any, where: str, kind: type) -> Any:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in ("iu" if kind is int else "iuf"):
        raise ValueError(f"{where} is {str(value)[:40]}, expected one {kind.__name__}")
    return kind(array.reshape(()))


def _tree(value: Any, where: str) -> dict[str, Any]:
    """Nested dictionaries, by texts, whose leaves are all arrays."""
    for name, branch in _dict(value, where, ()).items():
        if not isinstance(name, str):
            raise ValueError(f"{where} has the name {name!r:.40}, expected a text")
        if isinstance(branch, dict):
            _tree(branch, f"{where}/{name}")
        elif not isinstance(branch, np.ndarray):
            raise ValueError(f"{where}/{name} is a {type(branch).__name__}, expected an array")
    return value


def _moment(params: dict[str, Any], states: Any, moment: str, where: str) -> dict[str, Any]:
    """The leaves `states/<name of a parameter>/<moment>` as a tree like `params`."""
    states = _dict(states, where, tuple(params))
    leaves = {}
    for name, param in params.items():
        place = f"{where}/{name}"
        if isinstance(param, dict):
            leaves[name] = _moment(param, states[name], moment, place)
        else:
            leaves[name] = _dict(states[name], place, (moment,))[moment]
            _same_shapes(param, leaves[name], f"{place}/{moment}")
    return leaves


def _same_shapes(params: Any, other: Any, where: str) -> None:
    if isinstance(params, dict):
        if not isinstance(other, dict) or params.keys() != other.keys():
            raise ValueError(f"{where} has other parameters than optimizer/target")
        for name in params:
            _same_shapes(params[name], other[name], f"{where}/{name}")
    elif np.shape(params) != np.shape(other):
        raise ValueError(f"{where} has shape {np.shape(other)}, expected {np.shape(params)}")
