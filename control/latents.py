"""Tasks on latent codes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import data
import likelihood
from control.prior import Options, Prior
from control.problem import Condition, Problem, ScoreOf, images_of, input_images, variant_numbers
from diffusion import grids, latent
from diffusion.noise import Noise
from diffusion.trajectory import Samples, all_finite
from evaluation.batch_cache import Store
from runtime import devices, errors
from runtime.arrays import FLAG, fingerprint
from sde_lib import SDE, ScoreFn, batch_mul


class Coding(NamedTuple):
    """Images to latents, and latents to images: (score_fn, x [B, ...]) -> Samples."""

    encode: Callable[[ScoreFn, jax.Array], Samples]
    decode: Callable[[ScoreFn, jax.Array], Samples]


Method = Callable[[Prior], Coding]
NoisyRestart = Callable[[SDE, ScoreFn, Noise, jax.Array, np.ndarray], Samples]


def flow(prior: Prior) -> Coding:
    """The probability flow between times eps and T, by an adaptive solver.

    Raises:
      ValueError: a network with discrete labels.
    """
    if not prior.continuous:
        raise ValueError(
            "control.method='flow' asks the network at all times, but it was trained with discrete "
            "labels (training.continuous is False); use ddim"
        )
    options = prior.options
    settings = {"rtol": options.rtol, "atol": options.atol, "solver": options.solver}
    settings["eps"] = options.eps or None

    def along(solve: Callable[..., Any], score_fn: ScoreFn, x: jax.Array) -> Samples:
        solution = solve(prior.sde, score_fn, x, **settings)
        return Samples(solution.y, solution.nfe, solution.ok)

    encode, decode = (functools.partial(along, f) for f in (likelihood.encode, likelihood.decode))
    return Coding(encode, decode)


def ddim(prior: Prior) -> Coding:
    """DDIM's deterministic steps, up and down one time grid."""
    sde, times = prior.process, prior.times()

    def encode(score_fn: ScoreFn, x: jax.Array) -> Samples:
        z = latent.ddim_encode(sde, score_fn, x, times)
        return Samples(z, len(times) - 1, all_finite(z))

    return Coding(encode, lambda score_fn, z: latent.ddim_decode(sde, score_fn, z, times))


def interpolate(prior: Prior, options: Options, method: Method) -> Problem:
    """Spherical interpolation between the latents of each image and the next.

    Raises:
      ValueError: fewer than two images.
    """
    coding = method(prior)
    if options.num_images < 2:
        raise ValueError("control.task='interpolate' needs control.num_images of 2 or more")
    weights = np.linspace(0.0, 1.0, options.num_variants + 2)[1:-1]
    images = input_images(prior.dataset(options.split), options.num_images)
    x = prior.pixels.to_model(images)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        first, last = (coding.encode(score_of(None), condition[name]) for name in ("first", "last"))
        weight = jnp.asarray(weights, x.dtype)[condition["variant"]]
        z = options.temperature * latent.slerp(first.x, last.x, weight)
        between = coding.decode(score_of(None), z)
        ok = first.ok & last.ok & between.ok
        return Samples(between.x, first.nfe + last.nfe + between.nfe, ok)

    return Problem(
        draw,
        {"first": x[:-1], "last": x[1:]},
        [f"{weight:.2f}" for weight in weights],
        {"first": images[:-1]},
        {"last": images[1:]},
    )


def reconstruct(prior: Prior, options: Options, method: Method) -> Problem:
    """Images from their own latents times `control.temperature`; one variant of each."""
    coding = method(prior)
    images = input_images(prior.dataset(options.split), options.num_images)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        code = coding.encode(score_of(None), condition["input"])
        image = coding.decode(score_of(None), options.temperature * code.x)
        return Samples(image.x, code.nfe + image.nfe, code.ok & image.ok)

    x = prior.pixels.to_model(images)
    return Problem(draw, {"input": x}, ["again"], columns_after={"original": images})


def sdedit(prior: Prior, options: Options, method: NoisyRestart) -> Problem:
    """Images noised to the time `control.start` T, and drawn back."""
    times = latent.times_from(prior.times(), options.start * prior.sde.T)
    if not prior.continuous:
        times = grids.on_levels(prior.sde, times)
    images = input_images(prior.dataset(options.split), options.num_images)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return method(prior.process, score_of(None), noise, condition["input"], times)

    return Problem(
        draw,
        {"input": prior.pixels.to_model(images)},
        variant_numbers(options.num_variants),
        columns_after={"original": images},
    )


def attribute(prior: Prior, options: Options, method: Method) -> Problem:
    """Images of one class made into another by a step in their latents, `latent.direction`.

    `control.classes` are the class that they have and the one that they should get. The step is
    `control.scale` times the mean latent of `control.num_examples` training images of the latter,
    less that of the former; the variants go there in equal parts.

    Raises:
      ValueError: not two different classes of the data set, or too few images of them.
    """
    coding = method(prior)
    classes, training_set = options.classes, prior.dataset("train")
    if len(set(classes)) != 2 or len(classes) != 2 or max(classes) >= training_set.num_classes:
        raise ValueError(
            f"control.task='attribute' needs two classes of 0 to {training_set.num_classes - 1} in "
            f"control.classes, the one to start from and the one to go to, not {classes}"
        )
    images = images_of_class(
        prior.dataset(options.split), classes[0], options.num_images, "control.num_images"
    )
    source, target = (
        prior.pixels.to_model(
            images_of_class(training_set, y, options.num_examples, "control.num_examples")
        )
        for y in classes
    )
    shares = np.linspace(0.0, 1.0, options.num_variants + 1)[1:]

    def prepare(params: Any, store: Store) -> dict[str, np.ndarray]:
        """The direction, once for each input."""
        x = np.concatenate([source, target])
        z = latents(prior, coding, params, x, options.batch_size, store)
        direction = latent.direction(jnp.asarray(z), jnp.arange(len(z)) >= len(source))
        return {"direction": np.asarray(direction)[None].repeat(len(images), 0)}

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        share = jnp.asarray(options.scale * shares, jnp.float32)[condition["variant"]]
        code = coding.encode(score_of(None), condition["input"])
        z = code.x + batch_mul(share, condition["direction"])
        image = coding.decode(score_of(None), z)
        return Samples(image.x, code.nfe + image.nfe, code.ok & image.ok)

    target_classes = np.full((len(images), len(shares)), -1)
    target_classes[:, -1] = classes[1]
    return Problem(
        draw,
        {"input": prior.pixels.to_model(images)},
        [f"{share:.2f}" for share in shares],
        {"original": images},
        target_classes=target_classes,
        prepare=prepare,
    )


def latents(
    prior: Prior, coding: Coding, params: Any, x: np.ndarray, batch_size: int, store: Store
) -> np.ndarray:
    """The latents of images x [n, ...], each encoded on its own, by all devices.

    Those of finished batches are in the store, which is that of all else that they depend on.

    Raises:
      ValueError: images that could not be encoded.
    """

    def encode(params: Any, numbers: jax.Array, x: jax.Array) -> dict[str, jax.Array]:
        def one(x: jax.Array) -> Samples:
            return coding.encode(prior.score(params), x[None])

        codes = jax.vmap(one)(x)
        return {"z": codes.x[:, 0], "ok": codes.ok[:, 0]}

    batch = devices.fitting_batch(min(batch_size, len(x)))
    run = devices.ImageMap(encode, batch, "control.batch_size")

    def compute(missing: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        yield from run(params, missing, x[missing], "latents")

    row = {"z": ("f", x.shape[1:]), "ok": FLAG}
    shards = store.open(row, what="latents", images=fingerprint(x))
    batches = list(shards.batches(np.arange(len(x)), run.batch_size, compute))
    z, ok = (np.concatenate([batch[name] for batch in batches]) for name in row)
    errors.refuse(np.flatnonzero(~ok), "could not be encoded")
    return z


def images_of_class(dataset: data.Dataset, y: int, count: int, setting: str) -> np.ndarray:
    """The first `count` images of class y.

    Raises:
      ValueError: there are not as many; names the `setting` that asked for them.
    """
    rows = np.flatnonzero(np.asarray(dataset.labels[:]) == y)
    if count > len(rows):
        raise ValueError(
            f"{setting} is {count}, but {dataset.name}/{dataset.split} has {len(rows)} images of "
            f"class {y}"
        )
    return images_of(dataset, rows[:count])
