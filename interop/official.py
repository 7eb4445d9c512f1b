"""Names and shapes of parameters in the two official formats of score_sde.

The official JAX code names parameters as `models` does. The PyTorch port keeps the layers of a
U-Net in one flat list, `all_modules.0`, `all_modules.1`, ..., in the order in which they are
called; so its names follow from a record of the calls of our own network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from models import DDPM, NCSNpp

Path = tuple[str, ...]
Shape = tuple[int, ...]
Params = dict[str, Any]

LEAVES = ("W", "kernel", "weight", "scale", "bias", "b")  # as PyTorch registers those of a layer
RENAMED = {"kernel": "weight", "scale": "weight"}


class Entry(NamedTuple):
    """One tensor: its PyTorch name and shape, and its path and shape in our parameter tree.

    `path` is None for tensors that the PyTorch network owns but never uses. `trainable` ones are
    those in PyTorch's list of averaged weights.
    """

    torch_name: str
    torch_shape: Shape
    path: Path | None
    shape: Shape
    trainable: bool


class Call(NamedTuple):
    """A layer that the network called: where it is, and the shapes of its own parameters."""

    path: Path
    shapes: dict[str, Shape]


def recorded_calls(module: nn.Module, image_shape: Shape) -> list[Call]:
    """The sub-modules of `module` in the order of their first calls, from an abstract run."""
    paths: dict[Path, None] = {}

    def record(
        next_method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name == "__call__":
            paths.setdefault(context.module.path)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        flat = parameter_shapes(module, image_shape)
    own: dict[Path, dict[str, Shape]] = {path: {} for path in paths}
    for path, shape in flat.items():
        own[path[:-1]][path[-1]] = shape
    return [
        Call(path, {leaf: own[path][leaf] for leaf in LEAVES if leaf in own[path]})
        for path in paths
        if path
    ]


def parameter_shapes(module: nn.Module, image_shape: Shape) -> dict[Path, Shape]:
    """Shapes of all parameters by path, without computing any."""
    x, labels = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, labels)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    return {path: leaf.shape for path, leaf in flat.items()}


def correspondence(module: nn.Module, image_shape: Shape) -> list[Entry]:
    """Every tensor of the PyTorch network, in the order of its `state_dict` without buffers.

    Raises:
      ValueError: the network has no counterpart in the official PyTorch code.
    """
    if not isinstance(module, DDPM | NCSNpp):
        raise ValueError(f"no PyTorch names are known for {type(module).__name__}")
    if module.num_labels:
        raise ValueError("class-conditional networks do not exist in the official PyTorch code")
    calls = recorded_calls(module, image_shape)
    entries: list[Entry] = []
    for slot, top in enumerate(_slots(calls)):
        for call in calls:
            if call.path[0] == top:
                prefix = ".".join(["all_modules", str(slot), *call.path[1:]])
                entries.extend(_entry(prefix, call, leaf) for leaf in call.shapes)
                if not module.conditional and call.path[1:] == ("Conv_0",) and "Resnet" in top:
                    width = call.shapes["bias"][0]
                    unused = prefix.replace("Conv_0", "Dense_0")
                    shape = (width, 4 * module.nf)
                    entries.append(Entry(f"{unused}.weight", shape, None, (), True))
                    entries.append(Entry(f"{unused}.bias", shape[:1], None, (), True))
    return entries


def _slots(calls: Sequence[Call]) -> Iterator[str]:
    """Names of the top-level modules that PyTorch's list contains.

    The resamplers of the image pyramids are not in it: those without parameters that are followed
    by Combine (on the way down) or by the norm of an output (on the way up).
    """
    top = [call.path[0] for call in calls if len(call.path) == 1]
    bare = {name for name in top if not any(call.path[0] == name and call.shapes for call in calls)}
    for name, following in zip(top, [*top[1:], ""], strict=True):
        if not (name in bare and following.startswith(("Combine", "GroupNorm"))):
            yield name


def _entry(prefix: str, call: Call, leaf: str) -> Entry:
    shape = call.shapes[leaf]
    axes = _torch_axes(leaf, len(shape))
    torch_shape = tuple(shape[axis] for axis in axes)
    name = f"{prefix}.{RENAMED.get(leaf, leaf)}"
    trainable = not call.path[-1].startswith("GaussianFourierProjection")
    return Entry(name, torch_shape, (*call.path, leaf), shape, trainable)


def _torch_axes(leaf: str, ndim: int) -> Sequence[int]:
    """The order of our axes in PyTorch: HWIO to OIHW, [in, out] to [out, in], NIN's W as it is."""
    if leaf not in ("kernel", "weight"):
        return range(ndim)
    return (3, 2, 0, 1) if ndim == 4 else (1, 0)


def params_from_torch(
    module: nn.Module, state_dict: Mapping[str, np.ndarray], image_shape: Shape
) -> Params:
    """Our parameters, float32, from a PyTorch `state_dict` of arrays.

    The prefix `module.` of DataParallel and the buffer `sigmas` are dropped.

    Raises:
      ValueError: names every tensor that is missing, unexpected or of the wrong shape.
    """
    entries = correspondence(module, image_shape)
    given = {name.removeprefix("module."): array for name, array in state_dict.items()}
    given.pop("sigmas", None)
    unused = {entry.torch_name for entry in entries if entry.path is None}
    found = {name: np.shape(array) for name, array in given.items() if name not in unused}
    expected = {entry.torch_name: entry.torch_shape for entry in entries if entry.path is not None}
    _compare("PyTorch state_dict", expected, found)
    flat = {}
    for entry in entries:
        if entry.path is not None:
            axes = np.argsort(_torch_axes(entry.path[-1], len(entry.shape)))
            array = np.asarray(given[entry.torch_name], np.float32)
            flat[entry.path] = np.ascontiguousarray(array.transpose(axes))
    return flax.traverse_util.unflatten_dict(flat)


def params_to_torch(module: nn.Module, params: Params, image_shape: Shape) -> dict[str, np.ndarray]:
    """The PyTorch `state_dict` (without the buffer `sigmas`), in PyTorch's order.

    Tensors that PyTorch never uses are zeros.

    Raises:
      ValueError: names every parameter that is missing, unexpected or of the wrong shape.
    """
    flat = flax.traverse_util.flatten_dict(params_from_jax(module, params, image_shape))
    state_dict = {}
    for entry in correspondence(module, image_shape):
        if entry.path is None:
            state_dict[entry.torch_name] = np.zeros(entry.torch_shape, np.float32)
        else:
            axes = _torch_axes(entry.path[-1], len(entry.shape))
            state_dict[entry.torch_name] = np.ascontiguousarray(flat[entry.path].transpose(axes))
    return state_dict


def params_from_torch_average(
    module: nn.Module,
    shadow_params: Sequence[np.ndarray],
    state_dict: Mapping[str, np.ndarray],
    image_shape: Shape,
) -> Params:
    """Our parameters from PyTorch's nameless list of averaged weights.

    The list follows the order of the trainable tensors; the others are taken from `state_dict`.

    Raises:
      ValueError: the list has another length, or a tensor has another shape.
    """
    names = [e.torch_name for e in correspondence(module, image_shape) if e.trainable]
    if len(names) != len(shadow_params):
        raise ValueError(
            f"PyTorch ema.shadow_params has {len(shadow_params)} tensors; expected {len(names)}"
        )
    raw = {name.removeprefix("module."): array for name, array in state_dict.items()}
    averaged = dict(zip(names, shadow_params, strict=True))
    return params_from_torch(module, {**raw, **averaged}, image_shape)


def params_from_jax(module: nn.Module, tree: Params, image_shape: Shape) -> Params:
    """The parameter tree of an official JAX checkpoint, float32, checked against `module`.

    Old Flax stored vectors of norms as [1, 1, 1, C]; they become what `module` has.

    Raises:
      ValueError: names every parameter that is missing, unexpected or of the wrong shape.
    """
    expected = parameter_shapes(module, image_shape)
    flat = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in flax.traverse_util.flatten_dict(tree).items()
    }
    for path, shape in expected.items():
        if path in flat and _without_ones(flat[path].shape) == _without_ones(shape):
            flat[path] = flat[path].reshape(shape)
    _compare(
        "parameter tree",
        {"/".join(path): shape for path, shape in expected.items()},
        {"/".join(path): leaf.shape for path, leaf in flat.items()},
    )
    return flax.traverse_util.unflatten_dict(flat)


def _without_ones(shape: Shape) -> Shape:
    """The shape from its first axis longer than one."""
    first = next((axis for axis, size in enumerate(shape) if size > 1), max(len(shape) - 1, 0))
    return shape[first:]


def _compare(what: str, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raises ValueError, naming every difference, unless names and shapes are equal."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshaped = [
        f"{name} {tuple(found[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if text:
        raise ValueError(f"{what} does not fit the network: {text}")
