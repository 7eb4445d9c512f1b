"""DDPM's chain as an SDE whose levels are those of its table, for comparisons with other code."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array

import sde_lib


@dataclasses.dataclass(frozen=True)
class Chain(sde_lib.SDE):
    """alpha and sigma at the time k / (N - 1) are those of step k, at all others the nearest's."""

    forward: sde_lib.BetaSDE = dataclasses.field(default_factory=sde_lib.VPSDE)

    @property
    def prior_std(self) -> float:
        return 1.0

    def _log_alphas(self) -> np.ndarray:
        return 0.5 * np.cumsum(np.log1p(-self.forward.step_betas()))

    def _at(self, table: np.ndarray, t: Array) -> Array:
        return jnp.asarray(table, jnp.float32)[jnp.rint(t * (self.N - 1)).astype(jnp.int32)]

    def log_alpha(self, t: Array) -> Array:
        return self._at(self._log_alphas(), t)

    def sigma(self, t: Array) -> Array:
        return self._at(np.sqrt(-np.expm1(2.0 * self._log_alphas())), t)

    def times(self, steps: np.ndarray) -> np.ndarray:
        """The times of steps of the chain."""
        return np.asarray(steps, np.float64) / (self.N - 1)


def chain_of(sde: sde_lib.SDE) -> Chain:
    """The chain of an SDE that has one."""
    assert isinstance(sde, sde_lib.BetaSDE)
    return Chain(N=sde.N, forward=sde)
