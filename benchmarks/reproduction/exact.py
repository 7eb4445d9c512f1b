r"""The exact score of a data set: what a network would learn that learned it by heart.

Of examples y_1..y_m, x_t = alpha y_k + sigma z has the mixture sum_k N(alpha y_k, sigma^2 I) / m
as its density, and

    score(x, t) = (alpha E[y | x] - x) / sigma^2,   E[y | x] = sum_k w_k y_k,
    w = softmax_k(-|x - alpha y_k|^2 / (2 sigma^2)).

A sampler that has this score errs by its own steps alone. What it does as a sampler with a trained
network does is the sampler's doing; what it does otherwise is the network's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

import sde_lib
from runtime import experiment
from sde_lib import batch_mul

Kind = TypeVar("Kind", bound=experiment.Parts)


def score(sde: sde_lib.SDE, examples: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The score [B, ...] of `examples` [m, ...] that have become x [B, ...] at times t [B]."""
    y, flat = examples.reshape(len(examples), -1), x.reshape(len(x), -1)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    # |x|^2 / (2 sigma^2), which all weights share, is left out.
    products = batch_mul(alpha, flat @ y.T) - 0.5 * jnp.square(alpha)[:, None] * (y * y).sum(-1)
    weights = jax.nn.softmax(batch_mul(jnp.square(1.0 / sigma), products))
    difference = batch_mul(alpha, weights @ y) - flat
    return batch_mul(jnp.square(1.0 / sigma), difference).reshape(x.shape)


def remade(kind: type[Kind], parts: experiment.Parts) -> Kind:
    """The same experiment with the score of another kind, whose further fields are its defaults."""
    return kind(**{field.name: getattr(parts, field.name) for field in dataclasses.fields(parts)})


@dataclasses.dataclass(frozen=True)
class ExactParts(experiment.Parts):
    """An experiment whose "parameters" are the examples themselves, in the network's range."""

    def score(
        self, params: Any, classes: jax.Array | None = None, given: jax.Array | None = None
    ) -> sde_lib.ScoreFn:
        """The exact score of the examples; of no class."""
        del classes, given
        return functools.partial(score, self.sde, params)

    @classmethod
    def of(cls, parts: experiment.Parts) -> ExactParts:
        """The same experiment with the exact score."""
        return remade(cls, parts)
