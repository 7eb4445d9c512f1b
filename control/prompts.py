"""The task "prompt": images guided by text, through a CLIP."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import controllable
import data
import models
from configs.names import lookup
from control import guides
from control.classes import scale_of
from control.problem import Condition, Config, Guidance, Problem, ScoreOf, numbered, sampler
from data import captions
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples
from interop import transformers_clip
from runtime import devices, experiment
from sde_lib import ScoreFn

# From similarities [B, 1 + K] of images to the prompt and its rivals, to the energy [B].
ENERGIES = {
    "similarity": lambda similarity: similarity[:, 0],
    "contrast": lambda similarity: jax.nn.log_softmax(similarity)[:, 0],
}


@dataclasses.dataclass(frozen=True)
class Towers:
    """A CLIP that compares noisy images with texts.

    Attributes:
      weights: on every device.
      embed: texts to unit vectors [N, E].
      similarity: (weights, score, x [B, ...], t [B], vectors [B, K, E]) to scaled cosines [B, K].
      label: where the weights are from.
    """

    weights: Any
    embed: Callable[[Sequence[str]], np.ndarray]
    similarity: Callable[[Any, ScoreFn, jax.Array, jax.Array, jax.Array], jax.Array]
    label: str


def prompt(config: Config, parts: experiment.Parts) -> Problem:
    """Images of the texts in `control.prompt`, `score + scale grad_x energy(x, t, text)`.

    The energy is, by `control.method`,

    - "similarity": CLIP's own, `exp(log_scale) <image(x, t), text>`. A CLIP that minimises its
      symmetric loss has `log p_t(text | x)` there, up to what does not depend on x: eq. 14 of Song
      et al. 2021 (arXiv:2011.13456) with `control.scale` 1. See `losses.contrastive`.
    - "contrast": the logarithm of the prompt's share in a softmax over it and the captions of all
      classes that it does not name. As a classifier's likelihood, it stops to pull at an image that
      is told from all rivals.

    A prompt that names a class should be taken for it.

    Raises:
      ValueError: no prompt, one too long, an unknown method, or what `guides.load_guide` or
        `transformers_clip` refuses.
    """
    texts = [text.strip() for text in config.control.prompt.split(";") if text.strip()]
    if not texts:
        raise ValueError(
            "control.task='prompt' needs a text in control.prompt, 'a photo of a sneaker' for "
            "instance; several are separated by semicolons"
        )
    energy = lookup(ENERGIES, config.control.method, "control.method")
    folder = pathlib.Path(config.control.guide)
    if config.control.guide and transformers_clip.is_folder(folder):
        towers = pretrained(config, parts, folder)
    else:
        towers = trained(config, parts)
    try:
        names = data.class_names(config.data.dataset)
    except ValueError:
        if config.control.method == "contrast":  # there would be no rivals
            raise
        names = ()

    asked = np.array([captions.class_named(text, names) for text in texts])
    embedded = towers.embed([*texts, *map(captions.TEMPLATES[0].format, names)])
    own, rivals = embedded[: len(texts), None], embedded[None, len(texts) :]
    told = np.concatenate([own, rivals.repeat(len(texts), 0)], 1)
    hidden = np.zeros(told.shape[:2], bool)
    hidden[asked >= 0, 1 + asked[asked >= 0]] = True
    sample, scale = sampler(config), scale_of(config, parts.sde, 0.0)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return sample(parts.sde, score_of(None), noise)

    def guided(weights: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        def log_likelihood(x: jax.Array, t: jax.Array) -> jax.Array:
            similarity = towers.similarity(weights, score, x, t, condition["text"])
            return energy(jnp.where(condition["hidden"], -jnp.inf, similarity))

        return controllable.guided(score, log_likelihood, scale)

    variants = numbered(config)
    return Problem(
        draw,
        {"text": told, "hidden": hidden},
        variants,
        titles=texts,
        asked=asked[:, None].repeat(len(variants), 1) if (asked >= 0).any() else None,
        guidance=Guidance(towers.weights, guided, towers.label),
    )


def trained(config: Config, parts: experiment.Parts) -> Towers:
    """The CLIP of noisy images in `control.guide`, the run of objective "clip"."""
    guide = guides.load_guide(config, parts, models.CLIP_OBJECTIVE)
    clip, length = guide.parts.module, guide.config.clip.text_length

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = np.stack([captions.tokens(text, length) for text in texts])
        text = jax.jit(functools.partial(clip.apply, method="text"))
        return np.asarray(text({"params": devices.fetch(guide.params)}, tokens))

    def similarity(
        params: Any, score: ScoreFn, x: jax.Array, t: jax.Array, vectors: jax.Array
    ) -> jax.Array:
        del score
        apply = functools.partial(clip.apply, {"params": params})
        image = apply(x, models.continuous_labels(parts.sde, t), method="image")
        return apply(method="scale") * jnp.einsum("be,bke->bk", image, vectors)

    label = f"{config.control.guide}, step {guide.step}, {guide.label}"
    return Towers(guide.params, embed, similarity, label)


def pretrained(config: Config, parts: experiment.Parts, folder: pathlib.Path) -> Towers:
    """The CLIP of clean images in a folder of Hugging Face's format.

    It sees no noise, so it is shown x0(x, t) = E[x_0 | x], in its own size and range of pixels; the
    gradient goes through the score network too. That the text's likelihood at x is that at the mean
    x0 is an approximation, which is good where there is little noise.
    """
    clip, params, mean, std = transformers_clip.read(folder)
    size = (clip.image_size, clip.image_size)

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = transformers_clip.tokens(folder, clip, texts)
        text = jax.jit(functools.partial(clip.apply, method="embed_text"))
        return np.asarray(text({"params": params}, tokens))

    def similarity(
        params: Any, score: ScoreFn, x: jax.Array, t: jax.Array, vectors: jax.Array
    ) -> jax.Array:
        x0 = convert(parts.sde, x, t, score(x, t), "score", "x0")
        pixels = (x0 + 1.0) / 2.0 if config.data.centered else x0
        colours = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))
        seen = jax.image.resize(colours, (len(x), *size, 3), "bicubic")
        apply: Any = functools.partial(clip.apply, {"params": params})
        image = apply((seen - mean) / std, method="image")
        return apply(method="scale") * jnp.einsum("be,bke->bk", image, vectors)

    return Towers(devices.replicate(params), embed, similarity, f"{folder}, of clean images")
