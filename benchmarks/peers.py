"""The official score_sde code from a local checkout, PyTorch or JAX, unchanged, on the CPU; and
score_flow, its successor in JAX.

    peer = peers.load("path/to/checkout")
    peer.kind, peer.sde_lib, peer.likelihood, peer.losses, peer.sampling, peer.mutils
    network = peers.network("path/to/checkout", config)  # one of our configs
    sde = peers.sde(peer, our_sde)

Nothing is written into the checkout. What it imports but never needs here is stood in for while it
is imported: the compilation of CUDA kernels (its PyTorch code takes another way on the CPU),
TensorFlow, and the optimisers of old Flax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

import sde_lib
from benchmarks import checkouts
from interop import official

MODELS = ("ddpm", "ncsnpp", "ncsnv2")


class Official(NamedTuple):
    """The modules of a checkout; `mutils` is its `models.utils`."""

    kind: str  # "torch" or "jax"
    sde_lib: types.ModuleType
    losses: types.ModuleType
    likelihood: types.ModuleType
    sampling: types.ModuleType
    mutils: types.ModuleType
    ema: types.ModuleType | None  # PyTorch's `models.ema`


def load(path: str | pathlib.Path) -> Official:
    """The official modules, imported from `path` beside our own of the same names.

    Raises:
      ValueError: no checkout at `path`; PyTorch is needed and not installed.
    """
    return _load(pathlib.Path(path).resolve())


@functools.cache
def _load(root: pathlib.Path) -> Official:
    project = checkouts.kind(root)
    if project == "edm":
        raise ValueError(f"--peer={root} is EDM, which benchmarks/torch_peers.py runs")
    framework = "torch" if project == "torch" else "jax"
    if framework == "torch":
        checkouts.require("torch")
    with _names_of(root), _stand_ins(framework):
        for name in MODELS:
            if (root / "models" / f"{name}.py").is_file():
                importlib.import_module(f"models.{name}")
        find = importlib.import_module
        return Official(
            framework,
            find("sde_lib"),
            find("losses"),
            find("likelihood"),
            find("sampling"),
            find("models.utils"),
            find("models.ema") if framework == "torch" else None,
        )


def network(path: str | pathlib.Path, config: ml_collections.ConfigDict) -> Any:
    """The official network of `config`, one of ours: an `nn.Module` of PyTorch, or of Linen.

    PyTorch's is in evaluation mode and takes x [B, C, H, W]; Linen's takes `train=False`.

    Raises:
      ValueError: as `load`; or the config has an option that the official code does not.
    """
    peer = load(path)
    module = peer.mutils.get_model(config.model.name)(config=official_config(config))
    return module.eval() if peer.kind == "torch" else module


def sde(peer: Official, ours: sde_lib.SDE) -> Any:
    """The official SDE with the parameters of ours.

    Raises:
      ValueError: it has none like it.
    """
    names = {"VPSDE": "VPSDE", "SubVPSDE": "subVPSDE", "VESDE": "VESDE"}
    if type(ours).__name__ not in names:
        raise ValueError(f"the peer has no {type(ours).__name__}; it has {', '.join(names)}")
    return getattr(peer.sde_lib, names[type(ours).__name__])(**dataclasses.asdict(ours))


def official_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same settings as the official networks read them."""
    ours = {"num_labels": 0, "attn_num_groups": 0, "attn_each_up_block": False, "remat": False}
    for key, value in {**ours, "dtype": "float32"}.items():
        if config.model[key] != value:
            raise ValueError(f"model.{key}={config.model[key]!r} does not exist in the peer")
    translated = ml_collections.ConfigDict(config.to_dict())
    translated.data.channels = translated.data.num_channels
    return translated


def torch_weights(
    network: Any, module: nn.Module, params: Any, image_shape: official.Shape
) -> None:
    """Gives the official PyTorch `network` the parameters of our `module`."""
    import torch

    state = official.params_to_torch(module, params, image_shape)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"sigmas"}:
        raise ValueError(f"the peer's network differs: {missing}, {unexpected}")


def init_jax(network: nn.Module, key: jax.Array, image_shape: official.Shape) -> Any:
    """Initial parameters of an official Linen network."""
    x, labels = jnp.zeros((1, *image_shape)), jnp.ones((1,))
    return jax.jit(functools.partial(network.init, train=False))(key, x, labels)["params"]


class JaxStep(NamedTuple):
    """A training step around an official JAX network, as its code takes it.

    Attributes:
      loss: (params, key, images [B, H, W, C] in the network's range) -> the loss.
      init: (params, key) -> state.
      step: (state, images) -> (state, loss).
    """

    loss: Callable[..., jax.Array]
    init: Callable[..., Any]
    step: Callable[..., Any]


def jax_step(
    peer: Official, module: nn.Module, sde: Any, config: ml_collections.ConfigDict
) -> JaxStep:
    """The official loss and network; optax's Adam in the place of the optimiser of old Flax."""
    training, rate = config.training, config.model.ema_rate
    official_loss = peer.losses.get_sde_loss_fn(
        sde,
        module,
        train=True,
        reduce_mean=training.reduce_mean,
        continuous=True,
        likelihood_weighting=training.likelihood_weighting,
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.optim.grad_clip), optax.adam(config.optim.lr)
    )

    def loss(params: Any, key: jax.Array, images: jax.Array) -> jax.Array:
        return official_loss(key, params, {}, {"image": images})[0]

    def init(params: Any, key: jax.Array) -> Any:
        return params, optimizer.init(params), jax.tree.map(jnp.copy, params), key

    def step(state: Any, images: jax.Array) -> Any:
        params, moments, average, key = state
        key, now = jax.random.split(key)
        worth, grads = jax.value_and_grad(loss)(params, now, images)
        updates, moments = optimizer.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * p, average, params)
        return (params, moments, average, key), worth

    return JaxStep(loss, init, step)


def jax_weights(network: nn.Module, params: Any, image_shape: official.Shape) -> Any:
    """Our parameters in the shapes that the official Linen `network` gives them."""
    init = functools.partial(init_jax, network, image_shape=image_shape)
    expected = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda leaf, own: own.reshape(leaf.shape), dict(expected), dict(params))


@contextlib.contextmanager
def _names_of(root: pathlib.Path) -> Iterator[None]:
    """The checkout's top-level modules take the place of ours of the same names, for a while."""
    tops = {path.stem for path in root.iterdir()}

    def owned() -> dict[str, types.ModuleType]:
        return {k: module for k, module in sys.modules.items() if k.split(".")[0] in tops}

    ours = owned()
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    without_cache, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = without_cache
        sys.path.remove(str(root))
        for name in owned():
            del sys.modules[name]
        sys.modules.update(ours)


@contextlib.contextmanager
def _stand_ins(framework: str) -> Iterator[None]:
    """Stand-ins for modules and attributes that a peer imports and never uses, for a while."""
    if framework == "torch":
        compiler: Any = types.ModuleType("torch.utils.cpp_extension")
        compiler.load = lambda *args, **kwargs: None
        with _in_place(sys.modules, compiler.__name__, compiler):
            yield
        return
    import flax
    import flax.training.checkpoints  # which asks for TensorFlow itself

    optimisers = types.SimpleNamespace(Optimizer=object)
    tensorflow = types.ModuleType("tensorflow")
    with (
        _in_place(sys.modules, "tensorflow", tensorflow),
        _in_place(vars(flax), "optim", optimisers),
    ):
        yield


@contextlib.contextmanager
def _in_place(table: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """`table[name]` is `value` inside, and what it was before afterwards."""
    before = table.get(name)
    table[name] = value
    try:
        yield
    finally:
        del table[name]
        if before is not None:
            table[name] = before
