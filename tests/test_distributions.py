"""Samplers against exact draws of the data: moments and sliced Wasserstein distances.

Each statistic of a sampler's draws is compared with the same statistic of equally many exact ones,
drawn again and again: what a perfect sampler would get.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import controllable
import sampling
from diffusion import few_steps, grids
from diffusion.trajectory import Samples
from sde_lib import SDE, VPSDE
from tests import gaussians
from tests.test_sampling import normal_noise

COUNT = 2000
NULL_SETS = 24


def three_modes(shape: tuple[int, ...]) -> gaussians.Mixture:
    """Well separated parts of unequal weights and widths, in any number of dimensions."""
    rng = np.random.RandomState(1)
    means = np.stack([0.5 * rng.choice([-1, 1], shape) + 0.3 * k for k in (-2, 0, 2)])
    stds = rng.uniform(0.15, 0.5, (3, *shape))
    weights = jnp.asarray([0.5, 0.3, 0.2])
    return gaussians.Mixture(weights, *(jnp.asarray(v, jnp.float32) for v in (means, stds)))


def one_gaussian(shape: tuple[int, ...]) -> gaussians.Mixture:
    """Pixels of different means and deviations."""
    ramp = np.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)
    return gaussians.gaussian(0.5 * ramp, 0.2 + 0.4 * ramp**2, shape)


PART = 1  # of the mixture, which guidance is to bring forth


def part_of(mixture: gaussians.Mixture) -> gaussians.Mixture:
    """The part `PART` alone: what is drawn of its class."""
    return gaussians.Mixture(jnp.ones(1), mixture.means[PART, None], mixture.stds[PART, None])


DATA = {
    "gaussian-2": one_gaussian((2,)),
    "mixture-2": three_modes((2,)),
    "part-2": part_of(three_modes((2,))),
    "gaussian-64": one_gaussian((8, 8, 1)),
    "mixture-64": three_modes((8, 8, 1)),
}


def pc(predictor: str, corrector: str = "none", **options: Any) -> Callable[..., Any]:
    """Langevin's steps have the batch's size: in two dimensions the score of one image vanishes."""
    return functools.partial(
        sampling.pc_sampler,
        predictor=predictor,
        corrector=corrector,
        corrector_norm="batch",
        **options,
    )


def few(solver: Callable[..., Any], steps: int, **options: Any) -> Callable[..., Any]:
    def sampler(sde: SDE, score_fn: Any, noise: Any) -> Any:
        return solver(sde, score_fn, noise, grids.time_grid(sde, "log_snr", steps), **options)

    return sampler


def smld(sde: SDE, score_fn: Any, noise: Any) -> Samples:
    """50 steps of (0.35 sigma)^2 at each of 60 levels: Langevin dynamics must come to rest."""
    return sampling.annealed_langevin_dynamics(
        dataclasses.replace(sde, N=60), score_fn, noise, step_size=4.9e-5, n_steps_each=50
    )


SAMPLERS: dict[str, Callable[..., Any]] = {
    "ode": functools.partial(sampling.ode_sampler, rtol=1e-3, atol=1e-3),
    "euler_maruyama": pc("euler_maruyama"),
    "reverse_diffusion": pc("reverse_diffusion"),
    "ancestral_sampling": pc("ancestral_sampling"),
    "reverse_diffusion+langevin": pc("reverse_diffusion", "langevin", snr=0.05),
    "ddim_eta_1": few(few_steps.ddim, 500, eta=1.0),
    "dpmpp_2m_sde": few(few_steps.dpm_solver_pp, 60, stochastic=True),
    "edm_churn": few(few_steps.edm, 60, churn=10.0),
    "unipc_3": few(few_steps.unipc, 20),
    "smld": smld,
}


def sliced_wasserstein(x: jax.Array, y: jax.Array) -> jax.Array:
    """Root mean square of the Wasserstein-2 distances along 64 fixed directions."""
    directions = jax.random.normal(jax.random.key(9), (x.shape[1], 64))
    directions = directions / jnp.linalg.norm(directions, axis=0)
    gaps = jnp.sort(x @ directions, 0) - jnp.sort(y @ directions, 0)
    return jnp.sqrt(jnp.mean(jnp.square(gaps)))


@functools.partial(jax.jit, static_argnums=2)
def differences(x: jax.Array, y: jax.Array, data: str) -> jax.Array:
    """Errors of means, of second moments, of the mean log p of the data, sliced Wasserstein."""
    log_p = [DATA[data].log_prob(VPSDE(), v, jnp.zeros(len(v))).mean() for v in (x, y)]
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    means = jnp.linalg.norm(x.mean(0) - y.mean(0))
    seconds = jnp.linalg.norm(x.T @ x - y.T @ y) / len(x)
    return jnp.stack([means, seconds, jnp.abs(log_p[0] - log_p[1]), sliced_wasserstein(x, y)])


@functools.cache
def exact_draws(data: str) -> tuple[jax.Array, np.ndarray]:
    """A set of exact draws, and the differences of `NULL_SETS` other ones from it."""

    @jax.jit
    def draw() -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(5), NULL_SETS + 1)
        sets = jax.lax.map(lambda key: DATA[data].sample(key, COUNT), keys)
        return sets[0], jax.lax.map(lambda other: differences(other, sets[0], data), sets[1:])

    first, null = draw()
    return first, np.asarray(null)


def excess(x: Any, y: Any, data: str) -> float:
    """By how many standard deviations x and y differ more than two exact sets do on average.

    The largest of the `differences`. Deviations 1 % too large make the mean log p 0.01 D smaller:
    2 % are left to the finitely many steps of a sampler.
    """
    null = exact_draws(data)[1]
    allowed = null.mean(0) + np.array([0.0, 0.0, 0.02 * np.prod(x.shape[1:]), 0.0])
    return float(np.max((np.asarray(differences(x, y, data)) - allowed) / null.std(0, ddof=1)))


EVERY = [name for name in SAMPLERS if name != "smld"]


@pytest.mark.parametrize(
    ("kind", "data", "names", "steps"),
    [
        ("vp", "mixture-2", ["reverse_diffusion+langevin"], 200),
        pytest.param("vp", "mixture-2", ["ode", "dpmpp_2m_sde"], 200, marks=pytest.mark.slow),
        ("subvp", "mixture-2", ["ancestral_sampling"], 200),
        pytest.param("ve", "gaussian-64", ["dpmpp_2m_sde"], 200, marks=pytest.mark.slow),
        *(
            pytest.param(
                kind,
                data,
                EVERY + ["smld"] * (kind == "ve" and data.endswith("-2")),
                500,
                marks=pytest.mark.slow,
            )
            for kind in (*gaussians.SDES, *gaussians.FLOWS)
            for data in DATA
            if data != "part-2"
        ),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_samplers_draw_from_the_data(kind: str, data: str, names: list[str], steps: int) -> None:
    """Each sampler against exact draws, and against the first: the probability flow, if there.

    Their errors of finitely many steps are below what 2,000 draws show. (The corrector alone has
    the law of the data for infinitely many steps only: SMLD, which is that, gets 3,000.)
    """
    sde = dataclasses.replace((gaussians.SDES | gaussians.FLOWS)[kind], N=steps)
    score_fn = DATA[data].score_fn(sde)

    @jax.jit
    def draw() -> dict[str, Samples]:
        shape = DATA[data].means.shape[1:]
        noises = [normal_noise(COUNT, shape, seed) for seed in range(len(names))]
        return {
            name: SAMPLERS[name](sde, score_fn, noise)
            for name, noise in zip(names, noises, strict=True)
        }

    samples = draw()
    for name in names:
        assert samples[name].ok.all(), name
        assert excess(samples[name].x, exact_draws(data)[0], data) < 5, name
        if name != names[0]:
            assert excess(samples[name].x, samples[names[0]].x, data) < 5, name


def guided_to_the_part(sde: SDE) -> dict[str, Any]:
    """Scores that are all to be those of `PART` in the mixture, which is the class."""
    mixture = DATA["mixture-2"]

    def classifier(x: jax.Array, t: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, t: jax.nn.log_softmax(mixture._log_parts(sde, x, t)))(x, t)

    free, told = mixture.score_fn(sde), DATA["part-2"].score_fn(sde)

    def likelihood(x: jax.Array, t: jax.Array) -> jax.Array:
        return controllable.of_class(classifier, jnp.full(len(x), PART))(x, t)

    return {
        "classifier": controllable.guided(free, likelihood),
        "classifier_free": controllable.classifier_free(free, told, 1.0),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*gaussians.SDES, *gaussians.FLOWS])
def test_guidance_draws_from_the_class(kind: str) -> None:
    """By the exact classifier at scale 1, and classifier-free with exact scores."""
    names = ["euler_maruyama", "reverse_diffusion+langevin", "unipc_3", "dpmpp_2m_sde"]
    samplers = {name: SAMPLERS[name] for name in names}
    samplers["ode"] = functools.partial(sampling.ode_sampler, rtol=1e-4, atol=1e-4)
    sde = dataclasses.replace((gaussians.SDES | gaussians.FLOWS)[kind], N=500)

    @jax.jit
    def draw() -> dict[tuple[str, str], Samples]:
        return {
            (name, guide): sampler(sde, score, normal_noise(COUNT, (2,), 1))
            for name, sampler in samplers.items()
            for guide, score in guided_to_the_part(sde).items()
        }

    exact = exact_draws("part-2")[0]
    for case, samples in draw().items():
        assert samples.ok.all(), case
        assert excess(samples.x, exact, "part-2") < 5, case
    assert excess(exact_draws("mixture-2")[0], exact, "part-2") > 50, "the class matters"


def test_the_distances_tell_wrong_data_apart() -> None:
    """Without this power the tests above would say little."""
    data = "mixture-2"
    exact, mixture = np.asarray(exact_draws(data)[0]), DATA[data]
    wrong = [
        mixture._replace(stds=1.25 * mixture.stds),
        mixture._replace(weights=jnp.asarray([0.2, 0.3, 0.5])),
        gaussians.gaussian(exact.mean(0), exact.std(0), (2,)),
    ]
    sample = jax.jit(lambda mixture, key: mixture.sample(key, COUNT))
    for other in wrong:
        draws = sample(other, jax.random.key(3))
        assert excess(draws, exact, data) > 5
