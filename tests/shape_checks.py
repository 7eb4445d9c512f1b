"""Every public function of the mathematics traced once with its shapes and types checked.

    python -m tests.shape_checks vp ve subvp    # the processes to trace them for

jaxtyping's import hook checks the annotations of CHECKED by beartype. Tracing is enough for that:
nothing is compiled. `tests/test_shapes.py` runs this in a process of its own, before whose imports
the hook is installed.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from jaxtyping import TypeCheckError, install_import_hook

from tests import numeric_tower

CHECKED = [
    *("controllable", "diffusion", "likelihood", "losses", "models.guide_losses", "models.score"),
    *("sampling", "sde_lib"),
]

with install_import_hook(CHECKED, f"{numeric_tower.__name__}.typechecker"):
    import controllable
    import likelihood
    import losses
    import sampling
    from diffusion import flow_maps, grids, inverse, langevin, latent, times, trajectory

import jax
import jax.numpy as jnp
import numpy as np

from configs import schema
from diffusion.noise import image_noise, recorded_noise
from sde_lib import SDE
from tests import gaussians

SHAPE = (2, 2, 3)
BATCH = 2
KEYS = jax.random.split(jax.random.key(0), BATCH)
IMAGES = jnp.ones((BATCH, *SHAPE))


def traced(function: Any, *args: Any, **options: Any) -> Any:
    """The shapes of what `function` returns."""
    return jax.eval_shape(lambda: tuple(jax.tree.leaves(function(*args, **options))))


def check_samplers(sde: SDE, score_fn: Any) -> None:
    """Every sampler by config, with frames and without, by images' own noise and a recorded one."""
    noise = image_noise(KEYS, SHAPE)
    for method in sampling.SAMPLERS.keys() - flow_maps.ASKERS:
        config = schema.base()
        settings = {"predictor": "reverse_diffusion", "corrector": "langevin", "num_frames": 3}
        solver = "ShARK" if method == "sde" else "Tsit5"
        config.sampling.update(settings | {"method": method, "num_steps": 30, "solver": solver})
        x, *_ = traced(sampling.from_config(config), sde, score_fn, noise)
        assert x.shape == IMAGES.shape, method
    z = np.zeros((40, *IMAGES.shape), np.float32)
    for predictor in sampling.PREDICTORS:
        for corrector in sampling.CORRECTORS:
            if (predictor, corrector) != ("none", "none"):
                options = {"predictor": predictor, "corrector": corrector}
                traced(sampling.pc_sampler, sde, score_fn, recorded_noise(z), **options)


def check_control(sde: SDE, score_fn: Any) -> None:
    """Guidance, in-filling, inverse problems and latents."""
    noise, grid = image_noise(KEYS, SHAPE), grids.time_grid(sde, "log_snr", 3)
    t = jnp.full(BATCH, 0.5)
    for constraint in (
        controllable.in_painting(IMAGES, np.ones((2, 2, 1))),
        controllable.colourisation(IMAGES),
        inverse.constraint_of(inverse.average_pool(2), jnp.ones((BATCH, 1, 1, 3)), SHAPE),
    ):
        traced(controllable.pc_infill, sde, score_fn, noise, constraint)
        traced(controllable.repaint, sde, score_fn, noise, grid, constraint, repeats=2)
        traced(controllable.infilled(sde, score_fn, constraint), IMAGES, t)
    scale = controllable.within(0.2, 0.6, 2.0, 0.0)
    likelihood = controllable.of_class(lambda x, t: jnp.zeros((len(x), 4)), jnp.array([0, 3]))
    traced(controllable.guided(score_fn, likelihood, scale), IMAGES, t)
    traced(controllable.classifier_free(score_fn, score_fn, 2), IMAGES, t)
    operator, y = inverse.average_pool(2), jnp.ones((BATCH, 1, 1, 3))
    traced(inverse.dps, sde, score_fn, noise, grid, operator, y)
    traced(inverse.posterior_guided(sde, score_fn, operator, y, noise_std=0), IMAGES, t)
    traced(latent.sdedit, sde, score_fn, noise, IMAGES, latent.times_from(grid, 0.5 * sde.T))
    traced(latent.slerp, IMAGES, IMAGES, t)
    traced(latent.direction, IMAGES, np.array([1, 0]))
    traced(jax.vmap(functools.partial(trajectory.denoised, sde, score_fn)), IMAGES[None], t[:1])
    for draws in times.TIME_DRAWS.values():
        traced(draws, jax.random.key(0), jnp.arange(BATCH), BATCH)


def check_objectives(sde: SDE, score_fn: Any) -> None:
    """Every objective by config, under every weighting and distribution of times."""
    points = jnp.ones((5, *SHAPE))
    u = jnp.array([0.1, 0.7])
    for objective in losses.OBJECTIVES:
        config = schema.base()
        config.data.update(image_size=2, num_channels=3)
        config.training.update(objective=objective, num_directions=2)
        config.model.prediction = "score"
        loss = losses.from_config(config, sde, points=points)
        per_image, terms = traced_loss(loss, score_fn, u)
        assert per_image.shape == terms["noise_mse"].shape == (BATCH,), objective
    for weighting in losses.WEIGHTINGS:
        traced(losses.weight, sde, u, weighting)


def traced_loss(loss: Any, score_fn: Any, u: Any) -> Any:
    """The shapes of a loss and of its parts."""
    return jax.eval_shape(lambda: loss(score_fn, IMAGES, KEYS, u))


def check_likelihoods(sde: SDE, score_fn: Any) -> None:
    """Likelihood and bound by config, with every probe, and the way to the latents and back."""
    for probe in ("rademacher", "gaussian", "exact"):
        config = schema.base()
        config.eval.update(bpd_probe=probe, bpd_bound_draws=3)
        traced(likelihood.from_config(config), sde, score_fn, IMAGES, KEYS)
    traced(likelihood.bound_from_config(config), sde, score_fn, IMAGES, KEYS)
    traced(likelihood.bits_per_dim, jnp.zeros(BATCH), SHAPE, 256, 2.0)
    traced(likelihood.decode, sde, score_fn, likelihood.encode(sde, score_fn, IMAGES).y)


def check_refusals(sde: SDE, score_fn: Any) -> None:
    """Shapes that do not fit are refused, where broadcasting would have hidden them."""
    for call in (
        lambda: sampling.euler_maruyama(sde, score_fn, IMAGES, jnp.ones(1), IMAGES),
        lambda: langevin.annealed_langevin(0.1)(sde, score_fn, IMAGES, jnp.ones(2), IMAGES),
        lambda: latent.slerp(IMAGES, IMAGES[:1], jnp.ones(2)),
        lambda: losses.dsm(sde, score_fn, IMAGES, jnp.ones(1), IMAGES),
        lambda: sde.marginal_prob(IMAGES, jnp.ones(3)),
    ):
        try:
            traced(call)
        except TypeCheckError:
            continue
        raise AssertionError("a shape that does not fit was taken")


if __name__ == "__main__":
    for kind in sys.argv[1:]:
        process = gaussians.SDES[kind]
        exact_score = gaussians.linear_score(process, 0.3, 0.5)
        check_samplers(process, exact_score)
        check_control(process, exact_score)
        check_objectives(process, exact_score)
        check_likelihoods(process, exact_score)
        check_refusals(process, exact_score)
    print("checked")
