"""The task "prompt": images guided by text, through a CLIP."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import controllable
import data
import models
from control.prior import Options, Prior
from control.problem import Condition, Guidance, Problem, ScoreOf, variant_numbers
from data import captions
from diffusion import guidance
from diffusion.noise import Noise
from diffusion.parametrisation import convert
from diffusion.trajectory import Samples
from generation import guides
from interop import transformers_clip
from runtime import devices, files
from sde_lib import ScoreFn

Energy = Callable[[jax.Array], jax.Array]


def similarity(similarities: jax.Array) -> jax.Array:
    """The energy [B] of images by their similarities [B, 1 + K] to the prompt and its K rivals.

    It is CLIP's own, `exp(log_scale) <image(x, t), text>`. A CLIP that minimises its symmetric loss
    has `log p_t(text | x)` there, up to what does not depend on x: eq. 14 of Song et al. 2021
    (arXiv:2011.13456) with `control.scale` 1. See `losses.contrastive`.
    """
    return similarities[:, 0]


def contrast(similarities: jax.Array) -> jax.Array:
    """The energy [B] of images by their similarities [B, 1 + K] to the prompt and its K rivals.

    It is the logarithm of the prompt's share in a softmax over it and its rivals, the captions of
    all classes that it does not name. As a classifier's likelihood, it stops to pull at an image
    that is told from all rivals.
    """
    return jax.nn.log_softmax(similarities)[:, 0]


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


class Texts(NamedTuple):
    """The texts of n prompts and their rivals, as a CLIP sees them.

    Attributes:
      vectors: [n, 1 + K, E], a prompt's own first, and then those of all classes' captions.
      hidden: [n, 1 + K], the caption of the class that the prompt itself names.
      classes: [n], that class; -1: none.
    """

    vectors: np.ndarray
    hidden: np.ndarray
    classes: np.ndarray


def images_of_prompts(prior: Prior, options: Options, method: Energy) -> Problem:
    """Images of the texts in `control.prompt`, `score + scale grad_x energy(x, t, text)`.

    A prompt that names a class should be taken for it.

    Raises:
      ValueError: no prompt, one too long, or what `guides.load_guide` or `transformers_clip`
        refuses.
    """
    prompts = [text.strip() for text in options.prompt.split(";") if text.strip()]
    if not prompts:
        raise ValueError(
            "control.task='prompt' needs a text in control.prompt, 'a photo of a sneaker' for "
            "instance; several are separated by semicolons"
        )
    folder = files.as_path(options.guide, "control.guide")
    if options.guide and transformers_clip.is_folder(folder):
        files.refuse_url(options.guide, "control.guide", "copy this CLIP here")
        towers = clean_towers(prior, folder)
    else:
        towers = noisy_towers(prior, options.guide)
    try:
        names = data.class_names(prior.dataset_name)
    except ValueError:
        if method is contrast:  # there would be no rivals
            raise
        names = ()
    texts = embedded_texts(towers, prompts, names)
    sample = prior.sampler()
    scale = guidance.scale_in(prior.sde, options.scale, options.interval, outside=0.0)

    def draw(score_of: ScoreOf, noise: Noise, condition: Condition) -> Samples:
        return sample(prior.sde, score_of(None), noise)

    def guided(weights: Any, condition: Condition, score: ScoreFn) -> ScoreFn:
        def log_likelihood(x: jax.Array, t: jax.Array) -> jax.Array:
            similarities = towers.similarity(weights, score, x, t, condition["text"])
            return method(jnp.where(condition["hidden"], -jnp.inf, similarities))

        return controllable.guided(score, log_likelihood, scale)

    named = (texts.classes >= 0).any()
    return Problem(
        draw,
        {"text": texts.vectors, "hidden": texts.hidden},
        variant_numbers(options.num_variants),
        titles=prompts,
        target_classes=texts.classes[:, None].repeat(options.num_variants, 1) if named else None,
        guidance=Guidance(towers.weights, guided, towers.label),
    )


def embedded_texts(towers: Towers, prompts: Sequence[str], class_names: Sequence[str]) -> Texts:
    """The prompts and the captions of all classes, in the space of a CLIP."""
    classes = np.array([captions.class_named(text, class_names) for text in prompts])
    count = len(prompts)
    embedded = towers.embed([*prompts, *map(captions.TEMPLATES[0].format, class_names)])
    of_prompts, of_classes = embedded[:count, None], embedded[None, count:]
    vectors = np.concatenate([of_prompts, of_classes.repeat(count, 0)], 1)
    hidden = np.zeros(vectors.shape[:2], bool)
    hidden[classes >= 0, 1 + classes[classes >= 0]] = True
    return Texts(vectors, hidden, classes)


def noisy_towers(prior: Prior, folder: str) -> Towers:
    """The CLIP of noisy images in `control.guide`, the run of objective "clip"."""
    guide = guides.load_guide(folder, prior, models.CLIP_OBJECTIVE)
    clip, length = guide.parts.module, guide.config.clip.text_length

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = np.stack([captions.tokens(text, length) for text in texts])
        text = jax.jit(functools.partial(clip.apply, method="text"))
        return np.asarray(text({"params": devices.fetch(guide.params)}, tokens))

    def scaled_cosines(
        params: Any, score: ScoreFn, x: jax.Array, t: jax.Array, vectors: jax.Array
    ) -> jax.Array:
        del score
        apply = functools.partial(clip.apply, {"params": params})
        image = apply(x, models.continuous_labels(prior.sde, t), method="image")
        return apply(method="scale") * jnp.einsum("be,bke->bk", image, vectors)

    return Towers(guide.params, embed, scaled_cosines, guide.source(folder))


def clean_towers(prior: Prior, folder: pathlib.Path) -> Towers:
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

    def scaled_cosines(
        params: Any, score: ScoreFn, x: jax.Array, t: jax.Array, vectors: jax.Array
    ) -> jax.Array:
        x0 = convert(prior.sde, x, t, score(x, t), "score", "x0")
        pixels = (x0 + 1.0) / 2.0 if prior.pixels.centered else x0
        colours = jnp.broadcast_to(pixels, (*pixels.shape[:3], 3))
        resized = jax.image.resize(colours, (len(x), *size, 3), "bicubic")
        apply: Any = functools.partial(clip.apply, {"params": params})
        image = apply((resized - mean) / std, method="image")
        return apply(method="scale") * jnp.einsum("be,bke->bk", image, vectors)

    return Towers(devices.replicate(params), embed, scaled_cosines, f"{folder}, of clean images")
