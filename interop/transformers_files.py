"""Folders of networks as Hugging Face's transformers writes them, into parameters of ours."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from interop import formats, official, pth

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first one that is there is read
KINDS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # Flax's names of arrays


def description(folder: pathlib.Path) -> dict[str, Any]:
    """The content of config.json; empty of a folder that has none.

    Raises:
      ValueError: it is no description of a network.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} describes no network")
    return content


def weights_file(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no {' and no '.join(WEIGHTS)}")


def read_weights(path: pathlib.Path) -> dict[str, Any]:
    """All tensors of a file of weights by name; nothing of it is executed.

    Raises:
      ValueError: damaged, or of another format.
    """
    return formats.read_safetensors(path) if path.suffix == ".safetensors" else pth.read_pth(path)


def params_of(
    shapes: Any, tensors: Mapping[str, Any], path: pathlib.Path, named: Callable[[str], str]
) -> Any:
    """The parameters of a network from tensors of PyTorch, in float32.

    Args:
      shapes: the tree of parameters, of which the shapes count.
      path: of the tensors' file, for errors.
      named: from the path of a parameter, "encoder.layers_0.mlp.fc1.weight", to its tensor's name.

    Raises:
      ValueError: a tensor that is missing or of another shape.
    """
    params = {}
    for place, leaf in flax.traverse_util.flatten_dict(shapes).items():
        *layers, last = place
        name = named(".".join([*layers, KINDS.get(last, last)]))
        if name not in tensors:
            raise ValueError(f"{path} lacks {name}")
        tensor = official.float32(str(path), {name: tensors[name]})[name]
        if last == "kernel":  # [out, in, ...] to [..., in, out]
            tensor = np.moveaxis(tensor, (0, 1), (-1, -2))
        if tensor.shape != leaf.shape:
            raise ValueError(f"{path}: {name} is {tensor.shape}, config.json says {leaf.shape}")
        params[place] = tensor
    return flax.traverse_util.unflatten_dict(params)
