r"""Weights of Inception, read from their conversion for pytorch-fid, downloaded if need be.

Each batch normalisation (epsilon 1e-3) is folded into its convolution:

    kernel = w gamma / sqrt(var + eps)        bias = beta - mean gamma / sqrt(var + eps).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import urllib.request
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from data import default_folder
from data.builder import expanded, reach
from evaluation.metrics.inception import NAME, SIZE, Network, Params
from interop import pth
from runtime import files

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
EPSILON = 1e-3
COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Parameters of `Network` in NumPy, and the SHA-256 of the file that they are from."""

    params: Params
    sha256: str


def load_weights(path: str | os.PathLike[str] = "") -> Weights:
    """The weights in a file, by default that of pytorch-fid, which is downloaded if it must be.

    Raises:
      FileNotFoundError: no such file, or it cannot be downloaded; says what to fetch and whereto.
      ValueError: a damaged file, or tensors that are not the network's.
    """
    files.refuse_url(str(path), "eval.inception_path", "copy the file here")
    file = expanded(path, "eval.inception_path") if path else _cached()
    if not file.is_file():
        raise FileNotFoundError(f"config.eval.inception_path is {file}, where there is no file")
    sha256 = files.sha256(file)
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", file.name)
    if promised and not sha256.startswith(promised[1]):
        raise ValueError(
            f"{file} is damaged: its SHA-256 begins with {sha256[:8]}, not {promised[1]} as its "
            "name says; remove it and fetch it again"
        )
    return Weights(params_from_torch(pth.read_pth(file)), sha256)


def places() -> list[pathlib.Path]:
    """The files that may hold the weights: in our cache, and in that of pytorch-fid."""
    hub = os.environ.get("TORCH_HOME", "~/.cache/torch")
    return [
        default_folder() / "inception" / FILE,
        expanded(hub, "TORCH_HOME") / "hub" / "checkpoints" / FILE,
    ]


def _cached() -> pathlib.Path:
    """The file of pytorch-fid's weights, downloaded on first use."""
    for place in places():
        if place.is_file():
            return place
    target = places()[0]
    _download(target)
    return target


def _download(target: pathlib.Path) -> None:
    try:
        reach(URL)
        with (
            urllib.request.urlopen(URL, timeout=60) as answer,
            files.whole(target) as temporary,
            temporary.open("wb") as file,
        ):
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, desc=FILE, unit="B", unit_scale=True) as bar:
                while chunk := answer.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
    except OSError as error:
        raise FileNotFoundError(
            f"the Inception network is not on this machine and could not be downloaded "
            f"({type(error).__name__}): fetch {URL} into {target.parent}, or name the file with "
            "--config.eval.inception_path"
        ) from error


def params_from_torch(tensors: Mapping[str, Any]) -> Params:
    """Parameters of `Network` from a state dictionary of pytorch-fid's, normalisation folded in.

    Raises:
      ValueError: tensors that are missing, of another shape or not finite, or that nothing here
        knows; the first ones are named.
    """
    wrong = [f"{name} is unknown" for name in tensors if name not in torch_shapes()]
    for name, shape in torch_shapes().items():
        tensor = tensors.get(name)
        if tensor is None and not name.endswith(COUNTER):
            wrong.append(f"{name} is missing")
        elif tensor is not None and np.shape(tensor) != shape:
            wrong.append(f"{name} is {np.shape(tensor)}, not {shape}")
        elif tensor is not None and not np.isfinite(tensor).all():
            wrong.append(f"{name} is not finite")
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"these are no weights of {NAME}: {', '.join(wrong[:4])}{more}")
    params: dict[tuple[str, ...], Any] = {("fc", "kernel"): np.asarray(tensors["fc.weight"]).T}
    for name in torch_shapes():
        if name.endswith(".conv.weight"):
            layer = name.removesuffix(".conv.weight")
            for kind, array in folded(tensors, layer).items():
                params[*layer.split("."), kind] = array
    return flax.traverse_util.unflatten_dict(params)


def folded(tensors: Mapping[str, Any], layer: str) -> dict[str, np.ndarray]:
    """`kernel [h, w, C, O]` and `bias [O]` of a convolution with its normalisation, in float32."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (
        np.asarray(tensors[f"{layer}.bn.{kind}"], np.float64) for kind in kinds
    )
    gain = gamma / np.sqrt(variance + EPSILON)
    weight = np.asarray(tensors[f"{layer}.conv.weight"]).transpose(2, 3, 1, 0)
    arrays = {"kernel": weight * gain, "bias": beta - mean * gain}
    return {kind: array.astype(np.float32) for kind, array in arrays.items()}


@functools.cache
def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in pytorch-fid's file, from the network here.

    `COUNTER`s of training and the logits' bias are among them and in no use; the former may lack.
    """
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    tree = jax.eval_shape(Network().init, jax.random.key(0), images)["params"]
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree).items():
        name = ".".join(path[:-1])
        if name == "fc":
            shapes |= {"fc.weight": leaf.shape[::-1], "fc.bias": leaf.shape[1:]}
        elif path[-1] == "kernel":
            height, width, inputs, features = leaf.shape
            shapes[f"{name}.conv.weight"] = (features, inputs, height, width)
            for kind in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{kind}"] = (features,)
            shapes[f"{name}.bn.{COUNTER}"] = ()
    return shapes
