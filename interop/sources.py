"""Files of weights of every known format behind one face: which networks fit, and their weights.

source = sources.open_source(path)        # the format is recognised from the content
source.fits(module, image_shape)          # by names and shapes alone
source.weights(module, image_shape)       # in our parameter tree
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from interop import (
    diffusers,
    diffusers_config,
    edm,
    flax_msgpack,
    flax_parameters,
    formats,
    guided_diffusion,
    official,
    pipelines,
    pth,
    schedulers,
    state_dicts,
    traits,
    unpickle,
)
from interop.weights import Weights
from runtime import errors, files


class Source(Protocol):
    """A file that was read; nothing in it has been compared with a network yet."""

    path: pathlib.Path  # the file of weights
    format: str
    num_tensors: int
    types: set[str]  # of the tensors that are not float32
    unused: list[str]  # names of what is in the file and is not read

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool: ...

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights: ...


class PytorchFile:
    """An official PyTorch checkpoint, or a bare `state_dict` of its network.

    Args:
      content: of the file, as `pth.read` or `formats.read_safetensors` gives it.
      form: the file's format in words.

    Raises:
      ValueError: it holds neither.
    """

    def __init__(self, path: pathlib.Path, content: Any, form: str = "official PyTorch checkpoint"):
        self.format = form
        try:
            self.parts = state_dicts.parts(content)
        except ValueError as error:
            raise ValueError(f"{path} is no official checkpoint: {error}") from error
        self.path = path
        self.model = dict(self.parts.model)
        self.sigmas = self.model.pop("sigmas", None)
        self.unused = self.parts.unused
        leaves = unpickle.leaves(content)
        self.num_tensors = sum(isinstance(leaf, np.ndarray) for leaf in leaves)
        average = self.parts.average.weights if self.parts.average else []
        arrays = [
            *self.model.values(),
            *(average.values() if isinstance(average, dict) else average),
        ]
        self.types = {str(array.dtype) for array in arrays if array.dtype != np.float32}

    @property
    def found(self) -> str:
        """The network in a few words."""
        shapes = {name: x.shape for name, x in self.model.items()}
        return traits.words(traits.of_torch(shapes), shapes.values())

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        shapes = {name: x.shape for name, x in self.model.items()}
        if traits.of_network(module, image_shape) != traits.of_torch(shapes):
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
        parts = self.parts
        weights = Weights(params, only_averages=parts.only_averages)
        if parts.step is not None:
            weights = weights._replace(step=_count(parts.step, "step"))
        if parts.average is not None:
            averaged = self._averaged(parts.average.weights, module, image_shape)
            weights = weights._replace(ema=averaged, ema_rate=parts.average.rate)
        if parts.optimizer is not None:
            optimizer = _fields(parts.optimizer, "optimizer", ("state",))
            states = _fields(optimizer["state"], "optimizer state", ())
            numbers = _numbers(optimizer.get("param_groups"))
            states = {numbers.get(name, name): state for name, state in states.items()}
            weights = self._with_moments(weights, states, module, image_shape)
        return weights

    def _averaged(
        self,
        average: Mapping[str, np.ndarray] | list[np.ndarray],
        module: nn.Module,
        image_shape: official.Shape,
    ) -> official.Params:
        """The averages, in a list or by name; what is never trained is taken from the model."""
        if isinstance(average, list):
            return official.params_from_torch_average(module, average, self.model, image_shape)
        trained = {
            e.torch_name
            for e in official.correspondence(module, image_shape)
            if e.trainable and e.path is not None
        }
        fixed = {name: tensor for name, tensor in self.model.items() if name not in trained}
        return official.params_from_torch(module, {**fixed, **average}, image_shape, "PyTorch ema")

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
            problems = [f"of parameters number {errors.abridged(beyond, ', ')}"] * bool(beyond)
            problems += [f"none of {errors.abridged(absent, ', ')}"] * bool(absent)
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
            what = f"optimizer state ({moment})"
            moments[moment] = official.params_from_torch(module, named, image_shape, what)
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
    TREES = ("params", "params_ema", "grad_ema", "grad_sq_ema")

    def __init__(self, path: pathlib.Path, content: Any = None):
        content = flax_msgpack.restore(path) if content is None else content
        self.path = path
        self.state = flax_msgpack.training_state(path, content)
        self.shapes = {
            place: np.shape(leaf)
            for place, leaf in flax.traverse_util.flatten_dict(self.state["params"]).items()
        }
        self.num_tensors = 4 * len(self.shapes)
        leaves = jax.tree.leaves([self.state[name] for name in self.TREES])
        self.types = {str(leaf.dtype) for leaf in leaves if leaf.dtype != np.float32}
        self.unused = self.state["unused"]

    @property
    def found(self) -> str:
        """The network in a few words."""
        return traits.words(traits.of_jax(self.shapes), self.shapes.values())

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        if traits.of_network(module, image_shape) != traits.of_jax(self.shapes):
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
        params, ema, first, second = (
            official.params_from_jax(module, self.state[name], image_shape, name)
            for name in self.TREES
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
    """A `UNet2DModel` folder, with the averages and the scheduler that stand beside it.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a damaged file, or one that describes none of our networks or SDEs.
    """

    format = "diffusers UNet2DModel"

    @property
    def described_in(self) -> str:
        """The files that say which network, SDE and prediction it is."""
        return "config.json" + (f" and {self.scheduler}" if self.scheduler else "")

    def __init__(self, folder: pathlib.Path):
        content = diffusers.read(folder)
        beside = pipelines.root_of(folder)
        self.path = content.weights
        self.description = content.description
        self.tensors = content.tensors
        self.average: diffusers.Folder | None = None
        self.unused = content.unused + pipelines.unread(folder, beside)
        if averages := pipelines.average_of(folder):
            self.average = diffusers.read(averages)
            self.unused += [f"{averages.name}/{name}" for name in self.average.unused]
        self.process: dict[str, Any] = {}
        self.scheduler = pipelines.find_scheduler([folder, beside])
        index = pipelines.read_index(beside)
        if self.scheduler is not None:
            self.process = pipelines.read_scheduler(self.scheduler, index)
            self.unused += pipelines.unread_fields(self.process)
        tensors = [content.tensors, self.average.tensors if self.average else {}]
        arrays = [array for named in tensors for array in named.values()]
        self.num_tensors = len(arrays)
        self.types = {str(array.dtype) for array in arrays if array.dtype != np.float32}

    def config_values(self, image_size: int | None) -> dict[str, Any]:
        """The fields of the network and, where there is a scheduler, of SDE and prediction."""
        values = diffusers_config.architecture(self.description, image_size)
        if self.average is not None:
            others = diffusers_config.architecture(self.average.description, image_size)
            if others != values:
                raise ValueError(f"{self.average.weights.parent} is of another network than unet")
        if self.scheduler is None:
            return values
        try:
            fourier = values["model.name"] == "ncsnpp"
            return values | schedulers.config_values(self.process, fourier)
        except ValueError as error:
            raise ValueError(
                f"{self.scheduler} describes no SDE and prediction of ours: {error}"
            ) from error

    def fits(self, module: nn.Module, image_shape: official.Shape) -> bool:
        try:
            entries = diffusers.correspondence(module, image_shape)
        except ValueError:
            return False
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return {entry.name: entry.torch_shape for entry in entries} == shapes

    def weights(self, module: nn.Module, image_shape: official.Shape) -> Weights:
        """Raises ValueError for anything that is not the network's; names all of it."""
        params = diffusers.params_from_diffusers(module, self.tensors, image_shape)
        if self.average is None:
            return Weights(params)
        ema = diffusers.params_from_diffusers(module, self.average.tensors, image_shape)
        rate = self.average.description.get("decay", 0.0)
        rate = rate if isinstance(rate, float) and 0.0 < rate < 1.0 else 0.0
        return Weights(params, ema, rate)


Opened = (
    PytorchFile
    | FlaxFile
    | DiffusersFolder
    | edm.EdmFile
    | guided_diffusion.GuidedDiffusionFile
    | flax_parameters.FlaxParameters
)


def open_source(path: str | os.PathLike[str]) -> Opened:
    """Reads a file or folder of any known format, which its content tells.

    A pipeline's folder stands for the `unet` in it, or `unet_ema` if that is alone; a file of
    weights beside a config.json for their folder.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: an unknown format, a damaged file, or one with something that is not allowed.
    """
    files.refuse_url(path, "--source", "copy the weights here")
    path = pathlib.Path(path)
    path = pipelines.network_folder(path)
    kind = formats.recognise(path)
    beside = path.name.startswith(diffusers.STEM)
    if kind == "diffusers" or (beside and (path.parent / "config.json").is_file()):
        return DiffusersFolder(path if kind == "diffusers" else path.parent)
    if kind == "pth":
        content = pth.read(path)
        if guided_diffusion.recognises(content):
            return guided_diffusion.GuidedDiffusionFile(path, content)
        return PytorchFile(path, content)
    if kind == "flax":
        content = flax_msgpack.restore(path)
        if flax_msgpack.is_parameters(content):
            return flax_parameters.FlaxParameters(path, content)
        return FlaxFile(path, content)
    if kind == "edm":
        return edm.EdmFile(path)
    tensors = formats.read_safetensors(path)
    if tensors and all("/" in name for name in tensors):
        return flax_parameters.of_safetensors(path, tensors)
    if not state_dicts.is_network(tensors):
        raise ValueError(
            f"{path}: {formats.FORMATS[kind]} without the config.json of a diffusers folder, or "
            f"the names of an official network ({', '.join(state_dicts.OFFICIAL)}) in it"
        )
    return PytorchFile(path, tensors, "official PyTorch names in safetensors")


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


def _numbers(groups: Any) -> dict[int, int]:
    """Numbers of parameters by the addresses that optimisers of PyTorch before 1.5 know them by."""
    try:
        addresses = [int(address) for group in groups for address in group["params"]]
    except (
        KeyError,
        OverflowError,
        TypeError,
        ValueError,
    ):  # another optimiser: its states have the numbers
        return {}
    return {address: number for number, address in enumerate(addresses)}


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
