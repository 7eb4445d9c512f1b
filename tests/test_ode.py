"""Fixed steps of the flow; adaptive ones are tested with the samplers and the likelihood."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import ode
from sde_lib import RectifiedSDE
from tests import gaussians


def test_heun_steps_follow_a_known_flow_at_order_two() -> None:
    """Gaussian data, whose flow is a rescaling, on steps of different lengths; and one line."""
    sde, eps = RectifiedSDE(), 0.02
    reverse = sde.reverse(gaussians.linear_score(sde, 0.3, 0.5), probability_flow=True)
    z = jnp.linspace(-1.5, 1.5, 6)[:, None]
    end = gaussians.flow_map(sde, 0.3, 0.5, z, sde.T, eps)

    def velocity(t: Any, x: jax.Array) -> Any:
        return reverse.drift(x, jnp.full(len(x), t))

    @jax.jit
    def errors() -> jax.Array:
        found = []
        for steps in (20, 40):
            times = sde.T + np.linspace(0.0, 1.0, steps + 1) ** 1.2 * (eps - sde.T)
            found.append(jnp.abs(ode.heun_steps(velocity, z, times) - end).max())
        return jnp.stack(found)

    coarse, fine = errors()
    assert coarse < 5e-3
    assert abs(np.log2(coarse / fine) - 2.0) < 0.3

    def growing(t: Any, x: jax.Array) -> Any:
        return jnp.full_like(x, 2.0 * t)

    line = ode.heun_steps(growing, z, np.array([1.0, 0.25, 0.0]))
    np.testing.assert_allclose(line, z - 1.0, rtol=1e-6)
