"""The task "reward": images by how high a function of them is, whatever it is.

A reward is a function of images [B, H, W, C] in [0, 1] (an estimate of one may be a little beyond)
to numbers [B], that of an image by this image alone; built in (`REWARDS`) or the user's own.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs.names import lookup
from control.prior import Options, Prior
from control.problem import Condition, Draw, Problem, ScoreOf, variant_numbers
from diffusion import feynman_kac, guidance
from diffusion.feynman_kac import Reward
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples
from runtime import errors, user_function

Method = Callable[[Prior, Options, Reward], Draw]


def brightness(images: jax.Array) -> jax.Array:
    """The mean of all pixels."""
    return jnp.mean(images, axis=(1, 2, 3))


def redness(images: jax.Array) -> jax.Array:
    """The mean of red, less that of green and blue."""
    return jnp.mean(images[..., 0] - 0.5 * (images[..., 1] + images[..., 2]), axis=(1, 2))


def symmetry(images: jax.Array) -> jax.Array:
    """The mean difference of an image to its mirror image, negative."""
    return -jnp.mean(jnp.abs(images - images[:, :, ::-1]), axis=(1, 2, 3))


REWARDS: dict[str, Reward] = {"brightness": brightness, "redness": redness, "symmetry": symmetry}


def images_of_reward(prior: Prior, options: Options, method: Method) -> Problem:
    """Images of p(x_0) exp(scale reward(x_0)), the reward in `control.reward`.

    Raises:
      ValueError: no such reward, or one that cannot be asked of these images.
    """
    reward, sources = reward_of(options.reward, prior)
    of_images = in_range_of(prior, reward)
    return Problem(
        method(prior, options, lambda x: options.scale * of_images(x)),
        {"input": np.zeros(1, np.int32)},
        variant_numbers(options.num_variants),
        reward=of_images,
        sources=sources,
    )


def in_range_of(prior: Prior, reward: Reward) -> Reward:
    """The reward as a function of images in the network's own range."""
    if not prior.pixels.centered:
        return reward
    return lambda x: reward(0.5 * (x + 1.0))


def reward_of(name: str, prior: Prior) -> tuple[Reward, dict[str, str]]:
    """The reward of this name, and the hash of the user's file where it is the user's own.

    Raises:
      ValueError: no such reward, or one that is no function of images to a number for each.
    """
    sources = {}
    if user_function.is_named(name):
        reward, sha256 = user_function.load(name, "control.reward")
        sources["reward_sha256"] = sha256
    else:
        reward = lookup(REWARDS, name, "control.reward (or file.py:function)")
    if reward is redness and prior.image_shape[-1] != 3:
        raise ValueError("control.reward='redness' is of colours, and these images are grey")
    images = jax.ShapeDtypeStruct((2, *prior.image_shape), jnp.float32)
    try:
        result = jax.eval_shape(reward, images)
    except Exception as error:
        raise ValueError(
            f"control.reward={name!r} is no function of JAX arrays {list(images.shape)}: "
            f"{type(error).__name__}: {errors.one_line(error)}"
        ) from error
    shape = getattr(result, "shape", None)
    if shape != (2,) or not jnp.issubdtype(result.dtype, jnp.floating):
        what = f"{result.dtype}{list(shape)}" if shape is not None else type(result).__name__
        raise ValueError(
            f"control.reward={name!r} makes {what} of images {list(images.shape)}; it must make "
            "a float for each, float32[2]"
        )
    levels = np.random.RandomState(0).uniform(size=images.shape)
    if not np.all(np.isfinite(jax.jit(reward)(jnp.asarray(levels, jnp.float32)))):
        raise ValueError(
            f"control.reward={name!r} makes numbers that are not finite of images in [0, 1]"
        )
    return reward, sources


def steering(prior: Prior, options: Options, reward: Reward) -> Draw:
    """`feynman_kac.sample` with `control.particles` particles of each image: exact in the limit of
    many, and of a reward that has no gradient too."""
    times, count = prior.times(), options.particles
    return lambda score_of, noise, condition: feynman_kac.sample(
        prior.process, score_of(None), noise, times, count, reward=reward
    )


def gradient(prior: Prior, options: Options, reward: Reward) -> Draw:
    """The score with the gradient of the reward of E[x_0 | x], by any sampler.

    That is the score of the tilted density if the reward's exponential is as large on average over
    p(x_0 | x) as at its mean, which is an approximation wherever there is noise.
    """
    sample = prior.sampler()

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        score_fn = score_of(None)

        def of_estimate(x: jax.Array, t: jax.Array) -> jax.Array:
            return reward(convert(prior.process, x, t, score_fn(x, t), "score", "x0"))

        return sample(prior.sde, guidance.guided(score_fn, of_estimate), noise)

    return draw
