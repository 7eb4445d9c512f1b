"""One page, from weights to images and to bits per dimension, in plain calls.

    python -m docs.example runs/quickstart

reads the run that `make demo` leaves behind, writes `example.png` into its folder and prints the
likelihood of test images. Nothing here is a framework: every line is a function of an SDE, a score
function and random keys, and can be copied into a notebook. Any run on images serves.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import data
import likelihood
import sampling
import sde_lib
from data import transforms
from diffusion.noise import image_noise
from diffusion.probes import rademacher
from runtime import experiment, figures
from runtime.workdir import load_weights, stored_config


def load(
    workdir: pathlib.Path,
) -> tuple[ml_collections.ConfigDict, experiment.Parts, sde_lib.ScoreFn]:
    """A trained run: its config, what the config describes, and the score of its network."""
    # The config is plain data: which SDE, which network, which images.
    config = stored_config(workdir)

    # `parts.sde` says how an image becomes noise: dx = f(x, t) dt + g(t) dw, from t = 0 to t = T.
    # `parts.module` is a Flax network, of which the checkpoint has the averaged weights.
    parts = experiment.build(config)
    weights = load_weights(config, parts.module, parts.image_shape, workdir)
    print(f"{type(parts.sde).__name__}, step {weights.step}, {weights.label}")

    # The score, grad_x log p_t(x), is a function of images x [B, H, W, C] and times t [B]. All that
    # follows needs only this function, and would take any other: a closed form, your own network.
    return config, parts, parts.score(weights.params)


def keys_of_images(count: int, seed: int) -> jax.Array:
    """One random key for each image: image i stays the same, however many there are beside it."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(count))


def sample(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    score_fn: sde_lib.ScoreFn,
    count: int,
    steps: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """New images as grey levels, uint8 [count, H, W, C], by the paper's algorithm 1."""
    sde = dataclasses.replace(parts.sde, N=steps)

    @jax.jit
    def draw(keys: jax.Array) -> jax.Array:
        # Each of the N steps from T to 0 corrects (Langevin) and predicts (the reverse-time SDE).
        # `sampling.ode_sampler`, or the few steps of `diffusion.few_steps`, would do in its place.
        noise = image_noise(keys, parts.image_shape)
        images = sampling.pc_sampler(
            sde, score_fn, noise, predictor="reverse_diffusion", corrector="langevin"
        ).x
        # The network sees numbers in [-1, 1] or [0, 1]; pictures are made of integer levels.
        centered, dequantized = config.data.centered, config.data.uniform_dequantization
        return transforms.inverse_scale(images, parts.levels, centered, dequantized)

    return np.asarray(draw(keys_of_images(count, seed)))


def bits_per_dim(
    config: ml_collections.ConfigDict,
    parts: experiment.Parts,
    score_fn: sde_lib.ScoreFn,
    images: np.ndarray,
    seed: int = 0,
) -> np.ndarray:
    """Bits per dimension [B] of images [B, H, W, C], exact for the probability-flow ODE."""

    @jax.jit
    def compute(images: jax.Array, keys: jax.Array) -> jax.Array:
        # A density needs real numbers: noise of less than one level is added to the integers.
        noise_keys, probe_keys, _ = jax.vmap(lambda key: jax.random.split(key, 3), 0, 1)(keys)
        centered = config.data.centered
        x = transforms.uniform_dequantize(images, noise_keys, parts.levels, centered)
        # The ODE carries x to its latent; log p(x) is the latent's, plus what volumes changed by on
        # the way, the integral of a divergence, which random probes estimate.
        probes = rademacher(probe_keys, parts.image_shape)
        log_p = likelihood.log_likelihood(
            parts.sde, score_fn, x, probes, rtol=config.eval.bpd_rtol, atol=config.eval.bpd_atol
        ).logp
        scale = 2.0 if centered else 1.0
        return likelihood.bits_per_dim(log_p, parts.image_shape, parts.levels, scale)

    # These are the keys of `--mode=eval`, so the numbers are those in its bits_per_dim.npz.
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of_images(len(images), seed), 0)
    return np.asarray(compute(jnp.asarray(images), keys))


def main(workdir: pathlib.Path, num_samples: int = 64, num_images: int = 64) -> np.ndarray:
    """Draws `num_samples` images, and measures the first `num_images` of the test set."""
    config, parts, score_fn = load(workdir)

    samples = sample(config, parts, score_fn, num_samples)
    picture = workdir / "example.png"
    figures.save_grid(picture, np.asarray(transforms.to_display(samples, parts.levels)))
    print(f"{num_samples} samples are in {picture}")

    images, _ = data.from_config(config, "test").take(np.arange(num_images))
    bits = bits_per_dim(config, parts, score_fn, images)
    error = bits.std(ddof=1) / np.sqrt(num_images)
    print(f"bits/dim {bits.mean():.3f} ± {error:.3f} on {num_images} test images")
    return bits


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
