"""The picture that ends training on points of the plane: data, score, samples, density."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
import likelihood
import models
import sampling
from diffusion import times
from generation import examples, point_figures
from generation.generator import Generator
from runtime import devices, experiment, files
from runtime.workdir import restore

SHADES = 128  # cells of the data's density, and
CELLS = 64  # of the model's, along each side
ARROWS = 20  # along each side
NOISE = 0.2  # relative to the data, at which the score is shown


def draw(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Draws `<workdir>/field.png`, if the data are points of the plane and training is over.

    Its panels are the data; the learned score as arrows, their lengths the square root of its norm,
    over the density of the data with as much noise; samples of the config's sampler; and the
    density that the probability flow gives. A network that knows certain noise levels only has
    none: then the panel is a histogram of the samples, blurred.

    Raises:
      ValueError: samples or likelihoods that failed.
    """
    if data.grey_levels(config.data.dataset) or config.data.shape:
        return
    if experiment.image_shape(config) != (1, 1, 2) or not models.has_score(config):
        return
    parts = experiment.build(config)
    trained = restore(config, parts, workdir)
    if trained.step < config.training.n_iters:
        return
    points = parts.dataset("train").images.reshape(-1, 2)
    half = point_figures.half_width(points)
    t, noise = shown_noise(config, parts)
    places = point_figures.cells(half, ARROWS)
    samples = sample_points(config, parts, trained.params)
    if config.training.continuous and config.training.time != "fixed":
        density, title = model_density(config, parts, trained.params, half), "density of the model"
    else:
        density = point_figures.histogram(samples, half, CELLS, blur=half / 25)
        title = "density of the samples"
    score = learned_score(config, parts, trained.params, places, t)
    if not devices.is_primary():
        return
    alpha = float(parts.sde.alpha(jnp.full((1,), t))[0])
    noisy = point_figures.histogram(alpha * points, half, SHADES, blur=alpha * noise)
    count = min(len(points), len(samples))
    field = point_figures.Field(
        data=points[:count],
        noisy_density=noisy,
        places=places,
        score=score,
        score_title=f"learned score, noise {noise:.2g}",
        samples=samples,
        density=density,
        density_title=title,
        half=half,
    )
    with files.whole(workdir / "field.png") as path:
        point_figures.save_field(path, field)
    print(f"data, score, samples and density are in {workdir / 'field.png'}")


def shown_noise(config: ml_collections.ConfigDict, parts: experiment.Parts) -> tuple[float, float]:
    """The time at which the score is shown, and sigma / alpha then.

    It is `NOISE`, or what is nearest to it among the levels that the network was trained at.
    """
    fixed = config.training.time == "fixed"
    t = times.time_of_noise(parts.sde, config.training.sigma if fixed else NOISE)[None]
    if not config.training.continuous:
        last = parts.sde.N - 1
        t = jnp.round(t / parts.sde.T * last) / last * parts.sde.T
    return float(t[0]), float(jnp.exp(-0.5 * parts.sde.log_snr(t))[0])


def sample_points(
    config: ml_collections.ConfigDict, parts: experiment.Parts, params: Any
) -> np.ndarray:
    """`sampling.num_samples` samples of the config's sampler, [n, 2]."""
    sampler = sampling.from_config(config, devices.AXIS)
    batches = Generator(parts, sampler, config.sampling)(
        params, np.arange(config.sampling.num_samples)
    )
    return np.concatenate([examples.Points.plane(batch["image"]) for _, batch in batches])


def learned_score(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    params: Any,
    places: np.ndarray,
    t: float,
) -> np.ndarray:
    """The score [A, 2] at places [A, 2] and time t."""

    def score(params: Any, indices: jax.Array, x: jax.Array) -> jax.Array:
        del indices
        return parts.score(params)(x, jnp.full(len(x), t))

    return on_points(score, params, places, "")


def model_density(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    params: Any,
    half: float,
    description: str = "density",
) -> np.ndarray:
    """The density on the cells of [-half, half]^2, [CELLS, CELLS], by exact likelihood.

    A progress bar is shown if it has a `description`.
    """
    compute = likelihood.from_config(config)

    def logp(params: Any, indices: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = devices.image_keys(jax.random.key(config.eval.seed), indices)
        score_fn = parts.score(params)
        likelihoods = compute(parts.sde, score_fn, x, keys)
        return likelihoods.logp, likelihoods.ok

    values, ok = on_points(logp, params, point_figures.cells(half, CELLS), description)
    # Where the solver gives up there is no density to speak of.
    return np.where(ok, np.exp(values), 0.0).reshape(CELLS, CELLS)


def on_points(function: Any, params: Any, places: np.ndarray, description: str) -> Any:
    """`function(params, indices, x [b, 1, 1, 2])` at all places [n, 2], shared by the devices."""
    x = places.astype(np.float32)[:, None, None]
    run = devices.ImageMap(function, devices.fitting_batch(min(len(x), 1024)), "places")
    results = [result for _, result in run(params, np.arange(len(x)), x, description)]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)
    return jax.tree.map(np.squeeze, joined)
