"""Names and shapes of parameters in the two official formats of score_sde.

The official JAX code names parameters as `models` does. The PyTorch port keeps the layers of a
U-Net in one flat list, `all_modules.0`, `all_modules.1`, ..., in the order in which they are
called; so its names follow from a record of the calls of our own network. The layers of a NCSN or
NCSNv2 have names there, in an order that is neither ours nor that of their calls.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from models import DDPM, NCSNpp, NCSNv2
from runtime import errors

Path = tuple[str, ...]
Shape = tuple[int, ...]
Params = dict[str, Any]

LEAVES = ("W", "kernel", "weight", "scale", "bias", "b")  # as PyTorch registers those of a layer
RENAMED = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


class Entry(NamedTuple):
    """One tensor: its PyTorch name and shape, and its path and shape in our parameter tree.

    `path` is None for tensors that the PyTorch network has but never uses. `trainable` tensors are
    in PyTorch's list of averaged weights.
    """

    torch_name: str
    torch_shape: Shape
    path: Path | None
    shape: Shape
    trainable: bool


class Call(NamedTuple):
    """A call of one layer: its place in the network, and the shapes of its parameters."""

    path: Path
    shapes: dict[str, Shape]


@functools.lru_cache(maxsize=64)
def recorded_calls(module: nn.Module, image_shape: Shape) -> tuple[Call, ...]:
    """The sub-modules of `module` in the order of their first calls, from an abstract run."""
    paths: dict[Path, None] = {}

    def record(
        next_method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name == "__call__":
            paths.setdefault(context.module.path)
        return next_method(*args, **kwargs)

    with nn.intercept_methods(record):
        flat = _abstract_run(module, image_shape)
    shapes: dict[Path, dict[str, Shape]] = {path: {} for path in paths}
    for path, shape in flat.items():
        shapes[path[:-1]][path[-1]] = shape
    return tuple(
        Call(path, {leaf: shapes[path][leaf] for leaf in LEAVES if leaf in shapes[path]})
        for path in paths
        if path
    )


def parameter_shapes(module: nn.Module, image_shape: Shape) -> dict[Path, Shape]:
    """Shapes of all parameters by path, without computing any."""
    return dict(_known_shapes(module, image_shape))


@functools.lru_cache(maxsize=64)
def _known_shapes(module: nn.Module, image_shape: Shape) -> tuple[tuple[Path, Shape], ...]:
    return tuple(_abstract_run(module, image_shape).items())


def _abstract_run(module: nn.Module, image_shape: Shape) -> dict[Path, Shape]:
    x, labels = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x, labels)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    return {path: leaf.shape for path, leaf in flat.items()}


def correspondence(module: nn.Module, image_shape: Shape) -> list[Entry]:
    """Every tensor of the PyTorch network, in the order of its `state_dict` without buffers.

    Raises:
      ValueError: the network has no counterpart in the official PyTorch code.
    """
    if isinstance(module, NCSNv2):
        return _refinenet_entries(module, image_shape)
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


# The stages of a NCSN by the number of its residual blocks and refinements.
STAGES = {
    "64": ("1", "2", "3", "4"),
    "128": ("1", "2", "3", "4", "5"),
    "256": ("1", "2", "3", "31", "4", "5"),
}

# PyTorch's names of the layers inside a block, in the order in which it registers them; `{i}` is
# our number of the layer (of its class, in the order of calls).
LAYERS: dict[str, dict[str, str]] = {
    "ResidualBlock": {
        "Conv_0": "conv1",
        "InstanceNorm2dPlus_1": "normalize2",
        "Conv_1": "conv2",
        "ConvMeanPool_0": "conv2",
        "Conv_2": "shortcut",
        "ConvMeanPool_1": "shortcut",
        "InstanceNorm2dPlus_0": "normalize1",
    },
    "ConvMeanPool": {"Conv_0": "conv"},
    "RCUBlock": {
        f"{layer}_{2 * block + stage}": f"{block + 1}_{stage + 1}_{kind}"
        for block in range(3)
        for stage in range(2)
        for layer, kind in (("InstanceNorm2dPlus", "norm"), ("Conv", "conv"))
    },
    "MSFBlock": {
        f"{layer}_{i}": f"{kind}.{i}"
        for layer, kind in (("Conv", "convs"), ("InstanceNorm2dPlus", "norms"))
        for i in range(2)
    },
    "InstanceNorm2dPlus": {"Embed_0": "embed"},
}
LAYERS["CRPBlock"] = LAYERS["MSFBlock"]
NORM_LEAVES = ("alpha", "gamma", "beta")


def _refinenet_entries(module: NCSNv2, image_shape: Shape) -> list[Entry]:
    """The tensors of the PyTorch network of the same kind, in its order.

    Raises:
      ValueError: the network is not the PyTorch version, which computes something else.
    """
    if not module.pytorch:
        raise ValueError(
            "the PyTorch versions of NCSN and NCSNv2 are other networks than the JAX ones; "
            "set model.pytorch=True for their weights"
        )
    layers = _refinenet_layers(module)
    order = {name: rank for table in layers.values() for rank, name in enumerate(table.values())}
    ranked = []
    for path, shape in parameter_shapes(module, image_shape).items():
        plain = [re.sub("^Cond(itional)?", "", name) for name in path[:-1]]
        parents = ["", *(layer.rpartition("_")[0] for layer in plain)]
        if plain[0].startswith("RefineBlock"):
            parents[1] = "First" * (plain[0] == "RefineBlock_0") + "RefineBlock"
        names = [layers[parent][layer] for parent, layer in zip(parents, plain, strict=False)]
        leaf = path[-1]
        leaves = (*NORM_LEAVES, "embedding", "kernel", "bias")
        rank = [order[name] for name in names] + [leaves.index(leaf)]
        if leaf in NORM_LEAVES:
            torch_shape = shape[3:]
        else:
            torch_shape = tuple(shape[axis] for axis in _torch_axes(leaf, len(shape)))
        name = ".".join([*names, RENAMED.get(leaf, leaf)])
        ranked.append((rank, Entry(name, torch_shape, path, shape, trainable=True)))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def _refinenet_layers(module: NCSNv2) -> dict[str, dict[str, str]]:
    """`LAYERS` with the layers that depend on the number of stages; "" has those of no block."""
    stages = STAGES[module.architecture]
    top = {"Conv_0": "begin_conv", "InstanceNorm2dPlus_0": "normalizer", "Conv_1": "end_conv"}
    for k, stage in enumerate(stages):
        top |= {f"ResidualBlock_{2 * k + i}": f"res{stage}.{i}" for i in range(2)}
    top |= {f"RefineBlock_{k}": f"refine{stage}" for k, stage in enumerate(stages)}
    rest = {"MSFBlock_0": "msf", "CRPBlock_0": "crp"}
    first = {"RCUBlock_0": "adapt_convs.0", "RCUBlock_1": "output_convs"}
    later = {"RCUBlock_0": "adapt_convs.0", "RCUBlock_1": "adapt_convs.1"}
    later |= {"RCUBlock_2": "output_convs"}
    return LAYERS | {"": top, "FirstRefineBlock": first | rest, "RefineBlock": later | rest}


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
    module: nn.Module,
    state_dict: Mapping[str, np.ndarray],
    image_shape: Shape,
    what: str = "PyTorch state_dict",
) -> Params:
    """Our parameters, float32, from a PyTorch `state_dict` of arrays.

    The prefix `module.` of DataParallel and the buffer `sigmas` are dropped. Errors say `what` this
    is.

    Raises:
      ValueError: names the tensors that are missing, unexpected, of the wrong shape or no numbers.
    """
    entries = correspondence(module, image_shape)
    tensors = {name.removeprefix("module."): array for name, array in state_dict.items()}
    tensors.pop("sigmas", None)
    unused = {entry.torch_name for entry in entries if entry.path is None}
    shapes = {name: np.shape(array) for name, array in tensors.items() if name not in unused}
    expected = {entry.torch_name: entry.torch_shape for entry in entries if entry.path is not None}
    check_shapes(what, expected, shapes)
    arrays = float32(what, {name: tensors[name] for name in expected})
    flat = {}
    for entry in entries:
        if entry.path is not None:
            array = arrays[entry.torch_name]
            if len(array.shape) == len(entry.shape):
                array = array.transpose(np.argsort(_torch_axes(entry.path[-1], array.ndim)))
            flat[entry.path] = np.ascontiguousarray(array.reshape(entry.shape))
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
            array = flat[entry.path]
            if len(entry.torch_shape) == len(entry.shape):
                array = array.transpose(_torch_axes(entry.path[-1], array.ndim))
            state_dict[entry.torch_name] = np.ascontiguousarray(array.reshape(entry.torch_shape))
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
      ValueError: the list has another length, or a tensor has another shape or is no numbers.
    """
    names = [e.torch_name for e in correspondence(module, image_shape) if e.trainable]
    if len(names) != len(shadow_params):
        raise ValueError(
            f"PyTorch ema.shadow_params has {len(shadow_params)} tensors; expected {len(names)}"
        )
    raw = {name.removeprefix("module."): array for name, array in state_dict.items()}
    averaged = dict(zip(names, shadow_params, strict=True))
    return params_from_torch(module, {**raw, **averaged}, image_shape, "PyTorch ema")


def params_from_jax(
    module: nn.Module, tree: Params, image_shape: Shape, what: str = "parameter tree"
) -> Params:
    """The parameter tree of an official JAX checkpoint, float32, checked against `module`.

    Old Flax stored vectors of norms as [1, 1, 1, C]; they become what `module` has.

    Raises:
      ValueError: names parameters that are missing, unexpected, of the wrong shape or no numbers.
    """
    expected = parameter_shapes(module, image_shape)
    flat = dict(flax.traverse_util.flatten_dict(tree))
    for path, shape in expected.items():
        stored = np.shape(flat.get(path, 0.0))
        if path in flat and without_leading_ones(stored) == without_leading_ones(shape):
            flat[path] = np.reshape(flat[path], shape)
    check_shapes(
        what,
        {"/".join(path): shape for path, shape in expected.items()},
        {"/".join(path): np.shape(leaf) for path, leaf in flat.items()},
    )
    arrays = float32(what, {"/".join(path): leaf for path, leaf in flat.items()})
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def without_leading_ones(shape: Shape) -> Shape:
    """The shape from its first axis longer than one."""
    first = next((axis for axis, size in enumerate(shape) if size > 1), max(len(shape) - 1, 0))
    return shape[first:]


def check_shapes(what: str, expected: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> None:
    """Raises ValueError, naming the differences, unless names and shapes are as expected."""
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    misshaped = [
        f"{name} {tuple(shapes[name])}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshaped}
    text = "; ".join(
        f"{kind}: {errors.abridged(names, ', ')}" for kind, names in problems.items() if names
    )
    if text:
        raise ValueError(f"{what} does not fit the network: {text}")


def float32(what: str, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors in float32; ValueError, naming them, if some are no finite floats."""
    types = {name: np.asarray(tensor).dtype for name, tensor in tensors.items()}
    other = [f"{name} {x}" for name, x in types.items() if not jnp.issubdtype(x, jnp.floating)]
    if other:
        raise ValueError(f"{what} has tensors that are no floats: {errors.abridged(other, ', ')}")
    with np.errstate(over="ignore"):
        arrays = {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        text = errors.abridged(broken, ", ")
        raise ValueError(f"{what} has NaN or infinite values in {len(broken)} tensors: {text}")
    return arrays
