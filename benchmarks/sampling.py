"""Cost of sampling and of likelihoods, in units of the network's own cost; all ratios in one run.

    python benchmarks/sampling.py [--config=configs/quickstart.py] [--batch=32] [--steps=50]

Prints the wall time of the predictor-corrector sampler, the ODE and solvers with few steps over
(evaluations x one jitted network call), and the cost of drift and divergence from one
Jacobian-vector product against two separate evaluations. Errors: see `benchmarks/solvers.py`.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

import models
import sampling
import sde_lib
from diffusion import few_steps, grids, ode
from diffusion.noise import image_noise
from interop import convert


def fastest(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that compiles."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return min(times)


def time_samplers(score_fn: Any, sde: Any, shape: tuple, batch: int, steps: int) -> None:
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(batch))
    noise = image_noise(keys, shape)
    x, t = noise(0), jnp.full(batch, 0.5)
    call = jax.jit(score_fn)
    times = grids.time_grid(sde, "log_snr", steps)
    runs: dict[str, Callable[..., Any]] = {
        "pc, reverse diffusion": functools.partial(sampling.pc_sampler, corrector="none"),
        "pc, with Langevin": sampling.pc_sampler,
        "ode, Tsit5, 1e-3": functools.partial(sampling.ode_sampler, rtol=1e-3, atol=1e-3),
        "dpmpp_2m": functools.partial(few_steps.dpm_solver_pp, times=times, denoise=False),
        "unipc_3": functools.partial(few_steps.unipc, times=times, denoise=False),
        "edm": functools.partial(few_steps.edm, times=times, denoise=False),
    }
    print(f"{'sampler':24}{'NFE':>6}{'seconds':>10}{'over NFE x network':>20}")
    for name, run in runs.items():
        sampler = jax.jit(functools.partial(run, sde, score_fn, noise))
        nfe = int(np.max(sampler().nfe))
        network = fastest(lambda: call(x, t), 5)
        seconds = fastest(sampler, 2)
        network = min(network, fastest(lambda: call(x, t), 5))
        print(f"{name:24}{nfe:6}{seconds:10.3f}{seconds / nfe / network:20.3f}")


def time_divergence(score_fn: Any, sde: Any, shape: tuple, batch: int) -> None:
    x, v = (jax.random.normal(jax.random.key(k), (batch, *shape)) for k in (0, 1))
    t = jnp.full(batch, 0.5)
    flow = jax.vmap(ode.probability_flow(sde, score_fn))

    def drift(x: jax.Array) -> jax.Array:
        return flow(t, x)

    def summed(out: jax.Array) -> jax.Array:
        return jnp.sum(v * out, axis=tuple(range(1, x.ndim)))

    field = jax.jit(drift)
    backward = jax.jit(lambda x: summed(jax.grad(lambda x: jnp.sum(v * drift(x)))(x)))

    @jax.jit
    def fused(x: jax.Array) -> Any:
        out, product = jax.jvp(drift, (x,), (v,))
        return out, summed(product)

    separate = fastest(lambda: (field(x), backward(x)), 5)
    together = fastest(lambda: fused(x), 5)
    print(f"drift and divergence: separately {separate:.4f} s, one jvp {together:.4f} s, ", end="")
    print(f"ratio {together / separate:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs" / "quickstart.py")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    config = convert.load_config(args.config)
    config.model.num_scales = args.steps
    sde = sde_lib.from_config(config)
    module = models.from_config(config)
    size = config.data.image_size
    shape = (size, size, config.data.num_channels)
    params = models.init(module, jax.random.key(0), shape)

    def network(x: jax.Array, labels: jax.Array) -> Any:
        return module.apply({"params": params}, x, labels)

    score_fn = models.score_fn(sde, network, continuous=True)
    time_samplers(score_fn, sde, shape, args.batch, args.steps)
    time_divergence(score_fn, sde, shape, args.batch)


if __name__ == "__main__":
    main()
