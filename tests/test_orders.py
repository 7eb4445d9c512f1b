"""Strong and weak orders of the stochastic samplers, the weak ones without Monte Carlo."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from diffusion import few_steps
from diffusion.noise import recorded_noise
from sde_lib import SDE
from tests import gaussians
from tests.test_sampling import MEAN, STD

PREDICTORS = ("ancestral_sampling", "euler_maruyama", "reverse_diffusion")
END = {"vp": 1 / 8, "subvp": 1 / 8, "ve": 1 / 2}  # where data and noise are of one size


def only(*default: str) -> list[Any]:
    """Every kind of SDE; those that are not named are slow tests."""
    return [
        pytest.param(kind, marks=[] if kind in default else pytest.mark.slow)
        for kind in gaussians.SDES
    ]


def states(sde: SDE, score_fn: Any, end: float, draws: jax.Array) -> dict[str, jax.Array]:
    """x at time `end` by every sampler of the reverse SDE, with one draw for each of N equal steps.

    `draws` [N + 1, B, ...] are the prior's and the increments of the Brownian motion over sqrt(dt).
    """
    steps = len(draws) - 1
    noise = recorded_noise(draws)
    pc = functools.partial(
        sampling.pc_sampler,
        dataclasses.replace(sde, N=steps),
        score_fn,
        noise,
        corrector="none",
        eps=1 / steps,
        num_frames=steps + 1,
    )
    done = round(steps * (1 - end))
    runs = {name: pc(predictor=name).trajectory for name in PREDICTORS}
    found = {name: frames[done] for name, frames in runs.items() if frames is not None}
    few = (sde, score_fn, noise, np.linspace(1.0, end, done + 1))
    found["ddim_eta_1"] = few_steps.ddim(*few, eta=1.0, denoise=False).x
    found["dpmpp_2m_sde"] = few_steps.dpm_solver_pp(*few, stochastic=True, denoise=False).x
    return found


@pytest.mark.parametrize("kind", only("vp"))
def test_samplers_follow_one_brownian_path_at_strong_order_one(kind: str) -> None:
    """All solve the same SDE: on finer grids they approach one solution for one Brownian path.

    Its noise does not depend on x, hence order 1 (Kloeden and Platen 1992, section 10.3), here of
    the root mean square over paths, against DPM-Solver++ with 16 times the steps. A draw of a
    coarse grid is the sum of those of the fine one, over the root of their number.
    """
    sde, end, paths = gaussians.SDES[kind], END[kind], 32
    with jax.enable_x64(True):
        mixture = gaussians.Mixture(*(jnp.asarray(v, float) for v in gaussians.two_modes((2,))))
        score_fn = mixture.score_fn(sde)
        fine = np.random.RandomState(0).normal(size=(2049, paths, 2))
        times = np.linspace(1.0, end, round(2048 * (1 - end)) + 1)
        noise = recorded_noise(jnp.asarray(fine))
        exact = jax.jit(
            lambda: (
                few_steps.dpm_solver_pp(
                    sde, score_fn, noise, times, stochastic=True, denoise=False
                ).x
            )
        )()

        def errors(steps: int) -> dict[str, float]:
            sums = fine[1:].reshape(steps, -1, paths, 2).sum(1) * (steps / 2048) ** 0.5
            draws = jnp.asarray(np.concatenate([fine[:1], sums]))
            found = jax.jit(functools.partial(states, sde, score_fn, end))(draws)
            return {name: float(jnp.sqrt(jnp.mean((x - exact) ** 2))) for name, x in found.items()}

        coarse, half = errors(128), errors(256)
    for name in coarse:
        order = np.log2(coarse[name] / half[name])
        if name == "dpmpp_2m_sde":  # its error of order 1 is small beside that of order 2
            assert 0.8 < order < 2.2, (name, order)
        else:
            assert abs(order - 1.0) < 0.2, (name, order)


@pytest.mark.parametrize("kind", only("subvp", "ve"))
def test_samplers_have_their_weak_order(kind: str) -> None:
    """On Gaussian data a sampler is affine in its draws, so its moments need no sampling.

    Image i has draw i equal to 1 and all others 0, the last image none: their distances are the
    coefficients of the draws, and the variance of a sample is the sum of their squares.
    """
    sde = gaussians.SDES[kind]
    end = jnp.full(1, END[kind])
    exact = jnp.sqrt(sde.alpha(end) ** 2 * STD**2 + sde.sigma(end) ** 2)[0]

    def errors(steps: int) -> dict[str, float]:
        draws = jnp.asarray(np.eye(steps + 1, steps + 2)[:, :, None], jnp.float32)
        score_fn = gaussians.linear_score(sde, MEAN, STD)
        run = jax.jit(functools.partial(states, sde, score_fn, END[kind]))
        found = {}
        for name, state in run(draws).items():
            x = np.asarray(state, np.float64).ravel()
            found[name] = float(np.sqrt(np.sum((x[:-1] - x[-1]) ** 2)) / exact - 1)
        return found

    coarse, fine = errors(128), errors(256)
    for name in coarse:
        order = np.log2(abs(coarse[name] / fine[name]))
        assert abs(order - (2.0 if name == "dpmpp_2m_sde" else 1.0)) < 0.2, (name, order)
