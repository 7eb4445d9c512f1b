"""Files of weights of every known format behind one face: which networks fit, and their weights.

source = sources.open_source(path)        # the format is recognised from the content
source.fits(module, image_shape)          # by names and shapes alone
source.weights(module, image_shape)       # in our parameter tree
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from interop import diffusers, diffusers_config, flax_msgpack, formats, official, pth

SIGMAS = "module.sigmas"


class Weights(NamedTuple):
    """A training state in our parameter tree; None or 0 for parts that the file lacks."""

    params: official.Params
    ema: official.Params | None = None
    ema_rate: float = 0.0
    first_moment: official.Params | None = None
    second_moment: official.Params | None = None
    updates: int = 0  # that the moments have seen
    step: int = 0


class Traits(NamedTuple):
    """Properties that tell most networks apart at a glance."""

    channels: int
    nf: int
    fourier: bool
    residual_blocks: int


class Source(Protocol):
    """A file that was read; nothing in it has been compared with a network yet."""

    path: pathlib.Path  # the file of weights
    format: str
    num_tensors: int

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool: ...

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights: ...


class PytorchFile:
    """An official PyTorch checkpoint, or a bare `state_dict` of its network.

    Raises:
      ValueError: it holds neither.
    """

    format = "official PyTorch checkpoint"

    def __init__(self, path: pathlib.Path):
        content = pth.read_pth(path)
        bare = bool(content) and all(isinstance(x, np.ndarray) for x in content.values())
        state = {"model": content} if bare else content
        model = state.get("model")
        marks = ("all_modules.", "begin_conv.")  # of a U-Net, of NCSN and NCSNv2
        if not isinstance(model, dict) or not any(m in str(name) for name in model for m in marks):
            raise ValueError(
                f"{path} is no official checkpoint: it has no state_dict 'model' with all_modules "
                "or begin_conv (of a diffusers model, name the folder)"
            )
        strange = [name for name, x in model.items() if not isinstance(x, np.ndarray)]
        if strange:
            raise ValueError(f"{path}: {strange[0]} is no tensor")
        self.path = path
        self.state = state
        self.model = {str(name).removeprefix("module."): x for name, x in model.items()}
        self.sigmas = self.model.pop("sigmas", None)
        self.num_tensors = sum(isinstance(x, np.ndarray) for x in jax.tree.leaves(state))

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        shapes = {name: x.shape for name, x in self.model.items()}
        if traits(module, image_shape) != torch_traits(shapes):
            return False
        try:
            _check_sigmas(self.path, self.sigmas, module)
            entries = official.correspondence(module, image_shape)
        except ValueError:
            return False
        used = {e.torch_name: e.torch_shape for e in entries if e.path is not None}
        unused = {e.torch_name for e in entries if e.path is None}
        return used == {name: shape for name, shape in shapes.items() if name not in unused}

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        params = official.params_from_torch(module, self.model, image_shape)
        _check_sigmas(self.path, self.sigmas, module)
        weights = Weights(params)
        if "step" in self.state:
            weights = weights._replace(step=_count(self.state["step"], "step"))
        if "ema" in self.state:
            ema = _fields(self.state["ema"], "ema", ("shadow_params", "decay"))
            shadow, rate = ema["shadow_params"], np.asarray(ema["decay"])
            if not isinstance(shadow, list) or not all(isinstance(x, np.ndarray) for x in shadow):
                raise ValueError("ema.shadow_params is no list of tensors")
            if rate.size != 1 or rate.dtype.kind not in "iuf":
                raise ValueError(f"ema.decay is {str(ema['decay'])[:40]}, expected a number")
            averaged = official.params_from_torch_average(module, shadow, self.model, image_shape)
            weights = weights._replace(ema=averaged, ema_rate=rate.item())
        if "optimizer" in self.state:
            optimizer = _fields(self.state["optimizer"], "optimizer", ("state",))
            states = _fields(optimizer["state"], "optimizer state", ())
            weights = self._with_moments(weights, states, module, image_shape)
        return weights

    def _with_moments(
        self,
        weights: Weights,
        states: Mapping[int, Any],
        module: nn.Module,
        image_shape: official.Shape,
    ) -> Weights:
        """Adam's moments, numbered by the parameters' order; those without gradient have none."""
        if not states:  # nothing was trained
            return weights
        entries = official.correspondence(module, image_shape)
        beyond = [str(i) for i in states if i not in range(len(entries))]
        absent = [
            e.torch_name
            for i, e in enumerate(entries)
            if e.trainable and e.path is not None and i not in states
        ]
        if beyond or absent:
            problems = [f"of parameters number {', '.join(beyond)}"] * bool(beyond)
            problems += [f"none of {', '.join(absent)}"] * bool(absent)
            raise ValueError(f"optimizer state: {'; '.join(problems)}")
        moments: dict[str, official.Params] = {}
        counts = set()
        for moment in ("exp_avg", "exp_avg_sq"):
            named = {}
            for i, entry in enumerate(entries):
                named[entry.torch_name] = np.zeros(entry.torch_shape, np.float32)
                if i in states:
                    state = _fields(states[i], f"optimizer state {i}", (moment, "step"))
                    named[entry.torch_name] = state[moment]
                    counts.add(_count(state["step"], f"step of {entry.torch_name}"))
            moments[moment] = official.params_from_torch(module, named, image_shape)
        if len(counts) != 1:
            raise ValueError(f"optimizer state: parameters disagree in step: {sorted(counts)}")
        return weights._replace(
            first_moment=moments["exp_avg"],
            second_moment=moments["exp_avg_sq"],
            updates=counts.pop(),
        )


class FlaxFile:
    """An official JAX checkpoint."""

    format = "official JAX checkpoint"

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.state = flax_msgpack.read_flax_checkpoint(path)
        self.shapes = {
            place: np.shape(leaf)
            for place, leaf in flax.traverse_util.flatten_dict(self.state["params"]).items()
        }
        self.num_tensors = 4 * len(self.shapes)

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        if traits(module, image_shape) != jax_traits(self.shapes):
            return False
        try:
            expected = official.parameter_shapes(module, image_shape)
        except ValueError:
            return False
        strip = official.without_leading_ones
        return {place: strip(shape) for place, shape in expected.items()} == {
            place: strip(shape) for place, shape in self.shapes.items()
        }

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        names = ("params", "params_ema", "grad_ema", "grad_sq_ema")
        params, ema, first, second = (
            official.params_from_jax(module, self.state[name], image_shape) for name in names
        )
        return Weights(
            params=params,
            ema=ema,
            ema_rate=self.state["ema_rate"],
            first_moment=first,
            second_moment=second,
            updates=self.state["optimizer_step"],
            step=self.state["step"],
        )


class DiffusersFolder:
    """A `UNet2DModel` folder: one set of weights, which may be averages or not."""

    format = "diffusers UNet2DModel"

    def __init__(self, folder: pathlib.Path):
        content = diffusers.read(folder)
        self.path = content.weights
        self.description = content.description
        self.tensors = content.tensors
        self.num_tensors = len(content.tensors)

    def config_values(self, image_size: int | None) -> dict[str, Any]:
        return diffusers_config.architecture(self.description, image_size)

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        try:
            entries = diffusers.correspondence(module, image_shape)
        except ValueError:
            return False
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return {entry.name: entry.torch_shape for entry in entries} == shapes

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        return Weights(diffusers.params_from_diffusers(module, self.tensors, image_shape))


def open_source(path: str | os.PathLike[str]) -> PytorchFile | FlaxFile | DiffusersFolder:
    """Reads a file or folder of any known format, which its content tells.

    A pipeline's folder stands for the `unet` in it, a file of weights beside a config.json for
    their folder.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: an unknown format, a damaged file, or one with something that is not allowed.
    """
    path = pathlib.Path(path)
    if (path / "unet" / "config.json").is_file():
        path = path / "unet"
    kind = formats.recognise(path)
    beside = path.name in (diffusers.WEIGHTS, diffusers.PICKLED)
    if kind == "diffusers" or (beside and (path.parent / "config.json").is_file()):
        return DiffusersFolder(path if kind == "diffusers" else path.parent)
    if kind == "pth":
        return PytorchFile(path)
    if kind == "flax":
        return FlaxFile(path)
    raise ValueError(
        f"{path}: {formats.FORMATS[kind]} without the config.json of a diffusers folder"
    )


def sha256(path: pathlib.Path) -> str:
    """The file's SHA-256, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torch_traits(shapes: Mapping[str, official.Shape]) -> Traits:
    """The traits of an official PyTorch network, from its tensors in order."""
    kernels = [shape for shape in shapes.values() if len(shape) == 4 and shape[2:] == (3, 3)]
    nf, channels = kernels[0][:2] if kernels else (0, 0)
    fourier = any(name.count(".") == 2 and name.endswith(".W") for name in shapes)
    blocks = sum(name.endswith("GroupNorm_1.weight") for name in shapes)
    return Traits(channels, nf, fourier, blocks)


def jax_traits(shapes: Mapping[official.Path, official.Shape]) -> Traits:
    """The traits of an official JAX network."""
    kernel = shapes.get(("Conv_0", "kernel"), (0, 0, 0, 0))
    fourier = any(place[0].startswith("GaussianFourier") for place in shapes)
    blocks = sum(place[1:] == ("GroupNorm_1", "scale") for place in shapes)
    return Traits(kernel[-2], kernel[-1], fourier, blocks)


def traits(module: nn.Module, image_shape: official.Shape) -> Traits:
    """The traits of a network, without evaluating it."""
    nf, fourier = getattr(module, "nf", 0), getattr(module, "embedding_type", "") == "fourier"
    levels = len(getattr(module, "ch_mult", ()))
    per_level = 2 * getattr(module, "num_res_blocks", 0) + 1
    resampling = 2 * (levels - 1) if getattr(module, "resblock_type", "") == "biggan" else 0
    blocks = levels * per_level + resampling + 2 if levels else 0
    return Traits(image_shape[-1], nf, fourier, blocks)


def _check_sigmas(path: pathlib.Path, sigmas: np.ndarray | None, module: nn.Module) -> None:
    """Refuses a file whose noise levels are not those of the config."""
    if sigmas is None:
        return
    ends = (module.sigma_max, module.sigma_min)  # type: ignore[attr-defined]
    count = module.num_scales  # type: ignore[attr-defined]
    expected = np.geomspace(*ends, count)
    if sigmas.shape != expected.shape or not np.allclose(sigmas, expected, rtol=1e-4, atol=0):
        ours = f"{count} from {ends[0]:g} to {ends[1]:g}"
        theirs = f"{sigmas.size} from {sigmas.flat[0]:g} to {sigmas.flat[-1]:g}"
        raise ValueError(
            f"{path}: its sigmas are {theirs}; by config.model (num_scales, sigma_max, sigma_min) "
            f"they would be {ours}"
        )


def _fields(value: Any, what: str, names: tuple[str, ...]) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is a {type(value).__name__}, expected a dictionary")
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(missing)}")
    return value


def _count(value: Any, what: str) -> int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "iuf" or not 0 <= array.item() < 2**31:
        raise ValueError(f"{what} is {str(value)[:40]}, expected a count")
    return int(array.item())
