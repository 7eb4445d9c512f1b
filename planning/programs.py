"""The programs of a config on shapes alone: a training step, an evaluation of the score, and one of
score and divergence. Nothing is drawn, opened or run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec

import models
import sampling
from diffusion import ode
from diffusion.flow_maps import FlowMap
from diffusion.noise import image_noise
from diffusion.probes import PROBES
from likelihood import drift_and_divergence
from runtime import devices, experiment
from training import layout
from training.abstract import abstract_step
from training.state import TrainState

Tree = Any
EVERYWHERE, BATCH = PartitionSpec(), PartitionSpec(devices.AXIS)
STEPS = PartitionSpec(None, devices.AXIS)

# Evaluations of an adaptive solver, which only the weights decide: sampling by the probability flow
# of CIFAR-10 at tolerance 1e-5; likelihoods, by relative tolerance, as measured with digits.
FLOW_EVALUATIONS = 140
LIKELIHOOD_EVALUATIONS = {1e-5: 360, 1e-4: 132, 1e-3: 72, 1e-2: 54}


class Program(NamedTuple):
    """A function that all chips run on their shares of the images.

    Attributes:
      function: of arrays of one chip, written against the axis `devices.AXIS`.
      arguments: the shapes over all chips.
      split: how each argument, and `results`, how the results are shared between the chips: a
        `PartitionSpec`, or a tree of them.
      images: over all chips.
      donated: the numbers of the arguments that the results replace.
      times: how often it runs for a batch of results.
      assumed: True if that is a guess.
      loop: how often the loop runs that most of it lies in, and whose inside XLA's analyses count
        once; 1: there is none.
      without_loop: the same without that loop.
    """

    function: Callable[..., Any]
    arguments: tuple[Tree, ...]
    split: tuple[Tree, ...]
    results: Any
    images: int
    donated: tuple[int, ...] = ()
    times: int = 1
    assumed: bool = False
    loop: int = 1
    without_loop: Program | None = None

    def share(self, chips: int) -> tuple[Tree, ...]:
        """The arguments of one chip."""

        def one(leaf: Any, spec: PartitionSpec) -> Any:
            sides = list(leaf.shape)
            for axis, name in enumerate(spec):
                if name is not None:
                    sides[axis] //= chips
            return jax.ShapeDtypeStruct(tuple(sides), leaf.dtype)

        return self.with_split(one)

    def with_split(self, function: Callable[[Any, PartitionSpec], Any]) -> tuple[Tree, ...]:
        """What `function` makes of each leaf of the arguments and of how it is shared."""
        return jax.tree.map(
            lambda spec, tree: jax.tree.map(lambda leaf: function(leaf, spec), tree),
            self.split,
            self.arguments,
            is_leaf=lambda node: isinstance(node, PartitionSpec),
        )


def training(config: ml_collections.ConfigDict, images: int, chips: int) -> Program:
    """One optimiser step of so many images, over all chips."""
    step, state, batches = abstract_step(config, images)
    split: Tree = EVERYWHERE
    if config.training.shard_state:
        state, split = _in_slices(state, chips)
    program = Program(step, (state, batches), (split, STEPS), (split, EVERYWHERE), images, (0,))
    parts = config.training.accumulation
    if parts == 1:
        return program
    whole = training(_without_accumulation(config), images, chips)
    return program._replace(loop=parts, without_loop=whole)


def _in_slices(state: TrainState, chips: int) -> tuple[TrainState, TrainState]:
    """The shapes of a state whose moments and averages lie in slices, and how it is shared."""
    sliced = layout.Sliced(state.params)

    def vector(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((layout.filled_up(leaf.size, chips),), leaf.dtype)

    shapes = {
        name: sliced.each(
            functools.partial(jax.tree.map, vector), getattr(state, name), lambda x: x
        )
        for name in layout.HELD
    }
    split: dict[str, Any] = {
        name: sliced.each(lambda tree: BATCH, getattr(state, name), lambda leaf: EVERYWHERE)
        for name in layout.HELD
    }
    fields: dict[str, Any] = dict.fromkeys(vars(state), EVERYWHERE)
    return state.replace(**shapes), TrainState(**{**fields, **split})


def _without_accumulation(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same step without the loop over parts of a batch."""
    config = copy.deepcopy(config)
    config.training.accumulation = 1
    return config


def score(config: ml_collections.ConfigDict, images: int) -> Program:
    """An evaluation of the network, and how many of them the config's sampler takes.

    Raises:
      ValueError: a run that draws no samples.
    """
    parts = experiment.build(config)
    parts.require_samples()
    sampler = sampling.from_config(config)
    counts: list[Any] = []
    anything = FlowMap(lambda x, t: -x, lambda x, t, s: -x)  # as a score, too

    def draw(seed: jax.Array) -> jax.Array:
        noise = image_noise(jax.random.split(jax.random.key(seed), 1), parts.image_shape)
        samples = sampler(parts.sde, anything, noise)
        counts.append(samples.nfe)
        return samples.x

    jax.eval_shape(draw, jax.ShapeDtypeStruct((), jnp.uint32))
    fixed = isinstance(counts[-1], int)
    return Program(
        lambda params, x, t: parts.for_samplers(params)(x, t),
        (weights(parts), *_states(parts, images)),
        (EVERYWHERE, BATCH, BATCH),
        BATCH,
        images,
        times=counts[-1] if fixed else FLOW_EVALUATIONS,
        assumed=not fixed,
    )


def likelihood(config: ml_collections.ConfigDict, images: int) -> Program:
    """An evaluation of the probability flow and its divergence, and how many a likelihood takes.

    Raises:
      ValueError: a run without a score.
    """
    parts, options = experiment.build(config), config.eval
    parts.require_score()
    probe, number = PROBES[options.bpd_probe], options.bpd_num_probes
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), images))
    probes = jax.eval_shape(lambda keys: probe(keys, parts.image_shape, number), keys)

    def evaluate(params: Tree, x: jax.Array, t: jax.Array, probes: jax.Array) -> Any:
        flow = ode.probability_flow(parts.sde, parts.score(params))
        one = functools.partial(drift_and_divergence, flow)
        return jax.vmap(one, in_axes=(0, 0, 1))(t, x, probes)

    measured = [tolerance for tolerance in LIKELIHOOD_EVALUATIONS if tolerance <= options.bpd_rtol]
    return Program(
        evaluate,
        (weights(parts), *_states(parts, images), probes),
        (EVERYWHERE, BATCH, BATCH, STEPS),
        BATCH,
        images,
        times=LIKELIHOOD_EVALUATIONS[max(measured, default=1e-5)] * options.bpd_num_repeats,
        assumed=True,
    )


def weights(parts: experiment.Parts) -> Tree:
    """Shapes of the network's parameters."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: models.init(parts.module, key, parts.image_shape), key)


def _states(parts: experiment.Parts, images: int) -> tuple[Any, Any]:
    """Shapes of noisy images and their times."""
    x = jax.ShapeDtypeStruct((images, *parts.image_shape), jnp.float32)
    return x, jax.ShapeDtypeStruct((images,), jnp.float32)
